"""A space that several processes train is that of one, whoever dies."""

import re
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import main
from specialize.errors import EXIT_PREEMPTED
from specialize.train import SpaceRun
from specialize.train.metrics import read_metrics
from specialize.train.recorder import read_jobs
from tests.bases import TALKING
from tests.multiprocess.test_run import Launched
from tests.people import write_people

# More speakers than slots, so that they take turns, and everything that is drawn.
SPEAKERS = 11
EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, HyperParameters, Linear, ResidualAdapter, SpaceTraining, Stopping

here = Path(__file__).parent
experiment = SpaceTraining(
    name="whole",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    space=Linear(dim=3),
    hyper=HyperParameters(learning_rate=1e-3, warmup=2, dropout=0.1, spec_augment=0.1),
    stop=Stopping(max_steps=6, every=2),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    save_seconds=1e-9,
    runs=here / "runs",
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spaces")
    write_people(folder, SPEAKERS, 6, seconds=0.4)
    save_base(TALKING["conformer-ctc"](), folder / "base")
    (folder / "space.py").write_text(EXPERIMENT)
    return folder


def launched(folder: Path, processes: int, *words: str) -> Launched:
    return Launched(folder, processes, *words, devices=2, file="space.py")


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whether records are the same, numbers to float tolerance."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, nan_ok=True)
        assert other[name] == same, name


def test_processes_that_are_killed_and_stopped_make_the_space_of_one(folder):
    main(["train", str(folder / "space.py")])
    words = ("--name", "killed")
    two = launched(folder, 2, *words)
    two.wait_for(lambda line: "step 2:" in line)
    said = two.kill(1)
    assert len(re.findall(r"^\[\d\] step 2:", said, re.M)) == 1  # one tells of the run
    run, whole = SpaceRun(folder / "runs/killed"), SpaceRun(folder / "runs/whole")
    assert not run.ended
    one = launched(folder, 1, *words)
    one.wait_for(lambda line: "step 4:" in line)
    one.signal(signal.SIGTERM)
    code, said = one.end()
    assert code == EXIT_PREEMPTED, said
    assert re.search(r"^\[0\] goes on with '.*' from step [1-3]", said, re.M)
    code, said = launched(folder, 2, *words).end()
    assert code == 0, said
    assert re.search(r"^\[0\] goes on with '.*' from step [45]", said, re.M)
    assert len(re.findall(r"^\[0\] a linear space of 11 speakers", said, re.M)) == 1
    ours, theirs = ([*read_metrics(of.folder / "metrics.jsonl")] for of in (run, whole))
    assert len(ours) == len(theirs) == 4 * (1 + SPEAKERS)
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("seconds") >= 0 <= other.pop("seconds")
        assert_close(one, other)
    spaces = run.space(), whole.space()
    assert_close(*(space.training for space in spaces))
    for name in ("shared", "embeddings"):
        trees = [getattr(space, name) for space in spaces]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *trees)
    assert [job["speaker"] for job in read_jobs(run)] == [job["speaker"] for job in read_jobs(whole)]
    assert sorted(run.speakers()) == sorted(whole.speakers()) == sorted(spaces[0].speakers())
    for speaker in run.speakers():
        stored, made = run.submodel(speaker, base=run.base), spaces[0].submodel(speaker)
        jax.tree.map(np.testing.assert_array_equal, stored.submodel, made.submodel)
        assert stored.training == made.training
    summaries = [of.read("summary.json") for of in (run, whole)]
    for name in ("submodels", "slots", "best_step", "shared_parameters", "padded_share", "slots_busy", "quarantined"):
        assert summaries[0][name] == summaries[1][name]
    assert not (run.folder / "state").exists()
