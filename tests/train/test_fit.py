"""New speakers as points of a space: what is trained when, what is stored, and that a run goes on to the same bits."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.errors import EXIT_PREEMPTED, ConfigError, FingerprintMismatch, StoreError
from specialize.space import GENERATORS, CompactStore, Hypernetwork, Linear, OneHot, Space, load_space, save_space
from specialize.submodel import ResidualAdapter, Submodel, find_sites, init_submodel, size
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, Experiment, HyperParameters, Run, Stopping, plan, train
from specialize.train.jobs import stack_hyper
from specialize.train.recorder import Recorder, read_jobs
from specialize.train.runs import fitted_space
from specialize.train.trainee import Fit, Point
from tests.bases import random_batch, tiny_whisper
from tests.people import write_people
from tests.submodel.programs import shaken
from tests.train.test_step import COLLECTIVE

SPEC = ResidualAdapter(where=("encoder/layers_*",), bottleneck=2)
GENERATED = {"linear": Linear(3), "hypernetwork": Hypernetwork(dim=3, code=3, hidden=8), "one-hot": OneHot()}
EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="fitted",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(where=("encoder/layers_*",), bottleneck=2),
    hyper=HyperParameters(learning_rate=1e-2, warmup=1, dropout=0.1, embedding_rate=0.1, embedding_steps=4),
    stop=Stopping(max_steps=8, every=2, patience=9),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    runs=here / "runs",
)
"""
SPEAKERS = 11


