"""Jobs: one thing to train each, with hyper-parameters that are values and not programs."""

import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, get_type_hints, overload

import numpy as np

from specialize.corpus import Assignment, Speaker, Utterance
from specialize.errors import ConfigError, SpecializeError
from specialize.submodel.kinds import KINDS, kind_name
from specialize.train.values import check_finite, parse_value, write_value


@dataclass(frozen=True)
class HyperParameters:
    """What may differ between jobs of one compiled program."""

    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled decay (Loshchilov & Hutter 2017, arXiv 1711.05101), towards where the Submodel has no effect, towards
    the start where one is given, or towards its point of the space."""
    warmup: int = 4
    """Steps over which the learning rate rises from zero."""
    final: float = 0.1
    """Share of the learning rate that is left at the last step, reached by half a cosine. 1 keeps it constant."""
    clip: float = 1.0
    """Largest norm of a job's gradient; a larger one is scaled down to it. `inf` is no clipping."""
    dropout: float = 0.0
    """Share of units dropped inside residual adapters, or at the input of LoRA paths."""
    spec_augment: float = 0.0
    """Strength of SpecAugment: 0 none, 1 the published mask widths."""
    seed: int = 0
    """Seed of initialisation, order of utterances, dropout and SpecAugment, together with the speaker's id."""
    utterances: int | None = None
    """Train on only the first so many of a speaker's utterances, in the order of the manifest; None takes all."""
    seconds: float | None = None
    """Train on only the first utterances that together last at most so many seconds, and on at least one; None takes
    all."""
    embedding_rate: float = 0.1
    """Peak learning rate of the speaker's embedding, where one is fitted to a space."""
    embedding_decay: float = 0.0
    """Decoupled decay of the embedding towards the middle of the space."""
    embedding_steps: int = 6
    """Steps that train the embedding before the Submodel is trained itself, with `fit=embedding-then-unfreeze`."""

    def __post_init__(self):
        for name, least in (
            ("learning_rate", 0.0),
            ("weight_decay", 0.0),
            ("warmup", 0),
            ("embedding_rate", 0.0),
            ("embedding_decay", 0.0),
            ("embedding_steps", 1),
        ):
            check_finite(name, getattr(self, name), least)
        for name, most in (("final", 1.0), ("dropout", 0.99), ("spec_augment", 4.0)):
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise ConfigError(f"{name}={value}, but it must lie between 0.0 and {most}.")
        if self.utterances is not None and self.utterances < 1:
            raise ConfigError(f"utterances={self.utterances}, but it must be at least 1, or None for all.")
        if self.seconds is not None and not 0 < self.seconds < np.inf:
            raise ConfigError(f"seconds={self.seconds}, but it must be positive and finite, or None for all.")
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
    embedding_rate: Any
    embedding_decay: Any
    embedding_steps: Any
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
        chosen = self.speaker.train[: self.hyper.utterances]
        if self.hyper.seconds is None:
            return chosen
        ends = itertools.accumulate(utterance.samples for utterance in chosen)
        most = self.hyper.seconds * self.speaker.sample_rate
        return chosen[: max(1, sum(end <= most for end in ends))]

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
        self.speakers, self.points, self._max_steps = speakers, tuple(points), max_steps
        self.first = first
        """Number of the first point."""

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
        return Job(self.speakers[speaker], hyper, self._max_steps, self.first + point, len(self.points))


_ALIASES = {"lr": "learning_rate", "wd": "weight_decay"}


def hyper_name(name: str) -> str:
    """A field of `HyperParameters` as it is called: `lr` is `learning_rate`, and `-` is `_`."""
    return _ALIASES.get(name, name).replace("-", "_")


