"""What a base must do whatever its parameters are, with padding, empty rows, other rows and limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base import Augment, Base, Batch
from tests.bases import BASES, random_batch, tiny_whisper, whisper_of


@pytest.fixture(params=sorted(BASES))
def base(request) -> Base:
    return BASES[request.param]()


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


@pytest.mark.parametrize("samples", [1, 320, 8_001, 15_999])
def test_encoding_more_than_a_row_needs_is_encoding_exactly_its_own(samples):
    base = tiny_whisper()
    encode = jax.jit(whisper_of(base).encode)
    audio = random_batch(base, rows=1).audio
    lengths = np.array([samples], np.int32)
    exact = np.asarray(encode(base.params, audio[:, :samples], lengths))
    assert exact.shape[1] == -(-samples // 320)
    audio = np.where(np.arange(audio.shape[1]) < samples, audio, np.nan).astype(np.float32)
    longer = np.asarray(encode(base.params, audio, lengths))
    assert longer.shape[1] == 50
    np.testing.assert_allclose(longer[:, : exact.shape[1]], exact, atol=2e-5)


@pytest.mark.parametrize("context", ["needed", "full"])
def test_audio_beyond_what_the_base_hears_is_refused_and_never_cut(context):
    architecture = whisper_of(tiny_whisper().with_context(context))
    lengths = np.array([architecture.max_samples], np.int32)
    _, frames = jax.jit(architecture.features)(np.zeros((1, architecture.max_samples), np.float32), lengths)
    assert frames.tolist() == [500]
    with pytest.raises(ValueError, match="at most 80000"):
        jax.jit(architecture.features)(np.zeros((1, architecture.max_samples + 1), np.float32), lengths + 1)


def test_a_tail_is_silence_that_the_row_keeps():
    base = tiny_whisper()
    architecture = dataclasses.replace(whisper_of(base), tail=0.5)
    batch = random_batch(base)
    with_silence = batch._replace(audio=np.pad(batch.audio, ((0, 0), (0, 8_000))), samples=batch.samples + 8_000)
    kept = jax.jit(architecture.losses)(base.params, batch).total
    np.testing.assert_allclose(kept, losses(base, with_silence), rtol=1e-5)
    assert not np.allclose(kept, losses(base, batch), rtol=1e-4)


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


def test_full_context_is_what_silence_to_the_window_gives():
    base = tiny_whisper().with_context("full")
    batch = random_batch(base)
    longest = base.architecture.max_samples
    audio = np.pad(batch.audio, ((0, 0), (0, longest - batch.audio.shape[1])))
    np.testing.assert_allclose(losses(base, batch), losses(base, batch._replace(audio=audio)), rtol=1e-5)
    assert not np.allclose(losses(base, batch), losses(tiny_whisper(), batch), rtol=1e-3)


def test_spec_augment_changes_the_loss_only_where_it_has_strength():
    base = tiny_whisper()
    batch = random_batch(base)

    @jax.jit
    def total(key, strength):
        return base.architecture.losses(
            base.params, jax.tree.map(jnp.asarray, batch), augment=Augment(key, strength)
        ).total

    def augmented(strength, seed=0):
        return np.asarray(total(jax.random.key(seed), jnp.float32(strength)))

    np.testing.assert_allclose(augmented(0.0), losses(base, batch), rtol=1e-6)
    assert not np.array_equal(augmented(1.0), augmented(0.0))
    assert not np.array_equal(augmented(1.0), augmented(1.0, seed=1))
