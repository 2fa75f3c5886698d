"""Jobs: one thing to train each, with hyper-parameters that are values and not programs."""

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from specialize.corpus import Speaker
from specialize.errors import ConfigError


@dataclass(frozen=True)
class HyperParameters:
    """What may differ between jobs of one compiled program."""

    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled decay (Loshchilov & Hutter 2017, arXiv 1711.05101), towards where the Submodel has no effect, or
    towards the start where one is given."""
    warmup: int = 4
    """Steps over which the learning rate rises from zero."""
    final: float = 0.1
    """Share of the learning rate that is left at the last step, reached by half a cosine. 1 keeps it constant."""
    clip: float = 1.0
    """Largest norm of a job's gradient; a larger one is scaled down to it."""
    dropout: float = 0.0
    """Share of units dropped inside residual adapters, or at the input of LoRA paths."""
    spec_augment: float = 0.0
    """Strength of SpecAugment: 0 none, 1 the published mask widths."""
    seed: int = 0
    """Seed of initialisation, order of utterances, dropout and SpecAugment, together with the speaker's id."""

    def __post_init__(self):
        for name, low, high in (
            ("learning_rate", 0.0, np.inf),
            ("weight_decay", 0.0, np.inf),
            ("warmup", 0, np.inf),
            ("final", 0.0, 1.0),
            ("dropout", 0.0, 0.99),
            ("spec_augment", 0.0, 4.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name}={value}, but it must lie between {low} and {high}.")
        if not self.clip > 0:
            raise ConfigError(f"clip={self.clip}, but it must be positive; use inf for no clipping.")


class Hyper(NamedTuple):
    """`HyperParameters` of all slots, as arrays [S]."""

    learning_rate: Any
    weight_decay: Any
    warmup: Any
    final: Any
    clip: Any
    dropout: Any
    spec_augment: Any
    seed: Any
    """uint32 [S]; made from the job's seed and its speaker, so that the slot does not matter."""
    steps: Any
    """float32 [S], the job's largest number of steps, over which the learning rate falls."""


@dataclass(frozen=True)
class Job:
    """One Submodel to train."""

    speaker: Speaker
    hyper: HyperParameters
    max_steps: int

    @property
    def seed(self) -> int:
        """uint32 seed of everything random in this job, the same in every slot and company."""
        return zlib.crc32(f"{self.hyper.seed}/{self.speaker.id}".encode("utf-8", "surrogatepass"))


def stack_hyper(jobs: list[Job | None]) -> Hyper:
    """Hyper-parameters of S slots; those of an idle slot are harmless defaults."""
    rows = []
    for job in jobs:
        hyper = HyperParameters() if job is None else job.hyper
        values = dataclasses.asdict(hyper) | {"seed": 0 if job is None else job.seed}
        rows.append(values | {"steps": 1 if job is None else job.max_steps})
    return Hyper(
        **{
            name: np.asarray([row[name] for row in rows], np.uint32 if name == "seed" else np.float32)
            for name in Hyper._fields
        }
    )
