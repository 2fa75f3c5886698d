"""At initialisation every kind, leaves every base exactly as it is."""

import jax
import numpy as np
import pytest

from specialize.submodel.insert import neutral
from tests.bases import BASES
from tests.submodel.programs import SPECS, base_of, batch_of, fresh, losses_of, shaken, tokens_of

pytestmark = [pytest.mark.parametrize("name", BASES), pytest.mark.parametrize("kind", SPECS)]


def test_losses_are_those_of_the_base_bit_for_bit(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    np.testing.assert_array_equal(
        losses_of(name, kind)(params, fresh(name, kind), batch), losses_of(name)(params, {}, batch)
    )


def test_text_is_that_of_the_base(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    np.testing.assert_array_equal(
        tokens_of(name, kind)(params, fresh(name, kind), batch), tokens_of(name)(params, {}, batch)
    )


def test_what_weight_decay_pulls_towards_has_no_effect_either(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    rest = neutral(SPECS[kind], shaken(fresh(name, kind)))
    assert jax.tree.map(np.shape, rest) == jax.tree.map(np.shape, fresh(name, kind))
    np.testing.assert_array_equal(losses_of(name, kind)(params, rest, batch), losses_of(name)(params, {}, batch))


def test_a_fresh_submodel_is_float32_of_its_own(name, kind):
    leaves = jax.tree.leaves(fresh(name, kind))
    assert leaves
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}
