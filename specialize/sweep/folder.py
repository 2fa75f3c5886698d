"""The folder of a sweep, and which process does what in it."""

import fcntl
import json
import platform
import secrets
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
    """`sweep.json` (what was asked), `experiments/` (a file for each run), `runs/` (what came of them), `failed/` (why
    runs failed, until they end), `claims/` (locks of processes), with tpe `optuna.db`, and what is read: `trials.csv`,
    `sweep.html`, `best.py`.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        self.experiments = self.folder / "experiments"
        self._failed = self.folder / "failed"
        self._claims = self.folder / "claims"
        # Of this sitting: runs that had failed before it, that it has tried, and that it found others at.
        self._before: set[str] = set()
        self._tried: set[str] = set()
        self._taken: set[str] = set()

    def begin(self, sweep: Sweep, *, overwrite: bool = False) -> None:
        """Makes the folder, or opens it to go on.

        Args:
            sweep: what is asked.
            overwrite: delete what is there.

        Raises:
            ConfigError: another sweep is there, or something else; or it is to be overwritten, and in use.
        """
        path = self.folder / "sweep.json"
        if self.folder.exists() and not path.is_file() and any(p != self._claims for p in self.folder.iterdir()):
            raise ConfigError(f"'{self.folder}' is there and is not a sweep. Give the sweep another --name.")
        with self.alone():
            if overwrite and path.is_file():
                self._empty()
            asked, before = sweep.asked(), {}
            if path.is_file():
                before = json.loads(path.read_text(encoding="utf-8"))
                self._check_same(before["asked"], asked)
            about = {"specialize": __version__, "python": platform.python_version()}
            sweep_id = before.get("id") or secrets.token_hex(16)
            write_json(path, {"id": sweep_id, "asked": asked, "versions": about, "command": sys.argv})
            for inner in (self.experiments, self.runs, self._failed):
                inner.mkdir(exist_ok=True)
        self._before = set(self.failures())

    @property
    def id(self) -> str:
        """Of the sweep, at random; another after it was overwritten."""
        return json.loads((self.folder / "sweep.json").read_text(encoding="utf-8"))["id"]

    def failures(self) -> dict[str, str]:
        """{run: why it failed when it was last tried}, in the order of their names."""
        return {
            path.stem: json.loads(path.read_text(encoding="utf-8"))["reason"]
            for path in sorted(self._failed.glob("*.json"))
        }

    def failed(self, run: str, reason: str) -> None:
        """Keeps why a run failed."""
        self._tried.add(run)
        write_json(self._failed / f"{run}.json", {"run": run, "reason": reason})

    def ended(self, run: str) -> None:
        """Forgets that a run has failed before."""
        self._tried.add(run)
        (self._failed / f"{run}.json").unlink(missing_ok=True)

    def taken(self, run: str) -> None:
        """Leaves a run to another process, which was found training it."""
        self._taken.add(run)

    def leaves(self, run: str) -> bool:
        """Whether it has been left."""
        return run in self._taken

    def tries(self, run: str) -> bool:
        """Whether this sitting is to train a run that has not ended.

        What has failed is tried once by every sitting that begins after it, and by none that went on meanwhile.
        """
        if run in self._tried or run in self._taken:
            return False
        return run in self._before or not (self._failed / f"{run}.json").is_file()

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
        for lock_file in sorted(self.runs.glob("*/lock")):
            if self.trains(run := lock_file.parent.name):
                raise ConfigError(
                    f"Another process is training the run '{run}' of the sweep '{self.folder}', maybe a launcher's; "
                    "it is not overwritten. Wait for it or end it, or give the new sweep another --name."
                )
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
