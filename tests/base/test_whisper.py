"""Whisper: how far it hears, its window, silence after it, and SpecAugment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base import Augment, Base, Batch
from tests.bases import random_batch, tiny_whisper, whisper_of


def losses(base: Base, batch: Batch) -> np.ndarray:
    return np.asarray(jax.jit(base.architecture.losses)(base.params, batch).total)


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
