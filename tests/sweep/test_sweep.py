"""Sweeps from what is asked to what is written; runs are pretended, but for those of `test_real.py`."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest

from specialize import LoRA
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.errors import ConfigError, Preempted
from specialize.sweep import Sweep, run_sweep, sweeping
from specialize.sweep.folder import SweepFolder
from specialize.sweep.listed import Listed
from specialize.train.jobs import parse_grid
from tests.sweep.sweeps import EXPERIMENT, SPEAKERS, bowl, pretended

AXES = ("lr=1e-4,1e-3,1e-2", "submodel.kind=residual-adapter,lora")


@pytest.fixture
def asked(tmp_path) -> Sweep:
    return Sweep(EXPERIMENT, AXES, name="s", sweeps=tmp_path)


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Names of the runs that are made, in the place of training."""
    names: list[str] = []
    monkeypatch.setattr(sweeping, "train", pretended(bowl, names))
    return names


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def test_a_sweep_writes_all_its_trials_and_the_best_as_an_experiment(asked, done):
    swept = run_sweep(asked)
    assert done == ["s-0000", "s-0003"]
    rows = table(asked.folder)
    losses = [float(row["dev_loss"]) for row in rows]
    assert losses == sorted(losses)
    assert len(rows) == 6
    first = rows[0]
    assert (first["submodel.kind"], float(first["hyper.learning_rate"]), first["chosen_for"]) == ("lora", 1e-3, "3")
    assert swept.best is not None
    assert swept.best.trials == (int(first["trial"]),)
    best = load_experiment(asked.folder / "best.py")
    hyper = dataclasses.replace(EXPERIMENT.hyper, learning_rate=1e-3)
    assert best == dataclasses.replace(EXPERIMENT, name="s-best", submodel=LoRA(), hyper=hyper)
    page = (asked.folder / "sweep.html").read_text()
    assert page.count("<svg viewBox") == 2
    assert all(f"<td>{row['trial']}</td>" in page for row in rows)


def test_the_files_of_runs_make_the_same_experiments(asked, done):
    swept = run_sweep(asked)
    for run in swept.runs:
        assert load_experiment(asked.folder / f"experiments/{run.id}.py") == run.experiment


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base": Path('a "quoted" \\ path'), "wandb": "it's", "start": Path("x")},
        {"hyper": dataclasses.replace(EXPERIMENT.hyper, clip=float("inf"), utterances=3)},
        {"grid": ("lr:wd=1:0,2:1", "seed=0,1"), "submodel": LoRA(where=("a/**",))},
        {"corpus": dataclasses.replace(EXPERIMENT.corpus, speakers=("ana", "b\no"), strict=True)},
    ],
)
def test_any_experiment_is_written_as_a_file_that_makes_it_again(changes, tmp_path):
    from specialize.sweep.source import write_experiment

    experiment = dataclasses.replace(EXPERIMENT, **changes)
    write_experiment(tmp_path / "e.py", experiment, "About it.")
    assert load_experiment(tmp_path / "e.py") == experiment
    assert max(map(len, (tmp_path / "e.py").read_text().splitlines())) <= 120


def test_to_each_speaker_their_own_best_of_one_program(asked, monkeypatch):
    """Ana is best with a large rate and the others with a small one, and only with adapters; best.py has just these."""

    def loss(experiment, hyper, speaker):
        good = {"ana": 1e-2}.get(speaker, 1e-4)
        return 1.0 + (hyper.learning_rate != good) + 2 * isinstance(experiment.submodel, LoRA)

    monkeypatch.setattr(sweeping, "train", pretended(loss))
    swept = run_sweep(dataclasses.replace(asked, select="speaker"))
    assert swept.best is not None
    assert swept.best.mean == 1.0
    best = load_experiment(asked.folder / "best.py")
    rates = [hyper.learning_rate for _, hyper in parse_grid(best.grid, best.hyper, best.submodel)]
    assert (rates, best.select, best.submodel) == ([1e-4, 1e-2], "speaker", EXPERIMENT.submodel)
    of = {trial.number: trial.experiment.hyper.learning_rate for run in swept.runs for trial in run.trials}
    assert {speaker: of[number] for speaker, number in swept.best.chosen.items()} == {
        speaker: 1e-2 if speaker == "ana" else 1e-4 for speaker in SPEAKERS
    }


