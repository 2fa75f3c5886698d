"""What all reports share: one HTML file that needs nothing else, with the facts of the run and what was left out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from specialize.printable import printable
from specialize.score import plots
from specialize.score.spaces import NEIGHBOURS
from specialize.score.terminal import interval, percent


def page(template: str, about: dict[str, Any] | None, scored: Sequence[dict[str, Any]], **parts: Any) -> str:
    """A page as a text.

    Args:
        template: its file name in this folder; it extends `page.html.jinja`.
        about: facts of the run, shown in their order by their keys, with `_` as a space; a fact that is None is left
            out. Some keys have a place of their own: `name` is the title, `command` the command line (a string or its
            words), `problems` a list of {line, utterance, speaker, reason} of the corpus that was trained on,
            `quarantined` a list of speakers whose training failed.
        scored: likewise the problems of the corpus that was scored.
        parts: what else the template names.
    """
    about = dict(about or {})
    title = str(about.pop("name", "")) or "Run"
    problems, quarantined = about.pop("problems", None) or [], about.pop("quarantined", None) or []
    command = about.pop("command", None)
    facts = {key.replace("_", " "): _fact(key, value) for key, value in about.items() if value is not None}
    return rendered(
        template,
        title=printable(title),
        facts=facts,
        command=" ".join(map(str, command)) if isinstance(command, list | tuple) else command,
        left_out=_left_out(problems, list(scored)),
        quarantined=quarantined,
        **parts,
    )


def rendered(template: str, *, folder: Path | None = None, **parts: Any) -> str:
    """A template as a text; all that it is given is escaped, but for plots.

    Args:
        template: its file name, in this folder or in another one.
        folder: the other one.
        parts: what the template names.
    """
    return _environment(folder).get_template(template).render(**parts)


def with_interval(ends: list[float] | None) -> str:
    """An interval in parentheses, to put after a figure; nothing for none."""
    return "" if ends is None else f" (95% interval {interval(ends)})"


def attributes_of(speakers: dict[str, dict[str, Any]]) -> list[str]:
    """Names of what the manifest says of some speaker."""
    return sorted({name for row in speakers.values() for name in row["attributes"]})


def _left_out(trained: list[dict[str, Any]], scored: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What was left out, by what it was left out of; once where that is the same."""
    lists = {"the corpus": scored} if trained == scored else {"what was trained on": trained, "what was scored": scored}
    return {name: problems for name, problems in lists.items() if problems}


def _fact(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if "share" in key or key.endswith("busy"):
            return percent(value)
        return f"{value:,.1f}" if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _environment(folder: Path | None) -> jinja2.Environment:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here] if folder is None else [folder, here]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, interval=interval, printable=lambda text: printable(str(text)))
    environment.globals |= {"interval_bar": plots.interval_bar, "neighbours": NEIGHBOURS}
    return environment
