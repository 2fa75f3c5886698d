"""The report of a run of Submodels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specialize.score import plots
from specialize.score.counts import Counts, count_words, normalizer
from specialize.score.page import attributes_of, page, rendered, with_interval
from specialize.score.results import write_atomically
from specialize.score.spaces import SpaceView
from specialize.score.terminal import align, by_gain, percent
from specialize.score.transcript import Transcript

NAMES = {
    "plain": "a Submodel from no effect",
    "start": "a Submodel from the pooled start",
    "space": "a point of the space: the embedding alone",
    "unfreeze": "a Submodel from the middle of the space",
    "unfrozen": "a Submodel from its point of the space",
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
        about: facts of the run, as `page` takes them.
        space: of the run, if it trained one, or fitted speakers to one.
        learning_curve: as `specialize curve` writes it.
    """
    curves = curves or {}
    groups = [row for values in results["groups"].values() for row in values.values()]
    training = [plot for which in (2, 1) if (plot := plots.training_curves(curves, which)) is not None]
    text = page(
        "report.html.jinja",
        about,
        results.get("problems", []),
        pooled=results["pooled"],
        results=results,
        headline=headline(results["pooled"]),
        speakers=by_gain(results["speakers"]),
        attributes=attributes_of(results["speakers"]),
        dumbbells=plots.dumbbells(results["speakers"]),
        changes=plots.changes(results["speakers"]),
        axis=plots.interval_axis(groups, "relative_reduction"),
        scatter=plots.scatter(results["speakers"]),
        training=training,
        space=space,
        maps=[] if space is None else maps(space),
        examples=examples(transcripts, results["language"]),
        shown=len(transcripts),
        **({"curve": None} if learning_curve is None else _curve(learning_curve)),
    )
    write_atomically(path, text)


def render_curve(curve: dict[str, Any]) -> str:
    """The page of a learning curve, as `specialize.score.curve.learning_curve` makes it."""
    return rendered("curve.html.jinja", **_curve(curve))


def _curve(curve: dict[str, Any]) -> dict[str, Any]:
    """What the template of a learning curve needs."""
    key = [(plots.group_mark(index, 6, 6), NAMES[way]) for index, way in enumerate(curve["curves"])]
    return {"curve": curve, "curve_names": NAMES, "curve_key": key, "curve_plot": plots.amounts(curve, NAMES)}


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


def headline(pooled: dict[str, Any], before: str = "with the base", after: str = "personalised") -> str:
    """The result in a sentence or two, with intervals."""
    people = f"{pooled['speakers']} speaker{'' if pooled['speakers'] == 1 else 's'}"
    if pooled["base_wer"] is None:
        return "No reference has a word after normalisation, so there is no word error rate."
    text = f"Over {people}, the word error rate goes from {percent(pooled['base_wer'])}"
    text += with_interval(pooled["base_wer_interval"]) + f" {before} to {percent(pooled['wer'])}"
    text += with_interval(pooled["wer_interval"]) + f" {after}"
    reduction = pooled["relative_reduction"]
    if reduction is None:
        text += "."
    else:
        change = "reduction" if reduction >= 0 else "increase"
        ends = pooled["relative_reduction_interval"]
        if ends is not None and reduction < 0:
            ends = [-ends[1], -ends[0]]
        text += f": a relative {change} of {percent(abs(reduction))}" + with_interval(ends) + "."
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
