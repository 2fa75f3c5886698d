"""TPE: it finds what is best, its storage survives a kill anywhere and is shared, and what is bad is told as such."""

import dataclasses
import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from specialize import LoRA
from specialize.errors import ConfigError, Preempted, RunTaken
from specialize.sweep import Sweep, run_sweep, sweeping, tpe
from specialize.sweep.folder import SweepFolder
from specialize.sweep.outcomes import Outcome
from specialize.sweep.tpe import Suggested
from tests.sweep.sweeps import EXPERIMENT, bowl, pretended

ROOT = Path(__file__).resolve().parents[2]
AXES = ("lr=log:1e-6..1", "dropout=0..0.5", "submodel.kind=residual-adapter,lora", "submodel.rank=2,4")


@pytest.fixture
def asked(tmp_path) -> Sweep:
    return Sweep(EXPERIMENT, AXES, name="s", method="tpe", trials=12, together=4, sweeps=tmp_path)


@pytest.fixture(autouse=True)
def pretend(monkeypatch) -> None:
    monkeypatch.setattr(sweeping, "train", pretended(bowl))


def study(asked: Sweep) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=asked.storage or f"sqlite:///{asked.folder}/optuna.db")


def test_it_learns_from_the_batches_before(asked):
    asked = dataclasses.replace(asked, axes=(AXES[0], AXES[2]), trials=32, together=8)
    swept = run_sweep(asked)
    assert swept.best is not None
    assert swept.best.mean < 1.2
    means = [of.mean or 9.0 for of in sorted(swept.outcomes, key=lambda of: of.trial.number)]
    assert sum(means[16:]) < 0.7 * sum(means[:16])
    told = study(asked).trials
    assert [trial.value for trial in told] == means


