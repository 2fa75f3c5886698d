"""What people read of a sweep: a table on the terminal and as CSV, and a page with a plot of each axis."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from specialize.printable import printable
from specialize.score.page import rendered
from specialize.score.results import write_atomically
from specialize.sweep.axes import KIND, told
from specialize.sweep.config import Sweep
from specialize.sweep.outcomes import Best, Failure, Outcome, comparable, mean_over
from specialize.sweep.plots import against_axis
from specialize.train.values import write_value


def ranked(found: Sequence[Outcome], best: Best | None, failed: Sequence[Failure] = ()) -> list[dict[str, Any]]:
    """Rows of a table, from the least dev loss over the speakers that are compared.

    Trials that lost speakers to quarantine come later, and those of runs that failed last. Each is {trial, run,
    dev_loss, speakers, corpus_speakers, quarantined, halved, chosen_for, failed, complete, other_corpus, values}.
    """
    within, people = comparable(found)
    means = {of.trial.number: mean_over(of.losses, people) for of in within}
    most = max((of.people for of in found), default=0)
    chosen = list(best.chosen.values()) if best is not None else []
    rows: list[dict[str, Any]] = [
        {
            "trial": of.trial.number,
            "run": of.run,
            "dev_loss": of.mean,
            "speakers": len(of.losses),
            "corpus_speakers": of.people,
            "quarantined": of.quarantined,
            "halved": of.halved,
            "chosen_for": chosen.count(of.trial.number),
            "failed": "",
            "complete": of.whole,
            "other_corpus": of.people < most,
            "values": of.trial.values,
        }
        for of in found
    ]
    nothing = dict.fromkeys(("speakers", "corpus_speakers", "quarantined", "halved", "chosen_for"), 0)
    nothing |= {"dev_loss": None, "complete": False, "other_corpus": False}
    rows += [
        {**nothing, "trial": trial.number, "run": of.run.id, "failed": of.reason, "values": trial.values}
        for of in failed
        for trial in of.run.trials
    ]

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        mean = means.get(row["trial"], row["dev_loss"])
        return row["trial"] not in means, bool(row["failed"]), mean is None, mean or 0.0, row["trial"]

    return sorted(rows, key=place)


def write_table(
    path: Path, sweep: Sweep, found: Sequence[Outcome], best: Best | None, failed: Sequence[Failure]
) -> None:
    """Writes all trials as CSV, whole or not at all: what came of each, and the value of each axis."""
    names = [axis.name for axis in sweep.parsed]
    facts = (
        *("trial", "run", "dev_loss", "speakers", "corpus_speakers"),
        *("quarantined", "halved", "chosen_for", "failed"),
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*facts, *names])
    for row in ranked(found, best, failed):
        writer.writerow([*(row[name] for name in facts), *(_value(row, name) for name in names)])
    write_atomically(path, text.getvalue())


def terminal_table(sweep: Sweep, found: Sequence[Outcome], best: Best | None, failed: Sequence[Failure] = ()) -> Table:
    """All trials, from the least dev loss; why some failed is told after it (`failures`)."""
    names, rows = _varying(sweep), ranked(found, best, failed)
    table = Table(title=f"Sweep {sweep.called}, from the least dev loss", title_justify="left")
    for name in ("trial", "dev loss", "speakers", "chosen for", *map(_last, names)):
        table.add_column(name, justify="right", overflow="fold")
    notes = [_notes(row | {"failed": ""}) + ("failed" if row["failed"] else "") for row in rows]
    noted = any(notes)
    if noted:
        table.add_column("")
    for row, note in zip(rows, notes, strict=True):
        facts = (row["trial"], _loss(row["dev_loss"]), row["speakers"], row["chosen_for"] or "")
        cells = [Text(printable(_short(row, name))) for name in names]
        table.add_row(*map(str, facts), *cells, *([note] if noted else []))
    return table


def failures(failed: Sequence[Failure], runs: int) -> str:
    """Which runs failed and why, and the remedy."""
    lines = [
        f"  {of.run.id} (trial{'' if len(of.run.trials) == 1 else 's'} "
        f"{', '.join(str(trial.number) for trial in of.run.trials)}; {told(of.run.trials[0].values)}): {of.reason}"
        for of in failed
    ]
    return "\n".join(
        [
            f"{len(failed)} of {runs} runs failed:",
            *lines,
            "Mend that and type the same command: failed runs are tried again, and the others are not. Values that "
            "cannot work are for a sweep without them, with another --name.",
        ]
    )


def write_page(
    path: Path,
    sweep: Sweep,
    found: Sequence[Outcome],
    best: Best | None,
    failed: Sequence[Failure],
    left: int,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the HTML file.
        sweep: what was asked.
        found: outcomes of the trials that have ended.
        best: of them.
        failed: runs that could not be made.
        left: runs that have neither ended nor failed.
    """
    rows = ranked(found, best, failed)
    names = _varying(sweep)
    axes = [axis for axis in sweep.parsed if axis.name in names]
    shown = [
        {
            **row,
            "loss": _loss(row["dev_loss"]),
            "notes": _notes(row),
            "cells": [_short(row, name) for name in names],
        }
        for row in rows
    ]
    text = rendered(
        "sweep.html.jinja",
        folder=Path(__file__).parent,
        title=printable(sweep.called),
        lead=headline(sweep, found, best),
        incomparable=incomparable(sweep),
        left=left,
        failed=len(failed),
        names=names,
        rows=shown,
        plots=[against_axis(axis, rows) for axis in axes] if any(row["dev_loss"] is not None for row in rows) else [],
        asked={
            "axes": " ".join(sweep.axes),
            "method": sweep.method + ("" if sweep.trials is None else f", {sweep.trials} trials, seed {sweep.seed}"),
            "select": sweep.select,
            "halving": sweep.halving or sweep.started.stop.halving or "off",
            "best experiment": sweep.folder / "best.py",
        },
    )
    write_atomically(path, text)


