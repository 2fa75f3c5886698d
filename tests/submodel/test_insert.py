"""Insertion by itself, on a small module: dropout by site, no leak out of the context, nothing silently left out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.errors import SpecError
from specialize.submodel import Dropout, FullWeights, LoRA, ResidualAdapter, inserted

SPECS = {"residual-adapter": ResidualAdapter(bottleneck=4), "lora": LoRA(rank=4, alpha=4.0)}
"""The kinds that have dropout. Of their fields only `alpha / rank` counts here: the Submodel is written by hand."""
WIDTH = 6


class Twins(nn.Module):
    """Two dense layers on the same input, so that equal parameters give equal results."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH, name="left")(x), nn.Dense(WIDTH, name="right")(x)


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 40, WIDTH)), jnp.float32)
LEFT: Any = Twins().init(jax.random.key(0), X)["params"]["left"]
PARAMS = {"left": LEFT, "right": LEFT}


def weights_of(kind):
    rng = np.random.default_rng(1)
    shapes = {
        "residual-adapter": {
            "norm_scale": (WIDTH,),
            "norm_bias": (WIDTH,),
            "down_kernel": (WIDTH, 4),
            "down_bias": (4,),
            "up_kernel": (4, WIDTH),
            "up_bias": (WIDTH,),
        },
        "lora": {"a": (WIDTH, 4), "b": (4, WIDTH)},
    }[kind]
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def call(kind, sites=("left", "right"), dropout=None) -> Any:
    """Both results of the twins with equal Submodel parameters at `sites`."""
    with inserted(SPECS[kind], {site: weights_of(kind) for site in sites}, PARAMS, dropout) as params:
        return Twins().apply({"params": params}, X)


@pytest.mark.parametrize("kind", SPECS)
def test_equal_sites_without_dropout_are_equal(kind):
    left, right = call(kind)
    np.testing.assert_array_equal(left, right)
    assert np.abs(left - Twins().apply({"params": PARAMS}, X)[0]).max() > 0.1


@pytest.mark.parametrize("kind", SPECS)
def test_dropout_at_rate_zero_is_none(kind):
    np.testing.assert_array_equal(call(kind, dropout=Dropout(jax.random.key(0), 0.0)), call(kind))


@pytest.mark.parametrize("kind", SPECS)
def test_each_site_has_dropout_of_its_own_that_depends_on_the_key(kind):
    dropout = Dropout(jax.random.key(0), 0.5)
    left, right = call(kind, dropout=dropout)
    assert not np.array_equal(left, right)
    np.testing.assert_array_equal(call(kind, dropout=dropout), (left, right))
    assert not np.array_equal(call(kind, dropout=Dropout(jax.random.key(1), 0.5))[0], left)


@pytest.mark.parametrize("kind", SPECS)
def test_dropout_of_a_site_does_not_depend_on_the_other_sites(kind):
    dropout = Dropout(jax.random.key(0), 0.5)
    np.testing.assert_array_equal(call(kind, ("left",), dropout)[0], call(kind, dropout=dropout)[0])


def test_dropout_keeps_the_share_and_the_mean():
    x = jnp.ones((100, 1000))
    dropped = Dropout(jax.random.key(0), 0.3)(x)
    share = float((dropped == 0).mean())
    assert abs(share - 0.3) < 0.01
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.7, rtol=1e-6)


def test_nothing_stays_inserted_after_the_context():
    plain = Twins().apply({"params": PARAMS}, X)
    call("lora")
    with pytest.raises(RuntimeError, match="mine"), inserted(SPECS["lora"], {"left": weights_of("lora")}, PARAMS):
        raise RuntimeError("mine")
    np.testing.assert_array_equal(Twins().apply({"params": PARAMS}, X), plain)


def test_the_parameters_of_the_base_are_not_written_to():
    before = jax.tree.map(np.array, PARAMS)
    change = {"left": {"kernel": jnp.ones((WIDTH, WIDTH))}}
    with inserted(FullWeights(), change, PARAMS) as params:
        np.testing.assert_allclose(params["left"]["kernel"], PARAMS["left"]["kernel"] + 1.0)
        assert params["right"] is PARAMS["right"]
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)


@pytest.mark.parametrize("kind", SPECS)
def test_a_module_that_is_never_called_is_an_error(kind):
    with pytest.raises(SpecError, match="did not call: middle"):
        call(kind, ("left", "middle"))


def test_a_change_of_parameters_that_the_base_lacks_is_an_error():
    change = {"middle": {"kernel": jnp.ones((WIDTH, WIDTH))}}
    with pytest.raises(SpecError, match="'middle'"), inserted(FullWeights(), change, PARAMS):
        pass
    change = {"left": {"scale": jnp.ones((WIDTH,))}}
    with pytest.raises(SpecError, match="left/scale"), inserted(FullWeights(), change, PARAMS):
        pass
