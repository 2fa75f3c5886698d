"""Transducer lattices against all their paths, their gradients against occupancies, searches against naive ones."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from specialize.base.lattice import tdt_log_probs, tdt_loss, transducer_log_probs, transducer_loss
from specialize.base.transducer_search import tdt_greedy, transducer_beam, transducer_greedy

DURATIONS = (0, 1, 2, 4)
rnnt = jax.jit(transducer_loss)
tdt = jax.jit(tdt_loss, static_argnames=("durations", "sigma"))


@jax.jit
def rnnt_both(blank, label, frames, labels):
    """Losses [B], and the gradients of their sum."""
    loss, pull = jax.vjp(lambda b, n: transducer_loss(b, n, frames, labels), blank, label)
    return loss, pull(jnp.ones_like(loss))


@partial(jax.jit, static_argnames=("durations", "sigma"))
def tdt_both(blank, label, duration, frames, labels, durations=DURATIONS, sigma=0.0):
    """Losses [B], and the gradients of their sum."""
    loss, pull = jax.vjp(lambda b, n, d: tdt_loss(b, n, d, frames, labels, durations, sigma), blank, label, duration)
    return loss, pull(jnp.ones_like(loss))


def log_probs(seed: int, b: int, t: int, u: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blank, label and duration log probabilities of a random model."""
    keys = jax.random.split(jax.random.key(seed), 2)
    tokens = jax.nn.log_softmax(2 * jax.random.normal(keys[0], (b, t, u + 1, 5)))
    duration = jax.nn.log_softmax(2 * jax.random.normal(keys[1], (b, t, u + 1, len(DURATIONS))))
    return tokens[..., 0], tokens[:, :, :u, 1], duration


def lengths(*values: int) -> jax.Array:
    return jnp.array(values, jnp.int32)


def paths(arcs, frames, labels):
    """All lists of (arc, t, u) from (0, 0) to (frames, labels), the last of them a blank, by enumeration."""

    def walk(t, u):
        if (t, u) == (frames, labels):
            yield []
        if t >= frames:
            return
        for a, (dt, du) in enumerate(arcs):
            # Only a blank may reach the end.
            if t + dt <= frames - du and u + du <= labels:
                for rest in walk(t + dt, u + du):
                    yield [(a, t, u), *rest]

    return list(walk(0, 0)) if frames else []


def all_paths(arcs, weights, frames, labels):
    """Log likelihood, and the probability of taking each arc (shaped as `weights`), over all paths."""
    found = paths(arcs, frames, labels)
    each = [sum(float(weights[a][t, u]) for a, t, u in path) for path in found]
    if not each:
        return -math.inf, [np.zeros_like(w) for w in weights]
    total = np.logaddexp.reduce(each)
    taken = [np.zeros_like(w) for w in weights]
    for path, log_p in zip(found, each, strict=True):
        for a, t, u in path:
            taken[a][t, u] += math.exp(log_p - total)
    return total, taken


def test_rnnt_is_the_sum_over_all_paths_and_its_gradient_minus_the_occupancy():
    sizes = [(1, 0), (3, 0), (1, 3), (4, 3), (2, 5), (6, 2)]
    blank, label, _ = log_probs(0, len(sizes), 6, 5)
    frames, labels = (jnp.array(x) for x in zip(*sizes, strict=True))
    loss, gradient = rnnt_both(blank, label, frames, labels)
    for row, (t, u) in enumerate(sizes):
        weights = [np.asarray(x[row], np.float64) for x in (blank, label)]
        total, taken = all_paths(((1, 0), (0, 1)), weights, t, u)
        np.testing.assert_allclose(loss[row], -total, rtol=1e-5)
        for got, expected in zip(gradient, taken, strict=True):
            np.testing.assert_allclose(got[row], -expected, atol=2e-6)


