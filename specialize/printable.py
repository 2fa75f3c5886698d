"""Texts of others, made safe to print: manifests and models may hold what a terminal would obey."""

import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero width, but part of how words are written in many scripts."""


def printable(text: str) -> str:
    """Text as one line without control characters: white space becomes spaces, all else of the kind U+FFFD.

    Marks that turn the direction of what follows, and halves of surrogate pairs, are of that kind.
    """
    if text.isprintable():
        return text
    return "".join(" " if c.isspace() else _shown(c) for c in text)


def _shown(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character)[0] != "C":
        return character
    return "\N{REPLACEMENT CHARACTER}"
