"""Axes of a sweep: which fields of an experiment vary, and what they may be."""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import numpy as np

from specialize.errors import ConfigError, SpecializeError
from specialize.submodel.kinds import KINDS, kind_name
from specialize.train import Experiment, HyperParameters
from specialize.train.jobs import hyper_name
from specialize.train.values import parse_value, write_value

OWN = ("name", "runs", "grid", "select")
"""Fields that the sweep itself sets in its runs."""
KIND = "submodel.kind"
_CHECKED = 4096
"""Combinations of values that are tried before anything is trained."""


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included."""

    low: float
    high: float
    log: bool
    """Whether their logarithms are spread evenly."""
    whole: bool
    """Whether they are whole numbers."""

    def at(self, share: float) -> Any:
        """The number at a share of the way, from 0 to 1."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, self.low), self.high)
        return min(max(math.floor(value + 0.5), int(self.low)), int(self.high)) if self.whole else value


@dataclass(frozen=True)
class Axis:
    """A field and its values, or its range."""

    name: str
    """Dotted, `hyper.learning_rate`."""
    values: tuple[Any, ...] = ()
    range: Range | None = None

    @property
    def varies(self) -> bool:
        """Whether it is more than one value."""
        return self.range is not None or len(self.values) > 1

    @property
    def texts(self) -> tuple[str, ...]:
        """Its values as they are written."""
        return tuple(map(write_value, self.values))

    @property
    def written(self) -> str:
        """The axis as `parse_axes` reads it back, the same however it was spelt."""
        if (span := self.range) is not None:
            return f"{self.name}={'log:' if span.log else ''}{write_value(span.low)}..{write_value(span.high)}"
        return f"{self.name}={','.join(self.texts)}"

    def applies(self, kind: str) -> bool:
        """Whether a trial with this kind of Submodel has the field."""
        part, _, field = self.name.partition(".")
        return part != "submodel" or self.name == KIND or field in _fields(KINDS[kind])


Values = dict[str, Any]
"""What a trial sets: {dotted name: value}, of the axes that apply to its kind."""


def parse_axes(texts: Sequence[str], experiment: Experiment) -> list[Axis]:
    """The axes of a sweep.

    Args:
        texts: `name=value,value`, a range `name=low..high`, or one whose logarithm is spread evenly,
            `name=log:low..high`. Names are those of fields, dotted: `cohort.batch`, `submodel.kind`; a field of `hyper`
            may go without its first part, and `lr` and `wd` are `hyper.learning_rate` and `hyper.weight_decay`. A text
            with several parts has `+` between them.
        experiment: whose fields they are.

    Raises:
        ConfigError: an axis is not of this form, names no field or one twice, or a value does not fit.
    """
    written = [(text, *_halves(text)) for text in texts]
    kinds = next((value.split(",") for _, name, value in written if name == KIND), [kind_name(experiment.submodel)])
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"'{KIND}={unknown[0]}': there is no such kind. Choose from {', '.join(KINDS)}.")
    hints = _hints(experiment, kinds)
    axes: dict[str, Axis] = {}
    for text, name, value in written:
        if name not in hints:
            raise ConfigError(f"'{text}': an experiment has no field '{name}' to vary. Choose from {', '.join(hints)}.")
        if name in axes:
            raise ConfigError(f"The field '{name}' is named twice. Give all its values in one axis.")
        try:
            axes[name] = _axis(name, value, hints[name])
        except ConfigError as error:
            raise ConfigError(f"'{text}': {error}") from None
    # The kind comes first, for other axes depend on it.
    return sorted(axes.values(), key=lambda axis: axis.name != KIND)


