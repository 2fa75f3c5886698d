"""Manifests: JSONL or CSV files that list utterances, and what can be wrong with a line."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specialize.errors import CorpusError

SPLITS = {"train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev"} | {
    "test": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Names of splits that a manifest may use, and ours."""
REQUIRED = ("audio", "text", "speaker")
_KNOWN = (*REQUIRED, "utterance", "split", "role", "seconds")


@dataclass(frozen=True)
class Problem:
    """Something that was left out, and why."""

    line: int
    """Line of the manifest, from 1; 0 where a whole speaker is meant."""
    utterance: str
    speaker: str
    reason: str
    """What was found, and what to do, as a sentence."""

    def __str__(self) -> str:
        where = f"line {self.line}: utterance '{self.utterance}'" if self.line else f"speaker '{self.speaker}'"
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One usable line of a manifest."""

    line: int
    utterance: str
    speaker: str
    audio: Path
    """Absolute, or relative to the working directory as the manifest's own path is."""
    text: str
    split: str | None
    """`train`, `dev` or `test`; None if the line names none."""
    role: str | None
    attributes: dict[str, Any] = field(default_factory=dict)
    """All other columns."""


def read_manifest(path: Path) -> tuple[list[Row], list[Problem]]:
    """Reads the lines of a manifest; audio files are looked for, but not opened.

    Returns:
        The usable rows in order, and a problem for every other line.

    Raises:
        CorpusError: there is no such file, it is of another kind, or no line is usable.
    """
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"There is no manifest '{path}'.")
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            records = _csv(path, "\t" if suffix == ".tsv" else ",")
        elif suffix in (".jsonl", ".ndjson", ".json"):
            records = _jsonl(path)
        else:
            raise CorpusError(f"'{path}' is neither .jsonl (or .ndjson, .json with an object a line) nor .csv or .tsv.")
    except UnicodeDecodeError as error:
        raise CorpusError(f"'{path}' is not UTF-8: {error}. Convert it first.") from error
    rows: list[Row] = []
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for line, record in records:
        made = record if isinstance(record, Problem) else _row(path.parent, line, record)
        if isinstance(made, Row) and made.utterance in lines:
            first = lines[made.utterance]
            reason = f"Its id stands on line {first} already; the first one counts. Give every utterance its own."
            made = Problem(line, made.utterance, made.speaker, reason)
        if isinstance(made, Problem):
            problems.append(made)
        else:
            lines[made.utterance] = line
            rows.append(made)
    if not rows:
        shown = "; ".join(str(problem) for problem in problems[:3]) or "it has no lines"
        raise CorpusError(f"No line of '{path}' can be used: {shown}.")
    return rows, problems


def _jsonl(path: Path) -> list[tuple[int, Any]]:
    records = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            record = Problem(line, "", "", f"This is not JSON ({error.msg}, column {error.colno}).")
        if not isinstance(record, (dict, Problem)):
            record = Problem(line, "", "", "This is not a JSON object.")
        records.append((line, record))
    return records


def _csv(path: Path, delimiter: str) -> list[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        columns = [c.strip() for c in reader.fieldnames or []]
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise CorpusError(
                f"'{path}' has no column {', '.join(missing)}. It has: {', '.join(columns) or 'none'}. "
                f"A manifest needs {', '.join(REQUIRED)}."
            )
        reader.fieldnames = columns
        records: list[tuple[int, Any]] = []
        for record in reader:
            line = reader.line_num
            if None in record or None in record.values():
                records.append((line, Problem(line, "", "", f"This line does not have {len(columns)} fields.")))
            else:
                records.append((line, {k: v if k in _KNOWN else _typed(v) for k, v in record.items() if v != ""}))
    return records


def _typed(text: str) -> Any:
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        # An id such as 007 is no number, and NaN is no value.
        plain = str(value) == text if number is int else math.isfinite(value)
        return value if plain else text
    return text


def _row(folder: Path, line: int, record: dict[str, Any]) -> Row | Problem:
    def text_of(name: str) -> str:
        value = record.get(name)
        return "" if value is None else str(value).strip()

    audio, text, speaker = (text_of(name) for name in REQUIRED)
    utterance = text_of("utterance") or audio

    def problem(reason: str) -> Problem:
        return Problem(line, utterance, speaker, reason)

    if not audio or not speaker:
        lacking = " and ".join(name for name, value in (("audio", audio), ("speaker", speaker)) if not value)
        return problem(f"It names no {lacking}. It has: {', '.join(record)}.")
    if not text:
        return problem("Its text is empty. Write what is said.")
    split = text_of("split").lower()
    if split and split not in SPLITS:
        return problem(f"Its split '{split}' is unknown. Use train, dev or test, or none at all.")
    path = folder / audio
    if not path.is_file():
        return problem(f"Its audio '{path}' does not exist.")
    attributes = {name: value for name, value in record.items() if name not in _KNOWN and value is not None}
    return Row(line, utterance, speaker, path, text, SPLITS.get(split), text_of("role") or None, attributes)
