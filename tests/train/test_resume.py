"""A run that was killed or stopped goes on to the same bits, and one that cannot go on loses nothing."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
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
from tests.bases import BASES
from tests.people import write_people
from tests.train.sittings import codes, said, sit

# More speakers than slots, more utterances than a batch, dropout, and jobs that end at different steps: all that a run
# has to take up again.
EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "whisper/base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    hyper=HyperParameters(learning_rate=1.0, dropout=0.1),
    stop=Stopping(max_steps=6, every=2, patience=1),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    save_seconds=1e-9,
    runs=here / "runs",
)
"""

RANDOM = Random(0)
RARELY = ["--save-seconds", "1000"]
# From the third save on, there is a state that is whole.
KILLS = {
    "whisper": [
        [[], "touch", 5, "SIGKILL", 0],  # config.json is written, and not yet in its place
        [[], "touch", RANDOM.randrange(20, 45), "SIGKILL", 0],  # in the first save, or the next
        [[], "save", RANDOM.randrange(3, 6), "SIGKILL", RANDOM.uniform(0.0, 0.1)],
        [RARELY, "look", 10, "SIGTERM", 0],
    ],
    "conformer-ctc": [[[], "save", RANDOM.randrange(3, 6), "SIGKILL", RANDOM.uniform(0.0, 0.1)]],
    "conformer-transducer": [[[], "save", RANDOM.randrange(3, 6), "SIGKILL", RANDOM.uniform(0.0, 0.1)]],
}
"""What ends the sittings of the run on each base but the last."""
RATES = {"whisper": "1.0", "conformer-ctc": "0.5", "conformer-transducer": "0.3"}
"""Learning rates at which some jobs end early and some do not."""
STOPPED = 4
"""The sitting on a Whisper that got SIGTERM; the whole run of each base comes before the others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus, an experiment file and bases, and what every sitting left, `BASE/after0` and so on."""
    folder = tmp_path_factory.mktemp("resume")
    write_people(folder, 11, 6, seconds=0.7)  # with CTC each letter needs a frame
    (folder / "people.py").write_text(EXPERIMENT)
    sittings = []
    for name, kills in KILLS.items():
        (folder / name).mkdir()
        save_base(BASES[name](), folder / name / "base")
        given = ["--base", str(folder / name / "base"), "--runs", str(folder / "runs" / name)]
        given += ["--hyper.learning-rate", RATES[name]]
        for index, (words, *how) in enumerate([[["--name", "whole", *RARELY]], *kills, [RARELY]]):
            sittings.append([name, index, ["train", str(folder / "people.py"), *given, *words], *how])
    sit(folder, sittings)
    shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture
def stopped(folder, tmp_path) -> Path:
    """A copy of the run as SIGTERM left it; `arguments` go on with it."""
    shutil.copytree(folder / f"whisper/after{STOPPED}/people", tmp_path / "people")
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


def measured(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock says; NaN as text, so that lines compare."""
    lines = [record for record in read_metrics(run / "metrics.jsonl") if record.pop("seconds") >= 0]
    return [{key: str(value) for key, value in record.items()} for record in lines]


def assert_as_whole(folder: Path, run: Path, name: str = "whisper") -> None:
    """Whether a run came out, bit for bit, as the one on the same base that was never stopped."""
    whole = folder / name / "after0/whole"
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


@pytest.mark.parametrize("name", BASES)
def test_the_run_is_worth_a_test(folder, name):
    """Jobs end at different steps, and slots are refilled."""
    whole = folder / name / "after0/whole"
    steps = [json.loads(line)["steps"] for line in (whole / "jobs.jsonl").read_text().splitlines()]
    assert len(set(steps)) > 1
    assert len({line["slot"] for line in measured(whole)}) < len(steps)


@pytest.mark.parametrize("name", BASES)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(folder, name):
    ends = [EXIT_PREEMPTED if how[3] == "SIGTERM" else -signal.SIGKILL for how in KILLS[name]]
    assert codes(folder, name) == [0, *ends, 0]
    last = len(ends) + 1
    assert "goes on with" in said(folder, name, last)
    assert_as_whole(folder, folder / f"{name}/after{last}/people", name)


def test_sigterm_saves_one_more_state(folder):
    assert "goes on with" in said(folder, "whisper", STOPPED)
    assert "its state is saved" in said(folder, "whisper", STOPPED)
    before, after = (saved_states(folder / f"whisper/after{sitting}/people") for sitting in (STOPPED - 1, STOPPED))
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


def test_states_that_cannot_be_saved_are_told_and_the_run_ends_as_ever(folder, stopped, monkeypatch, capsys):
    """Saves fail in the background, and every third at once."""
    saves = itertools.cycle([lambda *_, **__: Background(), lambda *_, **__: Background(), full_disk])
    monkeypatch.setattr(ocp.training.Checkpointer, "save_async", lambda *values, **more: next(saves)(*values, **more))
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