def parse_grid(axes: Sequence[str], hyper: HyperParameters, spec: Any) -> list[tuple[Any, HyperParameters]]:
    """The points of a grid: (spec, hyper-parameters), those of one spec together.

    Args:
        axes: `name=value,value`: a field of `HyperParameters` (`lr` is `learning_rate`); or `submodel.field`, of which
            every value is a program of its own: a number of the spec, `submodel.kind=lora,bias-only`, or
            `submodel.where=encoder/**+decoder/**,encoder/**` with `+` between the patterns of one value. Axes multiply.
            Fields that are joined with `:` are one axis, whose values go together: `lr:wd=1e-3:0,3e-4:0.1` is two
            points.
        hyper: what the axes do not name.
        spec: likewise; a kind that is not this one's has its defaults.

    Raises:
        ConfigError: an axis is not of this form, names no field or one twice, or a value does not fit.
    """
    parted = [_parted(axis) for axis in axes]
    columns = [(name, [row[at] for row in rows]) for names, rows in parted for at, name in enumerate(names)]
    kinds = next((texts for name, texts in columns if name == "submodel.kind"), [kind_name(spec)])
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"--grid submodel.kind={unknown[0]}: there is no such kind. Choose from {', '.join(KINDS)}.")
    specs = {kind: spec if kind == kind_name(spec) else KINDS[kind]() for kind in kinds}
    fields = {f.name: hyper for f in dataclasses.fields(hyper)}
    fields |= {f"submodel.{f.name}": of for of in specs.values() for f in dataclasses.fields(of)}
    known: set[str] = set()
    values: list[list[dict[str, Any]]] = []
    for axis, (names, rows) in zip(axes, parted, strict=True):
        for name in names:
            if name not in fields and name != "submodel.kind":
                raise ConfigError(
                    f"--grid {axis}: there is no '{name}'. Choose from {', '.join(fields)}, submodel.kind."
                )
            if name in known:
                raise ConfigError(f"--grid names '{name}' twice. Give all its values in one axis.")
            known.add(name)
        read = [[_value(axis, text, name, fields) for name, text in zip(names, row, strict=True)] for row in rows]
        values.append([dict(zip(names, row, strict=True)) for row in read])
    points = []
    for chosen in itertools.product(*values):
        point = {name: value for of_axis in chosen for name, value in of_axis.items()}
        of_spec = specs[point.pop("submodel.kind", kinds[0])]
        changes = {n.removeprefix("submodel."): v for n, v in point.items() if n.startswith("submodel.")}
        if foreign := [name for name in changes if not hasattr(of_spec, name)]:
            raise ConfigError(f"--grid {' '.join(axes)}: {kind_name(of_spec)} has no '{foreign[0]}'.")
        try:
            of_spec = dataclasses.replace(of_spec, **changes)
            of_hyper = dataclasses.replace(hyper, **{n: v for n, v in point.items() if not n.startswith("submodel.")})
        except SpecializeError as error:
            raise type(error)(f"--grid {' '.join(axes)}: {error}") from None
        points.append((of_spec, of_hyper))
    order = list(dict.fromkeys(of_spec for of_spec, _ in points))
    return sorted(points, key=lambda point: order.index(point[0]))


def joint_axis(points: Sequence[HyperParameters]) -> str:
    """An axis for `parse_grid` of which the points are these, in this order, where all else is the first's."""
    each = [dataclasses.asdict(point) for point in points]
    names = [name for name in each[0] if any(row[name] != each[0][name] for row in each)] or ["learning_rate"]
    return ":".join(names) + "=" + ",".join(":".join(write_value(row[name]) for name in names) for row in each)


def _parted(axis: str) -> tuple[list[str], list[list[str]]]:
    """The names of an axis, written out, and its rows of values."""
    joined, equals, listed = axis.partition("=")
    if not equals or not listed:
        raise ConfigError(f"--grid {axis}: write it as name=value,value, like lr=3e-4,1e-3.")
    names = [name if name.startswith("submodel.") else hyper_name(name) for name in joined.split(":")]
    rows = [text.split(":") if len(names) > 1 else [text] for text in listed.split(",")]
    if wrong := [row for row in rows if len(row) != len(names)]:
        raise ConfigError(
            f"--grid {axis}: it joins {len(names)} fields, but '{':'.join(wrong[0])}' has {len(wrong[0])} values."
        )
    return names, rows


def _value(axis: str, text: str, name: str, fields: Mapping[str, Any]) -> Any:
    """A value of an axis, of the type of the field; the kind of a spec stays a word."""
    if name == "submodel.kind":
        return text
    try:
        return parse_value(text, get_type_hints(type(fields[name]))[name.removeprefix("submodel.")])
    except ConfigError as error:
        raise ConfigError(f"--grid {axis}: {error}") from None


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
