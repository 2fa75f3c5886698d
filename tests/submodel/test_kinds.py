"""Every kind on every base: no effect at first, an effect of every parameter, and the same under vmap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base import Base
from specialize.submodel import (
    KINDS,
    BiasOnly,
    Dropout,
    FullWeights,
    LayerNormOnly,
    LoRA,
    ResidualAdapter,
    find_sites,
    init_submodel,
    inserted,
    size,
    stack,
)
from specialize.submodel.insert import neutral
from specialize.submodel.kinds import spec_from_json, spec_to_json
from tests.bases import BASES, random_batch, tiny_whisper


@pytest.fixture(params=sorted(BASES))
def base(request) -> Base:
    return BASES[request.param]()


@pytest.fixture(params=sorted(KINDS))
def spec(request):
    return KINDS[request.param](where=("**",))


def make(base, spec, seed=0, noise=0.0):
    submodel = init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf + noise * rng.standard_normal(leaf.shape), np.float32), submodel)


def losses(base, spec, submodel, batch, dropout=None):
    with inserted(spec, submodel, base.params, dropout) as params:
        return base.architecture.losses(params, batch).total


def decode(base, spec, submodel, batch):
    with inserted(spec, submodel, base.params) as params:
        return base.architecture.decode(params, batch.audio, batch.samples, max_tokens=8)


def test_zero_effect_at_initialisation_bit_for_bit(base, spec):
    batch, submodel = random_batch(base), make(base, spec)
    plain = base.architecture.losses(base.params, batch).total
    np.testing.assert_array_equal(losses(base, spec, submodel, batch), plain)
    np.testing.assert_array_equal(losses(base, spec, neutral(spec, submodel), batch), plain)
    text = base.architecture.decode(base.params, batch.audio, batch.samples, max_tokens=8)
    np.testing.assert_array_equal(decode(base, spec, submodel, batch), text)


def test_every_array_has_a_finite_gradient_and_an_effect(base, spec):
    batch, submodel = random_batch(base), make(base, spec, noise=0.05)
    gradient = jax.jit(jax.grad(lambda s: losses(base, spec, s, batch).sum()))(submodel)
    for path, weights in gradient.items():
        for name, value in weights.items():
            assert np.isfinite(value).all(), f"{path}/{name}"
            assert np.abs(value).max() > 0, f"{path}/{name}"


def test_vmapped_over_slots_is_one_at_a_time(base, spec):
    batches = [random_batch(base, seed=seed) for seed in range(3)]
    submodels = [make(base, spec, seed, noise=0.05) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    together = jax.jit(jax.vmap(lambda s, b: losses(base, spec, s, b)))(stack(submodels), stacked)
    for slot, (submodel, batch) in enumerate(zip(submodels, batches, strict=True)):
        np.testing.assert_allclose(together[slot], losses(base, spec, submodel, batch), rtol=1e-4)
    assert not np.allclose(together[0], losses(base, spec, submodels[1], batches[0]), rtol=1e-4)


def test_specs_survive_json(spec):
    assert spec_from_json(spec_to_json(spec)) == spec
    with pytest.raises(Exception, match="does not know"):
        spec_from_json(spec_to_json(spec) | {"colour": 3})


def test_initialisation_is_of_key_and_path_alone():
    base = tiny_whisper()
    wide = make(base, LoRA(where=("**",), rank=2))
    narrow = make(base, LoRA(where=("encoder/layers_0/fc1",), rank=2))
    np.testing.assert_array_equal(narrow["encoder/layers_0/fc1"]["a"], wide["encoder/layers_0/fc1"]["a"])
    assert not np.array_equal(
        make(base, LoRA(rank=2), 1)["encoder/layers_0/self_attn/q_proj"]["a"],
        wide["encoder/layers_0/self_attn/q_proj"]["a"],
    )


def edited(base: Base, edit) -> Base:
    """The base with other parameters."""
    params = jax.tree.map(np.copy, base.params)
    edit(params)
    return dataclasses.replace(base, params=params)


def same(base, spec, submodel, changed):
    batch = random_batch(base)
    expected = changed.architecture.losses(changed.params, batch).total
    np.testing.assert_allclose(losses(base, spec, submodel, batch), expected, rtol=1e-5)
    assert not np.allclose(expected, base.architecture.losses(base.params, batch).total, rtol=1e-5)


def test_lora_is_a_merged_kernel():
    base, spec = (
        tiny_whisper(),
        LoRA(where=("encoder/layers_0/fc1", "decoder/layers_0/encoder_attn/v_proj"), rank=3, alpha=6.0),
    )
    submodel = make(base, spec, noise=0.2)

    def merge(params):
        for module, weights in (
            (params["encoder"]["layers_0"]["fc1"], submodel["encoder/layers_0/fc1"]),
            (params["decoder"]["layers_0"]["encoder_attn"]["v_proj"], submodel["decoder/layers_0/encoder_attn/v_proj"]),
        ):
            module["kernel"] += 2.0 * weights["a"] @ weights["b"]

    same(base, spec, submodel, edited(base, merge))


def test_bias_only_is_a_changed_bias():
    base, spec = tiny_whisper(), BiasOnly(where=("encoder/conv1", "encoder/layers_0/fc2", "decoder/layer_norm"))
    submodel = make(base, spec, noise=0.2)

    def change(params):
        params["encoder"]["conv1"]["bias"] += submodel["encoder/conv1"]["bias"]
        params["encoder"]["layers_0"]["fc2"]["bias"] += submodel["encoder/layers_0/fc2"]["bias"]
        params["decoder"]["layer_norm"]["bias"] += submodel["decoder/layer_norm"]["bias"]

    same(base, spec, submodel, edited(base, change))


def test_layer_norm_only_is_a_changed_scale_and_bias():
    base, spec = tiny_whisper(), LayerNormOnly(where=("encoder/layer_norm",))
    submodel = make(base, spec, noise=0.2)
    weights = submodel["encoder/layer_norm"]

    def change(params):
        norm = params["encoder"]["layer_norm"]
        scale, bias = norm["scale"].copy(), norm["bias"].copy()
        norm["scale"][:] = scale * (1 + weights["gain"])
        norm["bias"][:] = bias * (1 + weights["gain"]) + weights["bias"]

    same(base, spec, submodel, edited(base, change))


def test_full_weights_are_changed_parameters():
    base, spec = tiny_whisper(), FullWeights(where=("encoder/conv1", "decoder/layers_*"))
    submodel = make(base, spec, noise=0.1)

    def change(params):
        for path, weights in submodel.items():
            node = params
            for part in path.split("/"):
                node = node[part]
            for name, value in weights.items():
                node[name] += value

    same(base, spec, submodel, edited(base, change))


def test_an_adapter_is_its_equation():
    base, spec = tiny_whisper(), ResidualAdapter(where=("encoder/layer_norm",), bottleneck=3)
    weights = make(base, spec, noise=0.3)["encoder/layer_norm"]
    y = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    h = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    h = np.maximum(
        (h * weights["norm_scale"] + weights["norm_bias"]) @ weights["down_kernel"] + weights["down_bias"], 0
    )
    expected = y + h @ weights["up_kernel"] + weights["up_bias"]
    np.testing.assert_allclose(spec.call(dict(weights), jnp.asarray(y), jnp.asarray(y), None), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [ResidualAdapter, LoRA])
def test_dropout_is_random_by_key_and_none_at_rate_zero(kind):
    base, spec = tiny_whisper(), kind(where=("**",))
    batch, submodel = random_batch(base), make(base, spec, noise=0.2)

    def dropped(rate, seed=0):
        return losses(base, spec, submodel, batch, Dropout(jax.random.key(seed), jnp.float32(rate)))

    np.testing.assert_array_equal(dropped(0.0), losses(base, spec, submodel, batch))
    np.testing.assert_array_equal(dropped(0.5), dropped(0.5))
    assert not np.array_equal(dropped(0.5), dropped(0.0))
    assert not np.array_equal(dropped(0.5), dropped(0.5, seed=1))


def test_sizes():
    base = tiny_whisper()
    assert (
        size(make(base, ResidualAdapter(where=("encoder/layer_norm",), bottleneck=3)))
        == 2 * 16 + 16 * 3 + 3 + 3 * 16 + 16
    )
    assert size(make(base, LoRA(where=("encoder/layers_0/fc1",), rank=2))) == 2 * (16 + 32)


@pytest.mark.parametrize(("kind", "name", "value"), [(LoRA, "rank", 0), (ResidualAdapter, "bottleneck", -1)])
def test_sizes_that_make_no_sense(kind, name, value):
    with pytest.raises(Exception, match=f"{name}={value}"):
        kind(**{name: value})
