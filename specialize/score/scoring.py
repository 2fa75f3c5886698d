"""What to score, and how; and where what comes of it is written, so that no scoring replaces another's."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from specialize.base import Base
from specialize.corpus import CorpusConfig, Problem
from specialize.errors import ConfigError
from specialize.printable import printable

Context = Literal["needed", "full"]


@dataclass(frozen=True)
class Scoring:
    """What to score, and how."""

    base: Path | None = None
    """Base folder, if it has moved since the run."""
    manifest: Path | None = None
    """Another manifest, or where the run's has moved."""
    role: str | None = None
    """Score the speakers of this role instead of those that the run trained on: for a run of one pooled Submodel."""
    split: Literal["test", "dev"] = "test"
    """Which utterances to score. Choose recipes on dev, and look at test once."""
    out: Path | None = None
    """Write into this folder instead of the run's; for several runs, into a folder in it for each."""
    text: bool = False
    """Also print reference and hypotheses of every utterance, with the differences marked."""
    groups: tuple[str, ...] | None = None
    """Columns of the manifest to group by, default all attributes that vary; numbers of many values are cut into bins.
    `seconds` is the length of the audio."""
    language: str | None = None
    """Picks the text normaliser; None takes the language that the base is prompted for, or English."""
    base_context: Literal["best", "full", "needed"] = "best"
    """What the base alone sees of a Whisper's 30 s window. `best` decodes both ways and scores it at the better one."""
    gate: Literal["on", "off"] = "on"
    """Whether the base serves speakers whose Submodel did not beat it on their dev utterances, or was quarantined."""
    beam: int = 1
    """Hypotheses of the search of a base with CTC or a transducer; 1 is greedy."""
    tokens_per_second: float | None = None
    """Most tokens that a Whisper writes for a second of audio; None is what the base folder says, mostly 8. Scripts of
    which a letter takes several tokens need more."""
    batch: int = 16
    """Utterances decoded at a time."""
    resamples: int = 10_000
    """Bootstrap resamples of the speakers."""

    def __post_init__(self):
        for name in ("beam", "batch", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, but it must be at least 1.")
        if self.tokens_per_second is not None and not 0 < self.tokens_per_second < float("inf"):
            raise ConfigError(f"tokens_per_second={self.tokens_per_second}, but it must be positive and finite.")

    def corpus(self, config: CorpusConfig) -> CorpusConfig:
        """A run's corpus, person by person, with what is to be another."""
        config = dataclasses.replace(config, pool=None)
        if self.manifest is not None:
            config = dataclasses.replace(config, manifest=self.manifest)
        if self.role is not None:
            config = dataclasses.replace(config, role=self.role, speakers=(), limit=None)
        return config

    def of(self, base: Base) -> Base:
        """The base, decoding as it is to."""
        return base.with_beam(self.beam).with_tokens_per_second(self.tokens_per_second)

    def language_of(self, base: Base) -> str:
        """What picks the normaliser."""
        return self.language or base.language

    def differs(self, base: Base, roles: Collection[str | None], own_corpus: bool) -> list[str]:
        """In what it is not the plain scoring of a run; empty where it is.

        Args:
            base: of the run.
            roles: of its corpora.
            own_corpus: whether what is scored is the corpus that it trained on.
        """
        found = (
            (self.role, self.role is not None and set(roles) != {self.role}),
            (self.split, self.split != "test"),
            (f"manifest-{self.manifest and self.manifest.stem}", not own_corpus),
            ("gate-off", self.gate == "off"),
            (f"base-{self.base_context}", self.base_context != "best"),
            (f"beam-{self.beam}", self.beam > 1),
            (f"tokens-{self.tokens_per_second}", self.tokens_per_second is not None),
            (f"language-{self.language}", self.language_of(base) != base.language),
        )
        return [str(name) for name, differs in found if differs]


@dataclass(frozen=True)
class Files:
    """Where the results of one scoring of a run go."""

    results: Path
    transcripts: Path
    report: Path

    @classmethod
    def of(cls, run: Path, out: Path | None, differs: Sequence[str]) -> "Files":
        """Files in `out`, or in the run with a suffix that says how a scoring differs from the plain one.

        Makes the folder, so that what cannot be written is known before anything is decoded.
        """
        inside = out is None or out.resolve() == run.resolve()
        suffix = "".join("." + re.sub(r"[^\w.=+-]+", "-", part) for part in differs) if inside else ""
        folder = run if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            folder / f"results{suffix}.json", folder / f"transcripts{suffix}.jsonl", folder / f"report{suffix}.html"
        )


def say_left_out(console: Console, problems: Sequence[Problem], split: str, file: Path) -> None:
    """Prints who has nothing to score, and how many lines could not be used."""
    silent = [printable(problem.speaker) for problem in problems if not problem.line]
    lines = [problem for problem in problems if problem.line]
    if silent:
        names = ", ".join(silent[:10]) + (", …" if len(silent) > 10 else "")
        console.print(f"{len(silent)} speakers have no {split} utterances: {names}.", markup=False, highlight=False)
    if lines:
        console.print(
            f"{len(lines)} utterances were left out of the corpus, the first on {lines[0]} All are in {file}.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
