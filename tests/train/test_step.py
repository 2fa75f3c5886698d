"""What the compiled step is and is not: no collectives, no gradient of the base, clipping and faults slot by slot."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specialize.base import Batch
from specialize.errors import ConfigError
from specialize.submodel import ResidualAdapter, find_sites, init_submodel, inserted
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, HyperParameters, Job
from specialize.train.jobs import stack_hyper
from specialize.train.step import Frozen
from specialize.train.trainee import Plain, learning_rate
from tests.bases import BASES, random_batch, tiny_whisper
from tests.train.cohorts import SPEC, cohort, people

COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)\b"
)


@pytest.fixture(params=BASES)
def name(request) -> str:
    return request.param


def inputs(trained: Cohort, hyper: HyperParameters | None = None, rows: int = 2, name: str = "whisper"):
    """(params, state, hyper, active, anchor, parts) with every slot running."""
    base, slots = BASES[name](), trained.slots
    speakers = people(base=name).speakers
    jobs: list[Job | None] = [Job(speakers[i % len(speakers)], hyper or HyperParameters(), 20) for i in range(slots)]
    stacked = trained.place(stack_hyper(jobs))
    state = trained.reset(trained.empty_state(), stacked, trained.place(np.ones(slots, bool)))
    batches = [random_batch(base, rows, seed=seed) for seed in range(slots)]
    batch = trained.place(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))
    params, anchor = trained.place_frozen(base.params), trained.place_replicated(trained.anchor())
    return params, state, stacked, trained.place(np.ones(slots, bool)), anchor, (batch,)


@pytest.mark.parametrize(("name", "slots", "chunk"), [*((name, 8, 0) for name in BASES), ("whisper", 32, 2)])
def test_no_collectives_on_eight_devices(name, slots, chunk):
    trained = cohort(slots, devices=8, base=name, chunk=chunk)
    params, state, hyper, active, anchor, (batch,) = inputs(trained, name=name)
    step = (params, state.trained, hyper, state.step, np.uint32(0), batch)
    gradient = trained.gradient.lower(*step).compile()
    programs = {
        "gradient": gradient,
        "apply": trained.apply.lower(state, hyper, active, anchor, (gradient(*step),)).compile(),
        "evaluate": trained.evaluate.lower(params, state.trained, batch).compile(),
        "reset": trained.reset.lower(state, hyper, active).compile(),
        "keep_best": trained.keep_best.lower(state, active).compile(),
    }
    for which, program in programs.items():
        text = program.as_text()
        assert "num_partitions=8" in text, which
        assert not chunk or " while(" in text, f"{which} computes all slots at once"
        assert COLLECTIVE.findall(text) == [], which


def test_the_search_for_collectives_finds_one():
    mesh = speaker_mesh(jax.devices()[:8])
    sharding = jax.NamedSharding(mesh, jax.P("speaker"))
    values = jax.device_put(np.arange(8.0), sharding)
    text = jax.jit(lambda x: x.sum()).lower(values).compile().as_text()
    assert text is not None
    assert COLLECTIVE.findall(text)


def test_slots_are_spread_over_the_devices():
    trained = cohort(8, devices=8)
    _, state, *_ = inputs(trained)
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.addressable_shards[0].data.shape[0] == 1


def test_the_step_costs_little_more_than_forward_and_activation_gradient(name):
    """Bases wide enough that their layers outweigh the adapters."""
    base = BASES[name](width=128, layers=2)
    sites = find_sites(SPEC, base.architecture, base.params)
    trained = Cohort(base.architecture, Plain(SPEC, sites), speaker_mesh(jax.devices()[:1]), 2, random=False)
    hyper, state = stack_hyper([None, None]), trained.empty_state()
    batches = [random_batch(base, rows=1, seconds=3.0, seed=seed) for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def flops(function, *arguments) -> float:
        cost = function.lower(*arguments).compile().cost_analysis()
        assert cost is not None
        return cost["flops"]

    step = (Frozen(base.params, {}), state.trained, hyper, state.step, np.uint32(0), batch)
    partial = jax.eval_shape(trained.gradient, *step)
    gradient = flops(trained.gradient, *step)
    update = flops(trained.apply, state, hyper, np.ones(2, bool), trained.anchor(), (partial,))
    forward = flops(trained.evaluate, Frozen(base.params, {}), state.trained, batch)
    assert gradient + update <= 2.2 * forward

    def everything(params, batch):
        return jax.vmap(lambda b: jax.grad(lambda p: trained.architecture.losses(p, b).total.sum())(params))(batch)

    assert flops(jax.jit(everything), base.params, batch) > 2.4 * forward, "a gradient of the base would be noticed"


def test_the_base_does_not_change(name):
    trained = cohort(8, random=False, base=name)
    before = jax.tree.map(np.copy, BASES[name]().params)
    params, state, hyper, active, anchor, parts = inputs(trained, HyperParameters(learning_rate=0.1), name=name)
    for _ in range(3):
        state, _ = trained.step(params, state, hyper, active, anchor, parts)
    assert np.asarray(state.step).tolist() == [3] * 8
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(params).params)


def test_a_step_is_adamw_on_the_clipped_mean_gradient(name):
    hyper = HyperParameters(learning_rate=1e-2, warmup=0, final=1.0, clip=0.05, weight_decay=0.3)
    trained = cohort(8, random=False, base=name)
    params, state, stacked, active, anchor, parts = inputs(trained, hyper, name=name)
    start = jax.device_get(state.trained)
    state, metrics = trained.step(params, state, stacked, active, anchor, parts)
    for _ in range(1):
        state, _ = trained.step(params, state, stacked, active, anchor, parts)
    assert (np.asarray(metrics.grad_norm) > hyper.clip).all()

    slot = 3
    base = BASES[name]()
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[slot]), jax.device_get(parts[0]))
    submodel = jax.tree.map(lambda leaf: leaf[slot], start)

    def loss(submodel):
        with inserted(SPEC, submodel, base.params) as changed:
            losses = base.architecture.losses(changed, batch)
        return losses.total.sum() / losses.count.sum()

    # Optax decays towards zero; the difference from the anchor is what decays here.
    centre = jax.device_get(anchor)
    adam = optax.adamw(hyper.learning_rate, b1=0.9, b2=0.98, weight_decay=hyper.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(hyper.clip), adam)
    offset = jax.tree.map(lambda p, c: p - c, submodel, centre)
    memory, of_loss = optimizer.init(offset), jax.jit(jax.grad(loss))
    for _ in range(2):
        gradient = of_loss(jax.tree.map(lambda o, c: o + c, offset, centre))
        update, memory = optimizer.update(gradient, memory, offset)
        offset = optax.apply_updates(offset, update)
    expected = jax.tree.map(lambda o, c: o + c, offset, centre)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[slot], b, atol=2e-4), jax.device_get(state.trained), expected
    )


def test_parts_add_up_to_the_whole_batch(name):
    trained = cohort(8, random=False, base=name)
    params, state, hyper, active, anchor, (batch,) = inputs(trained, rows=4, name=name)
    halves = tuple(trained.place(jax.tree.map(lambda leaf, at=at: leaf[:, at : at + 2], batch)) for at in (0, 2))
    whole, whole_metrics = trained.step(params, state, hyper, active, anchor, (batch,))
    params, state, hyper, active, anchor, _ = inputs(trained, rows=4, name=name)
    parts, parts_metrics = trained.step(params, state, hyper, active, anchor, halves)
    np.testing.assert_allclose(whole_metrics.loss, parts_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(whole_metrics.grad_norm, parts_metrics.grad_norm, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.moments.mu, parts.moments.mu)


def test_trouble_stays_in_its_slot(name):
    trained = cohort(8, random=False, base=name)
    params, state, hyper, active, anchor, (batch,) = inputs(trained, name=name)
    good, good_metrics = trained.step(params, state, hyper, active, anchor, (batch,))
    good = jax.device_get(good)

    params, state, hyper, active, anchor, _ = inputs(trained, name=name)
    before = jax.device_get(state.trained)
    audio = np.array(batch.audio)
    audio[3] = np.inf
    broken, metrics = trained.step(params, state, hyper, active, anchor, (batch._replace(audio=trained.place(audio)),))
    broken = jax.device_get(broken)
    assert np.asarray(metrics.finite).tolist() == [slot != 3 for slot in range(8)]
    assert broken.skipped.tolist() == [int(slot == 3) for slot in range(8)]
    for slot in range(8):
        expected = before if slot == 3 else good.trained
        for left, right in zip(jax.tree.leaves(broken.trained), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(left[slot], right[slot])
    assert np.isfinite(good_metrics.loss).all()


def test_idle_slots_stay_as_they_are(name):
    trained = cohort(8, random=False, base=name)
    params, state, hyper, _, anchor, parts = inputs(trained, name=name)
    before = jax.device_get(state)
    active = np.arange(8) % 2 == 0
    after, metrics = trained.step(params, state, hyper, trained.place(active), anchor, parts)
    after = jax.device_get(after)
    assert np.isnan(metrics.loss).tolist() == (~active).tolist()
    for left, right in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(left[~active], right[~active])
    assert after.step.tolist() == active.astype(int).tolist()


def test_learning_rate_rises_and_falls():
    rates = [float(learning_rate(np.int32(step), 2.0, 4.0, 20.0, 0.1)) for step in range(21)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    np.testing.assert_allclose(rates[20], 0.2, rtol=1e-6)
    assert max(rates) == 2.0


def test_a_start_is_where_jobs_start_and_what_decay_pulls_to():
    base = tiny_whisper()
    sites = find_sites(SPEC, base.architecture, base.params)
    start = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.25, init_submodel(SPEC, sites, jax.random.key(5)))
    trained = Cohort(base.architecture, Plain(SPEC, sites, start), speaker_mesh(jax.devices()[:1]), 2, random=False)
    hyper = trained.place(stack_hyper([None, None]))
    state = trained.reset(trained.empty_state(), hyper, trained.place(np.array([True, True])))
    assert not trained.starts_as_base
    for slot in range(2):
        jax.tree.map(lambda a, b, s=slot: np.testing.assert_array_equal(a[s], b), jax.device_get(state.trained), start)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(trained.anchor()), start)


def test_evaluation_of_no_effect_is_the_base(name):
    trained = cohort(8, random=False, base=name)
    base = BASES[name]()
    params, state, *_, (batch,) = inputs(trained, name=name)
    total, count = trained.evaluate(params, state.trained, batch)
    alone = jax.jit(base.architecture.losses)
    for slot in range(8):
        one: Batch = jax.tree.map(lambda leaf, s=slot: jnp.asarray(leaf[s]), jax.device_get(batch))
        losses = alone(base.params, one)
        np.testing.assert_allclose(total[slot], losses.total.sum(), rtol=1e-5)
        assert count[slot] == losses.count.sum()


def test_slots_that_do_not_fit_the_mesh_are_refused():
    base, spec = tiny_whisper(), ResidualAdapter(bottleneck=2)
    sites = find_sites(spec, base.architecture, base.params)
    with pytest.raises(ConfigError, match="Use 8 or 16 slots"):
        Cohort(base.architecture, Plain(spec, sites), speaker_mesh(jax.devices()[:8]), 12)
