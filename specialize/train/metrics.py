"""Measurements of a run as they come: one JSON object a line, and TensorBoard."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from specialize.errors import ConfigError, SpecializeError, StoreError

NOT_FINITE = "not_finite"
"""Key of a line that names its values that are not finite, as {key: 'nan' | 'inf' | '-inf'}."""

_BLOCK = 1 << 16


class JsonLines:
    """Appends records to a file, one JSON object a line, each handed to the system before `write` returns.

    A last line without its end, which a killed process leaves, is cut off when the file is opened. What cannot be
    written, on a full disk, waits in memory for the next call, so that nothing is lost while the process lives.

    Args:
        path: the file; made if it is not there.
        size: cut the file to so many bytes first: what was written after a state that the run goes on from.

    Raises:
        SpecializeError: the file is shorter than `size`.
    """

    def __init__(self, path: Path, size: int | None = None):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            _cut_torn_line(self._path)
        else:
            there = self._path.stat().st_size if self._path.exists() else 0
            if there < size:
                raise SpecializeError(
                    f"'{path}' has {there} bytes, but had {size} when the run was saved. Put it back, or begin anew "
                    "with --overwrite."
                )
            if self._path.exists():
                os.truncate(self._path, size)
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        self.failure: OSError | None = None
        """Why records wait to be written; None while none does."""

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record, or keeps it until there is space again (see `failure`).

        Args:
            record: JSON data.

        Raises:
            ValueError: it is not JSON data.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        self._waiting += line.encode("utf-8", "surrogatepass")
        self._flush()

    def size(self) -> int:
        """Bytes that are on disk for good, which all records are.

        Raises:
            StoreError: they are not.
        """
        self._flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self.failure = error
        if self.failure is not None:
            raise StoreError(f"'{self._path}' cannot be written: {self.failure}")
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Writes what waits and closes the file; a second call does nothing.

        Raises:
            StoreError: there are records that could not be written.
        """
        if self._file.closed:
            return
        self._flush()
        self._file.close()
        if self._waiting:
            raise StoreError(f"The last lines of '{self._path}' could not be written: {self.failure}")

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        """Writes what waits, whole or not at all."""
        if not self._waiting:
            self.failure = None
            return
        before = os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(self._waiting)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._path, before)
            self.failure = error
        else:
            self._waiting, self.failure = b"", None


class Unwritten:
    """In place of a log that another process writes."""

    failure: OSError | None = None

    def write(self, record: dict[str, Any]) -> None:
        del record

    def size(self) -> int:
        return 0

    def close(self) -> None:
        pass


class MetricsLog(JsonLines):
    """Appends flat records.

    JSON has no NaN and no infinity: such a value is written as null, and the key `not_finite` of the same line says
    what it was. `read_metrics` puts it back.
    """

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record.

        Args:
            record: values are strings, bools, None, or Python or NumPy numbers.

        Raises:
            ValueError: a key is `not_finite`, or a value is none of these.
        """
        super().write(_encode(record))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a file that `MetricsLog` wrote, with NaN and infinities as floats again.

    A last line that is still being written is passed over.

    Raises:
        SpecializeError: another line is not a JSON object.
        FileNotFoundError: there is no such file.
    """
    text = Path(path).read_bytes()
    records = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
        except ValueError:
            raise SpecializeError(
                f"Line {number} of '{path}' is {line[:80]!r}, but a JSON object was expected. Remove the line."
            ) from None
        lost = record.pop(NOT_FINITE, {})
        records.append(record | {key: float(value) for key, value in lost.items()})
    return records


class TensorBoardLog:
    """Scalars for TensorBoard, through tensorboardX, which needs no TensorFlow.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ConfigError(
                "TensorBoard was asked for, but tensorboardX is not installed. "
                "Run `pip install tensorboardX`, or leave out --tensorboard."
            ) from None
        self._writer = SummaryWriter(str(folder))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to the curve `name`; a value that is not finite is left out, for no plot can show it."""
        if math.isfinite(value):
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()


class WandbLog:
    """Curves for Weights & Biases. Its own environment variables hold: WANDB_MODE=offline keeps them on disk.

    Args:
        project: name of the project.
        name: of the run.
        config: what the run shows as its configuration.
        folder: where wandb keeps its files.

    Raises:
        ConfigError: wandb is not installed, or cannot start.
    """

    def __init__(self, project: str, name: str, config: dict[str, Any], folder: Path):
        try:
            import wandb  # pyright: ignore[reportMissingImports] (optional)
        except ImportError:
            raise ConfigError(
                "Weights & Biases was asked for, but wandb is not installed. "
                "Run `pip install wandb`, or leave out --wandb."
            ) from None
        try:
            self._run = wandb.init(project=project, name=name, config=config, dir=str(folder))
        except Exception as error:  # no login, no network, no permission: no common type
            raise ConfigError(
                f"Weights & Biases cannot start: {error}. WANDB_MODE=offline needs no network."
            ) from error

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to the curve `name`, over the job's own steps; a value that is not finite is left out."""
        if math.isfinite(value):
            self._run.log({name: float(value), f"{name}/step": step})

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def _encode(record: dict[str, Any]) -> dict[str, Any]:
    if NOT_FINITE in record:
        raise ValueError(f"The key '{NOT_FINITE}' of a record is kept for the log itself. Give the value another name.")
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in record.items()}
    for key, value in plain.items():
        if not (value is None or isinstance(value, str | bool | int | float)):
            raise ValueError(f"'{key}' is {value!r}, but a metric is a number, a string, a bool or None.")
    lost = {key: str(value) for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)}
    if not lost:
        return plain
    return plain | dict.fromkeys(lost) | {NOT_FINITE: lost}


def _cut_torn_line(path: Path) -> None:
    """Shortens a file to the end of its last whole line, reading from the end only."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
