"""The step of a space: one-hot is independent training, one collective, trouble stays in its slot, turns are fair."""

import functools
import re
from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import Batch
from specialize.space import Generator, Hypernetwork, Linear, OneHot
from specialize.submodel import Submodel, find_sites, init_submodel
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, HyperParameters, Job
from specialize.train.jobs import stack_hyper
from specialize.train.joint_step import JointStep, SpaceState
from specialize.train.trainee import Plain
from specialize.train.turns import Turns
from tests.bases import BASES, random_batch
from tests.submodel.programs import shaken
from tests.train.cohorts import SPEC, people
from tests.train.test_step import COLLECTIVE

SLOTS, ROWS, STEPS = 8, 2, 20
HYPER = HyperParameters(learning_rate=1e-2, warmup=2, clip=0.5)
GENERATED: dict[str, Generator] = {
    "one-hot": OneHot(),
    "linear": Linear(dim=3),
    "hypernetwork": Hypernetwork(dim=3, code=2, hidden=8),
}


def template_of(base: str) -> Submodel:
    made = BASES[base]()
    return shaken(init_submodel(SPEC, find_sites(SPEC, made.architecture, made.params), jax.random.key(0)))


def parts_of(cohort: Cohort, base: str, step: int = 0, rows: int = 2) -> tuple[Batch, ...]:
    batches = [random_batch(BASES[base](), rows, seed=100 * step + seed) for seed in range(SLOTS)]
    return (cohort.place(jax.tree.map(lambda *leaves: np.stack(leaves), *batches)),)


class Trained:
    """A space over a tiny base, and what its steps need."""

    def __init__(self, generator: Generator, base: str = "whisper", devices: int = 1, **more: Any):
        made, self.base = BASES[base](), base
        sites, mesh = find_sites(SPEC, made.architecture, made.params), speaker_mesh(jax.devices()[:devices])
        self.template = template_of(base)
        self.cohort = Cohort(made.architecture, Plain(SPEC, sites, self.template), mesh, SLOTS, random=False)
        settings = {"embedding_rate": 1e-2, "embedding_decay": 0.0, "steps": STEPS} | more
        hyper = settings.pop("hyper", HYPER)
        self.joint = JointStep(self.cohort, generator, ROWS, hyper, **settings)
        self.params = self.cohort.place_frozen(made.params)
        speakers = people(base=base).speakers
        jobs: list[Job | None] = [Job(speakers[slot % len(speakers)], hyper, STEPS) for slot in range(SLOTS)]
        self.hyper = self.cohort.place(stack_hyper(jobs))

    def begin(self) -> SpaceState:
        seeds = np.arange(SLOTS * ROWS, dtype=np.uint32).reshape(SLOTS, ROWS)
        return self.joint.begin(self.template, seeds, jax.random.key(1))

    def place(self, state: SpaceState) -> SpaceState:
        """On the mesh again."""
        return jax.device_put(state, self.joint.shardings)

    def steps(self, count: int, state: SpaceState | None = None, **more: Any) -> SpaceState:
        """So many steps from the start, or from a state."""
        state = self.begin() if state is None else state
        for _ in range(count):
            state, self.metrics = self.step(state, **more)
        return state

    def step(self, state: SpaceState, active: Any = None, rows: Any = None, parts: Any = None, anchor: Any = None):
        place, at = self.cohort.place, int(state.step)
        active = np.ones(SLOTS, bool) if active is None else active
        rows = np.zeros(SLOTS, np.int32) if rows is None else np.asarray(rows, np.int32)
        anchor = self.begin().shared if anchor is None else anchor
        parts = parts_of(self.cohort, self.base, at) if parts is None else parts
        steps = np.full(SLOTS, at, np.int32)
        return self.joint.step(self.params, state, place(rows), place(active), self.hyper, place(steps), anchor, parts)


@functools.cache
def trained(name: str, devices: int = 1) -> Trained:
    """A space over the tiny Whisper, compiled once a session."""
    return Trained(GENERATED[name], devices=devices)


def host(state: SpaceState) -> SpaceState:
    return jax.device_get(state)


def assert_equal(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("base", BASES)
def test_one_hot_is_independent_training(base):
    """The same batches, learning rates, clipping and decay, and one step that one slot cannot take."""
    hyper = HyperParameters(learning_rate=1e-2, warmup=2, clip=0.05, weight_decay=0.3)
    space = Trained(OneHot(), base, hyper=hyper, embedding_rate=1e-2, embedding_decay=0.3)
    cohort = space.cohort
    everybody = cohort.place(np.ones(SLOTS, bool))
    alone = cohort.reset(cohort.empty_state(), space.hyper, everybody)
    anchor = cohort.place_replicated(cohort.anchor())
    state = space.begin()
    for step in range(4):
        (batch,) = parts_of(cohort, base, step)
        if step == 1:
            audio = np.array(batch.audio)
            audio[3] = np.nan
            batch = batch._replace(audio=cohort.place(audio))
        alone, ours = cohort.step(space.params, alone, space.hyper, everybody, anchor, (batch,))
        state, theirs = space.step(state, parts=(batch,))
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=2e-4)
        assert np.asarray(ours.finite).tolist() == np.asarray(theirs.finite).tolist()
    bank = space.joint.generate(state.shared, state.embeddings, cohort.place(np.zeros(SLOTS, np.int32)))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b[None]).max()), jax.device_get(bank), space.template)
    assert max(jax.tree.leaves(moved)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), bank, alone.trained)
    assert np.asarray(state.skipped)[:, 0].tolist() == np.asarray(alone.skipped).tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("name", GENERATED)
