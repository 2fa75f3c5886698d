"""A run that was killed or stopped goes on to the same bits, and one that cannot go on loses nothing."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from specialize.base import save_base
from specialize.cli import main
from specialize.errors import EXIT_PREEMPTED, StoreError
from specialize.submodel import SubmodelStore
from specialize.train import Run
from specialize.train.metrics import read_metrics
from specialize.train.recorder import Recorder
from specialize.train.state import StateFolder
from specialize.train.step import CohortState
from tests.bases import tiny_whisper
from tests.people import write_people

# More speakers than slots, more utterances than a batch, dropout, and jobs that end at different steps: all that a run
# has to take up again.
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
    save_seconds=1e-9,
    runs=here / "runs",
)
"""

# Each sitting is a process of its own, forked before JAX has started any threads, so that it need not import everything
# again. It gets a signal at its n-th touch of the run's files, or look, or so many seconds after its n-th save began.
PROGRAM = """
import json, os, pathlib, shutil, signal, sys, threading
import specialize.train
from specialize.cli import main
from specialize.train.recorder import Recorder
from specialize.train.state import StateFolder

folder, sittings = sys.argv[1], json.loads(sys.argv[2])
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")

def send_at(event, number, name, seconds):
    seen = 0

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
        sys.addaudithook(lambda event, args: event in TOUCHES and f"{folder}/runs" in str(args[0]) and happened())
    elif event == "save":
        StateFolder.save = counted(StateFolder.save)
    elif event == "look":
        Recorder.looked = counted(Recorder.looked)

codes = []
for index, (words, *signalled) in enumerate(sittings):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{folder}/said{index}", os.O_WRONLY | os.O_CREAT), 2)
        if signalled:
            send_at(*signalled)
        main(words)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    runs = f"{folder}/runs"
    shutil.copytree(runs, f"{folder}/after{index}")
    codes.append(code)

pathlib.Path(folder, "codes").write_text(json.dumps(codes))
"""

RANDOM = Random(0)
WHOLE = [["--name", "whole"]]
KILLS = [
    [[], "touch", 5, "SIGKILL", 0],  # config.json is written, and not yet in its place
    [[], "touch", 12, "SIGKILL", 0],
    [[], "touch", RANDOM.randrange(20, 45), "SIGKILL", 0],  # in the first save, or the next
    [[], "save", RANDOM.randrange(2, 5), "SIGKILL", RANDOM.uniform(0.0, 0.1)],
    [["--save-seconds", "1000"], "look", 10, "SIGTERM", 0],
    [[], "touch", RANDOM.randrange(20, 90), "SIGKILL", 0],
]
STOPPED = 5
"""The sitting that got SIGTERM; `whole` is sitting 0."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, a corpus, an experiment file, and what every sitting left: `after0` to `after7`."""
    folder = tmp_path_factory.mktemp("resume")
    write_people(folder, 11, 6, seconds=0.3)
    save_base(tiny_whisper(), folder / "base")
    (folder / "people.py").write_text(EXPERIMENT)
    sittings = [[["train", str(folder / "people.py"), *words], *how] for words, *how in [WHOLE, *KILLS, [[]]]]
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), json.dumps(sittings)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture
def stopped(folder, tmp_path) -> Path:
    """A copy of the run as SIGTERM left it; `arguments` go on with it."""
    shutil.copytree(folder / f"after{STOPPED}" / "people", tmp_path / "people")
    return tmp_path / "people"


def arguments(folder: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(folder / "people.py"), "--runs", str(run.parent), *more]


def fails(capsys, words: list[str]) -> str:
    """What a command that ends with exit code 1 says."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    return capsys.readouterr().err


def saved_states(run: Path) -> list[int]:
    """Numbers of the states that are whole."""
    return sorted(int(path.name) for path in run.glob("state/*") if path.name.isdigit())


def said(folder: Path, sitting: int) -> str:
    return (folder / f"said{sitting}").read_text()


def measured(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock says; NaN as text, so that lines compare."""
    lines = [record for record in read_metrics(run / "metrics.jsonl") if record.pop("seconds") >= 0]
    return [{key: str(value) for key, value in record.items()} for record in lines]