@pytest.mark.parametrize("durations", [DURATIONS, (1, 0), (2,)])
def test_tdt_is_the_sum_over_all_paths_and_its_gradient_minus_the_occupancy(durations):
    sigma, sizes = 0.05, [(4, 0), (1, 2), (5, 2), (4, 3), (3, 1)]
    blank, label, duration = log_probs(1, len(sizes), 5, 3)
    duration = duration[..., : len(durations)]
    frames, labels = (jnp.array(x) for x in zip(*sizes, strict=True))
    loss, gradient = tdt_both(blank, label, duration, frames, labels, durations, sigma)
    possible = 0
    for row, (t, u) in enumerate(sizes):
        b, n, d = (np.asarray(x[row], np.float64) for x in (blank, label, duration))
        arcs = [(x, 0) for x in durations if x] + [(x, 1) for x in durations]
        weights = [b - sigma + d[..., i] for i, x in enumerate(durations) if x]
        weights += [n - sigma + d[:, :3, i] for i in range(len(durations))]
        total, taken = all_paths(arcs, weights, t, u)
        possible += total > -math.inf
        np.testing.assert_allclose(loss[row], -total if total > -math.inf else 0.0, rtol=1e-5)
        of_blank, of_label = taken[: -len(durations)], taken[-len(durations) :]
        np.testing.assert_allclose(gradient[0][row], -sum(of_blank, np.zeros_like(b)), atol=2e-6)
        np.testing.assert_allclose(gradient[1][row], -sum(of_label, np.zeros_like(n)), atol=2e-6)
        expected = np.zeros_like(d)
        blanks = iter(of_blank)
        for i, x in enumerate(durations):
            expected[:, :3, i] += of_label[i]
            expected[..., i] += next(blanks) if x else 0.0
        np.testing.assert_allclose(gradient[2][row], -expected, atol=2e-6)
    assert possible >= 1 if durations == (2,) else possible >= 4


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        blank, label, duration = (x.astype(jnp.float64) for x in log_probs(1, 2, 5, 3))
        frames, labels = lengths(5, 3), lengths(3, 2)
        # Jitted, for check_grads calls with numpy arrays.
        of_rnnt = jax.jit(lambda b, n: transducer_loss(b, n, frames, labels))
        of_tdt = jax.jit(lambda b, n, d: tdt_loss(b, n, d, frames, labels, DURATIONS, 0.1))
        check_grads(of_rnnt, (blank, label), order=1, modes=["rev"])
        check_grads(of_tdt, (blank, label, duration), order=1, modes=["rev"])


def test_occupancies_pass_every_frame_once_in_a_long_lattice():
    frames, labels = lengths(400, 263), lengths(80, 11)
    blank, label, _ = log_probs(2, 2, 400, 80)
    _, (by_blank, by_label) = rnnt_both(blank, label, frames, labels)
    for row in range(2):
        np.testing.assert_allclose(-by_blank[row].sum(axis=1), np.arange(400) < frames[row], atol=2e-3)
        np.testing.assert_allclose(-by_label[row].sum(axis=0), np.arange(80) < labels[row], atol=2e-3)


@pytest.mark.parametrize("filling", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_changes_neither_value_nor_gradient(filling):
    blank, label, duration = log_probs(3, 3, 6, 4)
    frames, labels = lengths(6, 4, 2), lengths(2, 4, 0)
    outside = (jnp.arange(6)[None, :, None] >= frames[:, None, None]) | (
        jnp.arange(5)[None, None, :] > labels[:, None, None]
    )
    no_label = outside[:, :, :4] | (jnp.arange(4)[None, None, :] >= labels[:, None, None])
    filled = (
        jnp.where(outside, filling, blank),
        jnp.where(no_label, filling, label),
        jnp.where(outside[..., None], filling, duration),
    )
    for both, count in ((rnnt_both, 2), (tdt_both, 3)):
        clean = both(*(blank, label, duration)[:count], frames, labels)
        dirty = both(*filled[:count], frames, labels)
        assert jnp.isfinite(clean[0]).all()
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_row_is_the_same_alone_and_without_its_padding():
    blank, label, _ = log_probs(4, 3, 6, 4)
    frames, labels = lengths(6, 4, 2), lengths(2, 4, 0)
    together = rnnt(blank, label, frames, labels)
    for row in (1, 2):
        t, u = int(frames[row]), int(labels[row])
        alone = rnnt(blank[row : row + 1, :t, : u + 1], label[row : row + 1, :t, :u], lengths(t), lengths(u))
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6)


def test_rows_without_frames_or_alignments_are_silent():
    blank, label, duration = log_probs(5, 3, 6, 4)
    label = label.at[1, :, 0].set(-jnp.inf)
    frames, labels = lengths(0, 5, 6), lengths(2, 2, 2)
    for loss, gradients in (
        rnnt_both(blank, label, frames, labels),
        tdt_both(blank, label, duration, frames, labels),
        # No number of twos is five.
        tdt_both(blank, label.at[1].set(0.0), duration[..., :1], frames, labels, (2,)),
    ):
        np.testing.assert_array_equal(loss[:2], 0.0)
        assert loss[2] > 0
        for g in gradients:
            np.testing.assert_array_equal(g[:2], 0.0)
            assert jnp.abs(g[2]).sum() > 0


