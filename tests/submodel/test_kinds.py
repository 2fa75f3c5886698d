"""What a kind is by itself: its equation, its sizes, where its randomness comes from, and its form as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.errors import SpecError
from specialize.submodel import KINDS, LoRA, ResidualAdapter, find_sites, init_submodel, size
from specialize.submodel.kinds import kind_name, spec_from_json, spec_to_json
from tests.submodel.programs import SPECS, base_of, fresh, shaken

FC1 = "encoder/layers_0/fc1"


def made(spec, seed=0):
    base = base_of("whisper")
    return init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(seed))


def test_the_shared_specs_cover_every_kind():
    assert set(SPECS) == set(KINDS)


def test_an_adapter_is_its_equation():
    spec = ResidualAdapter(("encoder/layer_norm",), bottleneck=3)
    weights = shaken(made(spec), scale=0.3)["encoder/layer_norm"]
    y = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    h = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    h = h * weights["norm_scale"][None, None] + weights["norm_bias"][None, None]
    h = np.maximum(h @ weights["down_kernel"] + weights["down_bias"][None, None], 0)
    expected = y + h @ weights["up_kernel"] + weights["up_bias"][None, None]
    found = spec.call(jax.tree.map(jnp.asarray, weights), None, jnp.asarray(y), None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", SPECS)
def test_results_keep_the_type_that_the_base_computes_in(kind):
    """A base in bfloat16 stays in bfloat16, though the parameters of Submodels are float32."""
    path, weights = next((path, weights) for path, weights in fresh("whisper", kind).items() if "layer" in path)
    width = 32 if path.endswith("fc1") else 16
    y = jnp.ones((2, 3, width), jnp.bfloat16)
    changed = SPECS[kind].call(dict(weights), jnp.ones((2, 3, 16), jnp.bfloat16), y, None)
    assert changed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(changed, y)


def test_initialisation_depends_on_key_and_path_alone():
    wide, narrow = made(LoRA(("**",), rank=2)), made(LoRA((FC1,), rank=2))
    np.testing.assert_array_equal(narrow[FC1]["a"], wide[FC1]["a"])
    assert not np.array_equal(made(LoRA((FC1,), rank=2), seed=1)[FC1]["a"], narrow[FC1]["a"])
    equal_shapes = [weights["a"] for path, weights in wide.items() if path.endswith("/q_proj")]
    assert len(equal_shapes) == len({np.asarray(a).tobytes() for a in equal_shapes})


def test_sizes_are_those_of_the_papers():
    adapter = 2 * 16 + (16 * 3 + 3) + (3 * 16 + 16)
    assert size(made(ResidualAdapter(("encoder/layer_norm",), bottleneck=3))) == adapter
    assert size(made(LoRA((FC1,), rank=2))) == 2 * (16 + 32)


@pytest.mark.parametrize("spec", [*SPECS.values(), *(kind() for kind in KINDS.values())])
def test_a_spec_survives_json(spec):
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
    assert type(spec) is KINDS[kind_name(spec)]


@pytest.mark.parametrize("spec", SPECS.values())
def test_a_spec_of_another_version_is_an_error_that_names_the_difference(spec):
    with pytest.raises(SpecError, match="colour"):
        spec_from_json(spec_to_json(spec) | {"colour": 3})
    with pytest.raises(SpecError, match=r"'prefix'.*residual-adapter"):
        spec_from_json(spec_to_json(spec) | {"kind": "prefix"})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (LoRA, "rank", 0),
        (ResidualAdapter, "bottleneck", -1),
        (LoRA, "alpha", float("inf")),
        (LoRA, "alpha", float("nan")),
    ],
)
def test_sizes_that_make_no_sense_are_refused(kind, field, value):
    with pytest.raises(SpecError, match=f"{field}={value}"):
        kind(**{field: value})