def test_the_only_collective_is_the_sum_of_the_generators_gradient(name):
    space = trained(name, devices=8)
    state, place = space.begin(), space.cohort.place
    rows, active = place(np.zeros(SLOTS, np.int32)), place(np.ones(SLOTS, bool))
    steps, (part,) = place(np.zeros(SLOTS, np.int32)), parts_of(space.cohort, "whisper")
    bank = space.joint.generate(state.shared, state.embeddings, rows)
    arguments = (space.params, bank, space.hyper, steps, np.uint32(0), part)
    partial = space.cohort.gradient(*arguments)
    texts = {
        "generate": space.joint.generate.lower(state.shared, state.embeddings, rows).compile().as_text(),
        "gradient": space.cohort.gradient.lower(*arguments).compile().as_text(),
        "apply": space.joint.apply.lower(state, rows, active, state.shared, (partial,)).compile().as_text(),
    }
    found = {program: set(COLLECTIVE.findall(text)) for program, text in texts.items()}
    summed = set() if name == "one-hot" else {"all-reduce"}
    assert found == {"generate": set(), "gradient": set(), "apply": summed}
    # What is summed is as large as what is trained of the generator, and the number of slots that count.
    lines = [line for line in texts["apply"].splitlines() if re.search(r"= .* all-reduce(-start)?\(", line)]
    shapes = [re.findall(r"f32\[([\d,]*)\]", line.split(" all-reduce")[0]) for line in lines]
    reduced = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for line in shapes for shape in line)
    shared = sum(leaf.size for leaf in jax.tree.leaves(state.shared)) if name != "one-hot" else -1
    assert reduced == shared + 1


@pytest.mark.parametrize("name", GENERATED)
def test_eight_devices_equal_one(name):
    one, eight = (trained(name, devices).steps(4) for devices in (1, 8))
    assert len(eight.embeddings.sharding.device_set) == 8
    assert eight.embeddings.addressable_shards[0].data.shape[0] == 1
    for part in ("shared", "embeddings", "sums"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
            host(getattr(one, part)),
            host(getattr(eight, part)),
        )


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("trouble", [np.nan, np.inf])
def test_a_slot_in_trouble_counts_for_the_others_as_if_it_were_idle(name, trouble):
    space = trained(name, devices=8)
    before = host(space.steps(2))
    (batch,) = parts_of(space.cohort, "whisper", 2)
    audio = np.array(batch.audio)
    audio[5, 0, 100] = trouble
    broken = (batch._replace(audio=space.cohort.place(audio)),)
    idle = host(space.step(space.place(before), active=np.arange(SLOTS) != 5, parts=(batch,))[0])
    struck = host(space.step(space.place(before), parts=broken)[0])
    assert struck.skipped[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert_equal(struck._replace(skipped=idle.skipped), idle)
    assert_equal(struck.embeddings[5], before.embeddings[5])
    assert_equal(*(np.asarray(of.embedding_moments.count)[5] for of in (struck, before)))
    if name != "one-hot":
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (struck.shared, before.shared)), strict=True))


def test_where_no_slot_counts_nothing_moves():
    space = trained("linear")
    before = host(space.steps(2))
    after = host(space.step(space.place(before), active=np.zeros(SLOTS, bool))[0])
    assert_equal(after._replace(step=before.step), before)
    assert np.isnan(np.asarray(space.step(space.place(before), active=np.zeros(SLOTS, bool))[1].loss)).all()


def test_only_the_row_whose_turn_it_is_moves():
    space = trained("linear")
    before = host(space.steps(2))
    rows = np.array([0, 1, 0, 1, 1, 1, 0, 0])
    after = host(space.step(space.place(before), rows=rows)[0])
    for slot, row in enumerate(rows):
        assert (after.embeddings[slot, row] != before.embeddings[slot, row]).all()
        assert_equal(after.embeddings[slot, 1 - row], before.embeddings[slot, 1 - row])
        assert np.asarray(after.embedding_moments.count)[slot].tolist() == [3, 0] if row == 0 else [2, 1]
        assert (after.sums.steps - before.sums.steps)[slot].tolist() == [1 - row, row]


