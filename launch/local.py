"""`specialize launch local`: the processes of a run on this machine, with their logs in one and their ends tied."""

import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from launch.words import Launcher
from specialize.errors import EXIT_PEER, ConfigError
from specialize.printable import printable
from specialize.processes.identity import COORDINATOR, PROCESS, PROCESSES, TOKEN

GRACE = 10.0
"""Seconds that processes have to end by themselves once one of them has."""


@dataclass(frozen=True)
class Local(Launcher):
    """Run an experiment in several processes on this machine.

    What follows the experiment's file is for `specialize train`, or --command. Ctrl-C and SIGTERM reach every process:
    the run saves its state, and the same command goes on; a second Ctrl-C ends it at once. The exit code is that of the
    process that ended first with another than 0; of one that a signal has killed, 128 and the signal's number.
    """

    processes: int = 2
    """How many."""
    devices: int | None = None
    """Devices of each. Of GPUs, process i takes the i-th so many, of CUDA_VISIBLE_DEVICES where that is set; None
    shares those out, and needs it. On a CPU as many are made; None makes one."""
    dry_run: bool = False
    """Print the commands with their environment, and start nothing."""

    def __post_init__(self):
        for name in ("processes", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value}, but it must be at least 1.")


def run_local(options: Local, words: list[str]) -> int:
    """Starts the processes, shows what they say, and waits for them.

    Args:
        options: of the launcher.
        words: what each runs, after the word `specialize`.

    Returns:
        The exit code.
    """
    command = [sys.executable, "-m", "specialize.cli", *words]
    port, token = _free_ports(), secrets.token_hex(16)
    added = [environment_of(options, index, port) for index in range(options.processes)]
    if options.dry_run:
        for of_one in added:
            print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in of_one.items()), shlex.join(command)]))
        return 0
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(got: int, _: object) -> None:
        asked.append(got)
        for process in started:
            _signal(process, signal.SIGKILL if asked.count(signal.SIGINT) > 1 else signal.SIGTERM)

    before = {name: signal.signal(name, pass_on) for name in (signal.SIGTERM, signal.SIGINT)}
    readers: list[threading.Thread] = []
    try:
        for index, of_one in enumerate(added):
            started.append(
                subprocess.Popen(
                    command,
                    env=os.environ | of_one | {TOKEN: token},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C of the terminal comes from here, once
                )
            )
            readers.append(threading.Thread(target=_show, args=(index, started[-1]), daemon=True))
            readers[-1].start()
        code = _wait(started)
    finally:
        for process in started:
            _signal(process, signal.SIGKILL)
        for name, handler in before.items():
            signal.signal(name, handler)
    for reader in readers:
        reader.join(5)
    return code


def environment_of(options: Local, index: int, port: int) -> dict[str, str]:
    """What a process finds in its environment beside what this one has.

    Args:
        options: of the launcher.
        index: of the process.
        port: of process 0, on this machine.
    """
    added = {COORDINATOR: f"localhost:{port}", PROCESSES: str(options.processes), PROCESS: str(index)}
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    each = options.devices
    if each is not None:
        added["JAX_NUM_CPU_DEVICES"] = str(each)
    elif visible:
        each = len(visible) // options.processes
    if each is not None:
        gpus = visible or [str(i) for i in range(options.processes * each)]
        if each == 0 or len(gpus) < options.processes * each:
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES has {len(gpus)} GPUs, too few for {options.processes} processes"
                f"{'' if options.devices is None else f' of {each}'}. Give fewer --processes or --devices."
            )
        added["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index * each : (index + 1) * each])
    return added


def _show(index: int, process: subprocess.Popen[bytes]) -> None:
    """Prints what a process says, each line with its rank."""
    assert process.stdout is not None
    for line in process.stdout:
        text = printable(line.decode(errors="replace").rstrip("\n"))
        sys.stderr.write(f"[{index}] {text}\n")  # in one piece, so that lines of several stay whole
        sys.stderr.flush()


def _wait(started: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all; once one fails, for the others only as long as they need to notice."""
    culprit: int | None = None
    until = float("inf")
    while any(process.poll() is None for process in started):
        failed = [index for index, process in enumerate(started) if process.poll()]
        if failed and until == float("inf"):
            until = time.monotonic() + GRACE
        if culprit is None and (causes := [i for i in failed if not _because_of_another(started[i].returncode)]):
            culprit = causes[0]
            print(f"specialize launch: process {culprit} {_how(started[culprit].returncode)}", file=sys.stderr)
        if time.monotonic() > until:
            for process in started:
                _signal(process, signal.SIGKILL)
        time.sleep(0.05)
    codes = [process.returncode for process in started]
    first = next((code for code in codes if code and not _because_of_another(code)), None)
    code = codes[culprit] if culprit is not None else first or next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


def _because_of_another(code: int) -> bool:
    """Whether a process ended since another had: JAX's service aborts those that lose process 0."""
    return code in (EXIT_PEER, -signal.SIGABRT)


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}. The others end; the same command goes on."
    return f"ended with code {code}"


def _signal(process: subprocess.Popen[bytes], which: int) -> None:
    """Sends a signal to a process that has not ended, and with SIGKILL to what it has started too."""
    if which == signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, which)
    elif process.poll() is None:
        process.send_signal(which)


def _free_ports() -> int:
    """A port that is free, and whose next one is."""
    for _ in range(100):
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
            try:
                socket.create_server(("localhost", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port
    raise ConfigError("No two neighbouring ports are free on this machine.")
