"""Sweeps that train: the same as separate runs, after a kill too, and what is best trains again by itself."""

import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.errors import EXIT_PREEMPTED
from specialize.sweep import Sweep, run_sweep
from specialize.train import Run
from specialize.train.recorder import Recorder, read_jobs
from tests.bases import tiny_whisper
from tests.people import write_people
from tests.train.test_grid import EXPERIMENT, RATES

LR = "lr=" + ",".join(map(str, RATES[1:]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_people(folder, speakers=3, utterances=8)
    save_base(tiny_whisper(), folder / "base")
    (folder / "e.py").write_text(EXPERIMENT)
    return folder


def asked(folder: Path, name: str, *axes: str, **how) -> Sweep:
    return Sweep(load_experiment(folder / "e.py"), axes or (LR,), name=name, sweeps=folder / "sweeps", **how)


@pytest.fixture(scope="module")
def whole(folder):
    return run_sweep(asked(folder, "whole"))


def losses(run: Run) -> dict[str, float]:
    return {job["speaker"]: job["dev_loss"] for job in read_jobs(run)}


def test_one_program_comes_to_the_same_as_a_run_for_each_value(folder, whole):
    assert len(whole.runs) == 1
    means = []
    for of in whole.outcomes:
        name = f"rate {of.trial.number}"
        rate = str(of.trial.experiment.hyper.learning_rate)
        main(["train", str(folder / "e.py"), "--name", name, "--hyper.learning-rate", rate])
        alone = losses(Run(folder / "runs" / name))
        assert of.losses == alone
        means.append(np.mean(list(alone.values())))
    assert whole.best is not None
    assert whole.best.trials == (int(np.argmin(means)),)


def test_what_is_best_trains_by_itself_to_what_the_sweep_found(folder, whole):
    main(["train", str(whole.folder / "best.py")])
    run = Run(folder / "runs/whole-best")
    assert whole.best is not None
    (best,) = whole.best.trials
    assert losses(run) == whole.outcomes[best].losses
    swept = Run(whole.runs[0].folder)
    for speaker in run.speakers():
        one, two = (of.submodel(speaker).submodel for of in (run, swept))
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_sigterm_in_a_run_saves_and_the_same_command_goes_on_to_the_same(folder, whole, monkeypatch, capsys):
    looked, looks = Recorder.looked, 0

    def asked_to_stop(*arguments) -> None:
        nonlocal looks
        looks += 1
        if looks == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        looked(*arguments)

    words = ["sweep", str(folder / "e.py"), LR, "--sweeps", str(folder / "sweeps"), "--name", "stopped"]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "looked", asked_to_stop)
            with pytest.raises(SystemExit) as ended:
                main(words)
        assert ended.value.code == EXIT_PREEMPTED
        stopped = folder / "sweeps/stopped"
        assert list((stopped / "runs/stopped-0000/state").iterdir())
        assert not (stopped / "trials.csv").exists()
        capsys.readouterr()
        main(words)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "from its last state" in capsys.readouterr().err
    found = (stopped / "trials.csv").read_text().replace("stopped-0000", "whole-0000")
    assert found == (whole.folder / "trials.csv").read_text()
    for name in ("best.py", "experiments/{}-0000.py"):
        one, two = (load_experiment(at / name.format(at.name)) for at in (stopped, whole.folder))
        assert (one.hyper, one.grid) == (two.hyper, two.grid)


def test_a_spec_that_matches_nothing_fails_alone(folder):
    swept = run_sweep(asked(folder, "failing", "submodel.where=nothing/*,encoder/layers_*", "stop.max_steps=3"))
    assert [(of.run.id, "nothing/*" in of.reason) for of in swept.failed] == [("failing-0000", True)]
    assert swept.best is not None
    assert swept.best.trials == (1,)


def test_halving_ends_the_worse_trials_of_each_speaker_early(folder, whole):
    """What goes on is what was better at the rung, and comes to what it comes to without halving."""
    swept = run_sweep(asked(folder, "halved", select="speaker", halving=2))
    jobs = read_jobs(Run(swept.runs[0].folder))
    assert sum(of.halved for of in swept.outcomes) == sum(job["steps"] < 6 for job in jobs) >= 3
    at_rung = {(job["speaker"], job["point"]): min(loss for step, loss in job["looks"] if step <= 3) for job in jobs}
    assert swept.best is not None
    assert set(swept.best.chosen) == {job["speaker"] for job in jobs}
    for job in jobs:
        if job["steps"] == 6:
            speaker, point = job["speaker"], job["point"]
            assert at_rung[speaker, point] == min(loss for (who, _), loss in at_rung.items() if who == speaker)
            assert job["dev_loss"] == whole.outcomes[point].losses[speaker]
    for speaker in swept.best.chosen:
        run = Run(swept.runs[0].folder)
        stored = run.submodel(speaker).training
        rate = swept.outcomes[swept.best.chosen[speaker]].trial.experiment.hyper.learning_rate
        assert stored["hyper"]["learning_rate"] == rate
