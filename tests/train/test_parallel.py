"""Parallel is alone: a job comes out the same whatever its company, its slot and the number of devices.

What the architecture has a part in is tested on every base; chunks and seeds on one.
"""

import jax
import numpy as np
import pytest

from specialize.train import Finished, HyperParameters, Stopping
from tests.bases import BASES
from tests.train.cohorts import cohort, train_jobs

EVERYBODY = tuple(range(8))


def leaves(finished: Finished) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(finished.submodel)
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def assert_same_bits(left: Finished, right: Finished) -> None:
    assert left.looks == right.looks
    for name, value in leaves(left).items():
        np.testing.assert_array_equal(value, leaves(right)[name], err_msg=name)


def assert_close(left: Finished, right: Finished) -> None:
    for name, value in leaves(left).items():
        np.testing.assert_allclose(value, leaves(right)[name], rtol=2e-3, atol=2e-5, err_msg=name)
    np.testing.assert_allclose([x for _, x in left.looks], [x for _, x in right.looks], rtol=1e-4)


@pytest.fixture(scope="module", params=BASES)
def base(request) -> str:
    return request.param


one_base = pytest.mark.parametrize("base", ["whisper"], indirect=True)


@pytest.fixture(scope="module")
def together(base) -> dict[str, Finished]:
    """Eight speakers in eight slots of one device, 50 steps."""
    return train_jobs(cohort(8, base=base), EVERYBODY, base=base).by_speaker()


def test_training_changes_every_submodel_and_each_differently(base, together):
    first = [np.concatenate([leaf.ravel() for leaf in leaves(f).values()]) for f in together.values()]
    assert len(first) == 8
    for i in range(8):
        for j in range(i):
            assert np.abs(first[i] - first[j]).max() > 1e-3
    for finished in together.values():
        assert finished.dev_loss < finished.base_dev_loss
        assert finished.best_step > 0


def test_eight_together_equal_one_at_a_time(base, together):
    for place in EVERYBODY:
        ((speaker, alone),) = train_jobs(cohort(1, base=base), (place,), base=base).by_speaker().items()
        assert_close(together[speaker], alone)


def test_neither_placement_within_a_shape_nor_company_changes_a_bit(base, together):
    results = train_jobs(cohort(8, base=base), EVERYBODY[:1:-1], base=base)
    assert results.slots == {f"p{place}": 7 - place for place in EVERYBODY[2:]}
    for speaker, finished in results.by_speaker().items():
        assert_same_bits(together[speaker], finished)


def test_eight_devices_equal_one(base, together):
    spread = train_jobs(cohort(8, devices=8, base=base), EVERYBODY, base=base).by_speaker()
    for speaker, finished in spread.items():
        assert_close(together[speaker], finished)


@one_base
def test_chunks_equal_all_at_once(base, together):
    for speaker, finished in train_jobs(cohort(8, chunk=2, base=base), EVERYBODY, base=base).by_speaker().items():
        assert_close(together[speaker], finished)


@one_base
def test_more_speakers_than_slots(base, together):
    results = train_jobs(cohort(4, devices=2, base=base), EVERYBODY, base=base)
    assert len(results.jobs) == 8
    for speaker, finished in results.by_speaker().items():
        assert_close(together[speaker], finished)


def test_refill_changes_no_bit(base):
    """Jobs end at different steps, and come out the same whether a free slot is taken at once or waits for all."""
    trained, stop = cohort(4, devices=2, base=base), Stopping(max_steps=8, every=2, patience=1)
    hyper = HyperParameters(learning_rate=0.1, dropout=0.1, spec_augment=0.5, warmup=0)
    continuous, waves = (
        train_jobs(trained, EVERYBODY[::-1], stop=stop, hyper=hyper, refill=refill, base=base)
        for refill in ("continuous", "waves")
    )
    assert len({finished.steps for finished in continuous.jobs}) > 1
    orders = [[(slot, speaker) for slot, speaker, _ in of.looks] for of in (continuous, waves)]
    assert orders[0] != orders[1]
    assert set(continuous.by_speaker()) == set(waves.by_speaker()) == {f"p{place}" for place in EVERYBODY}
    for speaker, finished in continuous.by_speaker().items():
        assert_same_bits(finished, waves.by_speaker()[speaker])


@one_base
def test_seeds_differ(base, together):
    other = HyperParameters(learning_rate=3e-3, dropout=0.1, spec_augment=0.5, seed=1)
    changed = train_jobs(cohort(8, base=base), (0,), hyper=other, base=base).by_speaker()["p0"]
    assert any(not np.array_equal(v, leaves(together["p0"])[k]) for k, v in leaves(changed).items())


@one_base
def test_without_randomness_the_program_that_draws_gives_the_same(base):
    stop, hyper = Stopping(max_steps=6, every=6), HyperParameters(learning_rate=3e-3)
    plain = train_jobs(cohort(8, random=False, base=base), (0, 1), stop=stop, hyper=hyper, base=base).by_speaker()
    drawing = train_jobs(cohort(8, random=True, base=base), (0, 1), stop=stop, hyper=hyper, base=base).by_speaker()
    for speaker, finished in plain.items():
        assert_close(finished, drawing[speaker])
