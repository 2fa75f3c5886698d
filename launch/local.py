"""`specialize launch local`: the processes of a run on this machine, with their logs in one and their ends tied."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from specialize.errors import ConfigError
from specialize.printable import printable
from specialize.processes.identity import COORDINATOR, PROCESS, PROCESSES

GRACE = 10.0
"""Seconds that processes have to end by themselves once one of them has."""


@dataclass(frozen=True)
class Local:
    """Run an experiment in several processes on this machine.

    What follows the experiment's file is for `specialize train`. Ctrl-C and SIGTERM reach every process: the run saves
    its state, and the same command goes on. The exit code is that of the process that ended first with another than 0;
    of one that a signal has killed, 128 and the signal's number.
    """

    processes: int = 2
    """How many."""
    devices: int | None = None
    """Devices of each. Of GPUs, process i takes the i-th so many. On a CPU as many are made; None makes one."""
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
        words: of `specialize train`, from the experiment's file on.

    Returns:
        The exit code.
    """
    command = [sys.executable, "-m", "specialize.cli", "train", *words]
    port = _free_ports()
    added = [environment_of(options, index, port) for index in range(options.processes)]
    if options.dry_run:
        for of_one in added:
            print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in of_one.items()), shlex.join(command)]))
        return 0
    started = [
        subprocess.Popen(
            command,
            env=os.environ | of_one,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C of the terminal comes from here, once
        )
        for of_one in added
    ]
    readers = [
        threading.Thread(target=_show, args=(index, process), daemon=True) for index, process in enumerate(started)
    ]
    for reader in readers:
        reader.start()
    before = {
        name: signal.signal(name, lambda got, _: _pass_on(started, got)) for name in (signal.SIGTERM, signal.SIGINT)
    }
    try:
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
    if options.devices is not None:
        added["JAX_NUM_CPU_DEVICES"] = str(options.devices)
        first = index * options.devices
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(options.processes * options.devices)]
        added["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + options.devices])
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
    failed: int | None = None
    until = float("inf")
    while any(process.poll() is None for process in started):
        for index, process in enumerate(started):
            if failed is None and process.poll():
                failed, until = index, time.monotonic() + GRACE
                print(f"specialize launch: process {index} {_how(process.returncode)}", file=sys.stderr)
        if time.monotonic() > until:
            for process in started:
                _signal(process, signal.SIGKILL)
        time.sleep(0.05)
    codes = [process.returncode for process in started]
    code = codes[failed] if failed is not None else next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}. The others end; the same command goes on."
    return f"ended with code {code}"


def _pass_on(started: list[subprocess.Popen[bytes]], got: int) -> None:
    for process in started:
        _signal(process, signal.SIGTERM if got == signal.SIGINT else got)


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
