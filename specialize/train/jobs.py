"""Jobs: one thing to train each, with hyper-parameters that are values and not programs."""

import dataclasses
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, get_args, get_type_hints, overload

import numpy as np

from specialize.corpus import Assignment, Speaker, Utterance
from specialize.errors import ConfigError, SpecializeError


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
    utterances: int | None = None
    """Train on only so many of a speaker's utterances, drawn by the seed; None takes all. A smaller budget is part of a
    larger one of the same seed."""

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
        if self.utterances is not None and self.utterances < 1:
            raise ConfigError(f"utterances={self.utterances}, but it must be at least 1, or None for all.")
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
    point: int = 0
    """Which point of the grid its hyper-parameters are."""
    points: int = 1
    """How many jobs its speaker has in this queue."""

    @property
    def seed(self) -> int:
        """uint32 seed of everything random in this job, the same in every slot and company."""
        return zlib.crc32(f"{self.hyper.seed}/{self.speaker.id}".encode("utf-8", "surrogatepass"))

    @cached_property
    def train(self) -> tuple[Utterance, ...]:
        """The utterances that the job trains on, within its budget."""
        utterances, budget = self.speaker.train, self.hyper.utterances
        if budget is None or budget >= len(utterances):
            return utterances
        chosen = np.random.default_rng((self.seed, 2)).permutation(len(utterances))[:budget]
        return tuple(utterances[i] for i in sorted(chosen.tolist()))

    def at(self, step: int) -> Assignment:
        """What a slot trains on from a step on."""
        return Assignment(self.train, self.seed, step)


class Jobs(Sequence[Job]):
    """The queue: every speaker at every point of a grid, one speaker after another. Jobs are made when asked for.

    Args:
        speakers: in the order of the queue.
        points: hyper-parameters to train each with.
        max_steps: of each job.
        first: number of the first point; a grid over several programs has a queue for each.
    """

    def __init__(self, speakers: Sequence[Speaker], points: Sequence[HyperParameters], max_steps: int, first: int = 0):
        self.speakers, self.points, self._max_steps, self._first = speakers, tuple(points), max_steps, first

    def __len__(self) -> int:
        return len(self.speakers) * len(self.points)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | Sequence[Job]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        speaker, point = divmod(index % len(self), len(self.points))
        hyper = self.points[point]
        return Job(self.speakers[speaker], hyper, self._max_steps, self._first + point, len(self.points))


_ALIASES = {"lr": "learning_rate", "wd": "weight_decay"}


def parse_grid(axes: Sequence[str], hyper: HyperParameters, spec: Any) -> list[tuple[Any, HyperParameters]]:
    """The points of a grid: (spec, hyper-parameters), those of one spec together.

    Args:
        axes: `name=value,value`: a field of `HyperParameters` (`lr` is `learning_rate`), or `submodel.field`, of which
            every value is a program of its own.
        hyper: what the axes do not name.
        spec: likewise.

    Raises:
        ConfigError: an axis is not of this form, names no field or one twice, or a value does not fit.
    """
    names, values = [], []
    for axis in axes:
        name, equals, listed = axis.partition("=")
        if not equals or not listed:
            raise ConfigError(f"--grid {axis}: write it as name=value,value, like lr=3e-4,1e-3.")
        of_spec = name.startswith("submodel.")
        name = name.removeprefix("submodel.") if of_spec else _ALIASES.get(name, name).replace("-", "_")
        owner = spec if of_spec else hyper
        fields = [f.name for f in dataclasses.fields(owner)]
        if name not in fields:
            known = ", ".join([f.name for f in dataclasses.fields(hyper)] + [f"submodel.{n}" for n in _scalars(spec)])
            raise ConfigError(f"--grid {axis}: there is no '{name}'. Choose from {known}.")
        if of_spec and name not in _scalars(spec):
            raise ConfigError(f"--grid {axis}: only numbers of a spec can be in a grid: {', '.join(_scalars(spec))}.")
        if (of_spec, name) in names:
            raise ConfigError(f"--grid names '{name}' twice. Give all its values in one axis.")
        names.append((of_spec, name))
        kind = get_type_hints(type(owner))[name]
        values.append([_number(axis, text, kind) for text in listed.split(",")])
    points = []
    for chosen in itertools.product(*values):
        pairs = list(zip(names, chosen, strict=True))
        try:
            of_spec = dataclasses.replace(spec, **{name: value for (is_spec, name), value in pairs if is_spec})
            of_hyper = dataclasses.replace(hyper, **{name: value for (is_spec, name), value in pairs if not is_spec})
        except SpecializeError as error:
            raise type(error)(f"--grid {' '.join(axes)}: {error}") from None
        points.append((of_spec, of_hyper))
    specs = list(dict.fromkeys(spec for spec, _ in points))
    return sorted(points, key=lambda point: specs.index(point[0]))


def _scalars(spec: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(spec) if isinstance(getattr(spec, f.name), int | float)]


def _number(axis: str, text: str, kind: Any) -> Any:
    """A value of an axis, of the type of the field."""
    whole = kind is int or (int in get_args(kind) and float not in get_args(kind))
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ConfigError(f"--grid {axis}: '{text}' is not {'a whole number' if whole else 'a number'}.") from None


def stack_hyper(jobs: Sequence[Job | None]) -> Hyper:
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
