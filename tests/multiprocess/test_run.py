"""Runs of several processes: the Submodels of one, whoever dies; the end of one ends all, and is told by name."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.errors import EXIT_PREEMPTED
from specialize.train import Run
from tests.bases import tiny_whisper
from tests.people import write_people
from tests.train.test_step import COLLECTIVE

DEVICES = 4
# More speakers than slots, dropout, jobs that end at different steps, and a grid: what processes have to agree on.
EXPERIMENT = """
import os, sys
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    hyper=HyperParameters(learning_rate=1.0, dropout=0.1),
    stop=Stopping(max_steps=6, every=2, patience=1),
    cohort=CohortConfig(slots=4, batch=2, rows=2, shapes=1),
    grid=("lr=0.5,1.0",),
    save_seconds=1e-9,
    runs=here / "runs",
)
if "HLO" in os.environ:  # each process writes down what it compiles
    own = Path(os.environ["HLO"]) / os.environ["SPECIALIZE_PROCESS"]
    os.environ["XLA_FLAGS"] += f" --xla_dump_to={own} --xla_dump_hlo_as_text"
if os.environ.get("REFUSED") == os.environ["SPECIALIZE_PROCESS"]:  # once, what this process writes among states
    def refuse(event, arguments, times=[1]):
        if times and event in ("open", "os.mkdir") and "/two/state/" in str(arguments[0]):
            times.pop()
            raise PermissionError(13, "Permission denied", str(arguments[0]))

    sys.addaudithook(refuse)
