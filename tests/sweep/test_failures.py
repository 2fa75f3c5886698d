"""Runs that fail end nothing else, and runs of others are left to them."""

import csv
import dataclasses
import fcntl
import io
import json
from pathlib import Path

import pytest

from specialize import LoRA
from specialize.cli import main
from specialize.errors import ConfigError, RunTaken
from specialize.sweep import Sweep, run_sweep, sweeping
from specialize.sweep.folder import SweepFolder
from specialize.train.run import Run
from tests.sweep.sweeps import EXPERIMENT, bowl, pretended

AXES = ("lr=1e-4,1e-3", "cohort.batch=4,8,64")
REASON = "64 utterances need 80 GB\nof a device. Use fewer <slots>."


def refuse(name: str) -> None:
    """What does not fit: the last run, batch 64."""
    if name == "s-0002":
        raise ConfigError(REASON)


@pytest.fixture
def asked(tmp_path) -> Sweep:
    return Sweep(EXPERIMENT, AXES, name="s", sweeps=tmp_path)


def test_a_run_that_fails_ends_nothing_else_and_is_told_with_its_reason(asked, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(sweeping, "train", pretended(bowl, done, refuse))
    swept = run_sweep(asked)
    assert done == ["s-0000", "s-0001"]
    assert [(of.run.id, of.reason) for of in swept.failed] == [("s-0002", REASON)]
    assert (swept.left, len(swept.outcomes)) == ([], 4)
    assert swept.best is not None
    assert json.loads((asked.folder / "failed/s-0002.json").read_text())["reason"] == REASON
    rows = list(csv.DictReader(io.StringIO((asked.folder / "trials.csv").read_text())))
    assert [row["failed"] for row in rows] == [""] * 4 + [REASON] * 2
    assert {row["cohort.batch"] for row in rows[4:]} == {"64"}
    page = (asked.folder / "sweep.html").read_text()
    assert "1 run has failed" in page
    assert page.count("failed: 64 utterances need 80 GB") == 2
    assert "&lt;slots&gt;" in page


def test_the_first_of_all_runs_may_fail_and_all_may(asked, monkeypatch):
    def every(name: str) -> None:
        raise ConfigError(f"not {name}")

    monkeypatch.setattr(sweeping, "train", pretended(bowl, stop=every))
    swept = run_sweep(asked)
    assert [of.reason for of in swept.failed] == ["not s-0000", "not s-0001", "not s-0002"]
    assert swept.best is None


def test_the_same_command_tries_failed_runs_again_and_only_these(asked, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(sweeping, "train", pretended(bowl, done, refuse))
    run_sweep(asked)
    assert [of.run.id for of in run_sweep(asked).failed] == ["s-0002"]
    done.clear()
    monkeypatch.setattr(sweeping, "train", pretended(bowl, done))
    swept = run_sweep(asked)
    assert done == ["s-0002"]
    assert (swept.failed, swept.left, len(swept.outcomes)) == ([], [], 6)
    assert not list((asked.folder / "failed").iterdir())


def test_a_failure_is_not_tried_again_by_a_process_that_was_there_before(asked):
    early, late = SweepFolder(asked.folder), SweepFolder(asked.folder)
    early.begin(asked)
    other = SweepFolder(asked.folder)
    other.begin(asked)
    other.failed("s-0000", "it does not fit")
    late.begin(asked)
    assert [folder.tries("s-0000") for folder in (early, other, late)] == [False, False, True]
    assert early.tries("s-0001")


def test_the_command_ends_with_code_1_and_names_what_failed_and_the_remedy(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeping, "train", pretended(bowl, stop=refuse))
    (tmp_path / "e.py").write_text("from tests.sweep.sweeps import EXPERIMENT as experiment\n")
    words = ["sweep", str(tmp_path / "e.py"), *AXES, "--name", "s", "--sweeps", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "failed" in said.out
    assert f"next: specialize train {asked.folder}/best.py" in said.out
    for part in ("1 of 3 runs failed", "s-0002 (trials 2, 5; ", "cohort.batch=64", REASON.split("\n")[1]):
        assert part in said.err
    assert "type the same command: failed runs are tried again" in said.err
    main([*words, "--dry-run"])
    assert "run s-0002: 2 trials, failed: 64 utterances" in capsys.readouterr().out


def test_a_run_that_a_launcher_took_meanwhile_is_left_to_it(asked, monkeypatch):
    """`specialize train` locks a run only when it has planned it, so nobody had it when the sweep looked."""
    done: list[str] = []

    def taken(name: str) -> None:
        if name == "s-0001":
            raise RunTaken("Another process is training it.")

    monkeypatch.setattr(sweeping, "train", pretended(bowl, done, taken))
    swept = run_sweep(asked)
    assert done == ["s-0000", "s-0002"]
    assert ([run.id for run in swept.left], swept.failed) == (["s-0001"], [])


def test_a_run_that_is_held_says_so_by_the_kind_of_its_error(asked):
    run = dataclasses.replace(EXPERIMENT, name="x", runs=asked.sweeps)
    pretended(bowl)(run)
    with Run(run.folder).held(), pytest.raises(RunTaken, match="Another process is training"), Run(run.folder).held():
        pass


def test_a_sweep_is_not_overwritten_while_a_launcher_trains_a_run_of_it(asked, monkeypatch):
    monkeypatch.setattr(sweeping, "train", pretended(bowl))
    run_sweep(asked)
    with (asked.folder / "runs/s-0001/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"the run 's-0001' .* not overwritten"):
            run_sweep(asked, overwrite=True)
        assert (asked.folder / "runs/s-0000/summary.json").is_file()
        assert (asked.folder / "sweep.json").is_file()
    assert run_sweep(asked, overwrite=True).left == []


def test_a_dry_run_overwrites_nothing(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeping, "train", pretended(bowl))
    (tmp_path / "e.py").write_text("from tests.sweep.sweeps import EXPERIMENT as experiment\n")
    run_sweep(asked)
    before = sorted(asked.folder.rglob("*"))
    words = ["sweep", str(tmp_path / "e.py"), *AXES, "--name", "s", "--sweeps", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--dry-run", "--overwrite"])
    assert ended.value.code == 1
    assert "Give one of them" in capsys.readouterr().err
    assert sorted(asked.folder.rglob("*")) == before


@pytest.mark.parametrize("what", ["base", "corpus", "start", "space"])
def test_files_that_changed_between_runs_are_told(asked, what, monkeypatch):
    monkeypatch.setattr(sweeping, "train", pretended(bowl))
    run_sweep(asked)
    config = asked.folder / "runs/s-0001/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {what: "other"}))
    with pytest.raises(ConfigError, match=rf"The {what} of .*s-0001.* cannot be compared"):
        run_sweep(asked)


def test_kinds_of_which_one_fits_nothing(asked, monkeypatch):
    """LoRA, say, whose default `where` is of modules that this base does not have."""
    done: list[str] = []
    fitting = pretended(bowl, done)

    def train(experiment) -> None:
        if isinstance(experiment.submodel, LoRA):
            raise ConfigError("where matches nothing")
        fitting(experiment)

    monkeypatch.setattr(sweeping, "train", train)
    swept = run_sweep(dataclasses.replace(asked, axes=(AXES[0], "submodel.kind=lora,residual-adapter")))
    assert done == ["s-0002"]
    assert [of.run.id for of in swept.failed] == ["s-0000"]
    assert swept.best is not None
    assert Path(swept.folder / "best.py").is_file()
