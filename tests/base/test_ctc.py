"""CTC against all its paths, and its searches against plain Python."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base.ctc import ctc_greedy, ctc_loss_total, ctc_prefix_beam

loss_of = jax.jit(ctc_loss_total, static_argnames="blank")
greedy = jax.jit(ctc_greedy, static_argnames=("blank", "max_tokens", "pad"))
prefix_beam = jax.jit(ctc_prefix_beam, static_argnames=("blank", "beam", "max_tokens", "pad"))


@jax.jit
def loss_and_gradient(logits, frames, labels, label_lengths):
    """Totals, whether possible, and the gradient of the totals' sum; blank is 0."""

    def summed(logits):
        total, possible = ctc_loss_total(logits, frames, labels, label_lengths, 0)
        return total.sum(), (total, possible)

    gradient, (total, possible) = jax.grad(summed, has_aux=True)(logits)
    return total, possible, gradient


def lengths(*values: int) -> jax.Array:
    return jnp.array(values, jnp.int32)


def random_logits(seed: int, b: int, t: int, v: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).normal(size=(b, t, v)).astype(np.float32)


def collapse(path, blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def all_texts(logits: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """Log likelihood of every text that any path of one row [T, V] gives."""
    log_probs = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)))
    texts: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        text, log_p = collapse(path, blank), sum(float(log_probs[t, k]) for t, k in enumerate(path))
        texts[text] = float(np.logaddexp(texts.get(text, -math.inf), log_p))
    return texts