def headline(sweep: Sweep, found: Sequence[Outcome], best: Best | None) -> str:
    """The result in a sentence."""
    if best is None:
        if any(of.losses for of in found):
            return (
                "No trial finished all its speakers, and those that lost the fewest have no speaker in common to be "
                "compared on, so none is chosen."
            )
        return "No trial has come to an end with a dev loss."
    count = best.compared or len(best.chosen)
    people = f"{count} speaker{'' if count == 1 else 's'}"
    if count < max(of.people for of in found):
        people += ", those of its corpus" if not best.compared else ", those that all it was compared with have"
    if sweep.select == "speaker":
        several = len(best.trials) > 1
        which = f"trial{'s' if several else ''} {', '.join(map(str, best.trials))}"
        which += ", to each speaker their own" if several else ""
    else:
        row = next(of for of in found if of.trial.number == best.trials[0])
        values = " ".join(f"{name}={_short({'values': row.trial.values}, name)}" for name in row.trial.values)
        which = f"trial {best.trials[0]} ({values})"
    return f"Of {len(found)} trials the best is {which}: mean dev loss {best.mean:.4f} over {people}."


def incomparable(sweep: Sweep) -> str | None:
    """A warning where dev losses are of different utterances or tokens; None where they are not."""
    named = [name for name in _varying(sweep) if name == "base" or name.startswith("corpus.")]
    if not named:
        return None
    return (
        f"Trials differ in {', '.join(named)}: where their dev utterances or tokens are others, their dev losses do "
        "not compare. Score the runs with `specialize evaluate` before you choose."
    )


def _varying(sweep: Sweep) -> list[str]:
    return [axis.name for axis in sweep.parsed if axis.varies]


def _last(name: str) -> str:
    """A field without what it is a part of, but `kind`, which says nothing alone."""
    return name.rpartition(".")[2] if name != KIND else name


def _value(row: dict[str, Any], name: str) -> str:
    """The value of an axis as it is written; nothing where the trial's kind has no such field."""
    return write_value(row["values"][name]) if name in row["values"] else ""


def _short(row: dict[str, Any], name: str) -> str:
    """The same with four digits."""
    value = row["values"].get(name)
    return f"{value:.4g}" if isinstance(value, float) else _value(row, name)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _notes(row: dict[str, Any]) -> str:
    notes = [f"failed: {row['failed']}"] if row["failed"] else []
    notes += [f"a corpus of {row['corpus_speakers']}"] if row["other_corpus"] else []
    notes += [f"{row['quarantined']} quarantined"] if row["quarantined"] else []
    return ", ".join(notes + ([f"{row['halved']} ended early"] if row["halved"] else []))
