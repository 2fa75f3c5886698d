"""Loss and searches of connectionist temporal classification (Graves et al. 2006): pure functions of logits."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from specialize.base.probability import log_prob_of_best


def ctc_loss_total(
    logits: Float[Array, "B T V"],
    frames: Int[Array, "B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, "B"],
    blank: int,
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Negative log likelihood of each row's labels, and whether any alignment fits.

    A label needs a frame, and two equal neighbours a blank between them. A row with too few frames has a total of 0
    with a gradient of zero, and so says nothing. Padding changes neither, whatever it is.

    Args:
        logits: not normalised.
        frames: valid frames of each row.
        labels: token ids without blanks.
        label_lengths: valid labels of each row.
        blank: index of blank in V.
    """
    t, u = jnp.arange(logits.shape[1])[None, :], jnp.arange(labels.shape[1])[None, :]
    valid = u < label_lengths[:, None]
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & valid[:, 1:], axis=1)
    possible = frames >= label_lengths + repeats
    heard = (t < frames[:, None]) & possible[:, None]
    logits = jnp.where(heard[..., None], _float32(logits), 0.0)
    # Ids out of range would be a row without any label in optax; and a row must have one column at least.
    labels = jnp.pad(jnp.where(valid, labels, 0), ((0, 0), (0, 1)))
    absent = jnp.pad(~valid, ((0, 0), (0, 1)), constant_values=True)
    total = optax.ctc_loss(logits, (~heard).astype(logits.dtype), labels, absent.astype(logits.dtype), blank_id=blank)
    return jnp.where(possible & (frames > 0), total, 0.0), possible


def ctc_greedy(
    logits: Float[Array, "B T V"], frames: Int[Array, "B"], blank: int, max_tokens: int, pad: int
) -> tuple[Int[Array, "B {max_tokens}"], Float[Array, "B"]]:
    """The labels of the most probable token of every frame: repeats joined, blanks dropped, `pad` after the end.

    Returns:
        Labels, and the log probability of the alignment that they were read off, the most probable one: a lower bound
        of that of the labels.
    """
    rows, t_size, _ = logits.shape
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :t_size]
    heard = jnp.arange(t_size)[None, :] < frames[:, None]
    kept = (best != blank) & (best != before) & heard
    # What is dropped or too late is written to a column that is cut off.
    at = jnp.where(kept, jnp.minimum(jnp.cumsum(kept, axis=1) - 1, max_tokens), max_tokens)
    ids = jnp.full((rows, max_tokens + 1), pad, jnp.int32)
    ids = jax.vmap(lambda row, i, x: row.at[i].set(x))(ids, at, best)[:, :max_tokens]
    return ids, jnp.sum(jnp.where(heard, log_prob_of_best(logits), 0.0), axis=1)


def ctc_prefix_beam(
    logits: Float[Array, "B T V"], frames: Int[Array, "B"], blank: int, beam: int, max_tokens: int, pad: int
) -> tuple[Int[Array, "B {beam} {max_tokens}"], Float[Array, "B {beam}"]]:
    """Prefix beam search (Hannun et al. 2014, arXiv 1408.2873, algorithm 1, without a language model), in one loop.

    Alignments that give equal labels are merged by adding their probabilities. A prefix that was pruned starts from
    nothing if it comes back. A score is at most the log likelihood of its labels (up to rounding), and is that if
    nothing was pruned.

    Returns:
        Labels of the hypotheses, best first, `pad` after their end; and their log probabilities, -inf where there are
        fewer than `beam`.
    """
    rows = logits.shape[0]
    log_probs = jax.nn.log_softmax(_float32(logits), axis=-1)
    nothing = jnp.full((rows, beam), -jnp.inf, log_probs.dtype)
    # Columns that no label has been written to hold -1, so that prefixes are equal if their columns are.
    ids = jnp.full((rows, beam, max_tokens), -1, jnp.int32)
    start = (ids, jnp.zeros((rows, beam), jnp.int32), nothing.at[:, 0].set(0.0), nothing)
    step = jax.vmap(lambda kept, frame: _extend(kept, frame, blank))

    def running(carry):
        return jnp.any(carry[0] < frames)

    def advance(carry):
        t, kept = carry
        frame = jax.lax.dynamic_index_in_dim(log_probs, t, axis=1, keepdims=False)
        live = t < frames
        new = step(kept, frame)
        return t + 1, jax.tree.map(lambda x, y: jnp.where(live.reshape((rows,) + (1,) * (x.ndim - 1)), x, y), new, kept)

    _, (ids, _, ends_blank, ends_label) = jax.lax.while_loop(running, advance, (jnp.int32(0), start))
    scores = jnp.logaddexp(ends_blank, ends_label)
    return jnp.where((ids >= 0) & (scores > -jnp.inf)[..., None], ids, pad), scores


def _extend(kept: Any, frame: Any, blank: int) -> Any:
    """One frame [V] of a row. Kept: ids [K, L], lengths, log probabilities of ending with blank, with a label [K]."""
    ids, lengths, ends_blank, ends_label = kept
    beam, longest = ids.shape
    size = frame.shape[0]
    columns, tokens = jnp.arange(longest)[None, :], jnp.arange(size)[None, :]
    last = jnp.max(jnp.where(columns == lengths[:, None] - 1, ids, -1), axis=1)
    either = jnp.logaddexp(ends_blank, ends_label)

    grown = jnp.where(tokens == last[:, None], ends_blank[:, None], either[:, None]) + frame[None, :]
    grown = jnp.where((tokens != blank) & (lengths < longest)[:, None], grown, -jnp.inf)
    # [K, K]: the first prefix and one more label make the second, which is in the beam too. It gets what the first
    # would have grown into, and the two do not compete.
    shorter = jnp.where(columns == lengths[:, None] - 1, -1, ids)
    alive = either > -jnp.inf
    parent = jnp.all(ids[:, None] == shorter[None, :], axis=-1) & (lengths[:, None] + 1 == lengths[None, :])
    parent = parent & alive[:, None] & alive[None, :]
    from_parent = jnp.where(parent, grown[:, jnp.maximum(last, 0)], -jnp.inf)
    stays_blank = either + frame[blank]
    repeated = ends_label + jnp.where(last >= 0, frame[jnp.maximum(last, 0)], -jnp.inf)
    stays_label = jnp.logaddexp(repeated, jax.nn.logsumexp(from_parent, axis=0))
    merged = jnp.any(parent[:, :, None] & (last[:, None] == tokens)[None], axis=1)
    grown = jnp.where(merged, -jnp.inf, grown)

    stays = jnp.logaddexp(stays_blank, stays_label)
    _, best = jax.lax.top_k(jnp.concatenate([stays, grown.reshape(beam * size)]), beam)
    grows = best >= beam
    source = jnp.where(grows, (best - beam) // size, best)
    token = (best - beam) % size
    write = grows[:, None] & (columns == lengths[source][:, None])
    ids = jnp.where(write, token[:, None], ids[source]).astype(jnp.int32)
    ends_blank = jnp.where(grows, -jnp.inf, stays_blank[source])
    ends_label = jnp.where(grows, grown.reshape(beam * size)[jnp.maximum(best - beam, 0)], stays_label[source])
    return ids, lengths[source] + grows, ends_blank, ends_label


def _float32(x: Any) -> Any:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
