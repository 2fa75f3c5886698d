"""Normalised texts and the counts that error rates are made of."""

import functools
from collections.abc import Callable
from dataclasses import astuple, dataclass

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})
"""Languages that are written without spaces; their letters are scored as words."""


def normalizer(language: str = "en") -> Callable[[str], str]:
    """The text normaliser of Whisper (Radford et al. 2022, appendix C) for a language.

    English has its own, which unites spellings, numbers and contractions and drops fillers and what is in brackets.
    Other languages lose case, punctuation and what is in brackets; those without spaces are split into letters.

    Args:
        language: code such as 'en', 'en-GB' or 'de'.
    """
    code = language.lower().replace("_", "-").split("-")[0]
    if code in ("en", "english"):
        return functools.lru_cache(maxsize=100_000)(EnglishTextNormalizer())
    return functools.lru_cache(maxsize=100_000)(_basic(split_letters=code in UNSPACED))


def _basic(split_letters: bool) -> Callable[[str], str]:
    normalize = BasicTextNormalizer(split_letters=split_letters)
    return lambda text: normalize(text).strip()


@dataclass(frozen=True)
class Counts:
    """Edits that turn references into hypotheses, in words or in characters; sums of utterances add up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Words (or characters) of the references."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float | None:
        """Errors over the length of the references: WER or CER. May pass 1; None where there is no reference."""
        return self.errors / self.length if self.length else None

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def count_words(reference: str, hypothesis: str) -> Counts:
    """Fewest word edits between two normalised texts (Levenshtein, by jiwer)."""
    return _counts(jiwer.process_words(reference, hypothesis))


def count_characters(reference: str, hypothesis: str) -> Counts:
    """Fewest character edits between two normalised texts; spaces count as characters."""
    return _counts(jiwer.process_characters(reference, hypothesis))


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> Counts:
    return Counts(output.substitutions, output.deletions, output.insertions, output.hits)