def test_trials_of_a_batch_share_a_program_where_they_can(asked):
    swept = run_sweep(asked)
    for run in swept.runs:
        assert len({trial.experiment.submodel for trial in run.trials}) == 1
        assert len({trial.number // 4 for trial in run.trials}) == 1
    assert sorted(trial.number for run in swept.runs for trial in run.trials) == list(range(12))
    assert max(len(run.trials) for run in swept.runs) > 1


class Killed(BaseException):
    """What nothing catches."""


WRITES = ("create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_state_values")


def killed_at(number: int, asked: Sweep, monkeypatch) -> bool:
    """Whether a sitting of a sweep was killed, before the study's storage was written to for the n-th time."""
    calls = 0

    def counted(method):
        def call(*arguments, **more):
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed
            return method(*arguments, **more)

        return call

    with monkeypatch.context() as patched:
        storage = type(optuna.storages.get_storage("sqlite://"))
        for write in WRITES:
            patched.setattr(storage, write, counted(getattr(storage, write)))
        try:
            run_sweep(asked)
        except Killed:
            return True
    return False


def test_after_a_kill_anywhere_it_comes_to_the_same(asked, monkeypatch):
    """Killed often, at places that are no multiple of what a trial writes, so that each kind of place comes."""
    asked = dataclasses.replace(asked, trials=4, together=2)
    run_sweep(dataclasses.replace(asked, name="whole"))
    expected = [(asked.sweeps / "whole" / name).read_text() for name in ("trials.csv", "best.py")]
    killed, kills = dataclasses.replace(asked, name="killed"), 0
    sittings = itertools.cycle((2, 5, 3))
    while killed_at(next(sittings), killed, monkeypatch):
        kills += 1
    found = [(killed.folder / file).read_text() for file in ("trials.csv", "best.py")]
    assert [text.replace("killed", "whole") for text in found] == expected
    assert kills > 8


def test_it_may_go_on_with_more_trials_but_not_with_fewer(asked):
    asked = dataclasses.replace(asked, trials=4, together=2)
    run_sweep(asked)
    before = [trial.params for trial in study(asked).trials]
    assert len(run_sweep(dataclasses.replace(asked, trials=6)).outcomes) == 6
    assert [trial.params for trial in study(asked).trials][:4] == before
    with pytest.raises(ConfigError, match="trials: 6 -> 4"):
        run_sweep(asked)
    run_sweep(asked, overwrite=True)
    assert [trial.params for trial in study(asked).trials] == before


OTHER = """
import sys, time
from pathlib import Path
from specialize.sweep import Sweep, run_sweep, sweeping
from tests.sweep.sweeps import EXPERIMENT, bowl, pretended
from tests.sweep.test_tpe import AXES

sweeping.train = pretended(bowl, stop=lambda name: time.sleep(0.2))
sweeps, storage = sys.argv[1:]
how = {"name": "s", "method": "tpe", "trials": 16, "together": 4}
run_sweep(Sweep(EXPERIMENT, AXES, **how, storage=storage, sweeps=Path(sweeps)))
"""


def test_processes_share_a_storage_and_make_each_trial_once(asked, tmp_path):
    """A pretended run that is made twice is an error."""
    asked = dataclasses.replace(asked, storage=f"sqlite:///{tmp_path}/shared.db", trials=16)
    words = [sys.executable, "-c", OTHER, str(asked.sweeps), asked.storage]
    other = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while other.poll() is None and not list(asked.folder.glob("runs/*")):
        time.sleep(0.02)
    run_sweep(asked)
    assert other.wait(120) == 0, other.communicate()[1]
    swept = run_sweep(asked)
    assert sorted(of.trial.number for of in swept.outcomes) == list(range(16))
    assert [trial.state.name for trial in study(asked).trials] == ["COMPLETE"] * 16
    assert not (asked.folder / "optuna.db").exists()
    said = other.communicate()[1]
    assert 0 < said.count("of the sweep s") < len(swept.runs)


def test_a_batch_of_a_process_that_lives_is_left_to_it_and_of_one_that_died_is_taken(asked):
    folder = SweepFolder(asked.folder)
    folder.begin(asked)
    source = Suggested(asked, folder)
    with source.take() as one, source.take() as two:
        assert [sorted(t.number for run in runs for t in run.trials) for runs in (one, two)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]
    with source.take() as again:
        assert [run.experiment for run in again] == [run.experiment for run in one]


def test_a_trial_in_quarantine_is_told_as_worse_than_any(asked, monkeypatch):
    def loss(experiment, hyper, speaker):
        return None if hyper.learning_rate > 1e-3 and speaker == "cy" else bowl(experiment, hyper, speaker)

    monkeypatch.setattr(sweeping, "train", pretended(loss))
    swept = run_sweep(asked)
    states = {trial.number: trial.state.name for trial in study(asked).trials}
    assert {states[of.trial.number] for of in swept.outcomes if of.quarantined} == {"PRUNED"}
    assert {states[of.trial.number] for of in swept.outcomes if not of.quarantined} == {"COMPLETE"}
    assert swept.best is not None
    assert swept.best.experiment.hyper.learning_rate <= 1e-3


def test_a_trial_that_halving_ended_is_told_as_pruned_with_how_far_it_came(asked):
    asked = dataclasses.replace(asked, axes=AXES[:2], select="speaker", halving=2)
    folder = SweepFolder(asked.folder)
    folder.begin(asked)
    source = Suggested(asked, folder)
    with source.take() as runs:
        trials = [trial for run in runs for trial in run.trials]
        found = [Outcome(t, "s-0000", {"ana": 1.0}, 0, t.number % 2, {0: 3.0, 6: 2.0}) for t in trials]
        source.tell(runs, found)
        source.tell(runs, found)  # as after a kill
    told = study(asked).trials
    assert [trial.state.name for trial in told] == ["COMPLETE", "PRUNED"] * 2
    assert [trial.intermediate_values for trial in told] == [{}, {0: 3.0, 6: 2.0}] * 2


def test_a_run_that_fails_is_told_as_failed_and_the_sweep_goes_on(asked, monkeypatch):
    def no_lora(name: str) -> None:
        (run,) = (run for run in source.runs() if run.id == name)
        if run.experiment.submodel == LoRA(rank=2):
            raise ConfigError("a rank of 2 does not fit")

    asked = dataclasses.replace(asked, axes=("lr=log:1e-6..1", *AXES[2:]), trials=8)
    folder = SweepFolder(asked.folder)
    folder.begin(asked)
    source = Suggested(asked, folder)
    monkeypatch.setattr(sweeping, "train", pretended(bowl, stop=no_lora))
    swept = run_sweep(asked)
    failed = {trial.number for of in swept.failed for trial in of.run.trials}
    assert failed
    assert len(swept.outcomes) == 8 - len(failed)
    assert {trial.number for trial in study(asked).trials if trial.state.name == "FAIL"} == failed
    done: list[str] = []
    monkeypatch.setattr(sweeping, "train", pretended(bowl, done))
    again = run_sweep(asked)
    assert done == [of.run.id for of in swept.failed]
    assert (again.failed, again.left, len(again.outcomes)) == ([], [], 8)
    # The model learns of them, and the sweep goes on from there.
    means = {of.trial.number: of.mean for of in again.outcomes}
    repeated = {trial.user_attrs["again"]: trial.value for trial in study(asked).trials if "again" in trial.user_attrs}
    assert repeated == {number: means[number] for number in failed}
    more = run_sweep(dataclasses.replace(asked, trials=12))
    assert len(more.outcomes) == 12
    assert [of.mean for of in more.outcomes if of.trial.number in means] == list(means.values())


def test_a_sweep_of_which_every_batch_fails_does_not_use_up_its_trials(asked, monkeypatch, capsys):
    def fails(_) -> None:
        raise ConfigError("there is no such base")

    asked = dataclasses.replace(asked, axes=AXES[:1], trials=7, together=1)
    with monkeypatch.context() as patched:
        patched.setattr(sweeping, "train", fails)
        assert len(run_sweep(asked).failed) == 3
        assert "no more are suggested" in capsys.readouterr().err
        assert len(run_sweep(asked).failed) == 6  # where it is the values, others have their turn
    swept = run_sweep(asked)
    assert (swept.failed, len(swept.outcomes)) == ([], 7)


def test_a_batch_of_which_a_launcher_took_a_run_meanwhile_is_left_and_told_later(asked, monkeypatch):
    def taken(name: str) -> None:
        if name == "s-0000":
            raise RunTaken("Another process is training it.")

    asked = dataclasses.replace(asked, axes=AXES[:1], trials=4, together=2)
    monkeypatch.setattr(sweeping, "train", pretended(bowl, stop=taken))
    swept = run_sweep(asked)
    assert ([run.id for run in swept.left], swept.failed) == (["s-0000"], [])
    assert [trial.state.name for trial in study(asked).trials] == ["RUNNING"] * 2 + ["COMPLETE"] * 2
    pretended(bowl)(swept.left[0].experiment)
    assert len(run_sweep(asked).outcomes) == 4
    assert [trial.state.name for trial in study(asked).trials] == ["COMPLETE"] * 4


def test_a_study_of_another_sweep_is_not_taken_over(asked, tmp_path):
    """Also where what is asked is the same: trials of other folders have no runs here."""
    asked = dataclasses.replace(asked, axes=AXES[:1], storage=f"sqlite:///{tmp_path}/shared.db", trials=4)
    run_sweep(asked)
    for changes in ({}, {"axes": AXES[1:2]}):
        other = dataclasses.replace(asked, sweeps=tmp_path / "elsewhere", **changes)
        with pytest.raises(ConfigError, match=r"shared\.db' has a study 's' already") as raised:
            run_sweep(other)
        assert "--name" in str(raised.value)
        assert "--overwrite" in str(raised.value)
        assert len(study(asked).trials) == 4
        shutil.rmtree(other.folder)
    harmless = dataclasses.replace(EXPERIMENT, save_seconds=5.0)
    assert len(run_sweep(dataclasses.replace(asked, trials=5, experiment=harmless)).outcomes) == 5
    run_sweep(dataclasses.replace(asked, sweeps=tmp_path / "elsewhere", trials=1), overwrite=True)
    with pytest.raises(ConfigError, match="of another sweep"):
        run_sweep(dataclasses.replace(asked, trials=5))


def test_a_study_that_a_kill_left_before_it_had_an_owner_is_taken(asked):
    SweepFolder(asked.folder).begin(asked)
    optuna.create_study(study_name="s", storage=f"sqlite:///{asked.folder}/optuna.db")
    Suggested(asked, _begun(asked))
    assert study(asked).user_attrs["specialize_sweep"]["id"] == _begun(asked).id


def _begun(asked: Sweep) -> SweepFolder:
    folder = SweepFolder(asked.folder)
    folder.begin(asked)
    return folder


def test_sigterm_while_the_storage_is_opened_is_no_error_of_the_storage(asked, monkeypatch):
    def stopped(**_) -> None:
        raise Preempted("asked to stop.")

    monkeypatch.setattr(optuna, "create_study", stopped)
    with pytest.raises(Preempted):
        run_sweep(asked)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "'submodel.kind' makes programs of its own"),
        ({"axes": (AXES[0], "cohort.batch=2,4")}, "'cohort.batch' makes"),
        ({"axes": (AXES[0], "stop.halving=0,2"), "halving": 0}, "'stop.halving' makes"),
        ({"axes": AXES[:2], "trials": 9}, "trials=9 in batches of together=4"),
        ({"axes": AXES[:2], "together": 1}, "together=1"),
    ],
)
def test_halving_is_refused_where_a_trial_may_be_alone_in_its_program(asked, changes, named):
    """It would be told as complete, and those that had company as pruned, however good."""
    with pytest.raises(ConfigError, match="alone") as raised:
        run_sweep(dataclasses.replace(asked, **{"select": "speaker", "halving": 2} | changes))
    assert named in str(raised.value)
    assert not asked.folder.exists()


