"""The report of a run: one HTML file that needs nothing else, not even a network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from specialize.printable import printable
from specialize.score import plots
from specialize.score.counts import Counts, count_words, normalizer
from specialize.score.results import write_atomically
from specialize.score.spaces import NEIGHBOURS, SpaceView
from specialize.score.terminal import align, by_gain, interval, percent
from specialize.score.transcript import Transcript

NAMES = {
    "plain": "a Submodel from no effect",
    "start": "a Submodel from the pooled start",
    "embedding": "the embedding alone",
    "unfreeze": "a Submodel from the middle of the space",
    "space": "embedding, then the Submodel",
}
"""What the ways of a learning curve are called."""
EXAMPLES = 24
"""At most so many utterances are shown."""


def write_report(
    path: Path,
    results: dict[str, Any],
    transcripts: Sequence[Transcript],
    curves: dict[str, plots.Curve] | None = None,
    about: dict[str, Any] | None = None,
    space: SpaceView | None = None,
    learning_curve: dict[str, Any] | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        results: of `score`; its `problems`, if it has any, are those of the corpus that was scored.
        transcripts: what was scored; the examples come from them.
        curves: {speaker: [(step, train loss, dev loss)]}, losses per token; None where there is none.
        about: facts of the run, shown in their order by their keys, with `_` as a space; a fact that is None is left
            out. Some keys have a place of their own: `name` is the title, `command` the command line (a string or its
            words), `problems` a list of {line, utterance, speaker, reason} of the corpus that was trained on,
            `quarantined` a list of speakers whose training failed.
        space: of the run, if it trained one, or fitted speakers to one.
        learning_curve: as `specialize curve` writes it.
    """
    about = dict(about or {})
    title = str(about.pop("name", "")) or "Run"
    problems, quarantined = about.pop("problems", None) or [], about.pop("quarantined", None) or []
    command = about.pop("command", None)
    curves = curves or {}
    facts = {key.replace("_", " "): _fact(key, value) for key, value in about.items() if value is not None}
    training = [plot for which in (2, 1) if (plot := plots.training_curves(curves, which)) is not None]
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=printable(title),
            pooled=results["pooled"],
            results=results,
            headline=headline(results["pooled"]),
            speakers=by_gain(results["speakers"]),
            attributes=sorted({name for row in results["speakers"].values() for name in row["attributes"]}),
            dumbbells=plots.dumbbells(results["speakers"]),
            changes=plots.changes(results["speakers"]),
            axis=plots.reduction_axis(row for values in results["groups"].values() for row in values.values()),
            scatter=plots.scatter(results["speakers"]),
            training=training,
            space=space,
            maps=[] if space is None else maps(space),
            examples=examples(transcripts, results["language"]),
            shown=len(transcripts),
            facts=facts,
            command=" ".join(map(str, command)) if isinstance(command, list | tuple) else command,
            left_out=_left_out(problems, results.get("problems", [])),
            quarantined=quarantined,
            **({"curve": None} if learning_curve is None else _curve(learning_curve)),
        )
    )
    write_atomically(path, page)


def render_curve(curve: dict[str, Any]) -> str:
    """The page of a learning curve, as `specialize.score.curve.learning_curve` makes it."""
    return _environment().get_template("curve.html.jinja").render(**_curve(curve))


def _curve(curve: dict[str, Any]) -> dict[str, Any]:
    """What the template of a learning curve needs."""
    key = [(plots.group_mark(index, 6, 6), NAMES[way]) for index, way in enumerate(curve["curves"])]
    return {"curve": curve, "curve_names": NAMES, "curve_key": key, "curve_plot": plots.amounts(curve, NAMES)}


def _left_out(trained: list[dict[str, Any]], scored: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What was left out, by what it was left out of; once where that is the same."""
    lists = {"the corpus": scored} if trained == scored else {"what was trained on": trained, "what was scored": scored}
    return {name: problems for name, problems in lists.items() if problems}


def maps(space: SpaceView) -> list[dict[str, Any]]:
    """A plot of the speakers for each attribute that varies, or one without groups, each with its key."""
    if not space.labels:
        return [{"name": None, "plot": plots.speaker_points(space.points, {}, space.explained), "groups": []}]
    return [
        {
            "name": name,
            "plot": plots.speaker_points(space.points, labels, space.explained, name),
            "groups": [(group, plots.group_mark(i, 6, 6)) for i, group in enumerate(dict.fromkeys(labels.values()))],
        }
        for name, labels in space.labels.items()
    ]


def headline(pooled: dict[str, Any]) -> str:
    """The result in a sentence or two, with intervals."""
    people = f"{pooled['speakers']} speaker{'' if pooled['speakers'] == 1 else 's'}"
    if pooled["base_wer"] is None:
        return "No reference has a word after normalisation, so there is no word error rate."
    text = f"Over {people}, the word error rate goes from {percent(pooled['base_wer'])}"
    text += _with_interval(pooled["base_wer_interval"]) + f" with the base to {percent(pooled['wer'])}"
    text += _with_interval(pooled["wer_interval"]) + " personalised"
    reduction = pooled["relative_reduction"]
    if reduction is None:
        text += "."
    else:
        change = "reduction" if reduction >= 0 else "increase"
        ends = pooled["relative_reduction_interval"]
        if ends is not None and reduction < 0:
            ends = [-ends[1], -ends[0]]
        text += f": a relative {change} of {percent(abs(reduction))}" + _with_interval(ends) + "."
    missing = pooled["reasons"].get("relative_reduction_interval")
    return text + (f" There is no interval of the reduction: {missing}." if missing and reduction is not None else "")


def examples(transcripts: Sequence[Transcript], language: str) -> list[dict[str, Any]]:
    """Utterances to look at: a third each of most gain, most loss, and those the base already had nearly right or not.

    The texts are normalised, for that is what the error rates count.
    """
    normalize = normalizer(language)
    rows = []
    for transcript in transcripts:
        said, base, mine = (normalize(t) for t in (transcript.reference, transcript.base, transcript.personalised))
        if said:
            rows.append((transcript, said, base, mine, count_words(said, base), count_words(said, mine)))

    def change(row: tuple[Transcript, str, str, str, Counts, Counts]) -> tuple[int, str]:
        return (row[5].errors - row[4].errors, row[0].utterance)

    rows.sort(key=change)
    gained = [row for row in rows if change(row)[0] < 0][: EXAMPLES // 3]
    lost = [row for row in rows if change(row)[0] > 0][-(EXAMPLES // 3) :][::-1]
    same = [row for row in rows if change(row)[0] == 0]
    spread = [same[round(i * (len(same) - 1) / 7)] for i in range(8)] if len(same) > 8 else same
    sections = (("fewer errors than the base", gained), ("more errors than the base", lost), ("no change", spread))
    return [
        {
            "kind": kind,
            "utterance": transcript.utterance,
            "speaker": transcript.speaker,
            "used": transcript.used,
            "reference": said,
            "base": align(said, base),
            "personalised": align(said, mine),
            "base_errors": base_counts.errors,
            "errors": counts.errors,
        }
        for kind, part in sections
        for transcript, said, base, mine, base_counts, counts in part
    ]


def _with_interval(ends: list[float] | None) -> str:
    return "" if ends is None else f" (95% interval {interval(ends)})"


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


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, interval=interval, printable=lambda text: printable(str(text)))
    environment.globals |= {"reduction_bar": plots.reduction_bar, "neighbours": NEIGHBOURS}
    return environment
