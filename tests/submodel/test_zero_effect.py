"""At initialisation every kind, leaves every base exactly as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.submodel import find_sites
from specialize.submodel.insert import neutral
from tests.bases import BASES
from tests.submodel.programs import EVERY, SPECS, base_of, batch_of, fresh, losses_of, shaken, tokens_of

pytestmark = pytest.mark.parametrize("kind", SPECS)
every_base = pytest.mark.parametrize("name", EVERY)


ULPS = {"whisper": 0, "conformer-ctc": 8, "conformer-transducer": 8, "parakeet-tdt": 8}
"""What the compiler may round otherwise where it fuses an addition of zero; each kind by itself is exact."""


@every_base
def test_losses_are_those_of_the_base(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    changed, plain = losses_of(name, kind)(params, fresh(name, kind), batch), losses_of(name)(params, {}, batch)
    np.testing.assert_array_max_ulp(np.asarray(changed), np.asarray(plain), ULPS[name])


@every_base
def test_a_fresh_kind_gives_back_bit_for_bit_what_a_module_made(name, kind):
    spec, base = SPECS[kind], base_of(name)
    rng = np.random.default_rng(0)
    for site in find_sites(spec, base.architecture, base.params):
        y = jnp.asarray(rng.standard_normal((2, 3, site.width)), jnp.float32)
        x = (
            y
            if site.input_shape is None
            else jnp.asarray(rng.standard_normal((2, 3, site.input_shape[-1])), jnp.float32)
        )
        np.testing.assert_array_equal(spec.call(spec.init(jax.random.key(1), site), x, y, None), y)


@pytest.mark.parametrize("name", BASES)
def test_text_is_that_of_the_base(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    np.testing.assert_array_equal(
        tokens_of(name, kind)(params, fresh(name, kind), batch), tokens_of(name)(params, {}, batch)
    )


@every_base
def test_what_weight_decay_pulls_towards_has_no_effect_either(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    rest = neutral(SPECS[kind], shaken(fresh(name, kind)))
    assert jax.tree.map(np.shape, rest) == jax.tree.map(np.shape, fresh(name, kind))
    changed, plain = losses_of(name, kind)(params, rest, batch), losses_of(name)(params, {}, batch)
    np.testing.assert_array_max_ulp(np.asarray(changed), np.asarray(plain), ULPS[name])


@every_base
def test_a_fresh_submodel_is_float32_of_its_own(name, kind):
    leaves = jax.tree.leaves(fresh(name, kind))
    assert leaves
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}
