"""Text to token ids and back, by the checkpoint's own tokenizer."""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tokenizers

from specialize.errors import BaseModelError, SpecializeError


class TokenizerError(SpecializeError):
    """Text that a tokenizer cannot make."""


Style = Literal["whisper", "plain"]
_BLANK = "<blank>"
_ENDS = ".?!…\"'”)。？！؟।"
_PUNCTUATION = '.,?!;:"()[]…“”„–—-'


class Tokenizer:
    """Text to labels and back.

    Args:
        definition: contents of a `tokenizer.json`.
        end: id that ends a transcript and fills up the rest of a row; the blank where labels have no end.
        style: `whisper` puts a space before a text and its end after it, and writes sentences; `plain` labels are the
            text and nothing else.
    """

    def __init__(self, definition: str, end: int, style: Style = "whisper"):
        self.definition, self.end, self.style = definition, end, style
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises plain Exception
            raise BaseModelError(f"The tokenizer cannot be read: {error}") from error
        special = sorted(
            (token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special),
            key=len,
            reverse=True,
        )
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def encode(self, text: str) -> list[int]:
        """Labels of `text`: its ids, in the style of Whisper after a space, as transcripts begin, and with the end.

        Raises:
            TokenizerError: the text is empty, has the tokenizer's own markup in it, or does not come back as it was.
        """
        text = text.strip()
        if not text:
            raise TokenizerError("The text is empty.")
        if self._special is not None and (markup := self._special.search(text)):
            raise TokenizerError(f"The text has '{markup.group()}' in it, which is markup of the tokenizer.")
        whisper = self.style == "whisper"
        ids = self._tokenizer.encode(" " + text if whisper else text, add_special_tokens=False).ids
        if (back := self._tokenizer.decode(ids, skip_special_tokens=True).strip()) != text:
            raise TokenizerError(f"The tokenizer cannot make this text: '{text}' comes back as '{back}'.")
        return [*ids, self.end] if whisper else ids

    def adapt(self, text: str, language: str = "en") -> str:
        """`text` as a base with this tokenizer writes: a sentence in the style of Whisper (see `sentence_case`).

        Otherwise in small letters where the tokenizer has no capitals, and without the punctuation that it lacks.

        Args:
            text: as in a manifest.
            language: code of what it is in.
        """
        if self.style == "whisper":
            return sentence_case(text, language)
        if not self._makes("A"):
            text = text.lower()
        lacking = {mark: " " for mark in set(text) & set(_PUNCTUATION) if not self._makes(mark)}
        return " ".join(text.translate(str.maketrans(lacking)).split())

    @functools.cache  # noqa: B019  (a tokenizer lives as long as its base)
    def _makes(self, text: str) -> bool:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip() == text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end; markup is left out."""
        ids = list(ids)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def id_of(self, token: str) -> int | None:
        """The id of one token by its exact spelling; None if there is none."""
        return self._tokenizer.token_to_id(token)

    @property
    def no_speech(self) -> int | None:
        """The id of Whisper's token for a window without speech; None where there is none."""
        found = self.id_of("<|nospeech|>")  # so since large-v3, and `nocaptions` before
        return self.id_of("<|nocaptions|>") if found is None else found

    @property
    def markup(self) -> dict[str, int]:
        """The tokens that are no text, by their spelling."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: id_ for id_, token in added.items() if token.special}


def character_tokenizer(alphabet: str) -> Tokenizer:
    """A tokenizer with a token for each character of `alphabet`, in its order, and the blank after them.

    Raises:
        BaseModelError: a character is there twice, or none is.
    """
    if not alphabet or len(set(alphabet)) < len(alphabet):
        raise BaseModelError(f"The alphabet '{alphabet}' must have every character once.")
    vocabulary = {character: index for index, character in enumerate([*alphabet, _BLANK])}
    # A character of no token becomes the blank, which `encode` then finds missing from the text.
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=_BLANK))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")  # type: ignore[assignment]
    made.decoder = tokenizers.decoders.Fuse()  # type: ignore[assignment]
    made.add_special_tokens([_BLANK])
    return Tokenizer(made.to_str(), len(alphabet), "plain")


def read_definition(folder: Path) -> str:
    """The `tokenizer.json` of a Hugging Face folder, made from `vocab.json` and `merges.txt` where it is missing.

    Raises:
        BaseModelError: neither is there, or the added tokens would have other ids than they should.
    """
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json").read_text(encoding="utf-8")
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise BaseModelError(f"'{folder}' has no tokenizer: neither tokenizer.json nor {' and '.join(missing)}.")
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    if (folder / "added_tokens.json").is_file():
        added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
        made.add_special_tokens(
            [tokenizers.AddedToken(token, special=True) for token, _ in sorted(added.items(), key=lambda kv: kv[1])]
        )
        # The library numbers added tokens in their order, after the vocabulary.
        if moved := [token for token, id_ in added.items() if made.token_to_id(token) != id_]:
            raise BaseModelError(
                f"'{folder}/added_tokens.json' leaves gaps: '{moved[0]}' should be {added[moved[0]]}, but comes to "
                f"{made.token_to_id(moved[0])}. Save the tokenizer as tokenizer.json first."
            )
    return made.to_str()


def sentence_case(text: str, language: str = "en") -> str:
    """A transcript as a sentence, which Whisper's decoder is used to: capital first letter, a stop at the end.

    In English the word i becomes I. Text that is then without any lower-case letter is lowered first. A sentence stays
    as it is, and so does what is written in another language's letters that have no capitals, but for its spaces.

    Args:
        text: the transcript.
        language: code of what it is in.
    """
    text = " ".join(text.split())
    if not text or (language != "en" and text.upper() == text.lower()):
        return text
    sentence = _capitals(text, language)
    if sentence.upper() == sentence:
        sentence = _capitals(text.lower(), language)
    return sentence if sentence[-1] in _ENDS else sentence + "."


def _capitals(text: str, language: str) -> str:
    if language == "en":
        text = re.sub(r"\bi\b(?!\.\w)", "I", text)
    return text[0].upper() + text[1:]