def changed(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with other values.

    Args:
        experiment: to change.
        values: {dotted name: value}; another kind of Submodel begins with its defaults.

    Raises:
        SpecializeError: the values contradict each other; the message names them.
    """
    kind = values.get(KIND)
    if kind is not None and KINDS[kind] is not type(experiment.submodel):
        experiment = dataclasses.replace(experiment, submodel=KINDS[kind]())
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name != KIND:
            part, _, field = name.rpartition(".")
            parts.setdefault(part, {})[field] = value
    try:
        inner = {part: dataclasses.replace(getattr(experiment, part), **of) for part, of in parts.items() if part}
        return dataclasses.replace(experiment, **parts.get("", {}), **inner)
    except SpecializeError as error:
        raise type(error)(f"{told(values)}: {error}") from None


def told(values: Mapping[str, Any]) -> str:
    """Values in words, `hyper.learning_rate=0.001 cohort.batch=2`."""
    return " ".join(f"{name}={write_value(value)}" for name, value in values.items()) or "nothing changed"


def every(axes: Sequence[Axis], experiment: Experiment) -> list[Values]:
    """All combinations of the values, the last axis the fastest; one where a kind lacks the only field that differs.

    Raises:
        ConfigError: an axis is a range.
    """
    if ranges := [axis.name for axis in axes if axis.range is not None]:
        raise ConfigError(
            f"'{ranges[0]}' is a range, and a grid needs values. List them, or give --method random or tpe."
        )
    return list(_distinct(_combined(axes, experiment, [axis.values for axis in axes])))


def full_name(text: str) -> str:
    """The full name of the field of an axis: that of `lr=1,2` is `hyper.learning_rate`.

    Raises:
        ConfigError: the text is no axis.
    """
    return _halves(text)[0]


def drawn(axes: Sequence[Axis], experiment: Experiment, trials: int, seed: int) -> list[Values]:
    """So many combinations at random, no two the same. The first are the same however many there are.

    Raises:
        ConfigError: there are not so many.
    """
    if all(axis.range is None for axis in axes):
        # Counted no further than it matters: the product of a few axes may be of millions.
        combinations = _distinct(_combined(axes, experiment, [axis.values for axis in axes]))
        if (most := sum(1 for _ in itertools.islice(combinations, trials))) < trials:
            raise ConfigError(f"{trials} trials are asked for, and there are {most} combinations. Give --method grid.")
    found: dict[tuple[Any, ...], Values] = {}
    for number in itertools.count():
        for values in _combined(axes, experiment, [(_draw(axis, seed, number),) for axis in axes]):
            found.setdefault(tuple(values.items()), values)
        if len(found) == trials:
            return list(found.values())
        if number > 1000 * trials:
            raise ConfigError(f"{trials} trials are asked for, and the ranges hold hardly more than {len(found)}.")
    raise AssertionError


def check(axes: Sequence[Axis], experiment: Experiment) -> None:
    """Makes the experiments of all combinations, of ranges their ends.

    Raises:
        SpecializeError: a combination contradicts itself; the message names its values.
    """
    ends = [axis.values if axis.range is None else (axis.range.at(0.0), axis.range.at(1.0)) for axis in axes]
    for values in itertools.islice(_combined(axes, experiment, ends), _CHECKED):
        of = changed(experiment, values)
        if of.space is not None and (named := [name for name in values if name.startswith("submodel.")]):
            raise ConfigError(
                f"{told(values)}: the Submodels of a space are all of its kind and sizes. Leave out '{named[0]}'."
            )


def kind_of(values: Mapping[str, Any], experiment: Experiment) -> str:
    """The kind of Submodel that a trial trains."""
    return values.get(KIND) or kind_name(experiment.submodel)


def _combined(axes: Sequence[Axis], experiment: Experiment, values: Sequence[Sequence[Any]]) -> Iterator[Values]:
    for chosen in itertools.product(*values):
        point = dict(zip((axis.name for axis in axes), chosen, strict=True))
        kind = kind_of(point, experiment)
        yield {axis.name: point[axis.name] for axis in axes if axis.applies(kind)}


def _distinct(points: Iterator[Values]) -> Iterator[Values]:
    seen: set[tuple[Any, ...]] = set()
    for point in points:
        if (key := tuple(point.items())) not in seen:
            seen.add(key)
            yield point


def _draw(axis: Axis, seed: int, number: int) -> Any:
    """A value that depends on nothing but seed, trial and axis."""
    share = np.random.default_rng([seed, number, zlib.crc32(axis.name.encode())]).random()
    if axis.range is not None:
        return axis.range.at(share)
    return axis.values[int(share * len(axis.values))]


def _halves(text: str) -> tuple[str, str]:
    """The full name of an axis, and its values as they are written."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(f"'{text}': write an axis as field=value,value or field=low..high, like lr=log:1e-4..1e-2.")
    name = name.replace("-", "_")
    if hyper_name(name) in _fields(HyperParameters):
        name = f"hyper.{hyper_name(name)}"
    part, _, field = name.partition(".")
    return (f"hyper.{hyper_name(field)}" if part == "hyper" else name), values


def _fields(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _hints(experiment: Experiment, kinds: Sequence[str]) -> dict[str, Any]:
    """{dotted name: type} of all fields that may vary."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(Experiment).items():
        value = getattr(experiment, name, None)
        if name == "submodel":
            found[KIND] = str
            for kind in kinds:
                of = get_type_hints(KINDS[kind])
                found |= {f"submodel.{field}": of[field] for field in _fields(KINDS[kind])}
        elif dataclasses.is_dataclass(value):
            of = get_type_hints(type(value))
            found |= {f"{name}.{field}": of[field] for field in _fields(value)}
        elif name not in OWN:
            found[name] = hint
    return found


def _axis(name: str, text: str, hint: Any) -> Axis:
    log = text.startswith("log:")
    if not log and ".." not in text:
        return Axis(name, tuple(dict.fromkeys(parse_value(value, hint) for value in text.split(","))))
    numbers = {int, float} & {hint, *get_args(hint)}
    if not numbers:
        # A path may have two dots in it.
        if not log:
            return Axis(name, tuple(parse_value(value, hint) for value in text.split(",")))
        raise ConfigError(f"'{name}' is not a number, and has no range.")
    number = float if float in numbers else int
    low_text, dots, high_text = text.removeprefix("log:").partition("..")
    low, high = parse_value(low_text, number), parse_value(high_text or "nothing", number)
    if not dots or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError("a range goes from a smaller number to a larger one, low..high.")
    if log and low <= 0:
        raise ConfigError(f"the logarithm of {low_text} is not a number. Begin above zero, or leave out 'log:'.")
    return Axis(name, range=Range(low, high, log, number is int))
