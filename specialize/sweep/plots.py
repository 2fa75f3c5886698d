"""The plot of an axis: dev loss of all trials against its values."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from specialize.score import drawing as draw
from specialize.sweep.axes import Axis
from specialize.train.values import write_value

_WIDTH, _HEIGHT, _LEFT, _ABOVE = 360.0, 240.0, 62.0, 14.0
_WIDE = 30.0
"""Values whose largest is so many times the smallest are drawn by their logarithm."""


def against_axis(axis: Axis, rows: Sequence[dict[str, Any]]) -> Markup:
    """Mean dev loss against a field, a mark for each trial that has the field.

    Circles are trials that finished all speakers of their corpus, triangles those that lost some to quarantine; what
    was chosen is a ring around its mark. Losses far above the others lie at the upper edge.

    Args:
        axis: of the sweep.
        rows: of `ranked`, at least one with a dev loss.
    """
    rows = [row for row in rows if axis.name in row["values"] and row["dev_loss"] is not None]
    losses = sorted(row["dev_loss"] for row in rows) or [0.0]
    usual = losses[len(losses) // 2] - losses[0]
    low, high = losses[0], min(losses[-1], losses[0] + 3 * usual) if usual > 0 else losses[-1]
    room = 0.08 * (high - low) or 0.05 * abs(low) or 0.01
    low, high = low - room, high + room

    def y(loss: float) -> float:
        return _ABOVE + _HEIGHT * (1 - (min(loss, high) - low) / (high - low))

    parts: list[Markup] = []
    step = draw.ticks(high - low)[1]
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        at = y(index * step)
        parts.append(draw.line(_LEFT, at, _LEFT + _WIDTH, at, "grid"))
        parts.append(draw.text(_LEFT - 8, at + 4, f"{index * step:.4g}", "end"))
    places, marks = _places(axis, [row["values"][axis.name] for row in rows])
    for share, name in marks:
        x = _LEFT + _WIDTH * share
        parts.append(draw.line(x, _ABOVE, x, _ABOVE + _HEIGHT, "grid"))
        parts.append(draw.text(x, _ABOVE + _HEIGHT + 18, name, "middle"))
    for share, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[1]["chosen_for"]):
        parts.append(_mark(_LEFT + _WIDTH * share, y(row["dev_loss"]), row))
    title = f"{axis.name} (logarithmic)" if axis.range is None and _spread(axis.values) else axis.name
    parts.append(draw.text(_LEFT + _WIDTH / 2, _ABOVE + _HEIGHT + 40, title, "middle"))
    parts.append(draw.upright(14, _ABOVE + _HEIGHT / 2, "mean dev loss"))
    label = f"Mean dev loss of {len(rows)} trials against {axis.name}. The table has the same figures."
    return draw.svg(_LEFT + _WIDTH + 14, _ABOVE + _HEIGHT + 48, label, parts)


def _mark(x: float, y: float, row: dict[str, Any]) -> Markup:
    people = f"{row['speakers']} of {row['corpus_speakers']} speakers"
    title = f"trial {row['trial']}: dev loss {row['dev_loss']:.4f} of {people}"
    title += "".join(f", {name}={write_value(value)}" for name, value in row["values"].items())
    if row["complete"]:
        shape = Markup('<circle class="submodel" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>')
        mark = shape.format(x, y, title)
    else:
        points = f"{x:.1f},{y - 5.4:.1f} {x + 5.4:.1f},{y + 5.4:.1f} {x - 5.4:.1f},{y + 5.4:.1f}"
        mark = Markup('<polygon class="harmed" points="{}"><title>{}</title></polygon>').format(points, title)
    if not row["chosen_for"]:
        return mark
    return Markup('<circle class="base" cx="{:.1f}" cy="{:.1f}" r="8"/>').format(x, y) + mark


def _spread(values: Sequence[Any]) -> bool:
    """Whether numbers are to be drawn by their logarithm."""
    if not values or not all(_number(value) and value > 0 for value in values):
        return False
    return max(values) >= _WIDE * min(values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _places(axis: Axis, values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values lie across, from 0 to 1, and what is written at which places."""
    if axis.range is None and not all(map(_number, axis.values)):
        names = [write_value(value) for value in axis.values]
        at = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
        marks = [(share, name if len(name) <= 18 else name[:17] + "…") for name, share in at.items()]
        return [at[write_value(value)] for value in values], marks
    span = axis.range
    ends = (min(axis.values), max(axis.values)) if span is None else (span.low, span.high)
    log = _spread(axis.values) if span is None else span.log
    scale = math.log if log else float
    low, high = scale(ends[0]), scale(ends[1])

    def place(value: float) -> float:
        return 0.05 + 0.9 * (scale(value) - low) / ((high - low) or 1.0)

    shown = axis.values if span is None and len(axis.values) <= 6 else (ends[0], _middle(ends, log), ends[1])
    return [place(value) for value in values], [(place(value), f"{value:.3g}") for value in shown]


def _middle(ends: tuple[float, float], log: bool) -> float:
    """The middle between two ends, by their logarithm or not."""
    return math.sqrt(ends[0] * ends[1]) if log else (ends[0] + ends[1]) / 2
