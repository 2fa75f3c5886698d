"""Several steps in one dispatch are those steps, and a run of dispatches is a run of steps."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

import specialize.train.loop as loop
from specialize.base import Batch
from specialize.corpus import Assignment, Cut, Order, Size, cohort_batches, computed_samples, train_shapes
from specialize.errors import ConfigError
from specialize.train import Cohort, CohortConfig, Finished, HyperParameters, Job, Stopping
from specialize.train.estimate import Workload, needed_bytes
from specialize.train.jobs import stack_hyper
from specialize.train.step import CohortState, Metrics
from tests.bases import BASES, random_batch, tiny_whisper
from tests.train.cohorts import Results, assignments, cohort, one_shape, people, train_jobs, trainer
from tests.train.test_step import COLLECTIVE

SLOTS, STEPS = 8, 4


@pytest.fixture(params=BASES)
def name(request) -> str:
    return request.param


def inputs(trained: Cohort, name: str) -> tuple[Any, ...]:
    """(params, state, hyper, active, anchor): every slot running, with dropout and SpecAugment."""
    base, slots = BASES[name](), trained.slots
    speakers = people(base=name).speakers
    hyper = HyperParameters(learning_rate=1e-2, weight_decay=0.1, dropout=0.1, spec_augment=0.5)
    jobs: list[Job | None] = [Job(speakers[i % len(speakers)], hyper, 20) for i in range(slots)]
    stacked, everyone = trained.place(stack_hyper(jobs)), trained.place(np.ones(slots, bool))
    state = trained.reset(trained.empty_state(), stacked, everyone)
    return trained.place_frozen(base.params), state, stacked, everyone, trained.place_replicated(trained.anchor())


def batches(name: str, slots: int = SLOTS, rows: int = 2) -> Batch:
    """[S, K, rows, …], of numpy."""
    made = [random_batch(BASES[name](), rows, seed=seed) for seed in range(slots * STEPS)]
    return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(slots, STEPS, *leaves[0].shape), *made)


def one_by_one(trained: Cohort, name: str, given: Batch) -> tuple[CohortState, list[Metrics]]:
    params, state, hyper, active, anchor = inputs(trained, name)
    metrics = []
    for step in range(STEPS):
        part = trained.place(jax.tree.map(lambda leaf, step=step: leaf[:, step], given))
        state, measured = trained.step(params, state, hyper, active, anchor, (part,))
        metrics.append(measured)
    return jax.device_get(state), jax.device_get(metrics)


def together(trained: Cohort, name: str, given: Batch, active: Any = None) -> tuple[CohortState, Metrics]:
    params, state, hyper, everyone, anchor = inputs(trained, name)
    active = everyone if active is None else trained.place(active)
    return jax.device_get(trained.step(params, state, hyper, active, anchor, (trained.place(given),)))


@pytest.mark.parametrize(("name", "chunk"), [*((name, 0) for name in BASES), ("whisper", 2)])
def test_a_dispatch_is_its_steps_one_by_one(name, chunk):
    given = batches(name)
    alone, of_steps = one_by_one(cohort(SLOTS, base=name), name, given)
    state, metrics = together(cohort(SLOTS, base=name, chunk=chunk), name, given)
    assert state.step.tolist() == alone.step.tolist() == [STEPS] * SLOTS
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), state, alone)
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, np.stack(b, 1), rtol=2e-3), metrics, *of_steps)


def test_trouble_in_a_step_of_a_dispatch_stays_in_that_step_and_slot(name):
    trained, given = cohort(SLOTS, base=name), batches(name)
    sound, _ = together(trained, name, given)
    struck, at = 3, 2
    given.audio[struck, at, 0, 100] = np.nan
    state, metrics = together(trained, name, given)
    expected = np.ones((SLOTS, STEPS), bool)
    expected[struck, at] = False
    np.testing.assert_array_equal(metrics.finite, expected)
    assert state.skipped.tolist() == [int(slot == struck) for slot in range(SLOTS)]
    assert state.step.tolist() == [STEPS] * SLOTS
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(sound), strict=True):
        np.testing.assert_array_equal(np.delete(left, struck, 0), np.delete(right, struck, 0))
    assert all(np.isfinite(leaf[struck]).all() for leaf in jax.tree.leaves(state.trained))
    assert np.asarray(state.moments.count)[struck] == STEPS - 1


def test_idle_slots_stay_as_they_are_through_a_dispatch(name):
    trained = cohort(SLOTS, base=name)
    before, active = jax.device_get(inputs(trained, name)[1]), np.arange(SLOTS) % 2 == 0
    state, metrics = together(trained, name, batches(name), active)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(left[~active], right[~active])
    assert np.isnan(metrics.loss[~active]).all()
    assert np.isfinite(metrics.loss[active]).all()


@pytest.mark.parametrize("name", ["whisper"])
def test_no_collectives_in_a_dispatch_on_eight_devices(name):
    trained = cohort(SLOTS, devices=8, base=name)
    program = trained.steps.lower(*inputs(trained, name), trained.place(batches(name))).compile()
    assert "num_partitions=8" in program.as_text() or "sharding" in program.as_text()
    assert COLLECTIVE.findall(program.as_text()) == []
    assert re.search(r"\bwhile\(", program.as_text())


# The order of utterances


def order_of_single_steps(order: Order, step: int) -> tuple[int, ...]:
    """`Order.rows` as it was before there were dispatches."""
    n, batch, seed = len(order.lengths), order.batch, order.seed
    rows: list[int] = list(range(n))
    if n > batch:
        cycle, phase = divmod(step, 3)
        draws = []
        for at in range(cycle * 3 * batch, (cycle + 1) * 3 * batch):
            epoch, place = divmod(at, n)
            draws.append(int(np.random.default_rng((seed, 0, epoch)).permutation(n)[place]))
        jitter = 1.0 + 0.05 * np.random.default_rng((seed, 1, cycle)).random(3 * batch)
        ranked = np.array(draws)[np.argsort(np.array(order.lengths)[draws] * jitter, kind="stable")]
        rows = ranked[phase * batch : (phase + 1) * batch].tolist()
    return tuple(sorted(rows, key=lambda row: (order.lengths[row], row)))


@pytest.mark.parametrize(("count", "batch"), [(3, 4), (5, 4), (12, 4), (31, 2)])
def test_single_steps_have_the_order_that_they_always_had(count, batch):
    lengths = tuple(np.random.default_rng(count).integers(1000, 90_000, count).tolist())
    for seed in range(3):
        order = Order(lengths, batch, seed)
        assert [order.rows(step) for step in range(20)] == [order_of_single_steps(order, step) for step in range(20)]


@pytest.mark.parametrize(("count", "batch", "steps"), [(12, 4, 2), (12, 4, 6), (7, 4, 3), (30, 2, 4)])
def test_steps_of_a_dispatch_are_of_similar_length_and_no_utterance_comes_short(count, batch, steps):
    lengths = tuple(np.random.default_rng(0).permutation(np.linspace(20_000, 60_000, count).astype(int)).tolist())
    order = Order(lengths, batch, 3, steps)
    rows = [order.rows(step) for step in range(3 * steps * count)]  # whole cycles and whole epochs
    seen = Counter(row for of_step in rows for row in of_step)
    assert max(seen.values()) - min(seen.values()) <= 1
    longest = [
        max(lengths[row] for of_step in rows[at : at + steps] for row in of_step) for at in range(0, len(rows), steps)
    ]
    short, middle, long = (np.mean(longest[third::3]) for third in range(3))
    assert short < middle < long
    assert short < 0.75 * long


def test_a_step_of_a_dispatch_has_as_many_different_utterances_as_a_single_one():
    """Sorted by length through and through, the copies of an utterance would come together."""
    lengths = tuple(range(20_000, 80_000, 5_000))
    single, several = (
        np.mean([len(set(order.rows(step))) for step in range(72)])
        for order in (Order(lengths, 4, 0), Order(lengths, 4, 0, 6))
    )
    assert single == 4.0
    assert several > 3.6


@pytest.mark.parametrize("cut", [Cut(4, 2), Cut(4, 4, 2), Cut(4, 4, 3), Cut(4, 4, 7)])
def test_what_is_left_after_a_dispatch_is_cut_as_before(cut):
    for steps in range(1, 20):
        dispatches = cut.dispatches(steps)
        assert [step for first, count in dispatches for step in range(first, first + count)] == list(range(steps))
        assert sum(count == 1 for _, count in dispatches) < cut.together or cut.together == 1
        for done, (first, _) in enumerate(dispatches):
            assert [(at - first, count) for at, count in dispatches[done:]] == cut.dispatches(steps - first)


def rows_of(batch: Batch, slot: int) -> Iterator[tuple[bytes, list[int]]]:
    """Audio and labels of the rows [B] of a slot, without padding."""
    for row, (n, u) in enumerate(zip(batch.samples[slot], batch.label_lengths[slot], strict=True)):
        if n:
            yield batch.audio[slot, row, :n].tobytes(), batch.labels[slot, row, :u].tolist()


def test_a_dispatch_holds_the_rows_of_its_steps_padded_alike():
    corpus, cut = people(4, 14), Cut(4, 4, 3)
    given: list[Assignment | None] = [*assignments(corpus)[:3], None]
    shapes = train_shapes([a for a in given if a], one_shape(corpus).sizes[0], 4, cut, 12, 4)
    made = list(cohort_batches(corpus, given, 7, cut, shapes))
    assert [dispatch.steps for dispatch in made] == [3, 3, 1]
    step = 0
    for dispatch in made:
        ((part,), (size,)) = dispatch.parts, dispatch.sizes
        assert part.audio.shape == (4, dispatch.steps, 4, size.samples)
        assert part.labels.shape == (4, dispatch.steps, 4, size.labels)
        assert size in shapes.sizes
        for k in range(dispatch.steps):
            of_step = jax.tree.map(lambda leaf, k=k: leaf[:, k], part)
            for slot, assignment in enumerate(given):
                expected = [] if assignment is None else [assignment.train[i] for i in assignment.order(cut).rows(step)]
                wanted = [(corpus.audio(u).tobytes(), list(u.labels)) for u in expected]
                assert list(rows_of(of_step, slot)) == wanted
            step += 1


@pytest.mark.parametrize("cut", [Cut(4, 2), Cut(4, 4, 2), Cut(4, 4, 5)])
def test_padding_is_foreseen_as_it_comes(cut):
    corpus, steps, every = people(8, 14), 12, 6
    queue = assignments(corpus)
    shapes = train_shapes(queue, one_shape(corpus).sizes[0], 4, cut, steps, 4, every=every)
    computed = real = 0
    for wave in (queue[:4], queue[4:]):
        for at in range(0, steps, every):
            now = [Assignment(a.train, a.seed, at) for a in wave]
            for dispatch in cohort_batches(corpus, now, every, cut, shapes):
                assert all(
                    part.audio.shape[-1] == size.samples
                    for part, size in zip(dispatch.parts, dispatch.sizes, strict=True)
                )
                computed += sum(part.audio.size for part in dispatch.parts)
                real += sum(int(part.samples.sum()) for part in dispatch.parts)
    assert computed_samples(queue, shapes, 4, cut, steps, every) == (computed, real)


# Whole runs

CUT = Cut(4, 4, 2)
STOP = Stopping(max_steps=8, every=5, patience=9)  # rounds of 5 = 2 + 2 + 1 steps and of 3 = 2 + 1


def assert_same_bits(left: Finished, right: Finished) -> None:
    assert left.looks == right.looks
    assert (left.steps, left.best_step, left.skipped) == (right.steps, right.best_step, right.skipped)
    jax.tree.map(np.testing.assert_array_equal, left.submodel, right.submodel)


@pytest.mark.parametrize("name", ["whisper"])
def test_a_run_of_dispatches_is_a_run_of_single_steps(name, monkeypatch):
    trained = cohort(4, devices=2, base=name)
    several = train_jobs(trained, range(6), stop=STOP, cut=CUT, base=name).by_speaker()
    monkeypatch.setattr(Cut, "dispatches", lambda _, steps: [(at, 1) for at in range(steps)])
    single = train_jobs(trained, range(6), stop=STOP, cut=CUT, base=name).by_speaker()
    assert set(several) == set(single)
    for speaker, finished in several.items():
        np.testing.assert_allclose([x for _, x in finished.looks], [x for _, x in single[speaker].looks], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
            finished.submodel,
            single[speaker].submodel,
        )


class Saving(Results):
    """Saves after every dispatch, and is killed at one of the saves if that is asked for."""

    def __init__(self, killed_at: int | None = None):
        super().__init__()
        self.saved: list[tuple[CohortState, str]] = []
        self.killed_at = killed_at

    def saves(self) -> bool:
        return True

    def save(self, state: Any, progress: Any) -> None:
        self.saved.append((jax.tree.map(np.array, jax.device_get(state)), json.dumps(progress)))
        if len(self.saved) == self.killed_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("resident", "kills"), [(True, range(1, 9)), (False, range(9, 16, 3))])
def test_a_run_killed_between_dispatches_goes_on_to_the_same_bits(resident, kills):
    """Killed at saves in turn: at the start of jobs, after full dispatches, single steps and looks."""
    trained = cohort(4, devices=2)
    how: Any = {"stop": STOP, "cut": CUT, "resident": resident}
    whole = Saving()
    trainer(trained, range(6), **how).run(whole)
    steps = [json.loads(progress)["schedule"]["slots"][0] for _, progress in whole.saved]
    assert [slot and slot["step"] for slot in steps] == 2 * [0, 2, 4, 5, 5, 7, 8, None]
    for kill in kills:
        killed = Saving(kill)
        with pytest.raises(KeyboardInterrupt):
            trainer(trained, range(6), **how).run(killed)
        state, progress = killed.saved[-1]
        later = Saving()
        going_on = trainer(trained, range(6), **how)
        going_on.run(later, (trained.place(state), json.loads(progress)))
        assert [progress for _, progress in killed.saved + later.saved] == [progress for _, progress in whole.saved]
        expected = whole.by_speaker()
        ended = killed.jobs + later.jobs
        assert [finished.job.speaker.id for finished in ended] == [f.job.speaker.id for f in whole.jobs]
        for finished in ended:
            assert_same_bits(finished, expected[finished.job.speaker.id])


def test_trouble_within_dispatches_leaves_the_others_bit_for_bit_and_quarantines(name, monkeypatch):
    stop = Stopping(max_steps=8, every=4, patience=9)
    trained = cohort(4, devices=2, base=name)
    sound = train_jobs(trained, range(4), stop=stop, cut=CUT, base=name).by_speaker()
    made, struck = loop.cohort_batches, {1: {1}, 2: {0, 1, 3}}  # at these steps of each round

    def poisoned(*arguments: Any) -> Iterator[Any]:
        step = 0
        for dispatch in made(*arguments):
            (part,) = dispatch.parts
            audio = np.array(part.audio)
            for slot, steps in struck.items():
                for at in steps & set(range(step, step + dispatch.steps)):
                    audio[slot, at - step, 0, 100] = np.nan
            step += dispatch.steps
            yield dispatch._replace(parts=(part._replace(audio=audio),))

    monkeypatch.setattr(loop, "cohort_batches", poisoned)
    after = train_jobs(trained, range(4), stop=stop, cut=CUT, base=name).by_speaker()
    assert after["p1"].skipped == 2
    assert after["p2"].skipped == 3
    assert {speaker for speaker, finished in after.items() if finished.quarantined} == {"p2"}
    for speaker in ("p0", "p3"):
        assert_same_bits(after[speaker], sound[speaker])


# Before a run


def test_memory_of_a_dispatch_counts_its_batches_and_what_lives_on_the_device():
    trained, params = cohort(4), tiny_whisper().params

    def needed(steps: int, resident: int = 0) -> int:
        return needed_bytes(trained, params, Workload(2, 2, Size(16_000, 16), steps, resident))

    single, audio = needed(1), 4 * trained.slots * 2 * 16_000
    assert needed(1, 12_345) == single + 12_345
    assert needed(4) >= single + 3 * 3 * audio


def test_dispatches_of_batches_in_parts_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"cohort.dispatch=3.*--cohort.rows 4, or --cohort.dispatch 1"):
        CohortConfig(dispatch=3)
    assert CohortConfig(dispatch=3, rows=4).dispatch == 3
    with pytest.raises(ConfigError, match="dispatch=0"):
        CohortConfig(dispatch=0)
    with pytest.raises(ConfigError, match="parts of 4 rows"):
        Cut(4, 2, 3)
