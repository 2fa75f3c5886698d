"""Which speech a run is about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specialize.caches import cache_root
from specialize.errors import ConfigError


@dataclass(frozen=True)
class CorpusConfig:
    """A manifest and the part of it to use."""

    manifest: Path
    """JSONL or CSV file, an utterance a line: audio, text, speaker; optional utterance, split, role, attributes. Or
    `tfds:NAME`, a data set of the TFDS catalogue such as tfds:librispeech (extra `tf`). The speakers 7 and "7" are one;
    a recording counts once."""
    role: str | None = None
    """Only utterances whose `role` in the manifest is this; a manifest that names no roles is used whole."""
    speakers: tuple[str, ...] = ()
    """Only these speakers; none named means all."""
    limit: int | None = None
    """Only the first so many speakers, in the order of the manifest."""
    pool: str | None = None
    """Treat all chosen speakers as one of this name: how one Submodel for many people is trained."""
    splits: Literal["given", "hash"] = "given"
    """Whether to split as the manifest says, or each speaker's utterances by a hash, as if it said nothing: for corpora
    that have other speakers in each split."""
    text: Literal["base", "verbatim"] = "base"
    """Training targets as the base writes (sentences for Whisper, small letters where it has no others), or exactly as
    in the manifest."""
    cache: Path | None = None
    """Where decoded corpora are kept; default $SPECIALIZE_CACHE/corpora, or ~/.cache/specialize/corpora."""
    strict: bool = False
    """Stop at bad utterances instead of leaving them out and listing them; `--strict` for short."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"corpus.limit={self.limit}, but it must be at least 1, or None for all speakers.")
        if self.pool == "":
            raise ConfigError("corpus.pool is empty. Give the pool a name, or None to train each speaker.")

    @property
    def cache_folder(self) -> Path:
        """The folder for decoded corpora."""
        if self.cache is not None:
            return self.cache
        return cache_root() / "corpora"
