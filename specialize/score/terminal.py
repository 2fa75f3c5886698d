"""Results for a terminal: tables, and texts with their differences marked."""

from collections.abc import Mapping
from typing import Any

import jiwer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from specialize.printable import printable
from specialize.score.counts import normalizer

_MARKS = {"delete": ("[-", "-]", "red strike"), "insert": ("{+", "+}", "green underline")}


def align(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Fewest word edits between two texts, as (kind, reference words, hypothesis words).

    Kinds are 'equal', 'substitute', 'delete' and 'insert'. The texts are compared as they are: normalise them first
    to see what the error rates count.
    """
    output = jiwer.process_words(reference, hypothesis)
    said, heard = output.references[0], output.hypotheses[0]
    return [
        (
            chunk.type,
            " ".join(said[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in output.alignments[0]
    ]


def differences(reference: str, hypothesis: str) -> Text:
    """The hypothesis against the reference, as 'the [-cat-] {+hat+} sat': readable without colour.

    Words in [- -] were said and not heard; words in {+ +} were heard and not said. See `align` about normalisation.
    """
    text = Text()
    for kind, said, heard in align(printable(reference), printable(hypothesis)):
        parts = [(None, said)] if kind == "equal" else [("delete", said), ("insert", heard)]
        for mark, words in parts:
            if not words:
                continue
            if text:
                text.append(" ")
            if mark is None:
                text.append(words)
            else:
                before, after, style = _MARKS[mark]
                text.append(f"{before}{words}{after}", style)
    return text


def said_and_heard(
    console: Console, speaker: str, utterance: str, said: str, heard: Mapping[str, str], language: str
) -> None:
    """Prints a reference, and each hypothesis against it, normalised, with the differences marked.

    Args:
        console: where to.
        speaker, utterance: ids.
        said: the reference.
        heard: {name: hypothesis}; no name for a single one.
        language: picks the normaliser.
    """
    normalize = normalizer(language)
    console.print(f"\n{printable(speaker)} {printable(utterance)}: {printable(said)}", markup=False)
    for name, text in heard.items():
        label = f"  {name + ':':<14}" if name else "  "
        console.print(label, differences(normalize(said), normalize(text)), soft_wrap=True)


def tables(results: dict[str, Any]) -> list[Table]:
    """Tables of results as `score` makes them: pooled, speakers from most to least gain, and one for each attribute."""
    made = [_pooled(results["pooled"]), _speakers(results["speakers"])]
    return made + [_groups(name, values) for name, values in results["groups"].items()]


def percent(value: float | None) -> str:
    """A share as '12.3%'; '-' for none."""
    return "-" if value is None else f"{100 * value:.1f}%"


def interval(values: list[float] | None) -> str:
    """An interval of shares as '1.0% to 2.0%'; '-' for none."""
    return "-" if values is None else f"{percent(values[0])} to {percent(values[1])}"


def by_gain(speakers: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Speakers from the one whose WER falls most to the one whose WER rises most; those without words last."""

    def gain(item: tuple[str, dict[str, Any]]) -> tuple[float, str]:
        row = item[1]
        return (float("inf") if row["wer"] is None else row["wer"] - row["base_wer"], item[0])

    return sorted(speakers.items(), key=gain)


def by_rate(speakers: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Speakers from the highest WER to the lowest; those without words last."""
    return sorted(speakers.items(), key=lambda item: (item[1]["wer"] is None, -(item[1]["wer"] or 0.0), item[0]))


def _pooled(pooled: dict[str, Any]) -> Table:
    table = Table(title="All speakers", title_justify="left")
    for name in ("", "base", "personalised", "relative reduction"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("WER", percent(pooled["base_wer"]), percent(pooled["wer"]), percent(pooled["relative_reduction"]))
    ends = (pooled["base_wer_interval"], pooled["wer_interval"], pooled["relative_reduction_interval"])
    table.add_row("95% interval", *(interval(end) for end in ends))
    table.add_row("CER", percent(pooled["base_cer"]), percent(pooled["cer"]), "")
    p_value = "-" if pooled["p_value"] is None else f"{pooled['p_value']:.2g}"
    table.caption = (
        f"{pooled['speakers']} speakers, {pooled['utterances']} utterances, {pooled['words']} words. "
        f"Helped {percent(pooled['helped'])}, harmed {percent(pooled['harmed'])}, "
        f"unchanged {percent(pooled['unchanged'])} of the speakers; p = {p_value}. "
        f"{pooled['served_by_base']} served by the base; WER with every Submodel {percent(pooled['submodel_wer'])}."
    )
    table.caption_justify = "left"
    return table


def _speakers(speakers: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Speakers", title_justify="left")
    for name in ("speaker", "words", "base WER", "WER", "change", "served by"):
        table.add_column(name, justify="left" if name in ("speaker", "served by") else "right")
    for speaker, row in by_gain(speakers):
        change = "-" if row["wer"] is None else f"{100 * (row['wer'] - row['base_wer']):+.1f}"
        cells = (str(row["words"]), percent(row["base_wer"]), percent(row["wer"]), change, row["used"])
        table.add_row(Text(printable(speaker)), *cells)
    return table


def _groups(name: str, values: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=Text(f"By {printable(name)}"), title_justify="left")
    for column in ("value", "speakers", "words", "base WER", "WER", "reduction", "95% interval of it"):
        table.add_column(column, justify="left" if column == "value" else "right")
    for value, row in values.items():
        table.add_row(
            Text(printable(value)),
            *(str(row["speakers"]), str(row["words"]), percent(row["base_wer"]), percent(row["wer"])),
            *(percent(row["relative_reduction"]), interval(row["relative_reduction_interval"])),
        )
    return table
