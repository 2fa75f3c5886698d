"""Jobs of a real SLURM that are submitted, watched, cancelled, preempted and stopped, and the text of their script."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch.slurm import slurm
from launch.slurm_script import Slurm, script
from specialize.base import save_base
from specialize.cli import main
from specialize.errors import ConfigError
from specialize.submodel import SubmodelStore
from tests.bases import tiny_whisper
from tests.launch.slurm_cluster import CannotStart, Cluster, cluster
from tests.launch.test_slurm_script import EVERYTHING, ODD
from tests.people import write_people

ROOT = Path(__file__).parents[2]

# Counts until it is told to end, one line a step. At SIGTERM it saves where it is, rank 1 more slowly than rank 0, and
# the next sitting counts on from there.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

folder, rank, asked = Path(sys.argv[1]), int(os.environ["SLURM_PROCID"]), []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
saved = folder / f"saved.{rank}"
step = int(saved.read_text()) if saved.exists() else 0
print("begins at", step, flush=True)
(folder / f"pid.{rank}").write_text(str(os.getpid()))
while not (folder / f"end.{rank}").exists():
    if asked:
        time.sleep(0.2 + rank * float(sys.argv[2]))
        saved.write_text(str(step))
        print("saved at", step, flush=True)
        sys.exit(75)
    step += 1
    with (folder / f"steps.{rank}").open("a") as file:
        file.write(f"{step}\\n")
    time.sleep(0.05)
code = (folder / f"end.{rank}").read_text()
print("ends with", code, flush=True)
sys.exit(int(code))
"""


@pytest.fixture(scope="module")
def here() -> Iterator[Cluster]:
    """A SLURM of this machine's own."""
    try:
        with cluster() as made:
            yield made
    except CannotStart as error:
        pytest.skip(f"needs a SLURM: {error}")


@dataclass(frozen=True)
class Job:
    """A job that runs PROGRAM on two nodes, or one."""

    of: Cluster
    folder: Path
    number: str
    nodes: int

    def log(self) -> str:
        return "".join(file.read_text() for file in (self.folder / "logs").iterdir())

    def told(self) -> str:
        """What is known of the job, where something did not happen."""
        return f"{self.of.facts(self.number)}\n{self.log()}\n{self.of.logs()}"

    def steps(self, rank: int) -> list[int]:
        file = self.folder / f"steps.{rank}"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def runs(self) -> bool:
        return all(self.steps(rank) for rank in range(self.nodes))

    def end(self, **codes: int) -> None:
        """Tells ranks to end with an exit code, `rank1=3`; none named is all of them with 0."""
        for rank in range(self.nodes):
            if not codes or f"rank{rank}" in codes:
                (self.folder / "beside").write_text(str(codes.get(f"rank{rank}", 0)))
                (self.folder / "beside").rename(self.folder / f"end.{rank}")

    def alive(self) -> list[int]:
        """Ranks whose process there is."""
        pids = {rank: int((self.folder / f"pid.{rank}").read_text()) for rank in range(self.nodes)}
        return [rank for rank, pid in pids.items() if Path(f"/proc/{pid}").exists()]

    def assert_went_on(self) -> None:
        """That no rank made a step twice, or left one out."""
        for rank in range(self.nodes):
            assert self.steps(rank) == list(range(1, len(self.steps(rank)) + 1))
            assert f"{rank}: saved at" in self.log()