def test_the_next_batch_is_planned_and_kept(asked, capsys, monkeypatch, tmp_path):
    from specialize.cli import main

    (tmp_path / "e.py").write_text("from tests.sweep.sweeps import EXPERIMENT as experiment\n")
    words = ["sweep", str(tmp_path / "e.py"), *AXES, "--method", "tpe", "--trials", "6", "--together", "4"]
    words += ["--sweeps", str(tmp_path / "t"), "--name", "s"]
    said = []
    for _ in range(2):
        main([*words, "--dry-run"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "4 trials in" in said[0]
    main(words)
    assert "Of 6 trials" in capsys.readouterr().out


def test_without_optuna_the_remedy_is_told(asked, monkeypatch):
    monkeypatch.setattr(tpe, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'specialize\[sweep\]'"):
        run_sweep(asked)


def test_a_storage_that_cannot_be_used_is_named_without_its_password(asked, tmp_path):
    for url in (f"sqlite:///{tmp_path}/no/such/folder.db", "nonsense://me:secret@host/x"):
        with pytest.raises(ConfigError, match="storage") as raised:
            run_sweep(dataclasses.replace(asked, storage=url, name=f"n{len(url)}"))
        assert "secret" not in str(raised.value)
        for file in Path(tmp_path).rglob("sweep.json"):
            assert "secret" not in file.read_text()