def test_a_nan_within_a_row_is_reported_by_that_row_alone():
    blank, label, _ = log_probs(6, 3, 6, 4)
    loss, gradients = rnnt_both(blank.at[0, 2, 1].set(jnp.nan), label, lengths(6, 4, 3), lengths(2, 2, 4))
    assert jnp.isnan(loss[0])
    assert jnp.isfinite(loss[1:]).all()
    assert all(jnp.isfinite(g[1:]).all() for g in gradients)


def test_vmap_is_one_at_a_time():
    blank, label, duration = (
        jnp.stack([a, b]) for a, b in zip(log_probs(7, 2, 5, 3), log_probs(8, 2, 5, 3), strict=True)
    )
    frames, labels = jnp.array([[5, 3], [4, 5]]), jnp.array([[3, 1], [2, 3]])

    def total(blank, label, duration, frames, labels):
        pair = (
            transducer_loss(blank, label, frames, labels),
            tdt_loss(blank, label, duration, frames, labels, DURATIONS),
        )
        return (pair[0] + pair[1]).sum()

    of_slot = jax.value_and_grad(total, (0, 1, 2))
    both = jax.jit(jax.vmap(of_slot))(blank, label, duration, frames, labels)
    alone = jax.jit(of_slot)
    for s in range(2):
        one = alone(blank[s], label[s], duration[s], frames[s], labels[s])
        jax.tree.map(lambda x, y, s=s: np.testing.assert_allclose(x[s], y, atol=1e-6, rtol=1e-5), both, one)


class Joint(nn.Module):
    """Additive joint of a width-D frame and prediction."""

    vocabulary: int

    @nn.compact
    def __call__(self, frame, predicted):
        if predicted.ndim == 3:
            frame = frame[:, None]
        return nn.Dense(self.vocabulary, name="output")(jnp.tanh(frame + predicted))


def bound(model: nn.Module, variables: Any) -> Callable[..., Any]:
    """The joint that the functions take."""
    return partial(model.apply, variables)


def joint_inputs(b: int, t: int, u: int, d: int, v: int):
    keys = jax.random.split(jax.random.key(0), 4)
    encoded, predicted = jax.random.normal(keys[0], (b, t, d)), jax.random.normal(keys[1], (b, u + 1, d))
    labels = jax.random.randint(keys[2], (b, u), 1, v)
    model = Joint(v)
    return model, model.init(keys[3], encoded[:, 0], predicted), encoded, predicted, labels


def test_log_probs_are_those_of_all_logits():
    model, variables, encoded, predicted, labels = joint_inputs(2, 7, 3, 8, 11)
    frames, lens = lengths(7, 5), lengths(2, 3)

    def whole(variables, encoded, predicted):
        logits = jax.vmap(lambda x: bound(model, variables)(x, predicted), 1, 1)(encoded)
        tokens = jax.nn.log_softmax(logits[..., :8])
        label = jnp.take_along_axis(tokens[:, :, :-1], labels[:, None, :, None] % 8, axis=-1)[..., 0]
        blank, duration = tokens[..., 0], jax.nn.log_softmax(logits[..., 8:])
        return (
            tdt_loss(blank, label, duration, frames, lens, (0, 1, 2)).sum()
            + transducer_loss(blank, label, frames, lens).sum()
        )

    def scanned(variables, encoded, predicted):
        call = bound(model, variables)
        options = {"frames": frames, "label_lengths": lens, "chunk": 3}
        three = tdt_log_probs(call, encoded, predicted, labels % 8, 0, 3, **options)
        two = transducer_log_probs(lambda *x: call(*x)[..., :8], encoded, predicted, labels % 8, 0, **options)
        return tdt_loss(*three, frames, lens, (0, 1, 2)).sum() + transducer_loss(*two, frames, lens).sum()

    expected = jax.jit(jax.value_and_grad(whole, (0, 1, 2)))(variables, encoded, predicted)
    nan = jnp.where(jnp.arange(7)[None, :, None] < frames[:, None, None], encoded, jnp.nan)
    nan_predicted = jnp.where(jnp.arange(4)[None, :, None] <= lens[:, None, None], predicted, jnp.nan)
    got = jax.jit(jax.value_and_grad(scanned, (0, 1, 2)))(variables, nan, nan_predicted)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4), got, expected)


