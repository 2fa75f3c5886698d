"""Groups of utterances by what the manifest says of them or of their speakers."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from specialize.errors import ConfigError
from specialize.score.transcript import Transcript

BINS = 5
"""A numeric attribute with more values than this is cut into at most so many bins."""
MOST_TEXT_VALUES = 24
"""A text attribute with more values than this identifies rather than groups; it is left out unless asked for."""
MOST_ASKED_VALUES = 200
"""One with more values than this is refused even then."""
NOT_GIVEN = "not given"
"""The group of those without a value."""
_COLUMNS = ("role", "seconds", "speaker", "split", "text", "utterance")
"""Columns of a manifest that are no attributes. Only `role` groups without being asked for."""
_NAMES = ("role", "speaker", "split", "text", "utterance")
"""Columns whose values are texts, though they may look like numbers."""


def grouped(
    transcripts: Sequence[Transcript], names: Sequence[str] | None
) -> tuple[dict[str, dict[str, list[Transcript]]], dict[str, str]]:
    """Transcripts by attribute and value.

    Numbers (or texts that all are numbers) of more than five values are cut at their quintiles over speakers; a bin is
    named by the least and the greatest value in it, as '6 to 8', and equal values share a bin.

    Args:
        transcripts: what to group; their hypotheses do not matter.
        names: columns of the manifest; None means all attributes, and the role, that have more than one value.

    Returns:
        {attribute: {value: transcripts}} in the order to show, and {attribute: why it was left out}.

    Raises:
        ConfigError: a name is no column, or has too many values for a group.
    """
    attributes = {name for transcript in transcripts for name in transcript.attributes}
    with_role = {"role"} if any(transcript.role is not None for transcript in transcripts) else set()
    known = sorted(attributes | with_role)
    for name in names or ():
        if name not in known and name not in _COLUMNS:
            raise ConfigError(
                f"No utterance has '{name}' to group by. Choose from {', '.join(sorted({*known, *_COLUMNS}))}."
            )
    groups: dict[str, dict[str, list[Transcript]]] = {}
    left_out: dict[str, str] = {}
    for name in known if names is None else names:
        labels = _labels(transcripts, name)
        values = list(dict.fromkeys(labels.values()))
        if names is None and len(values) < 2:
            left_out[name] = "it has one value"
        elif names is None and len(values) > MOST_TEXT_VALUES:
            left_out[name] = f"it has {len(values)} values, more than {MOST_TEXT_VALUES}"
        elif len(values) > MOST_ASKED_VALUES:
            raise ConfigError(
                f"'{name}' has {len(values)} values, and tells utterances apart rather than to group them. Group by "
                f"what has at most {MOST_ASKED_VALUES} values, or numbers, which are cut into bins."
            )
        else:
            groups[name] = {value: [] for value in values}
            for transcript in transcripts:
                groups[name][labels[text_of(_value(transcript, name))]].append(transcript)
    return groups, left_out


def _value(transcript: Transcript, name: str) -> Any:
    """What the manifest says under a name."""
    if name in transcript.attributes or name not in _COLUMNS:
        return transcript.attributes.get(name)
    if name == "seconds":
        return round(transcript.seconds, 2)
    return transcript.reference if name == "text" else getattr(transcript, name)


def _labels(transcripts: Sequence[Transcript], name: str) -> dict[str, str]:
    """{key of a value: label of its group}, in the order to show."""
    values = {text_of(value): value for value in (_value(t, name) for t in transcripts)}
    given = {key: value for key, value in values.items() if key != NOT_GIVEN}
    as_text = name in _NAMES
    numbers = {key: number for key, value in given.items() if not as_text and (number := _number(value)) is not None}
    order: dict[str, str]
    if given and len(numbers) == len(given):
        ordered = {key: numbers[key] for key in sorted(numbers, key=lambda key: numbers[key])}
        many = len(set(ordered.values())) > BINS
        pairs = {(t.speaker, text_of(_value(t, name))) for t in transcripts}
        spread = [ordered[key] for _, key in pairs if key in ordered]
        order = _bins(ordered, spread) if many else {key: f"{number:.12g}" for key, number in ordered.items()}
    else:
        order = {key: key for key in sorted(given)}
    return order | ({NOT_GIVEN: NOT_GIVEN} if NOT_GIVEN in values else {})


def _bins(ordered: dict[str, float], spread: Sequence[float]) -> dict[str, str]:
    edges = np.unique(np.quantile(spread, np.arange(1, BINS) / BINS))
    index = {key: int(np.searchsorted(edges, number, side="left")) for key, number in ordered.items()}
    labels = {}
    for bin_ in set(index.values()):
        inside = [number for key, number in ordered.items() if index[key] == bin_]
        low, high = min(inside), max(inside)
        labels[bin_] = f"{low:.12g}" if low == high else f"{low:.12g} to {high:.12g}"
    return {key: labels[bin_] for key, bin_ in index.items()}


def text_of(value: Any) -> str:
    """A text for any value of a manifest; values that differ only in type, as 3 and '3', are the same."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NOT_GIVEN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
