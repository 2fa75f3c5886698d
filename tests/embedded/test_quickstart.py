"""The quickstart, with few people and steps: the README's first command, on what the package ships."""

import contextlib
import io
import shlex
from pathlib import Path

import pytest
import tyro

from specialize.base import load_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.embedded import BASE, MANIFEST
from specialize.serve.command import Serve
from specialize.train import Pretraining, Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> tuple[Run, str]:
    """The run, and what the command said to the terminal."""
    runs = tmp_path_factory.mktemp("quickstart")
    few = ["--corpus.speakers", "synth-mild-01", "synth-severe-01", "--stop.max-steps", "2", "--stop.every", "2"]
    cohort = ["--cohort.slots", "8", "--cohort.shapes", "1", "--runs", str(runs)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(["train", str(ROOT / "experiments/quickstart.py"), *few, *cohort, "--evaluate"])
    return Run(runs / "quickstart"), said.getvalue()


@pytest.fixture(scope="module")
def run(typed) -> Run:
    return typed[0]


def test_it_trains_scores_and_reports(run):
    assert set(run.speakers()) == {"synth-mild-01", "synth-severe-01"}
    speakers = run.read("results.json")["speakers"]
    # What the base does alone does not depend on the training.
    assert speakers["synth-severe-01"]["base_wer"] > speakers["synth-mild-01"]["base_wer"] > 0.1
    assert (run.folder / "report.html").stat().st_size > 10_000


def test_it_says_how_to_transcribe_and_serve(typed, capsys):
    """With words that can be typed as they stand."""
    run, said = typed
    transcribe, serve = (
        next(shlex.split(line[line.index(begin) :]) for line in said.splitlines() if begin in line)
        for begin in ("specialize transcribe ", "specialize serve ")
    )
    assert Path(transcribe[transcribe.index("--submodel") + 1]).parent == run.store.folder
    capsys.readouterr()
    main(transcribe[1:])
    assert capsys.readouterr().out.strip()
    options = tyro.cli(Serve, args=serve[2:])
    assert (options.base, Path(options.submodels)) == (BASE, run.store.folder)


def test_the_base_is_what_its_recipe_describes():
    recipe, base = load_experiment(ROOT / "experiments/embedded_base.py", Pretraining), load_base(BASE)
    assert getattr(base.architecture, "config") == recipe.model  # noqa: B009  (architectures in general have none)
    assert base.tokenizer.encode(recipe.alphabet.strip())


def test_all_that_is_shipped_is_small():
    files = [path for path in MANIFEST.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
