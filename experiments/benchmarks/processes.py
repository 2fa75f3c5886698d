"""`specialize …` as a user runs it: a process of its own, timed from its start to its end.

Who imports this starts such processes, and computes on the CPU itself: one that holds an accelerator would leave no
memory of it, or nothing at all, to those that it starts.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")

COMMAND = (sys.executable, "-c", "from specialize.cli import main; main()")


@dataclass(frozen=True)
class Devices:
    """What the processes find."""

    count: int
    platform: str
    kind: str

    def __str__(self) -> str:
        return f"{self.count} x {self.platform} {self.kind}"


def devices() -> Devices:
    """The devices of the processes, as one of them sees them."""
    words = "import jax, json; d = jax.devices(); print(json.dumps([len(d), d[0].platform, d[0].device_kind]))"
    done = subprocess.run([sys.executable, "-c", words], check=True, stdout=subprocess.PIPE, text=True)
    return Devices(*json.loads(done.stdout))


def environment(cache: Path) -> dict[str, str]:
    """The environment of a process whose corpora and compiled programs are in `cache`."""
    return {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"SPECIALIZE_CACHE": str(cache)}


def specialize(*words: object, cache: Path) -> float:
    """Runs a command to its end; returns seconds.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    began = time.perf_counter()
    done = subprocess.run([*COMMAND, *map(str, words)], env=environment(cache), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"specialize {' '.join(map(str, words))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds
