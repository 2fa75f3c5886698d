"""The folder of a sweep, and which process does what in it."""

import fcntl
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from specialize import __version__
from specialize.errors import ConfigError
from specialize.sweep.config import Sweep
from specialize.train.run import HARMLESS, differences, write_json


class SweepFolder:
    """`sweep.json` (what was asked), `experiments/` (a file for each run), `runs/` (what came of them), `claims/`
    (locks of processes), with tpe `optuna.db`, and what is read: `trials.csv`, `sweep.html`, `best.py`.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        self.experiments = self.folder / "experiments"
        self._claims = self.folder / "claims"

    def begin(self, sweep: Sweep, *, overwrite: bool = False) -> None:
        """Makes the folder, or opens it to go on.

        Args:
            sweep: what is asked.
            overwrite: delete what is there.

        Raises:
            ConfigError: another sweep is there, or something else.
        """
        path = self.folder / "sweep.json"
        if self.folder.exists() and not path.is_file() and any(p != self._claims for p in self.folder.iterdir()):
            raise ConfigError(f"'{self.folder}' is there and is not a sweep. Give the sweep another --name.")
        with self.alone():
            if overwrite and path.is_file():
                self._empty()
            asked = sweep.asked()
            if path.is_file():
                self._check_same(json.loads(path.read_text(encoding="utf-8"))["asked"], asked)
            about = {"specialize": __version__, "python": platform.python_version()}
            write_json(path, {"asked": asked, "versions": about, "command": sys.argv})
            self.experiments.mkdir(exist_ok=True)
            self.runs.mkdir(exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other process is in such a context."""
        self._claims.mkdir(parents=True, exist_ok=True)
        with (self._claims / "all").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def claim(self, name: str) -> IO[str] | None:
        """Takes something for this process, until it closes what is returned, or dies; None where another has it."""
        self._claims.mkdir(parents=True, exist_ok=True)
        return _locked(self._claims / name)

    def trains(self, run: str) -> bool:
        """Whether some process is training a run, maybe by itself with `specialize train`."""
        if not (self.runs / run / "lock").is_file():
            return False
        lock = _locked(self.runs / run / "lock")
        if lock is None:
            return True
        lock.close()
        return False

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        if now["method"] == before["method"] == "tpe" and now["trials"] >= before["trials"]:
            before = before | {"trials": now["trials"]}
        changed = [
            f"{name.removeprefix('experiment.')}: {old!r} -> {new!r}"
            for name, old, new in differences(before, now)
            if name.removeprefix("experiment.") not in HARMLESS
        ]
        if changed:
            listed = "\n  ".join(changed)
            raise ConfigError(
                f"The sweep '{self.folder}' has begun with another configuration:\n  {listed}\nUndo the change to go "
                "on. Give the new sweep another --name, or replace this one with --overwrite."
            )

    def _empty(self) -> None:
        for path in self._claims.iterdir():
            if path.name != "all":
                lock = _locked(path)
                if lock is None:
                    raise ConfigError(f"Another process is at the sweep '{self.folder}'; it is not overwritten.")
                lock.close()
        # Last goes what makes it a sweep: a kill leaves one that can be overwritten.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "sweep.json"):
            if path.is_dir() and path != self._claims:
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()


def _locked(path: Path) -> IO[str] | None:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
