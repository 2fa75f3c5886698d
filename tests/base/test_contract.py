"""What every base must do, whatever its parameters are: padding, empty rows, other rows, and slots change nothing.

Decoding is in `test_decoding.py`, Submodels of every kind are in `tests/submodel`, cohorts in `tests/train`.
"""

import jax
import numpy as np
import pytest

from specialize.base import Base, Batch
from tests.bases import BASES, random_batch, tiny_parakeet_tdt

EVERY = BASES | {"parakeet-tdt": tiny_parakeet_tdt}


@pytest.fixture(params=sorted(EVERY))
def base(request) -> Base:
    return EVERY[request.param]()


def losses(base: Base, batch: Batch) -> np.ndarray:
    return np.asarray(jax.jit(base.architecture.losses)(base.params, batch).total)


def poisoned(batch: Batch) -> Batch:
    """The batch with NaN wherever its lengths say that there is nothing."""
    audio = batch.audio.copy()
    for row, n in enumerate(batch.samples):
        audio[row, n:] = np.nan
    labels = np.where(np.arange(batch.labels.shape[1]) < batch.label_lengths[:, None], batch.labels, 77)
    return batch._replace(audio=audio, labels=labels.astype(np.int32))


def test_what_is_in_the_padding_changes_no_loss_and_no_gradient(base):
    def total(params, batch):
        return base.architecture.losses(params, batch).total.sum()

    batch = random_batch(base)
    of_zeros = jax.jit(jax.value_and_grad(total))(base.params, batch)
    of_nan = jax.jit(jax.value_and_grad(total))(base.params, poisoned(batch))
    for left, right in zip(jax.tree.leaves(of_zeros), jax.tree.leaves(of_nan), strict=True):
        assert np.isfinite(np.asarray(right)).all()
        np.testing.assert_array_equal(left, right)


def test_a_row_is_the_same_alone_and_padded_further(base):
    batch = random_batch(base)
    together = losses(base, batch)
    for row in range(len(together)):
        n, u = int(batch.samples[row]), int(batch.label_lengths[row])
        alone = Batch(
            batch.audio[row : row + 1, :n],
            batch.samples[row : row + 1],
            batch.labels[row : row + 1, :u],
            batch.label_lengths[row : row + 1],
        )
        np.testing.assert_allclose(losses(base, alone)[0], together[row], rtol=2e-5)


def test_empty_rows_have_no_loss_and_finite_gradients(base):
    def total(params, batch):
        result = base.architecture.losses(params, batch)
        return result.total.sum(), result

    batch = random_batch(base)
    samples, lengths = batch.samples.copy(), batch.label_lengths.copy()
    samples[1] = lengths[1] = 0
    batch = batch._replace(samples=samples, label_lengths=lengths)
    (_, result), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(base.params, batch)
    assert result.total[1] == 0
    assert result.count[1] == 0
    assert (result.count[np.array([0, 2])] > 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    nobody = batch._replace(samples=np.zeros_like(samples), label_lengths=np.zeros_like(lengths))
    (value, _), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(base.params, nobody)
    assert value == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_vmapped_over_slots_is_one_at_a_time(base):
    stacked = [random_batch(base, seed=seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)
    together = jax.jit(jax.vmap(base.architecture.losses, (None, 0)))(base.params, batch).total
    for slot, one in enumerate(stacked):
        np.testing.assert_allclose(together[slot], losses(base, one), rtol=2e-5)