def space_of(name: str = "linear", noise: float = 0.3) -> Space:
    """A space of some speakers over the tiny Whisper, as if it had been trained."""
    base, generator = tiny_whisper(), GENERATED[name]
    template = init_submodel(SPEC, find_sites(SPEC, base.architecture, base.params), jax.random.key(0))
    shared = jax.device_get(shaken(generator.init(jax.random.key(1), template), scale=noise))
    k = generator.embedding_size(template)
    points = 0.3 * np.random.default_rng(0).standard_normal((5, k)).astype(np.float32)
    return Space(generator, SPEC, base.fingerprint, shared, {f"other{i}": e for i, e in enumerate(points)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, a corpus, an experiment file and a space of each kind."""
    folder = tmp_path_factory.mktemp("fit")
    write_people(folder, SPEAKERS, 6, seconds=0.4)
    save_base(tiny_whisper(), folder / "base")
    for name in GENERATORS:
        save_space(folder / f"{name}/space", space_of(name))
    (folder / "fitted.py").write_text(EXPERIMENT)
    return folder


def fitted(folder: Path, name: str, *words: str, space: str = "linear") -> Run:
    main(["train", str(folder / "fitted.py"), "--name", name, "--space", str(folder / space), *words])
    return Run(folder / "runs" / name)


def experiment(folder: Path, **more: Any) -> Experiment:
    return dataclasses.replace(load_experiment(folder / "fitted.py"), **{"space": folder / "linear"} | more)


def largest(submodel: Submodel) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(submodel))


def difference(one: Any, two: Any) -> Any:
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), one, two)


@pytest.mark.parametrize("name", ["linear", "hypernetwork"])
def test_an_embedding_that_is_fitted_is_a_point_whose_submodel_is_stored_bit_for_bit(folder, name):
    run, space = fitted(folder, name, "--fit", "embedding", space=name), space_of(name)
    middle, moved = space.submodel_at(space.middle()).submodel, 0
    for job in read_jobs(run):
        stored = run.submodel(job["speaker"])
        assert stored.spec == SPEC
        assert job["fit"] == "embedding"
        expected = space.submodel_at(np.array(job["embedding"])).submodel
        jax.tree.map(np.testing.assert_array_equal, stored.submodel, expected)
        moved += largest(difference(stored.submodel, middle)) > 0
        assert job["dev_loss"] <= job["looks"][0][1]
    assert moved > SPEAKERS // 2, "embeddings learn"
    summary = run.read("summary.json")
    assert (summary["trained_each"], summary["parameters_each"]) == (len(space.middle()), size(middle))


@pytest.mark.parametrize("name", GENERATORS)
def test_unfreezing_leaves_the_embedding_in_the_middle(folder, name):
    run, space = fitted(folder, f"unfrozen_{name}", "--fit", "unfreeze", space=name), space_of(name)
    start = space.submodel_at(space.middle()).submodel
    moved = [largest(difference(run.submodel(speaker).submodel, start)) for speaker in run.speakers()]
    assert max(moved) > 1e-3
    if name != "one-hot":  # whose embeddings are too long to be told
        assert all(job["embedding"] == space.middle().tolist() for job in read_jobs(run))
    assert run.read("summary.json")["trained_each"] == size(start)


def stepped(fit: Fit, steps: int, hyper: HyperParameters, space: Space | None = None) -> list[dict[str, Any]]:
    """The trained arrays of two slots before and after each of so many steps."""
    base = tiny_whisper()
    cohort = Cohort(
        base.architecture, Point(space or space_of(), fit), speaker_mesh(jax.devices()[:1]), 2, random=False
    )
    stacked = stack_hyper([None, None])
    values = {name: np.full(2, getattr(hyper, name), np.float32) for name in stacked._fields if hasattr(hyper, name)}
    stacked = stacked._replace(**values | {"seed": stacked.seed, "steps": np.full(2, steps, np.float32)})
    everyone = np.ones(2, bool)
    state = cohort.reset(cohort.empty_state(), stacked, everyone)
    batch = jax.tree.map(lambda *x: np.stack(x), *(random_batch(base, 2, seed=seed) for seed in range(2)))
    frozen, seen = cohort.place_frozen(base.params), [jax.device_get(state.trained)]
    for _ in range(steps):
        state, measured = cohort.step(frozen, state, stacked, everyone, cohort.anchor(), (batch,))
        assert np.asarray(measured.finite).all()
        seen.append(jax.device_get(state.trained))
    return seen


def test_the_embedding_trains_first_and_then_the_submodel():
    seen = stepped("embedding-then-unfreeze", 6, HyperParameters(warmup=0, embedding_steps=3))
    for step, (before, after) in enumerate(itertools.pairwise(seen)):
        moved = {name: largest(difference(after[name], before[name])) > 0 for name in before}
        assert moved == {"embedding": step < 3, "change": step >= 3}, step


def test_after_the_embedding_the_submodel_trains_as_if_from_there():
    """The second phase is the first steps of an Adam of its own, at a schedule of its own."""
    hyper = HyperParameters(learning_rate=1e-2, warmup=2, embedding_steps=3)
    both = stepped("embedding-then-unfreeze", 7, hyper)
    there = dataclasses.replace(
        space_of(), embeddings={"there": both[3]["embedding"][0], "and": both[3]["embedding"][0]}
    )
    alone = stepped("unfreeze", 4, hyper, there)
    for step in range(5):
        left, right = (
            jax.tree.map(lambda leaf: leaf[0], of[at]["change"]) for of, at in ((both, 3 + step), (alone, step))
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), left, right)
    assert largest(alone[-1]["change"]) > 1e-3


def test_a_strong_pull_keeps_the_submodel_near_its_point():
    free, pulled = (
        largest(stepped("unfreeze", 6, HyperParameters(learning_rate=1e-2, warmup=0, weight_decay=decay))[-1]["change"])
        for decay in (0.0, 90.0)
    )
    assert pulled < 0.5 * free
    middle, far = space_of().middle(), []
    for decay in (0.0, 9.0):
        last = stepped("embedding", 6, HyperParameters(warmup=0, embedding_decay=decay))[-1]
        far.append(float(np.abs(last["embedding"] - middle).max()))
    assert far[1] < 0.5 * far[0]


def test_the_step_is_that_of_the_generated_submodel():
    """The gradient by the embedding is the gradient by the Submodel, taken back through the generator."""
    base, point = tiny_whisper(), Point(space_of(), "embedding-then-unfreeze")
    cohort = Cohort(base.architecture, point, speaker_mesh(jax.devices()[:1]), 2, random=False)
    hyper = stack_hyper([None, None])
    state = cohort.reset(cohort.empty_state(), hyper, np.ones(2, bool))
    batch = jax.tree.map(lambda *x: np.stack(x), *(random_batch(base, 2, seed=seed) for seed in range(2)))
    found = cohort.gradient(cohort.place_frozen(base.params), state.trained, hyper, state.step, np.uint32(0), batch)
    by_submodel = jax.tree.map(lambda leaf: leaf[0], found.gradient["change"])
    _, back = jax.vjp(lambda e: space_of().generator.generate(point.shared, e), point.anchor()["embedding"])
    (by_embedding,) = back(by_submodel)
    np.testing.assert_allclose(found.gradient["embedding"][0], by_embedding, rtol=1e-4, atol=1e-6)


def test_no_collectives_on_eight_devices():
    base = tiny_whisper()
    cohort = Cohort(base.architecture, Point(space_of(), "embedding-then-unfreeze"), speaker_mesh(), 8, random=False)
    hyper = cohort.place(stack_hyper([None] * 8))
    state = cohort.reset(cohort.empty_state(), hyper, cohort.place(np.ones(8, bool)))
    batch = jax.tree.map(lambda *x: np.stack(x), *(random_batch(base, 2, seed=seed) for seed in range(8)))
    frozen, batch = cohort.place_frozen(base.params), cohort.place(batch)
    step = (frozen, state.trained, hyper, state.step, np.uint32(0), batch)
    gradient = cohort.gradient.lower(*step).compile()
    active, anchor = cohort.place(np.ones(8, bool)), cohort.place_replicated(cohort.anchor())
    apply = cohort.apply.lower(state, hyper, active, anchor, (gradient(*step),)).compile()
    for program in (gradient, apply):
        text = program.as_text()
        assert text is not None
        assert "num_partitions=8" in text
        assert COLLECTIVE.findall(text) == []


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(folder, monkeypatch):
    whole = fitted(folder, "whole")
    saves = Recorder.saves
    asked = []

    def saves_and_stops(self: Recorder) -> bool:
        asked.append(self)
        self._clock._asked = lambda: len(asked) in (6, 17)
        return saves(self)

    monkeypatch.setattr(Recorder, "saves", saves_and_stops)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            fitted(folder, "stopped")
        assert ended.value.code == EXIT_PREEMPTED
    run = fitted(folder, "stopped")
    assert (run.folder / "jobs.jsonl").read_bytes() == (whole.folder / "jobs.jsonl").read_bytes()
    for speaker in whole.speakers():
        jax.tree.map(np.testing.assert_array_equal, run.submodel(speaker).submodel, whole.submodel(speaker).submodel)


def test_another_space_is_refused_where_a_run_goes_on(folder, tmp_path, monkeypatch):
    save_space(tmp_path / "space", space_of())
    words = ["train", str(folder / "fitted.py"), "--name", "other", "--space", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "saves", lambda self: setattr(self._clock, "_stop", True) or True)
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == EXIT_PREEMPTED
    save_space(tmp_path / "space", space_of(noise=0.2), overwrite=True)
    with pytest.raises(ConfigError, match=r"\n  space: '\w+' -> '\w+'\n"):
        train(experiment(folder, name="other", space=tmp_path))


def test_the_submodels_are_of_the_kind_of_the_space(folder):
    planned = plan(experiment(folder, submodel=ResidualAdapter(bottleneck=5)))
    assert planned.experiment.submodel == SPEC
    run = fitted(folder, "kind", "--fit", "embedding", "--submodel.bottleneck", "5", "--corpus.limit", "2")
    assert run.experiment.submodel == SPEC


def test_a_budget_is_the_first_utterances(folder):
    run = fitted(folder, "budget", "--budget", "2", "--corpus.limit", "2")
    assert run.experiment.hyper.utterances == 2
    run = fitted(folder, "seconds", "--budget=0.9s", "--corpus.limit", "2")
    assert run.experiment.hyper.seconds == 0.9
    assert run.experiment.hyper.utterances is None
    run = fitted(folder, "last", "--hyper.utterances", "2", "--budget=0.9s", "--corpus.limit", "2")
    assert (run.experiment.hyper.utterances, run.experiment.hyper.seconds) == (None, 0.9)


def test_a_budget_that_is_neither_is_told(folder, capsys):
    for value in ("x", "3m", "", "1.5"):
        with pytest.raises(SystemExit) as ended:
            fitted(folder, "none", "--budget", value)
        assert ended.value.code == 1
        assert f"--budget {value}: write a number of utterances" in capsys.readouterr().err


def test_what_does_not_go_with_a_space_is_told(folder, tmp_path):
    with pytest.raises(ConfigError, match="--start None"):
        plan(experiment(folder, start=tmp_path))
    with pytest.raises(ConfigError, match="all of its kind and sizes"):
        plan(experiment(folder, grid=("submodel.bottleneck=2,4",)))
    with pytest.raises(ConfigError, match=r"embedding_steps=8 leaves nothing of stop\.max_steps=8"):
        plan(experiment(folder, grid=("embedding_steps=2,8",)))
    plan(experiment(folder, grid=("embedding_steps=2,8",), fit="embedding"))
    halving = Stopping(max_steps=8, every=2, halving=2)
    with pytest.raises(ConfigError, match="--fit embedding or unfreeze"):
        plan(experiment(folder, grid=("wd=0,10",), stop=halving))
    with pytest.raises(ConfigError, match="Give --fit unfreeze"):
        plan(experiment(folder, space=folder / "one-hot"))
    with pytest.raises(ConfigError, match="Give the --space, or --fit None"):
        experiment(folder, space=None, fit="embedding")
    with pytest.raises(StoreError, match="nowhere"):
        plan(experiment(folder, space=tmp_path / "nowhere"))
    save_space(tmp_path / "foreign", dataclasses.replace(space_of(), base="0" * 32))
    with pytest.raises(FingerprintMismatch, match="--space"):
        plan(experiment(folder, space=tmp_path / "foreign"))


def test_jobs_do_not_end_before_the_submodel_has_had_its_turn(folder):
    stop = Stopping(max_steps=30, every=2, patience=1)
    assert plan(experiment(folder, stop=stop, grid=("embedding_steps=4,10",))).stopping.min_steps == 12
    patient = dataclasses.replace(stop, patience=3)
    assert plan(experiment(folder, stop=patient, grid=("embedding_steps=4,10",))).stopping.min_steps == 16
    assert plan(experiment(folder, stop=stop, fit="embedding")).stopping == stop


def test_a_dry_run_says_what_is_trained(folder, capsys):
    main(["train", str(folder / "fitted.py"), "--space", str(folder / "linear"), "--fit", "embedding", "--dry-run"])
    assert "trained      3 each (embedding of the space" in capsys.readouterr().out


def test_the_space_itself_may_be_named(folder):
    assert plan(experiment(folder, space=folder / "linear/space")).space is not None


def test_what_was_fitted_is_looked_at_and_kept_compactly(folder, tmp_path, capsys):
    run = fitted(folder, "seen", "--fit", "embedding")
    main(["inspect", str(run.folder)])
    said = capsys.readouterr().out
    assert f"{folder / 'linear'}, embedding" in said
    space = fitted_space(run)
    assert space is not None
    assert set(space.embeddings) == {f"p{i}" for i in range(SPEAKERS)} | set(space_of().embeddings)
    main(["compact", str(run.folder), str(tmp_path / "people.safetensors"), "--dtype", "float32"])
    store = CompactStore(tmp_path / "people.safetensors")
    assert set(store.speakers()) == {f"p{i}" for i in range(SPEAKERS)}
    jax.tree.map(np.testing.assert_array_equal, store.load("p3").submodel, run.submodel("p3").submodel)


def test_a_run_without_a_space_has_one_through_its_submodels(folder, tmp_path, capsys):
    run = fitted(folder, "scattered", "--fit", "embedding")
    main(["components", str(run.folder), str(tmp_path / "through"), "--dim", "2"])
    assert f"2 components through {SPEAKERS} Submodels" in capsys.readouterr().out
    new = fitted(folder, "between", "--fit", "embedding", space=str(tmp_path / "through"))
    told = new.submodel("p3").training["embedding"]
    assert len(told) == 2
    jax.tree.map(
        np.testing.assert_array_equal,
        new.submodel("p3").submodel,
        load_space(tmp_path / "through").submodel_at(np.array(told, np.float32)).submodel,
    )
    with pytest.raises(SystemExit):
        main(["components", str(run.folder), str(tmp_path / "through")])
    assert "is there already" in capsys.readouterr().err
