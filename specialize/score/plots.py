"""Plots as inline SVG. Shapes and positions carry what colours say; colours come from the page's style sheet."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from specialize.score import drawing as draw
from specialize.score.terminal import by_gain, by_rate, percent

ROWS = 48
"""Up to so many speakers have a row of their own in the plot of changes."""

Curve = Sequence[tuple[int, float | None, float | None]]
"""(step, train loss, dev loss) of one speaker."""

_WIDTH = 860.0
_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    ((0, -1), (1, 0.85), (-1, 0.85)),
    ((0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)),
    ((0, 1), (1, -0.85), (-1, -0.85)),
    ((0, -1.1), (0.35, -0.35), (1.1, 0), (0.35, 0.35), (0, 1.1), (-0.35, 0.35), (-1.1, 0), (-0.35, -0.35)),
)
"""Corners of a square, a triangle, a diamond, a triangle upside down and a star, around a mark's place."""


def dumbbells(speakers: dict[str, dict[str, Any]]) -> Markup | None:
    """WER of every speaker, base and personalised, a row each, sorted by the change; None if they are too many."""
    rows = _scored(speakers)
    if not 0 < len(rows) <= ROWS:
        return None
    top = _top(rows)
    left, above, step = 150.0, 14.0, 20.0
    width, height = _WIDTH - left - 64, step * len(rows)
    parts = [*draw.grid(left, above, width, height, top, None)]
    for index, (speaker, row) in enumerate(rows):
        y = above + step * (index + 0.5)
        base, mine = (left + width * row[name] / top for name in ("base_wer", "wer"))
        name = speaker if len(speaker) <= 20 else speaker[:19] + "…"
        parts.append(draw.text(left - 10, y + 4, name, "end"))
        parts.append(draw.line(base, y, mine, y, "range"))
        parts.append(Markup('<circle class="base" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(base, y))
        parts.append(_mark(mine, y, _change(row), _title(speaker, row)))
        parts.append(draw.text(left + width + 12, y + 4, f"{100 * _change(row):+.1f}", "start"))
    parts.append(draw.text(left + width / 2, above + height + 40, "WER", "middle"))
    label = f"WER of {len(rows)} speakers with the base and personalised, sorted by the change. "
    return draw.svg(_WIDTH, above + height + 48, label + "The table of speakers has the same figures.", parts)


def changes(speakers: dict[str, dict[str, Any]]) -> Markup:
    """Change of the WER of every speaker, sorted, a bar each: down is better."""
    rows = _scored(speakers)
    gains = [_change(row) for _, row in rows] or [0.0]
    low, high = min(gains[0], -0.01) * 1.05, max(gains[-1], 0.01) * 1.05
    left, above, width, height = 62.0, 14.0, 360.0, 360.0

    def place(change: float) -> float:
        return above + height * (high - change) / (high - low)

    parts = []
    step = draw.ticks(high - low)[1]
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = place(index * step)
        parts.append(draw.line(left, y, left + width, y, "range" if index == 0 else "grid"))
        parts.append(draw.text(left - 8, y + 4, f"{100 * index * step:+.3g}" if index else "0", "end"))
    wide = width / len(gains)
    bar = Markup('<rect class="{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"><title>{}</title></rect>')
    for index, (speaker, row) in enumerate(rows):
        change = _change(row)
        style = "submodel" if change < 0 else "harmed"
        top, bottom = place(max(change, 0.0)), place(min(change, 0.0))
        x, thick = left + wide * (index + 0.1), min(0.8 * wide, 40.0) if wide > 3 else wide
        parts.append(bar.format(style, x, top, thick, bottom - top, _title(speaker, row)))
    parts.append(draw.text(left + width / 2, above + height + 40, "speakers, from most gain to most loss", "middle"))
    parts.append(draw.upright(14, above + height / 2, "change of the WER, points"))
    label = (
        f"Change of the WER of {len(rows)} speakers, sorted: {100 * gains[0]:+.1f} to {100 * gains[-1]:+.1f} points."
    )
    return draw.svg(left + width + 14, above + height + 48, label, parts)


def scatter(speakers: dict[str, dict[str, Any]]) -> Markup:
    """Personalised against base WER, a mark for each speaker; under the diagonal is better."""
    rows = _scored(speakers)
    top = _top(rows)
    size, left, above = 360.0, 62.0, 14.0
    parts = [*draw.grid(left, above, size, size, top, top)]
    parts.append(draw.line(left, above + size, left + size, above, "diagonal"))
    radius = 4.5 if len(rows) <= 100 else 3.0
    for speaker, row in rows:
        x, y = left + size * row["base_wer"] / top, above + size * (1 - row["wer"] / top)
        parts.append(_mark(x, y, _change(row), _title(speaker, row), radius))
    parts.append(draw.text(left + size / 2, above + size + 40, "WER of the base", "middle"))
    parts.append(draw.upright(14, above + size / 2, "personalised WER"))
    better = sum(row["wer"] < row["base_wer"] for _, row in rows)
    label = f"Scatter of personalised against base WER of {len(rows)} speakers; {better} lie under the diagonal."
    return draw.svg(left + size + 14, above + size + 48, label, parts)


def rates(speakers: dict[str, dict[str, Any]], pooled: float | None) -> Markup:
    """WER of every speaker, from the highest to the lowest, a bar each, with that of all as a line across."""
    rows = [(speaker, row) for speaker, row in by_rate(speakers) if row["wer"] is not None]
    top = draw.ceiling(max((row["wer"] for _, row in rows), default=1.0))
    left, above, width, height = 62.0, 14.0, _WIDTH - 62.0 - 14.0, 240.0
    parts = [*draw.grid(left, above, width, height, None, top)]
    wide = width / max(len(rows), 1)
    bar = Markup('<rect class="submodel" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"><title>{}</title></rect>')
    for index, (speaker, row) in enumerate(rows):
        tall, thick = height * row["wer"] / top, min(0.8 * wide, 40.0) if wide > 3 else wide
        title = f"{speaker}: {percent(row['wer'])} of {row['words']} words"
        parts.append(bar.format(left + wide * (index + 0.1), above + height - tall, thick, tall, title))
    if pooled is not None:
        y = above + height * (1 - min(pooled, top) / top)
        parts.append(draw.line(left, y, left + width, y, "diagonal"))
    parts.append(
        draw.text(left + width / 2, above + height + 24, "speakers, from the highest WER to the lowest", "middle")
    )
    parts.append(draw.upright(14, above + height / 2, "WER"))
    label = f"WER of {len(rows)} speakers, sorted; that of all is {percent(pooled)}. The table has the same figures."
    return draw.svg(left + width + 14, above + height + 32, label, parts)


def training_curves(curves: dict[str, Curve], which: int) -> Markup | None:
    """Loss against step of every speaker as thin lines, with the median as a thick one.

    Args:
        curves: {speaker: points}.
        which: 1 for the train loss, 2 for the dev loss.

    Returns:
        The plot; None if no point has such a loss.
    """
    lines = {
        speaker: [(point[0], value) for point in points if (value := point[which]) is not None and math.isfinite(value)]
        for speaker, points in curves.items()
    }
    lines = {speaker: points for speaker, points in lines.items() if points}
    if not lines:
        return None
    values = sorted(value for points in lines.values() for _, value in points)
    last = max(step for points in lines.values() for step, _ in points) or 1
    top = draw.ceiling(min(values[-1], 4 * values[int(0.9 * (len(values) - 1))]) or 1.0)
    width, height, left, above = 360.0, 240.0, 62.0, 14.0

    def place(step: float, value: float) -> str:
        return f"{left + width * step / last:.1f},{above + height * (1 - min(value, top) / top):.1f}"

    parts = [*draw.grid(left, above, width, height, float(last), top, shares=False)]
    faint = max(0.08, min(0.6, 12 / len(lines)))
    for speaker, points in lines.items():
        path = " ".join(place(step, value) for step, value in points)
        parts.append(
            Markup('<polyline class="curve" style="opacity:{:.2f}" points="{}"><title>{}</title></polyline>').format(
                faint, path, speaker
            )
        )
    by_step: dict[int, list[float]] = {}
    for points in lines.values():
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    middle = {step: _median(losses) for step, losses in sorted(by_step.items()) if 2 * len(losses) >= len(lines)}
    path = " ".join(place(step, value) for step, value in middle.items())
    parts.append(Markup('<polyline class="median" points="{}"/>').format(path))
    name = ("", "train loss", "dev loss")[which]
    parts.append(draw.text(left + width / 2, above + height + 40, f"step ({name} a token)", "middle"))
    whose = next(iter(lines)) if len(lines) == 1 else f"{len(lines)} speakers"
    label = f"{name.capitalize()} of {whose} against steps"
    if len(middle) > 1:
        first, final = next(iter(middle.values())), list(middle.values())[-1]
        which_one = "it" if len(lines) == 1 else "the median"
        label += f"; {which_one} goes from {first:.3f} to {final:.3f} at step {max(middle)}"
    return draw.svg(left + width + 14, above + height + 48, label + ".", parts)


def speaker_points(
    points: dict[str, tuple[float, float]], labels: dict[str, str], explained: Sequence[float], name: str | None = None
) -> Markup:
    """Speakers as points in their two directions of most variance, both to the same scale.

    Args:
        points: {speaker: coordinates}.
        labels: {speaker: its group}; colours and shapes tell groups apart, in the order in which they come first.
        explained: share of the variance along each direction.
        name: of the attribute that groups; None has no groups.
    """
    size, left, above = 360.0, 62.0, 14.0
    reach = 1.08 * max((abs(value) for point in points.values() for value in point), default=0.0) or 1.0

    def place(value: float) -> float:
        return size * (value + reach) / (2 * reach)

    parts = []
    step = draw.ticks(reach)[1]
    for index in range(-math.floor(reach / step), math.floor(reach / step) + 1):
        at, style, value = place(index * step), "grid" if index else "range", f"{index * step:.3g}"
        parts.append(draw.line(left + at, above, left + at, above + size, style))
        parts.append(draw.line(left, above + size - at, left + size, above + size - at, style))
        parts.append(draw.text(left + at, above + size + 18, value, "middle"))
        parts.append(draw.text(left - 8, above + size - at + 4, value, "end"))
    order = list(dict.fromkeys(labels.values()))
    radius = 4.5 if len(points) <= 100 else 3.0
    for speaker, (x, y) in points.items():
        group = labels.get(speaker)
        title = speaker if group is None else f"{speaker}: {group}"
        index = None if group is None else order.index(group)
        parts.append(group_mark(index, left + place(x), above + size - place(y), title, radius))
    shares = [percent(share) for share in (*explained[:2], 0.0, 0.0)[:2]]
    parts.append(
        draw.text(left + size / 2, above + size + 40, f"first direction, {shares[0]} of the variance", "middle")
    )
    parts.append(draw.upright(14, above + size / 2, f"second direction, {shares[1]}"))
    by = "" if name is None else f" by {name}"
    label = f"{len(points)} speakers{by} in the two directions in which their embeddings differ most."
    return draw.svg(left + size + 14, above + size + 48, label, parts)


def group_mark(index: int | None, x: float, y: float, title: str | None = None, radius: float = 4.5) -> Markup:
    """The mark of a group of speakers: six colours and six shapes, paired anew after six; None is of no group."""
    colour, shape = (5, 0) if index is None else (index % 6, (index + index // 6) % 6)
    inside = Markup("") if title is None else Markup("<title>{}</title>").format(title)
    if shape == 0:
        return Markup('<circle class="g{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">{}</circle>').format(
            colour, x, y, radius, inside
        )
    r = radius * 1.25
    path = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in _SHAPES[shape - 1])
    return Markup('<polygon class="g{}" points="{}">{}</polygon>').format(colour, path, inside)


def amounts(curve: dict[str, Any], names: dict[str, str]) -> Markup:
    """WER against what there is to train on: a line with intervals for each way; the base and the control go across.

    Args:
        curve: of `specialize.score.curve.learning_curve`.
        names: what its ways are called.
    """
    left, above, width, height = 62.0, 14.0, _WIDTH - 62.0 - 14.0, 380.0
    unit = curve["unit"]
    across = [curve["base"]] + ([] if curve["pooled_control"] is None else [curve["pooled_control"]])
    points = [point for of in curve["curves"].values() for point in of]
    ends = [end for point in points for end in point["wer_interval"] or (point["wer"],)]
    top, last = draw.ceiling(min(max([*ends, *across]), 1.5)), max(point[unit] for point in points) * 1.06

    def y(rate: float) -> float:
        return above + height * (1 - min(rate, top) / top)

    parts = [*draw.grid(left, above, width, height, None, top)]
    for amount in sorted({point[unit] for point in points}):
        parts.append(draw.text(left + width * amount / last, above + height + 18, f"{amount:g}", "middle"))
    parts += [draw.line(left, y(rate), left + width, y(rate), "diagonal") for rate in across]
    ways = list(curve["curves"])
    for index, way in enumerate(ways):
        shift = 7.0 * (index - (len(ways) - 1) / 2)
        places = [(left + width * point[unit] / last + shift, y(point["wer"]), point) for point in curve["curves"][way]]
        path = " ".join(f"{x:.1f},{at:.1f}" for x, at, _ in places)
        parts.append(Markup('<polyline class="curve s{}" points="{}"/>').format(index % 6, path))
        for x, at, point in places:
            if point["wer_interval"] is not None:
                low, high = point["wer_interval"]
                parts.append(draw.line(x, y(low), x, y(high), "range"))
            title = f"{names[way]}, {point[unit]:g} {unit}: {percent(point['wer'])}"
            parts.append(group_mark(index, x, at, title))
    parts.append(draw.text(left + width / 2, above + height + 40, f"{unit} of a speaker to train on", "middle"))
    parts.append(draw.upright(14, above + height / 2, "WER"))
    label = f"WER of {curve['speakers']} speakers against {unit} to train on. The table has the same figures."
    return draw.svg(left + width + 14, above + height + 48, label, parts)


def interval_axis(
    rows: Iterable[dict[str, Any]], name: str, lowest: float = -1.0, highest: float = 1.0
) -> tuple[float, float]:
    """An axis for `interval_bar` that holds 0 and all values of a figure, as far as they lie between two shares."""
    shares = [0.0]
    for row in rows:
        shares += row[f"{name}_interval"] or []
        shares += [] if row[name] is None else [row[name]]
    low, high = max(min(shares), lowest), min(max(shares), highest)
    return (math.floor(10 * low) / 10, max(math.ceil(10 * high) / 10, 0.1))


def interval_bar(value: float | None, ends: Sequence[float] | None, axis: tuple[float, float]) -> Markup:
    """A share with its interval, for a cell of a table; what lies beyond the axis is cut off."""
    if value is None:
        return Markup("")
    width, height = 170.0, 18.0

    def x(share: float) -> float:
        return 6 + (width - 12) * (max(axis[0], min(axis[1], share)) - axis[0]) / (axis[1] - axis[0])

    parts = [draw.line(x(0), 0, x(0), height, "grid")]
    if ends is not None:
        parts.append(draw.line(x(ends[0]), height / 2, x(ends[1]), height / 2, "range"))
        parts += [draw.line(x(end), height / 2 - 4, x(end), height / 2 + 4, "range") for end in ends]
    parts.append(Markup('<circle class="submodel" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x(value), height / 2))
    label = f"{percent(value)} on an axis from {percent(axis[0])} to {percent(axis[1])}"
    return draw.svg(width, height, label, parts, fixed=True)


def _scored(speakers: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(speaker, row) for speaker, row in by_gain(speakers) if row["wer"] is not None]


def _top(rows: Sequence[tuple[str, dict[str, Any]]]) -> float:
    return draw.ceiling(max((max(row["wer"], row["base_wer"]) for _, row in rows), default=1.0))


def _change(row: dict[str, Any]) -> float:
    return row["wer"] - row["base_wer"]


def _title(speaker: str, row: dict[str, Any]) -> str:
    return f"{speaker}: {percent(row['base_wer'])} to {percent(row['wer'])} of {row['words']} words"


def _mark(x: float, y: float, change: float, title: str, radius: float = 4.5) -> Markup:
    """A circle where the WER fell, a triangle where it rose, a square where it stayed."""
    if change < 0:
        shape = Markup('<circle class="submodel" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">').format(x, y, radius)
        return shape + Markup("<title>{}</title></circle>").format(title)
    r = radius * 1.2
    if change > 0:
        points = f"{x:.1f},{y - r:.1f} {x + r:.1f},{y + r:.1f} {x - r:.1f},{y + r:.1f}"
        return Markup('<polygon class="harmed" points="{}"><title>{}</title></polygon>').format(points, title)
    shape = Markup('<rect class="unchanged" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">')
    shape = shape.format(x - radius, y - radius, 2 * radius, 2 * radius)
    return shape + Markup("<title>{}</title></rect>").format(title)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
