"""Text to token ids and back, by the checkpoint's own tokenizer."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from specialize.errors import BaseModelError, SpecializeError


class TokenizerError(SpecializeError):
    """Text that a tokenizer cannot make."""


class Tokenizer:
    """A byte-level BPE as Whisper's.

    Args:
        definition: contents of a `tokenizer.json`.
        end: id of the token that ends a transcript.
    """

    def __init__(self, definition: str, end: int):
        self.definition, self.end = definition, end
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
        """Ids of `text` after a space, as transcripts begin, and the id of the end.

        Raises:
            TokenizerError: the text is empty, has the tokenizer's own markup in it, or does not come back as it was.
        """
        text = text.strip()
        if not text:
            raise TokenizerError("The text is empty.")
        if self._special is not None and (markup := self._special.search(text)):
            raise TokenizerError(f"The text has '{markup.group()}' in it, which is markup of the tokenizer.")
        ids = self._tokenizer.encode(" " + text, add_special_tokens=False).ids
        if (back := self.decode(ids)) != text:
            raise TokenizerError(f"The tokenizer cannot make this text: '{text}' comes back as '{back}'.")
        return [*ids, self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end; markup is left out."""
        ids = list(ids)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def id_of(self, token: str) -> int | None:
        """The id of one token by its exact spelling; None if there is none."""
        return self._tokenizer.token_to_id(token)


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


def sentence_case(text: str) -> str:
    """A transcript as a sentence, which Whisper's decoder is used to: capital first letter, a stop at the end.

    The word i becomes I. Text that is then without any lower-case letter is lowered first. A sentence stays as it is.
    """
    text = " ".join(text.split())
    if not text:
        return text
    sentence = _capitals(text)
    if sentence.upper() == sentence:
        sentence = _capitals(text.lower())
    return sentence if sentence[-1] in ".?!…\"'”)" else sentence + "."


def _capitals(text: str) -> str:
    text = re.sub(r"\bi\b(?!\.\w)", "I", text)
    return text[0].upper() + text[1:]
