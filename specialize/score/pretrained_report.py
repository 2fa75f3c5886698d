"""The report of a base that was pretrained: alone, or beside the base that it went on from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specialize.score import plots
from specialize.score.counts import count_words, normalizer
from specialize.score.page import attributes_of, page, with_interval
from specialize.score.report import headline
from specialize.score.results import write_atomically
from specialize.score.terminal import align, by_rate, percent
from specialize.score.transcript import Transcript

EXAMPLES = 16
"""At most so many utterances are shown."""
_HIGHEST = 1.5
"""WER at which bars of intervals are cut off."""


def write_pretrained_report(
    path: Path,
    results: dict[str, Any],
    transcripts: Sequence[Transcript],
    curve: plots.Curve = (),
    about: dict[str, Any] | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file.
        results: of `evaluate_pretrained`; without `base_wer` they are of one base alone.
        transcripts: what was scored: as `submodel` what the base has heard, as `base` the one that it went on from.
        curve: (step, train loss, dev loss) of the training, per token.
        about: facts of the run, as `page` takes them.
    """
    pooled = results["pooled"]
    groups = [row for values in results["groups"].values() for row in values.values()]
    two = "base_wer" in pooled
    training = [plots.training_curves({"the base": curve}, which) for which in (2, 1)]
    text = page(
        "pretrained.html.jinja",
        about,
        results.get("problems", []),
        pooled=pooled,
        results=results,
        two=two,
        headline=headline(pooled, "with the base that it went on from", "with this one") if two else _lead(pooled),
        axis=plots.interval_axis(groups, "wer", 0.0, _HIGHEST),
        training=[plot for plot in training if plot is not None],
        rates=plots.rates(results["speakers"], pooled["wer"]),
        speakers=by_rate(results["speakers"]),
        attributes=attributes_of(results["speakers"]),
        examples=_examples(transcripts, results["language"], two),
        shown=len(transcripts),
    )
    write_atomically(path, text)


def _lead(pooled: dict[str, Any]) -> str:
    if pooled["wer"] is None:
        return "No reference has a word after normalisation, so there is no word error rate."
    people = f"{pooled['speakers']} speaker{'' if pooled['speakers'] == 1 else 's'}"
    return f"Over {people}, the word error rate is {percent(pooled['wer'])}{with_interval(pooled['wer_interval'])}."


def _examples(transcripts: Sequence[Transcript], language: str, two: bool) -> list[dict[str, Any]]:
    """Utterances from the best heard to the worst, evenly spread, normalised as the error rates count them."""
    normalize = normalizer(language)
    rows = []
    for transcript in transcripts:
        said = normalize(transcript.reference)
        texts = {"heard": transcript.submodel} | ({"the start": transcript.base} if two else {})
        heard = {name: normalize(text) for name, text in texts.items()}
        if said:
            rows.append((count_words(said, heard["heard"]).rate, transcript, said, heard))
    rows.sort(key=lambda row: (row[0], row[1].utterance))
    most = min(EXAMPLES, len(rows))
    chosen = [rows[round(i * (len(rows) - 1) / max(most - 1, 1))] for i in range(most)]
    return [
        {
            "utterance": transcript.utterance,
            "speaker": transcript.speaker,
            "reference": said,
            "heard": [(name, count_words(said, text).errors, align(said, text)) for name, text in heard.items()],
        }
        for _, transcript, said, heard in chosen
    ]
