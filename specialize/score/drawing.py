"""Parts that plots are made of: axes, lines and texts as inline SVG; colours come from the page's style sheet."""

import math
from collections.abc import Iterable

from markupsafe import Markup


def grid(
    left: float,
    above: float,
    width: float,
    height: float,
    x_top: float | None,
    y_top: float | None,
    shares: bool = True,
) -> Iterable[Markup]:
    """Grid lines with their values; `shares` says that values are shares, on x too."""
    if x_top is not None:
        for value in ticks(x_top):
            x = left + width * value / x_top
            yield line(x, above, x, above + height, "grid")
            yield text(x, above + height + 18, f"{100 * value:.3g}%" if shares else f"{value:g}", "middle")
    if y_top is not None:
        for value in ticks(y_top):
            y = above + height * (1 - value / y_top)
            yield line(left, y, left + width, y, "grid")
            yield text(left - 8, y + 4, f"{100 * value:.3g}%" if shares else f"{value:g}", "end")


def ticks(top: float) -> list[float]:
    """Round values from 0 to `top`."""
    raw = top / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * m for m in (1, 2, 5, 10) if magnitude * m >= raw * 0.999)
    return [step * index for index in range(math.floor(top / step * 1.0001) + 1)]


def ceiling(value: float) -> float:
    """The top of an axis for values up to `value`."""
    return max(value, 0.01) * 1.05


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A line of a class of the style sheet."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def text(x: float, y: float, text: str, anchor: str) -> Markup:
    """A text of an axis; `anchor` is start, middle or end."""
    return Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def upright(x: float, y: float, text: str) -> Markup:
    """A text that is read from below, around its middle."""
    turned = '<text class="axis" transform="translate({:.1f} {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
    return Markup(turned).format(x, y, text)


def svg(width: float, height: float, label: str, parts: Iterable[Markup], *, fixed: bool = False) -> Markup:
    """The plot: `label` says it to those who do not see it; `fixed` keeps its size on any page."""
    style = f"width:{width:.0f}px" if fixed else f"width:100%;max-width:{width:.0f}px"
    start = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" style="{}" role="img" aria-label="{}">')
    return start.format(width, height, style, label) + Markup("").join(parts) + Markup("</svg>")