def assert_as_whole(folder: Path, run: Path) -> None:
    """Whether a run came out, bit for bit, as the one that was never stopped."""
    whole = folder / "after0" / "whole"
    assert (run / "jobs.jsonl").read_bytes() == (whole / "jobs.jsonl").read_bytes()
    assert measured(run) == measured(whole)
    ours, theirs = SubmodelStore(run / "submodels"), SubmodelStore(whole / "submodels")
    assert len(list(theirs.speakers())) == 11
    assert list(ours.speakers()) == list(theirs.speakers())
    for speaker in theirs.speakers():
        one, two = ours.load(speaker), theirs.load(speaker)
        assert one.training == two.training
        jax.tree.map(np.testing.assert_array_equal, one.submodel, two.submodel)
    ours, theirs = (json.loads((of / "summary.json").read_text()) for of in (run, whole))
    clock = {"seconds", "submodels_per_hour"}
    assert {k: v for k, v in ours.items() if k not in clock} == {k: v for k, v in theirs.items() if k not in clock}
    assert not (run / "state").exists()


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but its lock, and what says with which command it went on."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in ("lock", "config.json")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_the_run_is_worth_a_test(folder):
    """Jobs end at different steps, and slots are refilled."""
    steps = [json.loads(line)["steps"] for line in (folder / "after0/whole/jobs.jsonl").read_text().splitlines()]
    assert len(set(steps)) > 1
    assert len({line["slot"] for line in measured(folder / "after0/whole")}) < len(steps)


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(folder):
    kill = -signal.SIGKILL
    assert json.loads((folder / "codes").read_text()) == [0, kill, kill, kill, kill, EXIT_PREEMPTED, kill, 0]
    went_on = [sitting for sitting in range(8) if "goes on with" in said(folder, sitting)]
    assert went_on[-3:] == [STOPPED, STOPPED + 1, STOPPED + 2]
    assert_as_whole(folder, folder / "after7" / "people")


def test_sigterm_saves_one_more_state(folder):
    assert "its state is saved" in said(folder, STOPPED)
    before, after = (saved_states(folder / f"after{sitting}/people") for sitting in (STOPPED - 1, STOPPED))
    assert max(after) == max(before, default=0) + 1


def test_a_stopped_run_may_go_on_with_other_settings_that_change_nothing_of_it(folder, stopped):
    main(arguments(folder, stopped, "--save-seconds", "1000", "--tensorboard"))
    assert_as_whole(folder, stopped)
    assert list(stopped.rglob("events.out.tfevents.*"))


def test_a_changed_configuration_is_refused_with_the_difference_and_loses_nothing(folder, stopped, capsys):
    before = contents(stopped)
    more = ("--hyper.learning-rate", "0.5", "--stop.patience", "2", "--save-seconds", "9")
    message = fails(capsys, arguments(folder, stopped, *more))
    assert "hyper.learning_rate: 1.0 -> 0.5" in message
    assert "stop.patience: 1 -> 2" in message
    assert "save_seconds" not in message
    assert contents(stopped) == before


def test_a_changed_corpus_is_refused_and_loses_nothing(folder, stopped, capsys):
    before, manifest = contents(stopped), folder / "people.jsonl"
    text = manifest.read_text()
    try:
        manifest.write_text(text.replace('"mild"', '"light"', 1))
        message = fails(capsys, arguments(folder, stopped))
    finally:
        manifest.write_text(text)
    assert f"corpus: '{Run(stopped).config['corpus']}' -> 'people-" in message
    assert contents(stopped) == before


