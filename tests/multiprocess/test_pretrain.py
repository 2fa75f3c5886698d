"""A base that several processes train is that of one, whoever dies."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.base import load_base
from specialize.train import PretrainRun
from specialize.train.metrics import read_metrics
from tests.multiprocess.test_run import Launched
from tests.people import write_people
from tests.train.test_pretrain import MODEL

EXPERIMENT = f"""
from pathlib import Path
from specialize import CorpusConfig, Pretraining
from specialize.base import ConformerConfig

here = Path(__file__).parent
MODEL = {MODEL!r}
experiment = Pretraining(
    name="whole",
    corpora=(CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),),
    model=MODEL,
    steps=6,
    every=2,
    seconds=8.0,
    sizes=1,
    warmup=1,
    learning_rate=3e-4,
    average=0.5,
    runs=here / "runs",
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    write_people(folder, 3, 8)
    (folder / "base.py").write_text(EXPERIMENT)
    return folder


def launched(folder: Path, processes: int, *words: str) -> Launched:
    return Launched(folder, processes, *words, devices=2, command="pretrain", file="base.py")


def test_one_process_makes_the_base_of_two_from_where_one_of_two_was_killed(folder):
    words = ("--name", "killed", "--save-seconds", "1e-9")
    two = launched(folder, 2, *words)
    two.wait_for(lambda line: "step 4:" in line)
    said = two.kill(1)
    assert len(re.findall(r"^\[\d\] step 4:", said, re.M)) == 1  # one tells of the run
    run = PretrainRun(folder / "runs/killed")
    assert not run.ended
    code, said = launched(folder, 1, *words).end()
    assert code == 0, said
    assert re.search(r"^\[0\] goes on with '.*' from step [2-5]", said, re.M)
    code, said = launched(folder, 2).end()
    assert code == 0, said
    assert len(re.findall(r"^\[0\] .* parameters, dev loss", said, re.M)) == 1
    whole = PretrainRun(folder / "runs/whole")
    ours, theirs = ([*read_metrics(of.folder / "metrics.jsonl")] for of in (run, whole))
    assert [record["step"] for record in ours] == [2, 4, 6]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    bases = [load_base(of.base_folder).params for of in (run, whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *bases)
    summaries = [of.read("summary.json") for of in (run, whole)]
    for name in ("steps", "best_step", "parameters", "hours", "epochs", "devices"):
        assert summaries[0][name] == summaries[1][name]
    assert not (run.folder / "state").exists()