def test_an_intercepted_joint_has_a_gradient_for_each_slot():
    model, variables, encoded, predicted, labels = joint_inputs(2, 5, 3, 8, 6)
    frames, lens = lengths(5, 4), lengths(3, 2)

    def loss(bias):
        def change(next_fn, args, kwargs, context):
            y = next_fn(*args, **kwargs)
            return y + bias if context.module.name == "output" else y

        with nn.intercept_methods(change):
            two = transducer_log_probs(bound(model, variables), encoded, predicted, labels, 0)
        return transducer_loss(*two, frames, lens).sum()

    biases = jax.random.normal(jax.random.key(5), (3, 1, 1, 6))
    together = jax.jit(jax.vmap(jax.value_and_grad(loss)))(biases)
    of_one = jax.jit(jax.value_and_grad(loss))
    for s in range(3):
        alone = of_one(biases[s])
        jax.tree.map(lambda x, y, s=s: np.testing.assert_allclose(x[s], y, atol=1e-5, rtol=1e-5), together, alone)
    bumped = of_one(biases[0].at[0, 0, 2].add(1e-2))[0] - of_one(biases[0].at[0, 0, 2].add(-1e-2))[0]
    np.testing.assert_allclose(together[1][0][0, 0, 2], bumped / 2e-2, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["rnnt", "tdt"])
def test_memory_does_not_grow_like_frames_times_labels_times_vocabulary(kind):
    b, u, d, v = 2, 16, 16, 1024

    def temporary(t: int) -> int:
        model, variables, encoded, predicted, labels = joint_inputs(b, t, u, d, v)
        full = jnp.full((b,), t, jnp.int32), jnp.full((b,), u, jnp.int32)

        def loss(variables, encoded, predicted):
            call = bound(model, variables)
            if kind == "rnnt":
                return transducer_loss(*transducer_log_probs(call, encoded, predicted, labels, 0), *full).sum()
            return tdt_loss(*tdt_log_probs(call, encoded, predicted, labels, 0, 5), *full, (0, 1, 2, 3, 4)).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(variables, encoded, predicted).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes

    short, long = temporary(20), temporary(100)
    logits_of_a_frame = b * (u + 1) * v * 4
    assert short < 12 * logits_of_a_frame
    # 80 more frames of logits would be 80; of lattice they are a few hundredths of V.
    assert long - short < 10 * logits_of_a_frame


class Model:
    """A random transducer whose tables are arguments of what is compiled; blank and the start are 0."""

    def __init__(self, seed: int, vocabulary: int, extra: int = 0, width: int = 6):
        rng = np.random.default_rng(seed)
        self.tables = (
            rng.normal(size=(vocabulary, width)).astype(np.float32),
            rng.normal(size=(width, width)).astype(np.float32) / 2,
            rng.normal(size=(width, vocabulary + extra)).astype(np.float32) * 1.5,
        )

    def np_step(self, token, state):
        return np.tanh(self.tables[0][token] + state @ self.tables[1])

    def np_joint(self, frame, predicted):
        return np.tanh(frame + predicted) @ self.tables[2]


def callables(tables):
    """The joint and the prediction network of a `Model`."""
    embed, mix, out = (jnp.asarray(x) for x in tables)

    def joint(frame, predicted):
        return jnp.tanh((frame[:, None] if predicted.ndim == 3 else frame) + predicted) @ out

    def step(token, state):
        new = jnp.tanh(embed[token] + state @ mix)
        return new, new

    return joint, step


def naive_greedy(model, encoded, durations, max_tokens, max_symbols):
    """Labels of one row and the log probability of its arcs, as the definition says.

    `durations` is None for an RNN-T. Blank is 0.
    """
    state = model.np_step(0, np.zeros(6, np.float32))
    ids: list[int] = []
    t = symbols = 0
    log_prob = 0.0
    while t < len(encoded) and len(ids) < max_tokens:
        logits = model.np_joint(encoded[t], state)
        passed = None
        if durations is not None:
            logits, of_duration = logits[: -len(durations)], logits[-len(durations) :]
            passed = durations[int(np.argmax(of_duration))]
            log_prob += float(jax.nn.log_softmax(of_duration).max())
        token = int(np.argmax(logits))
        log_prob += float(jax.nn.log_softmax(logits).max())
        if token == 0:
            passed = max(passed or 0, 1)
        else:
            ids.append(token)
            state = model.np_step(token, state)
            symbols += 1
            passed = max(passed or 0, 1) if symbols == max_symbols else passed or 0
        t += passed
        symbols = 0 if passed else symbols
    return ids, log_prob


