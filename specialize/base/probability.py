"""Log probabilities of what searches decide on."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_prob_of_best(logits: Float[Array, "*rows V"]) -> Float[Array, "*rows"]:
    """Natural logarithm of the probability of the most probable of V, in float32 at least: max(log_softmax(logits))."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
