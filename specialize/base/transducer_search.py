"""Searches of transducers, greedy and with a beam, each one compiled loop for all rows of a batch.

Pure functions of arrays and of two callables, the joint and the prediction network, so they know no architecture.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from specialize.base.probability import log_prob_of_best


def transducer_greedy(
    joint: Callable[..., Any],
    step: Callable[..., Any],
    encoded: Float[Array, "B T D"],
    frames: Int[Array, "B"],
    state: Any,
    *,
    blank_id: int,
    max_tokens: int,
    pad: int,
    max_symbols: int = 10,
    start: int | None = None,
) -> tuple[Int[Array, "B {max_tokens}"], Float[Array, "B"]]:
    """The labels of the most probable arc at each node of an RNN-T, `pad` after the end. One loop for all rows.

    Args:
        joint: `(encoded of a frame [B, D], predicted [B, E]) -> logits [B, V]`, each row by itself.
        step: the prediction network, `(token int32 [B], state) -> (predicted [B, E], state)`, each row by itself.
        encoded: frames after a row's own are never looked at.
        frames: valid frames.
        state: of the prediction network before `start`; every leaf leads with B.
        max_symbols: labels in one frame, after which the next frame follows without a blank.
        start: the token before the first label; `blank_id` where it is None.

    Returns:
        Labels, and the log probability of the arcs taken, blanks too: a lower bound of that of the labels, unless
        `max_symbols` or `max_tokens` has cut them off.
    """

    def pick(logits):
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return token, (token == blank_id).astype(jnp.int32), log_prob_of_best(logits)

    first = blank_id if start is None else start
    return _greedy(joint, step, pick, encoded, frames, state, blank_id, max_tokens, pad, max_symbols, first)


def tdt_greedy(
    joint: Callable[..., Any],
    step: Callable[..., Any],
    encoded: Float[Array, "B T D"],
    frames: Int[Array, "B"],
    state: Any,
    *,
    durations: tuple[int, ...],
    blank_id: int,
    max_tokens: int,
    pad: int,
    max_symbols: int = 10,
    start: int | None = None,
) -> tuple[Int[Array, "B {max_tokens}"], Float[Array, "B"]]:
    """As `transducer_greedy`, for logits of V tokens and then of `durations`: the most probable of each is taken.

    A blank passes at least one frame, whatever duration is the most probable; the probability is that of the latter.
    """
    frames_passed = jnp.array(durations, jnp.int32)

    def pick(logits):
        tokens, lasting = logits[:, : -len(durations)], logits[:, -len(durations) :]
        token = jnp.argmax(tokens, axis=-1).astype(jnp.int32)
        passed = frames_passed[jnp.argmax(lasting, axis=-1)]
        passed = jnp.where(token == blank_id, jnp.maximum(passed, 1), passed)
        return token, passed, log_prob_of_best(tokens) + log_prob_of_best(lasting)

    first = blank_id if start is None else start
    return _greedy(joint, step, pick, encoded, frames, state, blank_id, max_tokens, pad, max_symbols, first)


def transducer_beam(
    joint: Callable[..., Any],
    step: Callable[..., Any],
    encoded: Float[Array, "B T D"],
    frames: Int[Array, "B"],
    state: Any,
    *,
    blank_id: int,
    beam: int,
    max_tokens: int,
    pad: int,
    max_symbols: int = 3,
    start: int | None = None,
) -> tuple[Int[Array, "B {beam} {max_tokens}"], Float[Array, "B {beam}"]]:
    """Time-synchronous beam search of an RNN-T (Saon et al. 2020, algorithm 1), for all rows in one loop.

    In every frame the `beam` hypotheses are extended up to `max_symbols` times, and those that end the frame with
    equal labels are merged by adding their probabilities. No alignment is counted twice, so a score is at most the
    log likelihood; it is the log likelihood if nothing was pruned.

    Args:
        joint, step, encoded, frames, state, start: as for `transducer_greedy`.
        beam: hypotheses kept; 1 is not quite greedy, for the blank is weighed only at the frame's end.
        max_symbols: labels in one frame.

    Returns:
        Labels of the hypotheses, best first, `pad` after their end; and their log probabilities, -inf where there are
        fewer than `beam`.
    """
    rows, t_size, _ = encoded.shape
    first = blank_id if start is None else start
    flat = rows * beam

    def repeat(x):
        return jnp.repeat(x, beam, axis=0)

    def advance(token, state):
        predicted, state = step(token.reshape(flat), jax.tree.map(lambda x: x.reshape(flat, *x.shape[2:]), state))
        return jax.tree.map(lambda x: x.reshape(rows, beam, *x.shape[1:]), (predicted, state))

    state = jax.tree.map(lambda x: repeat(x).reshape(rows, beam, *x.shape[1:]), state)
    memory = advance(jnp.full((rows, beam), first, jnp.int32), state)
    ids = jnp.full((rows, beam, max_tokens), pad, jnp.int32)
    lengths = jnp.zeros((rows, beam), jnp.int32)
    scores = jnp.full((rows, beam), -jnp.inf).at[:, 0].set(0.0)

    def end(frame, hypotheses):
        """The hypotheses after a blank, and the log probabilities [B, beam, V] of what else may follow them."""
        ids, lengths, scores, memory = hypotheses
        logits = joint(frame, memory[0].reshape(flat, *memory[0].shape[2:]))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(rows, beam, -1)
        return (ids, lengths, scores + log_probs[..., blank_id], memory), log_probs

    def symbol(frame, hypotheses, _):
        ended, log_probs = end(frame, hypotheses)
        ids, lengths, scores, memory = hypotheses
        size = log_probs.shape[-1]
        allowed = (jnp.arange(size)[None, None, :] != blank_id) & (lengths < max_tokens)[..., None]
        extended = jnp.where(allowed, scores[..., None] + log_probs, -jnp.inf)
        scores, best = jax.lax.top_k(extended.reshape(rows, beam * size), beam)
        ids, lengths, memory = _take((ids, lengths, memory), best // size)
        token = (best % size).astype(jnp.int32)
        ids = jnp.where(jnp.arange(max_tokens)[None, None, :] == lengths[..., None], token[..., None], ids)
        return (ids, lengths + 1, scores, advance(token, memory[1])), ended

    def running(carry):
        return jnp.any(carry[0] < frames)

    def frame_step(carry):
        t, kept = carry
        frame = repeat(jax.lax.dynamic_index_in_dim(encoded, t, axis=1, keepdims=False))
        longest, ended = jax.lax.scan(partial(symbol, frame), kept, None, length=max_symbols)
        ended = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, max_symbols * beam, *x.shape[3:]), ended)
        ended = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), ended, end(frame, longest)[0])
        merged = _best(ended, beam)
        live = t < frames
        return t + 1, jax.tree.map(lambda new, old: jnp.where(_against(live, new), new, old), merged, kept)

    kept = (ids, lengths, scores, memory)
    if t_size:
        _, kept = jax.lax.while_loop(running, frame_step, (jnp.int32(0), kept))
    ids, lengths, scores, _ = kept
    written = (jnp.arange(max_tokens)[None, None, :] < lengths[..., None]) & (scores > -jnp.inf)[..., None]
    return jnp.where(written, ids, pad), scores


def _greedy(
    joint: Callable[..., Any],
    step: Callable[..., Any],
    pick: Callable[..., Any],
    encoded: Any,
    frames: Any,
    state: Any,
    blank_id: int,
    max_tokens: int,
    pad: int,
    max_symbols: int,
    start: int,
) -> Any:
    """`pick(logits) -> (token [B], frames to pass [B], log probability [B])` decides at each node."""
    rows, t_size, _ = encoded.shape
    ids = jnp.full((rows, max_tokens), pad, jnp.int32)
    total = jnp.zeros((rows,))
    if not t_size:
        return ids, total
    zeros = jnp.zeros((rows,), jnp.int32)

    def live(t, written):
        return (t < frames) & (written < max_tokens)

    def running(carry):
        _, _, t, _, written, _ = carry
        return jnp.any(live(t, written))

    def visit(carry):
        ids, total, t, symbols, written, memory = carry
        at = jnp.minimum(t, t_size - 1)
        frame = jnp.take_along_axis(encoded, at[:, None, None], axis=1)[:, 0]
        token, passed, log_prob = pick(joint(frame, memory[0]))
        alive = live(t, written)
        total = jnp.where(alive, total + log_prob, total)
        emits = alive & (token != blank_id)
        symbols = symbols + emits
        passed = jnp.where(symbols >= max_symbols, jnp.maximum(passed, 1), passed)
        # What is not written goes to a column that there is not.
        ids = ids.at[jnp.arange(rows), jnp.where(emits, written, max_tokens)].set(token, mode="drop")

        def write(memory):
            new = step(token, memory[1])
            return jax.tree.map(lambda new, old: jnp.where(_against(emits, new), new, old), new, memory)

        memory = jax.lax.cond(jnp.any(emits), write, lambda memory: memory, memory)
        symbols = jnp.where(passed > 0, 0, symbols)
        return ids, total, t + jnp.where(alive, passed, 0), symbols, written + emits, memory

    memory = step(jnp.full((rows,), start, jnp.int32), state)
    return jax.lax.while_loop(running, visit, (ids, total, zeros, zeros, zeros, memory))[:2]


def _best(hypotheses: Any, beam: int) -> Any:
    """Merges equal hypotheses (ids, lengths, scores, memory) [B, H, ...] into the first of each, and keeps the best."""
    ids, lengths, scores, memory = hypotheses
    h = jnp.arange(scores.shape[1])
    inside = jnp.arange(ids.shape[2])[None, None, :] < lengths[..., None]
    ids_or_none = jnp.where(inside, ids, -1)
    equal = jnp.all(ids_or_none[:, :, None] == ids_or_none[:, None, :], axis=-1)
    # A hypothesis of no probability may hold anything.
    equal = equal & (scores > -jnp.inf)[:, None, :]
    first = ~jnp.any(equal & (h[None, :] < h[:, None])[None], axis=-1)
    together = jax.nn.logsumexp(jnp.where(equal, scores[:, None, :], -jnp.inf), axis=-1)
    scores, best = jax.lax.top_k(jnp.where(first & (scores > -jnp.inf), together, -jnp.inf), beam)
    ids, lengths, memory = _take((ids, lengths, memory), best)
    return ids, lengths, scores, memory


def _take(tree: Any, index: Any) -> Any:
    """Rows `index` [B, K] of every leaf [B, H, ...]."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, index), tree)


def _against(mask: Any, x: Any) -> Any:
    """`mask` [B] with as many axes as `x`."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))