@pytest.mark.parametrize("durations", [None, DURATIONS])
@pytest.mark.parametrize("max_symbols", [2, 10])
def test_greedy_is_the_naive_search_and_rows_are_independent(durations, max_symbols):
    frames, emitted = lengths(9, 6, 0, 3), 0
    options = {"blank_id": 0, "max_tokens": 7, "pad": -1, "max_symbols": max_symbols}
    search = transducer_greedy if durations is None else partial(tdt_greedy, durations=durations)

    @jax.jit
    def run(tables, encoded, frames):
        return search(*callables(tables), encoded, frames, jnp.zeros((len(frames), 6)), **options)

    for seed in range(6):
        model = Model(seed, 5, 0 if durations is None else len(durations))
        encoded = 2 * np.random.default_rng(seed).normal(size=(4, 9, 6)).astype(np.float32)
        dirty = np.where(np.arange(9)[None, :, None] < np.asarray(frames)[:, None, None], encoded, np.nan)
        ids, log_prob = map(np.asarray, run(model.tables, dirty, frames))
        for row in range(4):
            expected, path = naive_greedy(model, encoded[row, : int(frames[row])], durations, 7, max_symbols)
            np.testing.assert_allclose(log_prob[row], path, rtol=1e-4, atol=1e-5)
            assert ids[row].tolist() == expected + [-1] * (7 - len(expected))
            emitted += len(expected)
        np.testing.assert_array_equal(run(model.tables, dirty[1:2], frames[1:2])[0][0], ids[1])
    assert emitted > 30


@pytest.mark.parametrize("search", [transducer_greedy, partial(tdt_greedy, durations=DURATIONS), transducer_beam])
def test_no_text_is_longer_than_its_frames_allow(search):
    beam = {"beam": 3} if search is transducer_beam else {}
    model, frames = Model(2, 5, 0 if search in (transducer_greedy, transducer_beam) else len(DURATIONS)), lengths(4, 3)
    encoded = np.random.default_rng(2).normal(size=(2, 4, 6)).astype(np.float32)

    def run(room):
        joint, step = callables(model.tables)

        def joint_without_blank(frame, predicted):
            return joint(frame, predicted).at[:, 0].add(-100.0)

        state = jnp.zeros((2, 6))
        options = {"blank_id": 0, "max_tokens": room, "pad": -1, "max_symbols": 3, **beam}
        found = jax.jit(lambda x, n: search(joint_without_blank, step, x, n, state, **options))(encoded, frames)
        return np.asarray(found[0][:, 0] if beam else found[0])

    enough, more = run(12), run(17)
    np.testing.assert_array_equal(more[:, :12], enough)
    assert (more[:, 12:] == -1).all()
    assert ((enough >= 0).sum(axis=1) <= 3 * np.asarray(frames)).all()
    if search is transducer_greedy:
        assert (enough[0] >= 0).all(), "the room is filled"


def log_likelihoods(model, encoded, texts) -> np.ndarray:
    """Exact log likelihoods of many texts for one row [T, D], by the loss."""
    longest = max(map(len, texts))
    states = np.zeros((len(texts), longest + 1, 6), np.float32)
    labels = np.zeros((len(texts), longest), np.int32)
    for row, text in enumerate(texts):
        states[row, 0] = model.np_step(0, np.zeros(6, np.float32))
        for u, token in enumerate(text):
            states[row, u + 1], labels[row, u] = model.np_step(token, states[row, u]), token
    logits = model.np_joint(encoded[None, :, None], states[:, None])
    tokens = np.asarray(jax.nn.log_softmax(logits))
    label = np.take_along_axis(tokens[:, :, :-1], labels[:, None, :, None], axis=-1)[..., 0]
    frames = jnp.full((len(texts),), len(encoded))
    return -np.asarray(rnnt(tokens[..., 0], label, frames, lengths(*map(len, texts))))


