"""The quickstart, with few people and steps: the README's first command, on what the package ships."""

import json
from pathlib import Path

import pytest

from specialize.base import load_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.embedded import BASE, MANIFEST
from specialize.train import Pretraining, Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    runs = tmp_path_factory.mktemp("quickstart")
    few = ["--corpus.speakers", "synth-mild-01", "synth-severe-01", "--stop.max-steps", "4", "--stop.every", "4"]
    cohort = ["--cohort.slots", "8", "--cohort.shapes", "1", "--runs", str(runs)]
    main(["train", str(ROOT / "experiments/quickstart.py"), *few, *cohort, "--evaluate"])
    return Run(runs / "quickstart")


def test_it_trains_scores_and_reports(run, capsys):
    assert set(run.speakers()) == {"synth-mild-01", "synth-severe-01"}
    speakers = run.read("results.json")["speakers"]
    # What the base does alone does not depend on the training.
    assert speakers["synth-severe-01"]["base_wer"] > speakers["synth-mild-01"]["base_wer"] > 0.1
    assert (run.folder / "report.html").stat().st_size > 10_000
    clip = next(row for row in map(json.loads, MANIFEST.read_text().splitlines()) if row["split"] == "test")
    capsys.readouterr()
    submodel = str(run.store.path("synth-mild-01"))
    main(["transcribe", str(BASE), str(MANIFEST.parent / clip["audio"]), "--submodel", submodel, "--gate", "off"])
    assert capsys.readouterr().out.strip()


def test_the_base_is_what_its_recipe_describes():
    recipe, base = load_experiment(ROOT / "experiments/embedded_base.py", Pretraining), load_base(BASE)
    assert getattr(base.architecture, "config") == recipe.model  # noqa: B009  (architectures in general have none)
    assert base.tokenizer.encode(recipe.alphabet.strip())


def test_all_that_is_shipped_is_small():
    files = [path for path in MANIFEST.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
