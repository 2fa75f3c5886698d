"""Sittings of runs, each a process of its own that gets a signal at some moment."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, os, pathlib, shutil, signal, sys, threading
import specialize.train
from specialize.cli import main
from specialize.train.recorder import Recorder
from specialize.train.state import StateFolder

folder, sittings = sys.argv[1], json.loads(sys.argv[2])
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")

def send_at(event, which, name, seconds):
    seen, number = 0, which if isinstance(which, int) else 1

    def happened():
        nonlocal seen
        seen += 1
        if seen == number and seconds:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.Signals[name])).start()
        elif seen == number:
            os.kill(os.getpid(), signal.Signals[name])

    def counted(method):
        def call(*arguments, **more):
            happened()
            return method(*arguments, **more)
        return call

    if event == "touch":
        place = which if isinstance(which, str) else f"{folder}/runs"
        sys.addaudithook(lambda event, args: event in TOUCHES and place in str(args[0]) and happened())
    elif event == "save":
        StateFolder.save = counted(StateFolder.save)
    elif event == "step":
        save, number = StateFolder.save, 1
        def watched(self, state, progress):
            if progress["step"] == which:
                happened()
            save(self, state, progress)
        StateFolder.save = watched
    elif event == "look":
        Recorder.looked = counted(Recorder.looked)

codes = []
for base, index, words, *signalled in sittings:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{folder}/{base}/said{index}", os.O_WRONLY | os.O_CREAT), 2)
        if signalled:
            send_at(*signalled)
        main(words)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    shutil.copytree(f"{folder}/runs/{base}", f"{folder}/{base}/after{index}")
    codes.append([base, code])

pathlib.Path(folder, "codes").write_text(json.dumps(codes))
"""


def sit(folder: Path, sittings: Sequence[Sequence[Any]]) -> None:
    """Runs commands one after another, each forked before JAX has started any threads, so that it need not import
    everything again. What a sitting has said is in `NAME/saidINDEX`, and its runs as it left them in `NAME/afterINDEX`.

    Args:
        folder: of it all; the runs of NAME are in its `runs/NAME`.
        sittings: (name, index, words of the command), and for one that gets a signal (event, which, signal, seconds):
            so many seconds after its n-th touch of the runs, or its first of a path that holds a text (`touch`); after
            its n-th save began (`save`), or that at the n-th step of a pretraining (`step`); or after its n-th look
            (`look`).
    """
    for name in {name for name, *_ in sittings}:
        (folder / name).mkdir(exist_ok=True)
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(folder), json.dumps(sittings)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def codes(folder: Path, name: str) -> list[int]:
    """How the sittings of that name ended; less than zero by a signal."""
    return [code for of, code in json.loads((folder / "codes").read_text()) if of == name]


def said(folder: Path, name: str, index: int) -> str:
    """What a sitting has written to stderr."""
    return (folder / name / f"said{index}").read_text()