def test_a_large_beam_finds_the_best_labels_of_all_and_their_likelihood():
    vocabulary, longest = 3, 3
    every = [ids for n in range(longest + 1) for ids in itertools.product(range(1, vocabulary), repeat=n)]
    options = {"blank_id": 0, "beam": len(every) + 1, "max_tokens": longest, "pad": 0, "max_symbols": longest}

    @jax.jit
    def run(tables, encoded):
        return transducer_beam(*callables(tables), encoded, lengths(3), jnp.zeros((1, 6)), **options)

    for seed in range(5):
        model = Model(seed, vocabulary)
        encoded = np.random.default_rng(seed).normal(size=(3, 6)).astype(np.float32)
        exact = dict(zip(every, log_likelihoods(model, encoded, every), strict=True))
        ids, scores = (np.asarray(x[0]) for x in run(model.tables, encoded[None]))
        found = {tuple(int(x) for x in row if x): s for row, s in zip(ids, scores, strict=True) if s > -1e9}
        assert found.keys() == exact.keys()
        np.testing.assert_allclose([found[k] for k in every], [exact[k] for k in every], atol=1e-4)
        assert tuple(int(x) for x in ids[0] if x) == max(exact, key=lambda k, exact=exact: exact[k])
        assert scores[-1] == -math.inf


def test_a_narrow_beam_is_a_lower_bound_without_duplicates_and_rows_are_independent():
    model, frames = Model(11, 6), lengths(8, 5, 0)
    encoded = 2 * np.random.default_rng(1).normal(size=(3, 8, 6)).astype(np.float32)
    dirty = np.where(np.arange(8)[None, :, None] < np.asarray(frames)[:, None, None], encoded, np.nan)
    options = {"blank_id": 0, "max_tokens": 10, "pad": -1, "max_symbols": 2}

    @partial(jax.jit, static_argnames="beam")
    def run(encoded, frames, beam):
        search = partial(transducer_beam, *callables(model.tables))
        return search(encoded, frames, jnp.zeros((len(frames), 6)), beam=beam, **options)

    ids, scores = run(dirty, frames, 4)
    for row in range(2):
        texts = [tuple(int(x) for x in text if x >= 0) for text in ids[row]]
        assert len(set(texts)) == 4
        assert (jnp.diff(scores[row]) <= 0).all()
        assert (np.asarray(scores[row]) <= log_likelihoods(model, encoded[row, : int(frames[row])], texts) + 1e-4).all()
    np.testing.assert_array_equal(ids[2], -1)
    assert scores[2].tolist() == [0.0] + [-math.inf] * 3
    alone = run(dirty[1:2, :5], frames[1:2], 4)
    np.testing.assert_array_equal(alone[0][0], ids[1])
    np.testing.assert_allclose(alone[1][0], scores[1], rtol=1e-5)
    wide = run(dirty, frames, 32)[1]
    assert (wide[:2, 0] >= scores[:2, 0] - 1e-4).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rnnt_is_that_of_last():
    """LAST's lattice of labels after frames and contexts is an RNN-T's where no frame runs out of expansions."""
    last = pytest.importorskip("last", reason="the oracle is PyPI's last-asr")
    vocabulary, b, t, u = 3, 2, 5, 4
    context = last.contexts.FullNGram(vocab_size=vocabulary, context_size=1)
    table = np.random.default_rng(0).normal(size=(b, t, context.num_states(), vocabulary + 1)).astype(np.float32)
    normal = jax.nn.log_softmax(jnp.asarray(table))

    lattice = last.RecognitionLattice(
        context=context,
        alignment=last.alignments.FrameLabelDependent(max_expansions=u),
        weight_fn_cacher_factory=lambda _: last.weight_fns.NullCacher(),
        weight_fn_factory=lambda _: last.weight_fns.LocallyNormalizedWeightFn(
            weight_fn=last.weight_fns.TableWeightFn(table=jnp.asarray(table)),
            normalize=last.weight_fns.log_softmax_normalize,
        ),
    )
    numbers = jnp.broadcast_to(jnp.arange(t, dtype=jnp.float32)[None, :, None], (b, t, 1))
    labels = jnp.asarray(np.random.default_rng(1).integers(1, vocabulary + 1, (b, u)))
    frames, lens = lengths(5, 3), lengths(4, 2)
    with jax.numpy_rank_promotion("allow"):
        expected = lattice.apply({}, numbers, frames, labels, lens)
    states = jax.vmap(context.walk_states)(labels)
    seen = jnp.take_along_axis(normal, states[:, None, :, None], axis=2)
    label = jnp.take_along_axis(seen[:, :, :-1], labels[:, None, :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(rnnt(seen[..., 0], label, frames, lens), expected, rtol=1e-5)
