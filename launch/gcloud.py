"""Calls of `gcloud`: shown when it is a dry run, else made, with what they say kept."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specialize.errors import EXIT_PEER, EXIT_PREEMPTED, ConfigError, LaunchError, Preempted
from specialize.printable import printable

_ENDED = re.compile(r"\[([^\]\s]+)\] ended with code ([0-9]+)")
"""What every worker's script says last; see `launch.workers`."""
_GAVE_UP = re.compile(r"Command execution on worker ([0-9]+) failed with exit status ([0-9]+)")
"""What gcloud says of a worker, also of one that it could not reach."""
_MERGED: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
    "errors": "replace",
}
_SHOWN = 12
"""Last lines of a worker that failed, which its message has."""


@dataclass(frozen=True)
class Gcloud:
    """How gcloud is called.

    Raises:
        ConfigError: it is to be called, and is not installed.
    """

    zone: str
    project: str | None
    dry_run: bool
    """Print calls instead of making them."""

    def __post_init__(self) -> None:
        if not self.dry_run and shutil.which("gcloud") is None:
            raise ConfigError(
                "gcloud is not installed here, or not on PATH. Install the Google Cloud CLI (cloud.google.com/sdk) and "
                "run `gcloud auth login`, or see with --dry-run what would be called."
            )

    def words(self, *words: str) -> list[str]:
        """`gcloud compute tpus …` with zone and project."""
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return ["gcloud", "compute", "tpus", *words, *where]

    def call(self, *words: str) -> None:
        """Makes a call whose output is for the user.

        Raises:
            LaunchError: it failed.
        """
        self.shell(self.words(*words))

    def shell(self, command: Sequence[str]) -> None:
        """The same for any program.

        Raises:
            LaunchError: it failed.
        """
        self._show(command)
        if self.dry_run:
            return
        ended = subprocess.run(command, check=False)
        if ended.returncode:
            raise LaunchError(f"`{_short(command)}` ended with code {ended.returncode}, and says why above.")

    def ask(self, *words: str) -> str | None:
        """What a call answers; None where it fails, which is then for the next call to explain."""
        ended = subprocess.run(self.words(*words), check=False, capture_output=True, text=True)
        return ended.stdout.strip() if ended.returncode == 0 else None

    def on_workers(self, name: str, script: str, doing: str, log: Path) -> None:
        """Runs a script on all workers of a TPU VM, shows what they say, and keeps it.

        Args:
            name: of the TPU VM.
            script: of `launch.workers`: every worker's lines begin with its number, and the last has its exit code.
            doing: what it is, for messages.
            log: file that the output is added to.

        Raises:
            Preempted: workers ended with code 75: they have saved, and the same command goes on.
            LaunchError: a worker failed, which is named with its last lines.
        """
        command = self.words("tpu-vm", "ssh", name, "--worker=all", f"--command=bash -c {shlex.quote(script)}")
        self._show(command)
        if self.dry_run:
            return
        lines: list[str] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("a", encoding="utf-8") as kept,
            subprocess.Popen(command, **_MERGED) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                kept.write(line)
                kept.flush()
                lines.append(line.rstrip("\n"))
                print(printable(lines[-1]), flush=True)
        _judge(lines, process.returncode, f"{doing} on '{name}'", log)

    def _show(self, command: Sequence[str]) -> None:
        if self.dry_run:
            print(shlex.join(command))
        else:
            print(printable(f"+ {_short(command)}"), file=sys.stderr, flush=True)


def _short(command: Sequence[str]) -> str:
    """A command without the scripts in it."""
    words = [word.split("\n")[0] + (" …" if "\n" in word else "") for word in command]
    return shlex.join(words)


def _judge(lines: Sequence[str], code: int, doing: str, log: Path) -> None:
    """What came of a call on all workers.

    Raises:
        Preempted: see `on_workers`.
        LaunchError: see `on_workers`.
    """
    ended: dict[str, int] = {}
    for line in lines:
        found = _ENDED.fullmatch(line) or _GAVE_UP.search(line)
        if found:
            ended.setdefault(found[1], int(found[2]))
    failed = {worker: status for worker, status in ended.items() if status not in (0, EXIT_PREEMPTED)}
    if failed:
        # A process that ends since another did says so by its code. Of the rest, the first is the likeliest cause.
        first, status = min(failed.items(), key=lambda each: each[1] == EXIT_PEER)
        own = [line for line in lines if line.startswith(f"[{first}] ")][-_SHOWN:]
        with_it = [worker for worker in failed if worker != first]
        others = f" With it ended {', '.join(with_it)}." if with_it else ""
        said = "\n".join(["", *own]) if own else " It could not be reached, or said nothing."
        raise LaunchError(
            f"{doing}: worker {first} failed, with code {status}.{others} All output is in '{log}'; the same command "
            f"goes on from the last state that was saved.{said}"
        )
    if EXIT_PREEMPTED in ended.values():
        raise Preempted(f"{doing} was asked to stop, and saved its state. The same command goes on. Output: '{log}'.")
    if code:
        raise LaunchError(f"{doing}: gcloud ended with code {code}, and says why above. Output: '{log}'.")
