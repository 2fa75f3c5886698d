"""`specialize …` as a user runs it: a process of its own, timed from its start to its end."""

import os
import subprocess
import sys
import time
from pathlib import Path

COMMAND = (sys.executable, "-c", "from specialize.cli import main; main()")


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
