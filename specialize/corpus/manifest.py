"""Manifests: JSONL or CSV files that list utterances, and what can be wrong with a line."""

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from specialize.errors import CorpusError
from specialize.printable import printable

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
    role: str | None = None
    """Empty where the line names none; None where it cannot be read."""

    def __str__(self) -> str:
        where = f"line {self.line}: utterance '{self.utterance}'" if self.line else f"speaker '{self.speaker}'"
        return printable(f"{where}: {self.reason}")


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

    def problem(self, reason: str) -> Problem:
        """What is wrong with it."""
        return Problem(self.line, self.utterance, self.speaker, reason, self.role or "")


def read_manifest(path: Path) -> tuple[list[Row], list[Problem]]:
    """Reads the lines of a manifest; audio files are looked for, but not opened.

    Numbers may stand for texts: the speakers 7 and "7" are one. White space around an id is no part of it.

    Returns:
        The usable rows in order, and a problem for every other line.

    Raises:
        CorpusError: there is no such file, it is of another kind, its quotes do not close, or no line is usable.
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
    seen = _Seen()
    for line, record in records:
        made = record
        if not isinstance(record, Problem):
            made = _row(path.parent, line, record)
            if isinstance(made, Row) and (reason := seen.why_not(made, str(record["speaker"]))) is not None:
                made = made.problem(reason)
        if isinstance(made, Problem):
            problems.append(made)
        else:
            rows.append(made)
    if not rows:
        shown = "".join(f"\n  {problem}" for problem in problems[:3]) or " it has no lines."
        raise CorpusError(f"No line of '{path}' can be used:{shown}")
    return rows, problems


class _Seen:
    """What the usable lines so far have, of which there may be but one."""

    def __init__(self):
        self._utterances: dict[tuple[str, str], int] = {}
        self._audio: dict[str, int] = {}
        self._spelled: dict[str, tuple[str, int]] = {}

    def why_not(self, row: Row, spelled: str) -> str | None:
        """Why a row cannot be used beside those before it; None, and the row is remembered, where it can.

        Args:
            row: the next one.
            spelled: its speaker as the manifest has it.
        """
        before, line = self._spelled.get(row.speaker, (spelled, row.line))
        if before != spelled:
            return (
                f"Its speaker is written '{spelled}' here and '{before}' on line {line}. If they are one, write them "
                "the same way; if not, give them other names."
            )
        file = os.path.realpath(row.audio)
        if file in self._audio:
            return (
                f"Its audio is that of line {self._audio[file]}, which counts: what is trained on and scored too "
                "would flatter. List every recording once."
            )
        if (key := (row.speaker, row.utterance)) in self._utterances:
            return (
                f"Its id stands on line {self._utterances[key]} already; the first one counts. Give every utterance "
                "of a speaker its own."
            )
        self._spelled[row.speaker] = (before, line)
        self._audio[file] = self._utterances[key] = row.line
        return None


def _jsonl(path: Path) -> list[tuple[int, Any]]:
    records = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            record = Problem(line, "", "", f"This is not JSON ({error.msg}, column {error.colno}).")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
            record = Problem(line, "", "", f"This JSON cannot be read ({error}).")
        if not isinstance(record, (dict, Problem)):
            record = Problem(line, "", "", "This is not a JSON object.")
        records.append((line, record))
    return records


def _csv(path: Path, delimiter: str) -> list[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = _csv_lines(path, file, delimiter)
        _, header = next(lines, (1, []))
        if isinstance(header, Problem):
            raise CorpusError(f"The header of '{path}' is not CSV: {header.reason}")
        columns = [column.strip() for column in header]
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise CorpusError(
                f"'{path}' has no column {', '.join(missing)}. It has: {', '.join(columns) or 'none'}. "
                f"A manifest needs {', '.join(REQUIRED)}."
            )
        records: list[tuple[int, Any]] = []
        for line, fields in lines:
            if isinstance(fields, Problem):
                records.append((line, fields))
            elif len(fields) != len(columns):
                records.append((line, Problem(line, "", "", f"This line does not have {len(columns)} fields.")))
            else:
                pairs = zip(columns, fields, strict=True)
                records.append((line, {k: v if k in _KNOWN else _typed(v) for k, v in pairs if v != ""}))
    return records


def _csv_lines(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """The line on which each record begins, with its fields or what is wrong with it.

    Raises:
        CorpusError: a quote is not closed, so that all that follows is inside it.
    """
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise CorpusError(
                    f"The quote that opens on line {line} of '{path}' does not close, so all that follows is inside "
                    "it. Close it; a quote that is meant is written twice, in a field in quotes."
                ) from None
            until = f", up to line {reader.line_num}" if reader.line_num > line else ""
            yield line, Problem(line, "", "", f"This is not CSV ({error}){until}. Mend its quotes.")
            continue
        if fields:
            yield line, fields


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
    texts: dict[str, str] = {}
    reasons: list[str] = []
    for name in (*REQUIRED, "utterance", "split", "role"):
        try:
            texts[name] = _text(record.get(name))
        except ValueError as error:
            reasons.append(f"Its {name} {error}")
    utterance = texts.get("utterance") or texts.get("audio", "")
    problem = partial(Problem, line, utterance, texts.get("speaker", ""), role=texts.get("role"))
    if reasons:
        return problem(reasons[0])
    audio, text, speaker = (texts[name] for name in REQUIRED)
    if not audio or not speaker:
        lacking = " and ".join(name for name, value in (("audio", audio), ("speaker", speaker)) if not value)
        names = ", ".join(record).encode("utf-8", "backslashreplace").decode()
        return problem(f"It names no {lacking}. It has: {names}.")
    if not text:
        return problem("Its text is empty. Write what is said.")
    split = texts["split"].lower()
    if split and split not in SPLITS:
        return problem(f"Its split '{split}' is unknown. Use train, dev or test, or none at all.")
    path = folder / audio
    try:
        if not path.is_file():
            return problem(f"Its audio '{path}' does not exist.")
    except OSError as error:
        return problem(f"Its audio cannot be looked for: {error.strerror}.")
    attributes = {name: value for name, value in record.items() if name not in _KNOWN and value is not None}
    return Row(line, utterance, speaker, path, text, SPLITS.get(split), texts["role"] or None, attributes)


def _text(value: Any) -> str:
    """A value of a column that holds texts; empty where there is none.

    Raises:
        ValueError: it is no text, or not one that can be stored; the message goes on from 'Its text '.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = {list: "a list", dict: "an object", bool: "true or false"}[type(value)]
        raise ValueError(f"is {kind}, not a text.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is {value}, not a text.")
    text = str(value)
    if "\0" in text:
        raise ValueError("has a NUL character in it.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("has half of a surrogate pair in it, which is no character.")
    return text.strip()