@pytest.mark.parametrize("select", ["pooled", "speaker"])
def test_a_trial_that_lost_a_speaker_to_quarantine_does_not_win(asked, monkeypatch, select):
    """Its speaker is the one with the greatest loss, so that its mean is the least."""

    def loss(experiment, hyper, speaker):
        if isinstance(experiment.submodel, LoRA):
            return None if speaker == "cy" else 0.1
        return {"ana": 1.0, "bo": 1.0, "cy": 9.0}[speaker] + hyper.learning_rate

    monkeypatch.setattr(sweeping, "train", pretended(loss))
    swept = run_sweep(dataclasses.replace(asked, select=select))
    assert swept.best is not None
    assert swept.best.experiment.submodel == EXPERIMENT.submodel
    assert set(swept.best.chosen) == set(SPEAKERS)
    assert [row["quarantined"] for row in table(asked.folder)] == ["0"] * 3 + ["1"] * 3


def test_a_sweep_of_which_nothing_comes_says_so(asked, monkeypatch):
    monkeypatch.setattr(sweeping, "train", pretended(lambda *_: None))
    swept = run_sweep(asked)
    assert swept.best is None
    assert not (asked.folder / "best.py").exists()
    assert "No trial has come to an end" in (asked.folder / "sweep.html").read_text()


# Going on


def test_an_interrupted_sweep_makes_only_what_is_missing(asked, done, monkeypatch):
    def stop(name: str) -> None:
        if name == "s-0003":
            raise Preempted("asked to stop.")

    with monkeypatch.context() as patched:
        patched.setattr(sweeping, "train", pretended(bowl, done, stop))
        with pytest.raises(Preempted, match="So does that of the sweep"):
            run_sweep(asked)
    assert done == ["s-0000"]
    assert len(table(asked.folder)) == 3  # there is something to look at meanwhile
    run_sweep(asked)
    assert done == ["s-0000", "s-0003"]
    run_sweep(asked)
    assert done == ["s-0000", "s-0003"]
    whole = dataclasses.replace(asked, name="whole")
    run_sweep(whole)
    for name in ("trials.csv", "best.py"):
        text = re.sub(r"\bs(?=[-,])", "whole", (asked.folder / name).read_text())
        assert text == (whole.folder / name).read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"axes": ("lr=1e-4,1e-3",)}, "axes: ["),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"select": "speaker"}, "select: 'pooled' -> 'speaker'"),
        ({"experiment": dataclasses.replace(EXPERIMENT, base=Path("other"))}, "base: 'base' -> 'other'"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(asked, done, changes, named):
    run_sweep(asked)
    before = (asked.folder / "sweep.json").read_text()
    with pytest.raises(ConfigError, match="another configuration") as raised:
        run_sweep(dataclasses.replace(asked, **changes))
    assert named in str(raised.value)
    assert "--overwrite" in str(raised.value)
    assert (asked.folder / "sweep.json").read_text() == before
    run_sweep(dataclasses.replace(asked, **changes), overwrite=True)
    assert len(done) > 2


def test_what_changes_nothing_may_change(asked, done):
    run_sweep(asked)
    run_sweep(
        dataclasses.replace(asked, experiment=dataclasses.replace(EXPERIMENT, save_seconds=5.0, tensorboard=True))
    )
    assert len(done) == 2


def test_a_folder_of_something_else_is_not_touched(asked, done):
    asked.folder.mkdir()
    (asked.folder / "precious").write_text("x")
    with pytest.raises(ConfigError, match="not a sweep"):
        run_sweep(asked, overwrite=True)
    assert list(asked.folder.iterdir()) == [asked.folder / "precious"]


def test_a_base_that_has_changed_between_runs_is_told(asked, done):
    run_sweep(asked)
    config = asked.folder / "runs/s-0003/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base": "other"}))
    with pytest.raises(ConfigError, match=r"base of .*0003.* cannot be compared"):
        run_sweep(asked)


def test_processes_that_share_a_sweep_take_other_runs(asked, done):
    """While another process is at the first run, this one makes the second and says what is left."""
    folder = SweepFolder(asked.folder)
    folder.begin(asked)
    with Listed(asked, folder).take() as taken:
        assert [run.id for run in taken] == ["s-0000"]
        swept = run_sweep(asked)
        assert done == ["s-0003"]
        assert [run.id for run in swept.left] == ["s-0000"]
        with pytest.raises(ConfigError, match="not overwritten"):
            run_sweep(asked, overwrite=True)
    assert run_sweep(asked).left == []
    assert done == ["s-0003", "s-0000"]