def test_overwrite_begins_anew(stopped):
    run = Run(stopped)
    experiment = dataclasses.replace(run.experiment, runs=stopped.parent)
    begun = Run.begin(experiment, base="other", corpus="other", overwrite=True)
    assert begun.base == "other"
    assert contents(stopped) == {}


def test_metrics_that_were_cut_are_refused_and_can_be_put_back(folder, stopped, capsys):
    metrics = stopped / "metrics.jsonl"
    text = metrics.read_bytes()
    metrics.write_bytes(text[:-1])
    before = contents(stopped)
    message = fails(capsys, arguments(folder, stopped))
    assert f"has {len(text) - 1} bytes, but had {len(text)}" in message
    assert "metrics.jsonl" in message
    assert contents(stopped) == before


class Background:
    """A save that Orbax has begun and that fails later."""

    def result(self) -> None:
        raise OSError("no space left on device")


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize("save", [full_disk, lambda *_, **__: Background()], ids=["at once", "in the background"])
def test_states_that_cannot_be_saved_are_told_and_the_run_ends_as_ever(folder, stopped, save, monkeypatch, capsys):
    monkeypatch.setattr(ocp.training.Checkpointer, "save_async", save)
    main(arguments(folder, stopped))
    assert "state not saved" in (message := capsys.readouterr().err)
    assert "no space left on device" in message
    assert_as_whole(folder, stopped)


def test_the_last_good_state_outlives_saves_that_fail(folder, stopped, monkeypatch, capsys):
    before = saved_states(stopped)
    looked = Recorder.looked

    def stop(self: Recorder, *values: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        looked(self, *values)

    with monkeypatch.context() as patched:
        patched.setattr(ocp.training.Checkpointer, "save_async", full_disk)
        patched.setattr(Recorder, "looked", stop)
        with pytest.raises(SystemExit) as ended:
            main(arguments(folder, stopped))
    assert ended.value.code == EXIT_PREEMPTED
    assert "could not be saved, but the one before it is kept" in capsys.readouterr().err
    assert saved_states(stopped) == before
    main(arguments(folder, stopped))
    assert_as_whole(folder, stopped)


def state_of(value: float) -> CohortState:
    """A small cohort, all of whose numbers are `value`."""
    submodel = {"encoder": {"kernel": jnp.full((2, 3), value)}}
    moments = optax.ScaleByAdamState(jnp.full((2,), int(value)), submodel, submodel)
    return CohortState(submodel, moments, jnp.full((2,), int(value)), jnp.zeros((2,), jnp.int32), submodel)


def test_two_states_are_kept_however_many_are_saved(tmp_path):
    states = StateFolder(tmp_path / "state")
    for step in range(1, 7):
        states.save(state_of(step), {"step": step})
        assert len(saved_states(tmp_path)) <= 3  # with the one that is being saved
    states.close()
    assert saved_states(tmp_path) == [5, 6]


def test_after_a_failed_save_the_state_before_loads_and_the_next_is_saved(tmp_path, monkeypatch):
    states = StateFolder(tmp_path / "state")
    states.save(state_of(1), {"step": 1})
    states.wait()
    for save in (full_disk, lambda *_, **__: Background()):
        with monkeypatch.context() as patched:
            patched.setattr(ocp.training.Checkpointer, "save_async", save)
            with pytest.raises(StoreError, match="no space left"):
                save_and_wait(states, 2)
        assert latest(states) == (1, 1)
    states.save(state_of(3), {"step": 3})
    states.wait()
    assert latest(states) == (3, 3)
    states.close()


def save_and_wait(states: StateFolder, step: int) -> None:
    states.save(state_of(step), {"step": step})
    states.wait()


def latest(states: StateFolder) -> tuple[int, float]:
    """The step that was noted beside the last state, and the number in all of its arrays."""
    saved = states.latest()
    assert saved is not None
    loaded = states.load(saved, state_of(0))
    (value,) = {float(number) for leaf in jax.tree.leaves(loaded._replace(skipped=None)) for number in leaf.ravel()}
    return saved.progress["step"], value