def submit(of: Cluster, folder: Path, *command: str, **options: Any) -> Job:
    """Gives PROGRAM, or another command, to SLURM with the script of an experiment."""
    asked = Slurm(**{"nodes": 2, "cpus_per_task": 2, "name": "count", "log": folder / "logs"} | options)
    asked.log.mkdir()
    text = script([sys.executable, "-c", *(command or (PROGRAM, str(folder), "1"))], asked)
    done = subprocess.run(["sbatch", "--parsable"], input=text, env=of.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Job(of, folder, done.stdout.strip(), asked.nodes)


def until(happened: Callable[[], Any], what: Callable[[], str], seconds: float = 60.0) -> None:
    """Waits for something, and says what there is instead if it does not happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def preempt(of: Cluster) -> str:
    """Submits a short job that needs the nodes of all others, and has priority."""
    words = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    return of.run("sbatch", "--parsable", *words)


def goes_on(job: Job) -> None:
    """Waits until a job is back in the queue, and starts it without waiting for its turn."""
    until(lambda: job.of.state(job.number) == "PENDING", job.told)
    job.of.hurry(job.number)
    until(lambda: job.log().count("0: begins at") == 2, job.told)


@pytest.fixture(scope="module")
def limited(here, tmp_path_factory) -> Job:
    """A job whose time is over soon. SLURM looks twice a minute; meanwhile others are tested."""
    job = submit(here, tmp_path_factory.mktemp("limited"), nodes=1, partition="apart", time="10", signal_seconds=40)
    until(job.runs, job.told)
    here.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
    return job


@pytest.fixture(autouse=True)
def cleared(here) -> Iterator[None]:
    """Ends what a test that failed has left, which would have the nodes of all others."""
    yield
    here.clear()


def test_a_job_runs_and_its_log_says_which_rank_said_what(here, limited, tmp_path):
    job = submit(here, tmp_path)
    until(job.runs, job.told)
    assert here.state(job.number) == "RUNNING"
    job.end()
    until(lambda: here.state(job.number) == "COMPLETED", job.told)
    assert [file.name for file in (tmp_path / "logs").iterdir()] == [f"count-{job.number}.log"]
    assert "sitting 1, n[1-2]" in job.log()
    assert {"0: ends with 0", "1: ends with 0"} <= set(job.log().splitlines())
    assert here.facts(job.number)["ExitCode"] == "0:0"


def test_a_cancelled_job_saves_and_is_not_requeued_and_nothing_of_it_is_left(here, limited, tmp_path):
    job = submit(here, tmp_path)
    until(job.runs, job.told)
    here.run("scancel", job.number)
    until(lambda: here.state(job.number) == "CANCELLED", job.told)
    assert job.alive() == []
    assert {"0: saved at", "1: saved at"} <= {line.rpartition(" ")[0] for line in job.log().splitlines()}
    assert "by itself, which is COMPLETING" in job.log()
    time.sleep(1.5)  # in which it would come back
    assert here.state(job.number) == "CANCELLED"
    assert here.facts(job.number)["Restarts"] == "0"


@pytest.mark.parametrize("partition", ["low", "hasty"])
def test_a_preempted_job_goes_back_into_the_queue_once_and_on_from_where_it_was(here, limited, tmp_path, partition):
    job = submit(here, tmp_path, partition=partition)
    until(job.runs, job.told)
    other = preempt(here)
    until(lambda: here.state(other) == "COMPLETED", job.told)
    goes_on(job)
    job.end()
    until(lambda: here.state(job.number) == "COMPLETED", job.told)
    job.assert_went_on()
    assert here.facts(job.number)["Restarts"] == "1"
    assert "sitting 2, n[1-2]" in job.log()
    # With a grace nobody but the script requeues; without, nobody but SLURM.
    assert ("goes back into the queue" in job.log()) == (partition == "low")
    assert ("by itself, which is COMPLETING" in job.log()) == (partition == "hasty")


def test_a_rank_may_take_longer_to_save_than_srun_would_wait_for_it(here, limited, tmp_path):
    job = submit(here, tmp_path, PROGRAM, str(tmp_path), "6")
    until(job.runs, job.told)
    here.run("scancel", "--signal=TERM", job.number)
    goes_on(job)
    job.end()
    until(lambda: here.state(job.number) == "COMPLETED", job.told)
    job.assert_went_on()


def test_a_node_that_fails_brings_the_job_back(here, limited, tmp_path):
    job = submit(here, tmp_path)
    until(job.runs, job.told)
    here.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    until(lambda: here.state(job.number) == "PENDING", job.told)
    # slurmd is alive, and comes back by itself.
    until(lambda: set(here.run("sinfo", "-h", "--nodes=n[1-2]", "--format=%T").split()) == {"idle"}, job.told)
    goes_on(job)
    job.end()
    until(lambda: here.state(job.number) == "COMPLETED", job.told)
    assert here.facts(job.number)["Restarts"] == "1"


def test_a_job_that_is_told_to_stop_comes_back_unless_it_must_not(here, limited, tmp_path):
    job = submit(here, tmp_path, requeue=False)
    until(job.runs, job.told)
    here.run("scancel", "--signal=TERM", job.number)
    until(lambda: here.state(job.number) == "FAILED", job.told)
    assert here.facts(job.number)["ExitCode"] == "75:0"
    assert "stopped; submitted again" in job.log()
    assert job.alive() == []


def test_an_exit_code_that_is_not_0_ends_all_ranks_and_is_passed_on(here, limited, tmp_path):
    job = submit(here, tmp_path)
    until(job.runs, job.told)
    job.end(rank1=3)
    until(lambda: here.state(job.number) == "FAILED", job.told)
    assert here.facts(job.number)["ExitCode"] == "3:0"
    assert "task 1: Exited with exit code 3" in job.log()
    assert job.alive() == []


def test_a_rank_that_cannot_save_is_killed_and_the_job_is_not_started_again(here, limited, tmp_path):
    program = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif os.environ['SLURM_PROCID'] == '1': "
    )
    job = submit(here, tmp_path, program + "os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)")
    until(lambda: here.state(job.number) == "FAILED", job.told)
    assert here.facts(job.number)["ExitCode"] == "137:0"
    assert "task 1: Exited with exit code 137" in job.log()


def test_a_rank_that_fails_ends_the_job_though_another_is_ended_before_it_can_listen(here, limited, tmp_path):
    program = "import os, sys, time; time.sleep(600 * (os.environ['SLURM_PROCID'] == '0')); sys.exit(2)"
    job = submit(here, tmp_path, program)
    until(lambda: here.state(job.number) == "FAILED" or here.facts(job.number)["Restarts"] != "0", job.told)
    assert here.state(job.number) == "FAILED", job.told()
    assert here.facts(job.number)["ExitCode"] == "2:0"


def test_a_rank_that_is_stopped_before_it_can_listen_brings_the_job_back(here, limited, tmp_path):
    program = (
        "import os, sys, time; print('begins at', 0, flush=True); time.sleep(0 if 'again' in os.listdir('.') else 600)"
    )
    job = submit(here, tmp_path, f"import os; os.chdir({str(tmp_path)!r})\n{program}")
    until(lambda: "1: begins at" in job.log() and "0: begins at" in job.log(), job.told)
    (tmp_path / "again").touch()
    here.run("scancel", "--signal=TERM", job.number)
    goes_on(job)
    until(lambda: here.state(job.number) == "COMPLETED", job.told)


def test_setup_runs_first_and_a_line_that_fails_ends_the_job(here, limited, tmp_path):
    job = submit(
        here, tmp_path, setup=("export SAID=yes; echo said=$SAID", "exit_with() { return $1; }", "exit_with 9")
    )
    until(lambda: here.state(job.number) == "FAILED", job.told)
    assert job.log().splitlines() == ["said=yes"]
    assert here.facts(job.number)["ExitCode"] == "9:0"


def test_odd_words_come_as_they_are_and_the_log_is_where_it_should_be(here, limited, tmp_path):
    log, told = tmp_path / "it's 50% done", tmp_path / "told"
    program = "import json, sys; open(sys.argv[1], 'w').write(json.dumps(sys.argv[2:]))"
    job = submit(here, tmp_path, program, str(told), *ODD, nodes=1, log=log)
    until(lambda: here.state(job.number) == "COMPLETED", job.told)
    assert json.loads(told.read_text()) == ODD
    assert [file.name for file in log.iterdir()] == [f"count-{job.number}.log"]


@pytest.mark.parametrize("options", [Slurm(name="x"), EVERYTHING, replace(EVERYTHING, requeue=False, mem="0")])
def test_sbatch_takes_every_flag(here, options):
    text = script(["python", *ODD], options if options.setup == () else replace(options, setup=("true",)))
    done = subprocess.run(["sbatch", "--test-only"], input=text, env=here.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"using {options.nodes * options.tasks_per_node} processors" in done.stderr


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Path:
    """A folder to type commands in, with an experiment's file."""
    monkeypatch.chdir(tmp_path)
    Path("ex periment.py").write_text("")
    return Path("ex periment.py")


def test_it_may_wait_for_the_job_and_pass_its_exit_code_on(here, experiment, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_CONF", here.environment["SLURM_CONF"])
    with pytest.raises(SystemExit) as ended:
        slurm(["--wait", "--python", "false", str(experiment)])
    assert ended.value.code == 1
    assert "scancel --signal=TERM" in capsys.readouterr().out


def test_a_job_that_slurm_refuses_is_told_with_its_reason(here, experiment, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", here.environment["SLURM_CONF"])
    with pytest.raises(ConfigError, match=r"sbatch refused the job: .*Invalid partition.* `sinfo`"):
        slurm(["--partition", "nowhere", str(experiment)])


def test_a_job_near_its_time_limit_saves_and_goes_on_in_another_sitting(here, limited):
    """It began with the first test. SLURM may be half a minute late."""
    until(lambda: "goes back into the queue" in limited.log(), limited.told, 120.0)
    here.run("scontrol", "update", f"JobId={limited.number}", "TimeLimit=10")
    goes_on(limited)
    limited.end()
    until(lambda: here.state(limited.number) == "COMPLETED", limited.told)
    limited.assert_went_on()


# As in tests/train/test_resume.py: what a run has to take up again.
EXPERIMENT = """
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
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    runs=here / "runs",
)
"""

# The second look at the dev sets takes until the test lets it go on.
WAITING = """
import time
from specialize.train.recorder import Recorder

looked, looks = Recorder.looked, []

def look_and_wait(self, *values):
    looks.append(1)
    if len(looks) == 2:
        (here / "looks").touch()
        while not (here / "go").exists():
            time.sleep(0.05)
    looked(self, *values)

Recorder.looked = look_and_wait
"""

TASKS = 2
"""Processes, one a node, that the preempted run is made of. They share the devices that one has."""


def test_a_preempted_run_ends_with_the_bits_of_one_that_was_not(here, tmp_path, monkeypatch, capsys):
    write_people(tmp_path, 11, 6, seconds=0.3)
    save_base(tiny_whisper(), tmp_path / "base")
    (tmp_path / "people.py").write_text(EXPERIMENT + WAITING)
    (tmp_path / "whole.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    for name, value in (here.environment | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    shared = re.sub(r"(device_count)=\d+", rf"\1={jax.device_count() // TASKS}", os.environ["XLA_FLAGS"])
    own = ["--nodes", str(TASKS), "--cpus-per-task", "1", "--partition", "low", "--time", "30"]
    with monkeypatch.context() as patched:
        patched.setenv("XLA_FLAGS", shared)
        slurm([*own, "people.py", "--cohort.slots", "8"])
    said = capsys.readouterr().out
    number = said.split()[1]
    log = tmp_path / f"logs/people-{number}.log"
    assert f"tail -F logs/people-{number}.log" in said

    def log_of() -> str:
        return f"{here.facts(number)}\n{log.read_text() if log.exists() else 'no log'}"

    until((tmp_path / "looks").exists, log_of, 240.0)
    other = preempt(here)
    until(lambda: here.facts(number)["PreemptTime"] != "None", log_of)
    (tmp_path / "go").touch()
    until(lambda: here.state(number) == "PENDING", log_of)
    until(lambda: here.state(other) == "COMPLETED", log_of)
    assert list((tmp_path / "runs/people/state").iterdir())
    here.hurry(number)
    main(["train", "whole.py", "--name", "whole"])
    until(lambda: here.state(number) not in ("PENDING", "RUNNING", "COMPLETING"), log_of, 240.0)
    assert here.state(number) == "COMPLETED", log_of()
    assert "its state is saved" in log.read_text()
    assert "goes on with" in log.read_text()
    assert here.facts(number)["Restarts"] == "1"

    assert Path("runs/people/jobs.jsonl").read_bytes() == Path("runs/whole/jobs.jsonl").read_bytes()
    ours, theirs = SubmodelStore(Path("runs/people/submodels")), SubmodelStore(Path("runs/whole/submodels"))
    assert list(ours.speakers()) == list(theirs.speakers())
    assert len(list(theirs.speakers())) == 11
    for speaker in theirs.speakers():
        jax.tree.map(np.testing.assert_array_equal, ours.load(speaker).submodel, theirs.load(speaker).submodel)
