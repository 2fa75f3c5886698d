"""SpecAugment: masks over time and frequency, with a strength that may differ between slots."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FREQUENCY_MASKS, FREQUENCY_SHARE = 2, 27 / 80
TIME_MASKS, TIME_FRAMES, TIME_SHARE = 2, 100, 0.2


def spec_augment(
    key: Any, features: Float[Array, "T M"], frames: Int[Array, ""], strength: Float[Array, ""]
) -> Float[Array, "T M"]:
    """Masks random bands of one utterance by its mean (Park et al. 2019, arXiv 1904.08779, policy LD without warping).

    Two frequency masks of up to 27 of 80 mel bands and two time masks of up to 100 frames, the latter at most a fifth
    of the utterance. `strength` scales the widths: 0 leaves the features exactly as they are.

    Args:
        key: a JAX key for this utterance.
        features: log-mel; frames after `frames` are padding and stay as they are.
        frames: valid frames.
        strength: may be traced.
    """
    length, mels = features.shape
    frequency_key, time_key = jax.random.split(key)
    widest_time = jnp.minimum(TIME_FRAMES, TIME_SHARE * frames) * strength
    masked = _bands(frequency_key, FREQUENCY_MASKS, mels, jnp.float32(mels), FREQUENCY_SHARE * mels * strength)[None, :]
    masked = masked | _bands(time_key, TIME_MASKS, length, frames.astype(jnp.float32), widest_time)[:, None]
    valid = (jnp.arange(length) < frames)[:, None]
    mean = jnp.sum(jnp.where(valid, features, 0.0)) / jnp.maximum(frames * mels, 1)
    return jnp.where(masked & valid, mean, features)


def _bands(key: Any, count: int, size: int, valid: Any, widest: Any) -> Any:
    """bool [size]: the union of `count` bands, each of a width uniform in [0, widest], within the first `valid`."""
    width_key, start_key = jax.random.split(key)
    width = jnp.floor(jax.random.uniform(width_key, (count, 1)) * jnp.minimum(widest + 1.0, valid))
    width = jnp.where(widest > 0, width, 0.0)
    start = jnp.floor(jax.random.uniform(start_key, (count, 1)) * (valid - width + 1.0))
    at = jnp.arange(size)[None, :]
    return jnp.any((at >= start) & (at < start + width), axis=0)
