"""SpecAugment: an exact identity at strength 0, never in the padding, wider with more strength."""

import jax
import jax.numpy as jnp
import numpy as np

from specialize.base.spec_augment import FREQUENCY_MASKS, FREQUENCY_SHARE, TIME_MASKS, TIME_SHARE, spec_augment

LENGTH, MELS, VALID = 200, 40, 150
augment = jax.jit(spec_augment)


def masked(seed: int, strength: float) -> np.ndarray:
    """Which of the features are changed, [T, M]."""
    features = jax.random.normal(jax.random.key(99), (LENGTH, MELS))
    out = augment(jax.random.key(seed), features, jnp.int32(VALID), jnp.float32(strength))
    return np.asarray(out != features)


def test_strength_zero_is_the_identity():
    assert not any(masked(seed, 0.0).any() for seed in range(20))


def test_padding_stays():
    assert not any(masked(seed, 2.0)[VALID:].any() for seed in range(50))


def test_bands_are_no_wider_than_the_policy_says():
    for seed in range(50):
        changed = masked(seed, 1.0)[:VALID]
        frames, bins = changed.all(axis=1).sum(), changed.all(axis=0).sum()
        assert frames <= TIME_MASKS * TIME_SHARE * VALID + TIME_MASKS
        assert bins <= FREQUENCY_MASKS * FREQUENCY_SHARE * MELS + FREQUENCY_MASKS


def test_more_strength_masks_more():
    shares = [np.mean([masked(seed, strength)[:VALID].mean() for seed in range(60)]) for strength in (0.25, 0.5, 1.0)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.1


def test_masks_are_whole_bands_of_both_kinds_filled_with_the_mean():
    features = jax.random.normal(jax.random.key(99), (LENGTH, MELS))
    mean = np.asarray(features)[:VALID].mean()
    for seed in range(20):
        out = np.asarray(augment(jax.random.key(seed), features, jnp.int32(VALID), jnp.float32(1.0)))
        changed = (out != np.asarray(features))[:VALID]
        frames, bins = changed.all(axis=1), changed.all(axis=0)
        np.testing.assert_array_equal(changed, frames[:, None] | bins[None, :])
        assert frames.any()
        assert bins.any()
        np.testing.assert_allclose(out[:VALID][changed], mean, rtol=1e-4)


def test_a_row_without_frames_stays():
    features = jax.random.normal(jax.random.key(99), (LENGTH, MELS))
    np.testing.assert_array_equal(augment(jax.random.key(0), features, jnp.int32(0), jnp.float32(1.0)), features)
