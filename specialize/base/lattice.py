"""Losses of transducers: RNN-T (Graves 2012, arXiv 1211.3711) and TDT (Xu et al. 2023, arXiv 2304.06795).

Pure functions of arrays and of the joint, so they know no architecture. Both models are one lattice: nodes (t, u) for t
frames passed and u labels written, and arcs that add to each. An RNN-T is the TDT whose blank lasts one frame and whose
labels last none.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Arcs = tuple[tuple[int, int], ...]
"""(frames, labels) that each kind of arc adds; never (0, 0)."""


def transducer_loss(
    blank: Float[Array, "B T U1"], label: Float[Array, "B T U"], frames: Int[Array, "B"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """Negative log likelihood of each row's labels under an RNN-T, summed over all alignments (Graves 2012, eq. 16-18).

    The gradient is minus the probability that an alignment takes the arc. It needs O(T U) memory for each row. What
    lies beyond `frames` and `labels` changes neither, whatever it is. Reverse mode and first derivatives only.

    Args:
        blank: log probability of no more labels in frame t after u labels; U1 = U + 1.
        label: log probability of label u + 1 in frame t after u labels.
        frames: valid frames of each row, at most T.
        labels: valid labels of each row, at most U.

    Returns:
        0, with a gradient of zero, for a row without frames and for one that no alignment fits.
    """
    arcs = ((1, 0), (0, 1))
    return _loss(arcs, [blank, label], frames, labels)


def tdt_loss(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    duration: Float[Array, "B T U1 N"],
    frames: Int[Array, "B"],
    labels: Int[Array, "B"],
    durations: tuple[int, ...],
    sigma: float = 0.0,
) -> Float[Array, "B"]:
    """Negative log likelihood of each row's labels under a token-and-duration transducer (Xu et al. 2023, section 3).

    As `transducer_loss`, but an arc also skips as many frames as its duration says. Blanks last at least one frame,
    and an alignment ends with a blank that reaches the end of the utterance exactly, as in NeMo.

    Args:
        blank, label: log probabilities of the tokens, as in `transducer_loss`.
        duration: log probabilities of `durations` in frame t after u labels.
        frames, labels: valid frames and labels of each row.
        durations: frames, such as (0, 1, 2, 3, 4).
        sigma: taken from every token's log probability, which favours long durations (the paper's section 4.1).
    """
    arcs: list[tuple[int, int]] = []
    weights: list[Any] = []
    for index, frames_passed in enumerate(durations):
        if frames_passed > 0:
            arcs.append((frames_passed, 0))
            weights.append(blank - sigma + duration[..., index])
        arcs.append((frames_passed, 1))
        weights.append(label - sigma + duration[:, :, : label.shape[2], index])
    return _loss(tuple(arcs), weights, frames, labels)


def transducer_log_probs(
    joint: Callable[..., Any],
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 E"],
    labels: Int[Array, "B U"],
    blank_id: int,
    *,
    frames: Int[Array, "B"] | None = None,
    label_lengths: Int[Array, "B"] | None = None,
    chunk: int = 1,
) -> tuple[Float[Array, "B T U1"], Float[Array, "B T U"]]:
    """What `transducer_loss` takes, without keeping logits [B, T, U, V]: the gradient makes them again.

    Args:
        joint: `(encoded of a frame [B, D], predicted [B, U1, E]) -> logits [B, U1, V]`. It is called in a scan, so work
            that needs no frame belongs before it. It may close over traced parameters and be intercepted.
        encoded: of the encoder.
        predicted: of the prediction network, after no label, one label, and so on.
        labels: token ids; those of padding may be anything.
        blank_id: index of blank in V.
        frames, label_lengths: where given, padding of `encoded` and `predicted` never reaches the joint, so that it
            may be NaN.
        chunk: frames computed together. More are faster, and take memory for `chunk` times [B, U1, V].
    """

    def read(logits):
        return _token_log_probs(logits, labels, blank_id)

    return _scan_frames(joint, read, encoded, predicted, frames, label_lengths, chunk)


def tdt_log_probs(
    joint: Callable[..., Any],
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 E"],
    labels: Int[Array, "B U"],
    blank_id: int,
    durations: int,
    *,
    frames: Int[Array, "B"] | None = None,
    label_lengths: Int[Array, "B"] | None = None,
    chunk: int = 1,
) -> tuple[Float[Array, "B T U1"], Float[Array, "B T U"], Float[Array, "B T U1 {durations}"]]:
    """What `tdt_loss` takes, made as `transducer_log_probs` does.

    Args:
        joint: gives logits [B, U1, V + durations]: those of the tokens, then those of the durations.
        durations: how many durations there are.
    """

    def read(logits):
        blank, label = _token_log_probs(logits[..., :-durations], labels, blank_id)
        return blank, label, jax.nn.log_softmax(_float32(logits[..., -durations:]), axis=-1)

    return _scan_frames(joint, read, encoded, predicted, frames, label_lengths, chunk)


def _loss(arcs: Arcs, weights: Sequence[Any], frames: Any, labels: Any) -> Any:
    """Masks what no alignment may take, and turns log likelihoods into losses."""
    t_size, u_size = weights[0].shape[1], max(weight.shape[2] for weight in weights)
    t, u = jnp.arange(t_size)[None, :, None], jnp.arange(u_size)[None, None, :]
    last_t, last_u = frames[:, None, None], labels[:, None, None]
    masked = []
    for (dt, du), weight in zip(arcs, weights, strict=True):
        weight = jnp.pad(_float32(weight), ((0, 0), (0, 0), (0, u_size - weight.shape[2])))
        # A label must leave a frame for the blank that ends the alignment.
        inside = (t < last_t) & (t + dt <= last_t - du) & (u + du <= last_u)
        masked.append(jnp.where(inside, weight, -jnp.inf))
    total: Any = _log_likelihood(arcs, jnp.stack(masked, axis=1), frames, labels)
    return jnp.where((total == -jnp.inf) | (frames <= 0), 0.0, -total)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_likelihood(arcs: Arcs, weights: Any, frames: Any, labels: Any) -> Any:
    """Log of the summed weight of all paths from (0, 0) to (frames, labels); weights [B, A, T, U1], -inf for no arc."""
    return _forward(arcs, weights, frames, labels)[0]


def _forward(arcs: Arcs, weights: Any, frames: Any, labels: Any) -> tuple[Any, Any]:
    """Log likelihood [B], and log alpha over diagonals [T + U1, B, U1] with alpha[t + u, b, u].

    All nodes of a diagonal t + u depend on earlier diagonals only, so each is one step of a scan.
    """
    rows, _, t_size, u_size = weights.shape
    incoming = jnp.stack([_incoming(weights[:, a], dt, du) for a, (dt, du) in enumerate(arcs)])
    depth = max(dt + du for dt, du in arcs)
    nothing = jnp.full((rows, u_size), -jnp.inf, weights.dtype)
    # An arc into the origin that comes from nowhere, so that the origin is no special case.
    origin = nothing.at[:, 0].set(0.0)

    def step(history, xs):
        arriving, at = xs
        sources = jnp.stack([_right(history[dt + du - 1], du, -jnp.inf) for dt, du in arcs])
        alpha = _log_sum(sources + arriving)
        alpha = jnp.where(at == 0, origin, alpha)
        return (alpha, *history[:-1]), alpha

    xs = (_skew(incoming), jnp.arange(t_size + u_size))
    _, alphas = jax.lax.scan(step, (nothing,) * depth, xs)
    ends = alphas[frames + labels, jnp.arange(rows), labels]
    return ends, alphas


def _forward_rule(arcs: Arcs, weights: Any, frames: Any, labels: Any) -> tuple[Any, Any]:
    total, alphas = _forward(arcs, weights, frames, labels)
    return total, (weights, frames, labels, total, alphas)


def _backward_rule(arcs: Arcs, saved: Any, cotangent: Any) -> tuple[Any, None, None]:
    """Sends the probability of having been at a node back along the arcs into it.

    The share of each arc in alpha is a probability, so nothing but sums of probabilities is left to the scan, and no
    second lattice of log betas, nor a difference of large logs, is needed.
    """
    weights, frames, labels, total, alphas = saved
    rows, _, t_size, u_size = weights.shape
    depth = max(dt + du for dt, du in arcs)
    before = jnp.pad(alphas, ((depth, 0), (0, 0), (0, 0)), constant_values=-jnp.inf)
    length = t_size + u_size
    safe = jnp.where(alphas == -jnp.inf, 0.0, alphas)
    shares = []
    for a, (dt, du) in enumerate(arcs):
        start = depth - dt - du
        source = _right(before[start : start + length], du, -jnp.inf)
        shares.append(jnp.exp(source + _skew(_incoming(weights[:, a], dt, du)) - safe))
    possible = (total > -jnp.inf) | jnp.isnan(total)
    at_end = jnp.where(possible, cotangent, 0.0)[:, None] * (jnp.arange(u_size)[None, :] == labels[:, None])

    def step(coming, xs):
        share, at = xs
        # `coming[k]` is what later diagonals have sent to the k-th one from here.
        visits = coming[0] + jnp.where((at == frames + labels)[:, None], at_end, 0.0)
        arcs_taken = share * visits[None]
        coming = [*coming[1:], jnp.zeros_like(visits)]
        for a, (dt, du) in enumerate(arcs):
            coming[dt + du - 1] = coming[dt + du - 1] + _left(arcs_taken[a], du)
        return tuple(coming), arcs_taken

    nothing = jnp.zeros((rows, u_size), weights.dtype)
    xs = (jnp.stack(shares, axis=1), jnp.arange(length))
    _, taken = jax.lax.scan(step, (nothing,) * depth, xs, reverse=True)
    gradients = []
    for a, (dt, du) in enumerate(arcs):
        reached = jnp.pad(_left(_unskew(taken[:, a], t_size), du), ((0, 0), (0, dt), (0, 0)))
        gradients.append(reached[:, dt : dt + t_size])
    return jnp.stack(gradients, axis=1), None, None


_log_likelihood.defvjp(_forward_rule, _backward_rule)


def _incoming(weight: Any, dt: int, du: int) -> Any:
    """[B, T, U1] by the node that an arc leaves -> [B, T + 1, U1] by the node that it reaches; -inf for none."""
    t_size, u_size = weight.shape[1:]
    padded = jnp.pad(weight, ((0, 0), (dt, 1), (du, 0)), constant_values=-jnp.inf)
    return padded[:, : t_size + 1, :u_size]


def _skew(x: Any) -> Any:
    """[..., B, T + 1, U1] -> [T + U1, ..., B, U1] with `y[t + u, ..., u] = x[..., t, u]`, and -inf elsewhere.

    Rows of the transpose, padded by one more than they need and cut again without it, shift by one each: no gather.
    """
    *lead, t_size, u_size = x.shape
    length = t_size - 1 + u_size
    x = jnp.swapaxes(x, -1, -2)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length + 1 - t_size)], constant_values=-jnp.inf)
    x = x.reshape(*lead, u_size * (length + 1))[..., : u_size * length].reshape(*lead, u_size, length)
    return jnp.moveaxis(x, -1, 0)


def _unskew(y: Any, t_size: int) -> Any:
    """The inverse of `_skew`: [T + U1, B, U1] -> [B, T + 1, U1]."""
    length, rows, u_size = y.shape
    y = jnp.moveaxis(y, 0, -1).reshape(rows, u_size * length)
    y = jnp.pad(y, ((0, 0), (0, u_size))).reshape(rows, u_size, length + 1)
    return jnp.swapaxes(y[:, :, : t_size + 1], -1, -2)


def _right(x: Any, by: int, fill: float) -> Any:
    """Moves the last axis to larger u."""
    if not by:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(by, 0)], constant_values=fill)[..., :-by]


def _left(x: Any, by: int) -> Any:
    """Moves the last axis to smaller u."""
    if not by:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, by)])[..., by:]


def _log_sum(x: Any) -> Any:
    """Log of the sum of exponentials over the first axis; -inf where all are."""
    top = jnp.max(x, axis=0)
    base = jnp.where(top == -jnp.inf, 0.0, top)
    return base + jnp.log(jnp.sum(jnp.exp(x - base[None]), axis=0))


def _float32(x: Any) -> Any:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _token_log_probs(logits: Any, labels: Any, blank_id: int) -> tuple[Any, Any]:
    """Log probabilities of blank [B, U1] and of each next label [B, U], from logits [B, U1, V]."""
    logits = _float32(logits)
    norm = jax.nn.logsumexp(logits, axis=-1)
    # A comparison is fused into the sum, and so is its gradient; a gather's would be a scatter.
    chosen = labels[:, :, None] == jnp.arange(logits.shape[-1])[None, None, :]
    picked = jnp.sum(jnp.where(chosen, logits[:, :-1], 0.0), axis=-1)
    return logits[..., blank_id] - norm, picked - norm[:, :-1]


def _scan_frames(
    joint: Callable[..., Any],
    read: Callable[..., Any],
    encoded: Any,
    predicted: Any,
    frames: Any,
    label_lengths: Any,
    chunk: int,
) -> Any:
    """`read(joint(frame, predicted))` of every frame, along axis 1; the gradient computes each chunk again."""
    rows, t_size, width = encoded.shape
    if frames is not None:
        encoded = jnp.where((jnp.arange(t_size)[None, :] < frames[:, None])[..., None], encoded, 0.0)
    if label_lengths is not None:
        valid = jnp.arange(predicted.shape[1])[None, :] <= label_lengths[:, None]
        predicted = jnp.where(valid[..., None], predicted, 0.0)
    count = -(-t_size // chunk)
    encoded = jnp.pad(encoded, ((0, 0), (0, count * chunk - t_size), (0, 0)))
    chunks = jnp.moveaxis(encoded.reshape(rows, count, chunk, width), 0, 2)

    def body(_, frames_of_chunk):
        if chunk == 1:
            return None, jax.tree.map(lambda x: x[None], read(joint(frames_of_chunk[0], predicted)))
        return None, jax.vmap(lambda frame: read(joint(frame, predicted)))(frames_of_chunk)

    _, out = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, chunks)
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(count * chunk, *x.shape[2:])[:t_size], 0, 1), out)
