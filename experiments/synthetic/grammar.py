"""Sentences of a small grammar, for the synthetic corpus: 3 to 7 words, lower case, without punctuation."""

import hashlib
import random

CLASSES: dict[str, tuple[str, ...]] = {
    "verb": ("open", "close", "find", "bring", "move", "hide"),
    "colour": ("red", "blue", "green", "yellow", "purple"),
    "number": ("two", "three", "five", "seven", "nine"),
    "object": ("lamp", "door", "book", "basket", "window", "table"),
    "things": ("apples", "bottles", "flowers", "letters"),
    "place": ("kitchen", "garden", "office", "school"),
    "person": ("anna", "charlie", "emma", "jack", "oliver", "susan"),
    "where": ("in", "near", "behind"),
    "day": ("today", "tomorrow", "friday"),
    "wish": ("wants", "has", "needs"),
}
"""The words that may stand for each name in `TEMPLATES`."""

TEMPLATES: tuple[str, ...] = (
    "{verb} the {colour} {object}",
    "{verb} the {object} {where} the {place}",
    "please {verb} the {colour} {object} {day}",
    "put {number} {colour} {things} {where} the {place}",
    "{person} {wish} {number} {things}",
    "{person} {wish} {number} {colour} {things} {day}",
    "{person} is {where} the {place}",
    "call {person} at {number} {day}",
    "don't {verb} the {colour} {object}",
    "give {person} the {colour} {object}",
    "{person} and {person} don't {verb} the {object}",
)
"""What a sentence is made of; a name in braces stands for a word of its class."""


def vocabulary() -> tuple[str, ...]:
    """All words, in alphabetical order."""
    words = {word for words in CLASSES.values() for word in words}
    for template in TEMPLATES:
        words |= {word for word in template.split() if not word.startswith("{")}
    return tuple(sorted(words))


def sentence(rng: random.Random) -> str:
    """Draws one sentence. No word stands twice in it, but for `the`."""
    while True:
        words = [
            rng.choice(CLASSES[word[1:-1]]) if word.startswith("{") else word for word in rng.choice(TEMPLATES).split()
        ]
        content = [word for word in words if word != "the"]
        if len(content) == len(set(content)):
            return " ".join(words)


def is_held_out(text: str) -> bool:
    """Whether a sentence is for testing only. It depends on the sentence alone, and is so for one in four.

    No one, the speakers of the base included, says such a sentence in training or for choosing a model.
    """
    return hashlib.sha256(text.encode()).digest()[0] < 64


def sentences(seed: str, number: int, *, held_out: bool) -> list[str]:
    """Different sentences, the same ones for the same seed.

    Args:
        seed: any text, such as the id of a speaker and a split.
        number: how many; at most some thousands, or drawing new ones takes long.
        held_out: whether they are for testing (`is_held_out`) or for the rest.
    """
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        text = sentence(rng)
        if is_held_out(text) == held_out:
            found[text] = None
    return list(found)


def covering(texts: list[str]) -> list[str]:
    """The sentences in an order in which the first ones have as many different words as they can, as a good list to
    read for enrolment has.
    """
    left, seen, ordered = list(texts), set[str](), []
    while left:
        best = max(left, key=lambda text: len(set(text.split()) - seen))
        left.remove(best)
        ordered.append(best)
        seen |= set(best.split())
        if len(seen) == len({word for text in texts for word in text.split()}):
            seen = set[str]()
    return ordered
