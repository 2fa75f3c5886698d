"""Before a run: slots that fit, chunks that are measured once, and what --dry-run says."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.corpus import Size
from specialize.errors import ConfigError
from specialize.train import CohortConfig, Plan, plan, train
from specialize.train import estimate as of_memory
from specialize.train.estimate import Workload, choose_layout, chunks_of, device_memory, needed_bytes
from tests.bases import BASES, tiny_whisper
from tests.people import write_people
from tests.train.cohorts import cohort

EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    stop=Stopping(max_steps=2, every=2),
    cohort=CohortConfig(slots=64, batch=2, rows=2, shapes=1),
    runs=here / "runs",
)
"""
WORK = Workload(2, 2, Size(16_000, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    write_people(folder, 70, 3, seconds=0.3)
    save_base(tiny_whisper(), folder / "base")
    (folder / "people.py").write_text(EXPERIMENT)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """What is measured here is not kept for others."""
    monkeypatch.setenv("SPECIALIZE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def planned(folder: Path, **cohort: object) -> Plan:
    experiment = load_experiment(folder / "people.py")
    changed = dataclasses.replace(experiment.cohort, **cohort)
    return plan(dataclasses.replace(experiment, cohort=changed))


def bytes_of(name: str, slots: int, chunk: int = 0) -> int:
    return needed_bytes(cohort(slots, chunk=chunk, base=name), BASES[name]().params, WORK)


@pytest.mark.parametrize("name", BASES)
def test_memory_grows_by_the_same_for_each_slot(name):
    """In chunks, what is computed at a time stays the same, so that what a slot adds is exactly what it keeps."""
    four, eight, sixteen = (bytes_of(name, slots, chunk=2) for slots in (4, 8, 16))
    assert 0.98 < (sixteen - eight) / (2 * (eight - four)) < 1.02
    if name == "whisper":
        assert bytes_of(name, 8) > eight


def test_more_slots_than_fit_are_refused_with_the_number_that_does_and_auto_takes_it(folder, monkeypatch):
    fine = planned(folder, chunk=2)
    needed = fine.layout(fine.programs[0], measure=True).needed
    assert needed is not None
    monkeypatch.setattr("specialize.train.planning.device_memory", lambda _: int(needed * 0.8))
    small = planned(folder, chunk=2)
    with pytest.raises(ConfigError, match="64 slots need") as raised:
        small.layout(small.programs[0])
    fitting = int(re.findall(r"(\d+) slots fit", str(raised.value))[0])
    assert 8 <= fitting < 64
    assert fitting % 8 == 0
    assert "--cohort.slots" in str(raised.value)
    taken = planned(folder, chunk=2, slots=fitting)
    assert taken.layout(taken.programs[0]).slots == fitting
    auto = planned(folder, chunk=2, slots="auto")
    assert auto.layout(auto.programs[0]).slots == fitting
    with pytest.raises(ConfigError, match="slots need"):
        train(dataclasses.replace(load_experiment(folder / "people.py"), name="too many"))
    assert not (folder / "runs/too many/submodels").exists()


def test_where_not_even_one_fits_that_is_said(folder, monkeypatch):
    monkeypatch.setattr("specialize.train.planning.device_memory", lambda _: 1000)
    small = planned(folder, slots="auto")
    with pytest.raises(ConfigError, match=r"Not even one slot fits.*smaller base"):
        small.layout(small.programs[0])


def test_auto_takes_no_more_slots_than_there_are_jobs(folder):
    auto = planned(folder, slots="auto")
    assert auto.layout(auto.programs[0]).slots == 72


def test_a_chunk_is_measured_once_for_a_machine(cache, monkeypatch):
    measured = []

    def fake(cohorts, *_):
        measured.append({chunk: made.slots for chunk, made in cohorts.items()})
        return dict.fromkeys(cohorts, 1.0) | {2: 0.5}

    monkeypatch.setattr(of_memory, "_time", fake)
    make = lambda slots, chunk: cohort(slots, chunk=chunk)  # noqa: E731
    first = choose_layout(make, tiny_whisper().params, WORK, 8, "auto")
    again = choose_layout(make, tiny_whisper().params, WORK, 8, "auto")
    assert measured == [{0: 8, 2: 8}]
    assert first == again
    assert first.chunk == 2
    kept = [json.loads(path.read_text())["measured"] for path in (cache / "layouts").glob("*.json")]
    assert {"0": 1.0, "2": 0.5} in kept
    assert {"bytes": first.needed} in kept
    # However many slots, and however long their audio.
    assert choose_layout(make, tiny_whisper().params, Workload(2, 2, Size(8_000, 16)), 16, "auto").chunk == 2
    assert len(measured) == 1
    choose_layout(make, tiny_whisper().params, Workload(4, 4, Size(8_000, 16)), 8, "auto")
    assert len(measured) == 2
    assert choose_layout(make, tiny_whisper().params, WORK, 8, 4).chunk == 4
    assert len(measured) == 2


def test_chunks_change_nothing_but_rounding():
    rng = np.random.default_rng(0)
    whole, chunked = cohort(8), cohort(8, chunk=2)
    arguments = of_memory._arguments(whole, WORK)
    audio = 0.1 * rng.standard_normal(arguments[-1].audio.shape).astype(np.float32)
    arguments = (*arguments[:-1], arguments[-1]._replace(audio=audio))
    submodel, hyper, step, batch = arguments
    frozen = whole.place_frozen(tiny_whisper().params)
    one, two = (c.gradient(frozen, submodel, hyper, step, np.uint32(0), batch) for c in (whole, chunked))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, two)


def test_a_device_says_its_memory():
    memory = device_memory(jax.devices()[0])
    assert memory is not None
    assert 1e6 < memory < 1e14


def test_dry_run_says_what_a_run_needs_and_writes_nothing(folder, capsys):
    main(["train", str(folder / "people.py"), "--name", "dry", "--cohort.slots", "16", "--dry-run"])
    said = capsys.readouterr().out
    for pattern in (
        r"70 jobs",
        r"parameters +\d+ each",
        r"slots +16",
        r"memory +\d",
        r"fits +\d+ slots",
        r"time +about",
    ):
        assert re.search(pattern, said), (pattern, said)
    assert not (folder / "runs/dry").exists()


@pytest.mark.parametrize("slots", [0, -8, 12])
def test_slots_that_devices_cannot_share_are_refused(folder, slots):
    with pytest.raises(ConfigError, match="slots"):
        planned(folder, slots=slots) if slots > 0 else CohortConfig(slots=slots)


def test_chunks_divide_the_slots():
    assert chunks_of(16, (2, 3)) == [2]
    assert chunks_of(24, (2, 3)) == [2, 3]
    assert chunks_of(25, (2, 3)) == [5]
    assert chunks_of(7, (2, 3)) == []
    assert chunks_of(35, (2, 3)) == [5]
    assert chunks_of(64, (32,)) == [32]


def test_the_parts_of_a_step_count_each_where_they_are_computed_at_the_same_time():
    trained, params = cohort(2), tiny_whisper().params
    size = Size(12_800, 16)
    one, two = (needed_bytes(trained, params, Workload(batch, 2, size)) for batch in (2, 4))
    audio = 4 * trained.slots * 2 * size.samples
    planned = one - sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - 3 * audio
    assert two - one > 0.5 * planned