def reference_beam(logits: np.ndarray, blank: int, beam: int, longest: int) -> list[tuple[tuple[int, ...], float]]:
    """Hannun et al. 2014, algorithm 1, with dictionaries."""
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    kept = {(): (0.0, -math.inf)}
    for frame in log_probs:
        new: dict[tuple[int, ...], list[float]] = {}

        def add(prefix, which, log_p, new=new):
            both = new.setdefault(prefix, [-math.inf, -math.inf])
            both[which] = float(np.logaddexp(both[which], log_p))

        for prefix, (ends_blank, ends_label) in kept.items():
            either = float(np.logaddexp(ends_blank, ends_label))
            for token, log_p in enumerate(frame):
                if token == blank:
                    add(prefix, 0, either + log_p)
                    continue
                repeats = bool(prefix) and token == prefix[-1]
                if repeats:
                    add(prefix, 1, ends_label + log_p)
                if len(prefix) < longest:
                    add((*prefix, token), 1, (ends_blank if repeats else either) + log_p)
        best = sorted(new.items(), key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        kept = {prefix: (x, y) for prefix, (x, y) in best[:beam] if max(x, y) > -math.inf}
    return [(prefix, float(np.logaddexp(both[0], both[1]))) for prefix, both in kept.items()]


def test_loss_is_the_sum_over_all_paths():
    logits = random_logits(0, 1, 4, 3)
    texts = all_texts(logits[0], 0)
    rows = len(texts)
    labels = np.zeros((rows, 4), np.int32)
    for row, text in enumerate(texts):
        labels[row, : len(text)] = text
    lens = lengths(*map(len, texts))
    total, possible = loss_of(np.repeat(logits, rows, axis=0), jnp.full((rows,), 4), labels, lens, 0)
    assert possible.all()
    np.testing.assert_allclose(total, [-log_p for log_p in texts.values()], rtol=1e-5)
    # Every text of up to four labels that no path gives is told.
    others = [x for x in itertools.product((1, 2), repeat=4) if x not in texts]
    others += [x for x in itertools.product((1, 2), repeat=3) if x not in texts]
    labels = np.zeros((len(others), 4), np.int32)
    for row, text in enumerate(others):
        labels[row, : len(text)] = text
    lens = lengths(*map(len, others))
    total, possible = loss_of(np.repeat(logits, len(others), axis=0), jnp.full((len(others),), 4), labels, lens, 0)
    assert not possible.any()
    np.testing.assert_array_equal(total, 0.0)


@pytest.mark.parametrize("filling", [np.nan, np.inf, -np.inf])
def test_short_rows_and_padding_are_silent(filling):
    logits = random_logits(1, 4, 6, 5)
    frames, lens = lengths(6, 2, 3, 0), lengths(2, 2, 2, 0)
    labels = jnp.array([[1, 2, 9], [3, 3, 9], [3, 3, 9], [-1, 7, 9]], jnp.int32)
    outside = np.arange(6)[None, :, None] >= np.asarray(frames)[:, None, None]
    clean = loss_and_gradient(logits, frames, labels, lens)
    total, possible, gradient = loss_and_gradient(np.where(outside, filling, logits), frames, labels, lens)
    jax.tree.map(np.testing.assert_array_equal, clean, (total, possible, gradient))
    assert possible.tolist() == [True, False, True, True]
    assert total[1] == 0
    assert total[3] == 0
    assert (total[jnp.array([0, 2])] > 0).all()
    np.testing.assert_array_equal(gradient[jnp.array([1, 3])], 0.0)
    np.testing.assert_array_equal(np.where(outside, gradient, 0.0), 0.0)
    alone = loss_and_gradient(logits[2:3, :3], frames[2:3], labels[2:3, :2], lens[2:3])
    np.testing.assert_allclose(alone[0][0], total[2], rtol=1e-5)
    np.testing.assert_allclose(alone[2][0], gradient[2, :3], atol=1e-5)


def test_rows_without_label_columns_have_the_likelihood_of_silence():
    logits = random_logits(2, 1, 3, 4)
    total, possible = loss_of(logits, lengths(3), jnp.zeros((1, 0), jnp.int32), lengths(0), 0)
    assert possible.all()
    np.testing.assert_allclose(total[0], -np.asarray(jax.nn.log_softmax(logits))[0, :, 0].sum(), rtol=1e-5)


def test_vmap_is_one_at_a_time():
    logits = random_logits(3, 6, 5, 4).reshape(3, 2, 5, 4)
    frames, labels = jnp.array([[5, 4], [3, 2], [5, 5]]), jnp.ones((3, 2, 2), jnp.int32)
    lens = jnp.array([[2, 1], [2, 2], [0, 1]])
    together = jax.jit(jax.vmap(loss_and_gradient))(logits, frames, labels, lens)
    for s in range(3):
        one = loss_and_gradient(logits[s], frames[s], labels[s], lens[s])
        jax.tree.map(lambda x, y, s=s: np.testing.assert_allclose(x[s], y, atol=1e-5), together, one)


@pytest.mark.parametrize("blank", [0, 4])
def test_greedy_joins_repeats_and_drops_blanks(blank):
    logits = random_logits(4, 12, 10, 5)
    frames = jnp.arange(12) % 11
    outside = np.arange(10)[None, :, None] >= np.asarray(frames)[:, None, None]
    ids, log_prob = map(np.asarray, greedy(np.where(outside, np.nan, logits), frames, blank, 5, -1))
    for row in range(12):
        path = jax.nn.log_softmax(logits[row, : int(frames[row])]).max(axis=-1).sum()
        np.testing.assert_allclose(log_prob[row], path, rtol=1e-5, atol=1e-6)
        expected = collapse(logits[row, : int(frames[row])].argmax(axis=-1).tolist(), blank)[:5]
        assert ids[row].tolist() == [*expected, *[-1] * (5 - len(expected))]


def test_a_large_beam_has_the_likelihood_of_every_text():
    for seed in range(4):
        logits = random_logits(seed, 1, 4, 3)
        exact = all_texts(logits[0], 0)
        ids, scores = (np.asarray(x[0]) for x in prefix_beam(logits, lengths(4), 0, 40, 4, 0))
        found = {tuple(int(x) for x in row if x): s for row, s in zip(ids, scores, strict=True) if s > -1e9}
        assert found.keys() == exact.keys()
        np.testing.assert_allclose([found[k] for k in exact], list(exact.values()), atol=1e-4)
        assert tuple(int(x) for x in ids[0] if x) == max(exact, key=lambda k, exact=exact: exact[k])


@pytest.mark.parametrize(("blank", "beam", "longest"), [(0, 4, 20), (2, 8, 3)])
def test_beam_is_that_of_plain_python_and_rows_are_independent(blank, beam, longest):
    logits, frames = random_logits(5, 5, 9, 6), lengths(9, 7, 1, 0, 9)
    outside = np.arange(9)[None, :, None] >= np.asarray(frames)[:, None, None]
    dirty = np.where(outside, np.nan, logits)
    ids, scores = prefix_beam(dirty, frames, blank, beam, longest, -1)
    for row in range(5):
        expected = reference_beam(logits[row, : int(frames[row])], blank, beam, longest)
        got = [tuple(int(x) for x in text if x >= 0) for text in ids[row]]
        assert got[: len(expected)] == [prefix for prefix, _ in expected]
        np.testing.assert_allclose(scores[row, : len(expected)], [s for _, s in expected], atol=1e-4)
        assert (scores[row, len(expected) :] == -jnp.inf).all()
    alone = prefix_beam(dirty[1:2], frames[1:2], blank, beam, longest, -1)
    np.testing.assert_array_equal(alone[0][0], ids[1])
    np.testing.assert_array_equal(alone[1][0], scores[1])