def test_a_sweep_over_several_processes_of_one_program_is_refused(asked, done, monkeypatch):
    monkeypatch.setattr(sweeping.jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="--dry-run"):
        run_sweep(asked)
    assert not asked.folder.exists()


# What is typed

FILE = """
from tests.sweep.sweeps import EXPERIMENT
from specialize import Sweep

experiment = EXPERIMENT
"""


def test_typed_as_a_user_types_it(tmp_path, done, capsys, monkeypatch):
    (tmp_path / "e.py").write_text(FILE)
    words = ["sweep", str(tmp_path / "e.py"), *AXES, "--sweeps", str(tmp_path / "sweeps"), "--name", "s"]
    main([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert "6 trials in 2 runs" in said
    files = re.findall(r"specialize train (\S+)", said)
    assert [load_experiment(Path(file)).name for file in files] == ["s-0000", "s-0003"]
    assert "Type the same sweep again when they have ended" in said
    assert done == []
    main(words)
    said = capsys.readouterr().out
    assert "the best is trial 4 (submodel.kind=lora hyper.learning_rate=0.001)" in said
    assert f"next: specialize train {tmp_path}/sweeps/s/best.py" in said


def test_a_run_that_a_launcher_made_is_not_made_again(tmp_path, done, capsys):
    (tmp_path / "e.py").write_text(FILE)
    words = ["sweep", str(tmp_path / "e.py"), *AXES, "--sweeps", str(tmp_path / "sweeps")]
    main([*words, "--dry-run"])
    file = re.findall(r"specialize train (\S+)", capsys.readouterr().out)[1]
    pretended(bowl)(load_experiment(Path(file)))
    main(words)
    assert done == ["people-0000"]
    assert "Of 6 trials" in capsys.readouterr().out


def test_a_sweep_file_holds_all_that_is_asked(tmp_path, done, capsys):
    (tmp_path / "s.py").write_text(FILE + f"sweep = Sweep(EXPERIMENT, axes={AXES!r}, name='filed')\n")
    main(["sweep", str(tmp_path / "s.py"), "--sweeps", str(tmp_path), "lr=1e-3,1e-2"])
    assert len(table(tmp_path / "filed")) == 4
    assert "Of 4 trials" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lr", "learning-rate", "hyper.lr", "hyper.learning_rate"])
def test_an_axis_of_the_file_is_replaced_however_it_is_spelt(name, tmp_path, done):
    (tmp_path / "s.py").write_text(FILE + f"sweep = Sweep(EXPERIMENT, axes={AXES!r}, name='filed')\n")
    main(["sweep", str(tmp_path / "s.py"), "--sweeps", str(tmp_path), f"{name}=1e-3,1e-2"])
    assert len(table(tmp_path / "filed")) == 4
    main(["sweep", str(tmp_path / "s.py"), "--sweeps", str(tmp_path), "lr=0.001,0.01"])  # the same, and goes on
    assert len(done) == 2


def test_sweeps_of_other_names_have_runs_of_other_names(asked, done):
    """What a launcher calls after them would collide."""
    run_sweep(asked)
    run_sweep(dataclasses.replace(asked, name="t"))
    assert done == ["s-0000", "s-0003", "t-0000", "t-0003"]
    assert (asked.sweeps / "t/runs/t-0003/summary.json").is_file()
    assert (asked.sweeps / "t/experiments/t-0003.py").is_file()


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for flag in ("--method", "--trials", "--seed", "--together", "--select", "--halving", "--storage", "--sweeps"):
        assert flag in said
    for words in ("any field of the experiment", "SQLAlchemy", "train nothing", "several processes"):
        assert words in said.replace("│ ", "").replace(" │", "")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "usage: specialize sweep"),
        (["none.py", "lr=1,2"], 1, "no experiment file 'none.py'"),
        (["empty.py", "lr=1,2"], 1, "must expose `experiment`"),
        (["e.py"], 1, "at least one axis"),
        (["e.py", "colour=1"], 1, "no field 'colour'"),
        (["e.py", "lr=1..2"], 1, "--method random or tpe"),
    ],
)
def test_errors_are_a_sentence(words, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("e.py").write_text(FILE)
    Path("empty.py").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *words])
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not Path("sweeps").exists()