def test_a_loud_slot_does_not_drown_the_others():
    """Gradients are clipped slot by slot: one that is a thousand times as large weighs as much as any."""
    space = Trained(Linear(dim=3), hyper=HyperParameters(learning_rate=1e-2, warmup=2, clip=0.1))
    state = space.begin()
    bank = space.joint.generate(state.shared, state.embeddings, space.cohort.place(np.zeros(SLOTS, np.int32)))
    place = space.cohort.place
    steps, (part,) = place(np.zeros(SLOTS, np.int32)), parts_of(space.cohort, "whisper")
    partial = jax.device_get(space.cohort.gradient(space.params, bank, space.hyper, steps, np.uint32(0), part))
    loud = np.where(np.arange(SLOTS) == 2, 1000.0, 1.0).astype(np.float32)
    louder = partial._replace(
        gradient=jax.tree.map(lambda g: g * loud.reshape(-1, *(1,) * (g.ndim - 1)), partial.gradient)
    )
    moments = []
    for given in (partial, louder):
        rows, active = place(np.zeros(SLOTS, np.int32)), place(np.ones(SLOTS, bool))
        after, metrics = space.joint.apply(space.begin(), rows, active, state.shared, (place(given),))
        assert (np.asarray(metrics.grad_norm) > 0.1).all()
        moments.append(jax.device_get(after.moments.mu))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), *moments)


def test_weight_decay_pulls_the_generator_to_the_anchor_and_the_decay_of_embeddings_them_to_zero():
    hyper = HyperParameters(learning_rate=0.1, warmup=0, final=1.0, weight_decay=0.5)
    still, pulled = (
        Trained(Linear(dim=3), hyper=of, embedding_rate=0.1, embedding_decay=decay)
        for of, decay in ((HyperParameters(learning_rate=0.1, warmup=0, final=1.0), 0.0), (hyper, 0.5))
    )
    anchor = jax.tree.map(lambda leaf: leaf + 1.0, host(still.begin()).shared)
    free, held = (host(space.steps(1, anchor=anchor)) for space in (still, pulled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b - a, 0.1 * 0.5, atol=1e-5), free.shared, held.shared)
    start = host(still.begin()).embeddings[:, 0]
    np.testing.assert_allclose(held.embeddings[:, 0] - free.embeddings[:, 0], -0.1 * 0.5 * start, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", GENERATED)
def test_training_on_the_same_batches_lowers_the_loss(name):
    space = Trained(GENERATED[name], embedding_rate=3e-2)
    parts = parts_of(space.cohort, "whisper")
    state, losses = space.begin(), []
    for _ in range(12):
        state, metrics = space.step(state, parts=parts)
        losses.append(float(np.mean(metrics.loss)))
    assert losses[-1] < losses[0] - 0.01


def test_the_best_and_the_sums_are_kept_and_forgotten():
    space = trained("linear")
    first = host(space.steps(2))
    kept = host(space.joint.keep_best(space.place(first)))
    assert_equal(kept.best.shared, first.shared)
    assert_equal(kept.best.embeddings, first.embeddings)
    assert_equal(first.best.shared, host(space.begin()).shared)
    later = host(space.steps(1, space.place(kept)))
    assert_equal(later.best, kept.best)
    assert first.sums.steps.sum() == 2 * SLOTS
    assert host(space.joint.forget_sums(space.place(first))).sums.steps.sum() == 0


def test_every_slot_draws_its_own_and_the_same_whatever_is_drawn_for_others():
    turns = Turns([3] * 11, slots=4, sampling=0.0, seed=5)
    assert turns.rows == 3
    seen = {turns.place(slot, row) for step in range(60) for slot, row in enumerate(turns.at(step).tolist())}
    assert seen == set(range(11))
    again = Turns([3] * 11, slots=4, sampling=0.0, seed=5)
    assert all((turns.at(step) == again.at(step)).all() for step in reversed(range(20)))
    assert any((turns.at(step) != Turns([3] * 11, 4, 0.0, 6).at(step)).any() for step in range(20))
    fewer = Turns([3] * 11, slots=4, sampling=0.0, seed=5, without=[0, 4])
    for step in range(20):
        assert (turns.at(step)[1:] == fewer.at(step)[1:]).all()
        assert fewer.at(step)[0] == 2


@pytest.mark.parametrize("sampling", [0.0, 0.5, 1.0])
def test_speakers_are_drawn_by_a_power_of_their_utterances(sampling):
    utterances = [1, 1, 4, 4, 16, 16]
    turns = Turns(utterances, slots=2, sampling=sampling, seed=0)
    counts, steps = np.zeros(6), 6000
    for step in range(steps):
        for slot, row in enumerate(turns.at(step).tolist()):
            counts[turns.place(slot, row)] += 1
    weights = np.array(utterances) ** sampling
    np.testing.assert_allclose(counts / (2 * steps), weights / weights.sum(), atol=0.02)


def test_slots_without_speakers_are_idle():
    assert Turns([2, 2, 2], slots=4, sampling=1.0, seed=0).at(7).tolist() == [0, 0, 0, -1]
    assert Turns([2, 2, 2], slots=2, sampling=1.0, seed=0, without=[1]).at(7)[1] == -1