"""


class Launched:
    """`specialize launch local`, and what it has said so far."""

    def __init__(
        self,
        folder: Path,
        processes: int,
        *words: str,
        devices: int = DEVICES,
        command: str = "train",
        file: str = "people.py",
        told: Mapping[str, str] | None = None,
    ):
        # The tests' own count of devices is of their process alone.
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
        self._processes = processes
        launch = [sys.executable, "-m", "specialize.cli", "launch", "local", "--processes", str(processes)]
        launch += ["--devices", str(devices // processes), "--command", command, file, *words]
        self._process = subprocess.Popen(
            launch,
            cwd=folder,
            env=os.environ | {"XLA_FLAGS": flags} | dict(told or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, said: Callable[[str], bool], seconds: float = 240) -> None:
        """Until a line is said for which this holds."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(said, self.lines)), seconds), "\n".join(self.lines)

    def pid_of(self, rank: int) -> int:
        """The process of a rank."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        of = {}
        for child in children:
            environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
            of |= {int(v.partition("=")[2]): int(child) for v in environment if v.startswith("SPECIALIZE_PROCESS=")}
        return of[rank]

    def kill(self, rank: int) -> str:
        """Kills a rank by SIGKILL, sees to it that all end soon and with its code, and that another rank has named it.
        All that was said."""
        victim, began = self.pid_of(rank), time.monotonic()
        os.kill(victim, signal.SIGKILL)
        code, said = self.end(60)
        assert time.monotonic() - began < 60
        assert code == 128 + signal.SIGKILL, said
        named = rf"specialize: process {rank} of {self._processes} \(host .*, pid {victim}\) has died"
        assert re.search(rf"^\[[^{rank}]\] {named}", said, re.M)
        return said

    def signal(self, which: int) -> None:
        self._process.send_signal(which)

    def end(self, seconds: float = 240) -> tuple[int, str]:
        """Exit code, and all that was said."""
        code = self._process.wait(seconds)
        with self._changed:
            self._changed.wait_for(lambda: self._closed, 10)
        return code, "\n".join(self.lines)

    _closed = False

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                with self._changed:
                    self.lines.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    save_base(tiny_whisper(), folder / "base")
    write_people(folder, speakers=5)
    (folder / "people.py").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> Run:
    """The run of one process."""
    code, said = Launched(folder, 1, "--name", "alone").end()
    assert code == 0, said
    return Run(folder / "runs/alone")


def assert_same(run: Run, other: Run) -> None:
    """Bit for bit, and to the last look."""
    assert list(run.speakers()) == list(other.speakers())
    for speaker in run.speakers():
        one, two = run.submodel(speaker), other.submodel(speaker)
        assert one.training == two.training
        for a, b in zip(jax.tree.leaves(one.submodel), jax.tree.leaves(two.submodel), strict=True):
            assert np.array_equal(a, b)
    of_jobs = [[json.loads(line) for line in (r.folder / "jobs.jsonl").read_text().splitlines()] for r in (run, other)]
    assert of_jobs[0] == of_jobs[1]
    kept = ("jobs", "submodels", "slots", "padded_share", "slots_busy", "quarantined")
    one, two = (r.read("summary.json") for r in (run, other))
    assert {name: one[name] for name in kept} == {name: two[name] for name in kept}


def test_two_processes_train_the_submodels_of_one_without_collectives(folder, alone):
    # The second cannot write the first state; what is compiled is not taken from where it is kept.
    told = {"HLO": str(folder / "hlo"), "JAX_ENABLE_COMPILATION_CACHE": "0", "REFUSED": "1"}
    code, said = Launched(folder, 2, "--name", "two", told=told).end()
    assert code == 0, said
    assert len(re.findall(r"state not saved: process 1: .*Permission denied.*The run goes on", said)) == 1
    assert "has not come" not in said
    assert_same(Run(folder / "runs/two"), alone)
    # One tells of the run, and no line is of two at once.
    assert len(re.findall(r"^\[0\] .*5 Submodels of 10", said, re.M)) == 1
    assert not re.findall(r"^\[1\] .*(done|Submodels)", said, re.M)
    for process in "01":
        programs = compiled(folder / "hlo" / process)
        for name in ("gradient", "apply", "evaluate", "evaluate_alone", "reset", "keep_best"):
            assert programs[name]
            for text in programs[name]:
                assert f"num_partitions={DEVICES}" in text, name
                assert COLLECTIVE.findall(text) == [], name
        # What is brought to all hosts is gathered, so the search would find a collective.
        assert any(COLLECTIVE.search(text) for texts in programs.values() for text in texts)


def compiled(dump: Path) -> dict[str, list[str]]:
    """{name of a function: HLO of its programs, as they run}, of what XLA dumped."""
    programs: dict[str, list[str]] = defaultdict(list)
    for path in dump.glob("module_*.jit_*after_optimizations.txt"):
        named = re.search(r"\.jit_(.+?)\.[^.]*after_optimizations", path.name)
        assert named is not None, path
        programs[named[1]].append(path.read_text())
    return programs


def test_a_worker_of_four_that_is_killed_ends_the_run_and_two_finish_it(folder, alone):
    words = ("--name", "killed", "--cohort.slots", "4")
    launched = Launched(folder, 4, *words)
    launched.wait_for(lambda line: "done 1/10" in line)
    assert "process 2 was killed by SIGKILL" in launched.kill(2)
    assert not (folder / "runs/killed/summary.json").exists()
    code, said = Launched(folder, 2, *words).end()
    assert code == 0, said
    assert "goes on with" in said
    assert_same(Run(folder / "runs/killed"), alone)


def test_sigterm_saves_and_half_as_many_devices_go_on(folder, alone):
    words = ("--name", "stopped")
    launched = Launched(folder, 2, *words)
    launched.wait_for(lambda line: "done 2/10" in line)
    launched.signal(signal.SIGTERM)
    code, said = launched.end()
    assert code == EXIT_PREEMPTED, said
    assert said.count("its state is saved") == 1
    run = Run(folder / "runs/stopped")
    ended = (run.folder / "jobs.jsonl").read_bytes()
    code, said = Launched(folder, 1, *words, devices=DEVICES // 2).end()
    assert code == 0, said
    # Two slots a device are another program, so what comes is the same to float tolerance only, and training amplifies.
    assert (run.folder / "jobs.jsonl").read_bytes().startswith(ended)
    assert (alone.folder / "jobs.jsonl").read_bytes().startswith(ended)
    assert list(run.speakers()) == list(alone.speakers())
    assert run.read("summary.json")["devices"] == ["cpu:cpu"] * (DEVICES // 2)
    assert run.read("summary.json")["jobs"] == 10


def test_processes_of_a_run_that_has_ended_all_succeed(folder, alone):
    before = alone.read("config.json")
    code, said = Launched(folder, 2, "--name", "alone").end()
    assert code == 0, said
    assert said.count("has ended already") == 1
    assert alone.read("config.json") == before


def test_what_one_process_cannot_use_ends_all_with_one_sentence(folder):
    code, said = Launched(folder, 2, "--name", "none", "--base", "nowhere").end()
    assert code == 1
    assert "nowhere" in said
    assert "Traceback" not in said
