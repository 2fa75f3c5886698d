"""A Submodel equals what it stands for: the base with changed parameters, in losses and in text."""

import copy

import jax
import numpy as np
import pytest

from specialize.submodel import LoRA, find_sites
from tests.bases import BASES
from tests.submodel.programs import SPECS, base_of, batch_of, fresh, losses_of, shaken, tokens_of

MERGED = [kind for kind in SPECS if kind != "residual-adapter"]
"""The kinds that can be written into the base's own parameters."""


def merged(name, kind, submodel):
    """The base's parameters with a Submodel written into them."""
    base, spec = base_of(name), SPECS[kind]
    params = copy.deepcopy(jax.tree.map(np.asarray, base.params))
    for path, weights in submodel.items():
        module = params
        for part in path.split("/"):
            module = module[part]
        if kind == "lora":
            assert isinstance(spec, LoRA)
            module["kernel"] += weights["a"] @ weights["b"] * (spec.alpha / spec.rank)
        elif kind == "bias-only":
            module["bias"] += weights["bias"]
        elif kind == "layer-norm-only":
            gain = 1.0 + weights["gain"]
            module["bias"] = module["bias"] * gain + weights["bias"]
            module["scale"] = module["scale"] * gain
        else:
            for leaf, change in weights.items():
                module[leaf] += change
    return params


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("kind", MERGED)
def test_losses_are_those_of_the_changed_base(name, kind):
    params, batch = base_of(name).params, batch_of(name)
    submodel = shaken(fresh(name, kind))
    specialised = losses_of(name, kind)(params, submodel, batch)
    np.testing.assert_allclose(specialised, losses_of(name)(merged(name, kind, submodel), {}, batch), rtol=1e-4)
    assert np.all(np.abs(specialised - losses_of(name)(params, {}, batch)) > 1e-2)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("kind", MERGED)
def test_text_is_that_of_the_changed_base(name, kind):
    """Decoding goes its own way, a token at a time with a cache, and must meet every site too."""
    params, batch = base_of(name).params, batch_of(name)
    submodel = shaken(fresh(name, kind), scale=0.5)
    specialised = tokens_of(name, kind)(params, submodel, batch)
    np.testing.assert_array_equal(specialised, tokens_of(name)(merged(name, kind, submodel), {}, batch))
    assert np.any(specialised != tokens_of(name)(params, {}, batch))


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("kind", ["bias-only", "layer-norm-only", "full-weights"])
def test_a_submodel_everywhere_reaches_all_that_its_kind_names(name, kind):
    """Nothing of the base is left out: every bias, every norm, every parameter."""
    base = base_of(name)
    flat = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(base.params)}
    reached = {f"{path}/{leaf}" for path, weights in fresh(name, kind).items() for leaf in weights}
    if kind == "full-weights":
        assert reached == set(flat)
    elif kind == "bias-only":
        assert reached == {path for path in flat if path.endswith("/bias")}
    else:
        norms = {path.rsplit("/", 1)[0] for path in flat if path.endswith("/scale")}
        assert {path.rsplit("/", 1)[0] for path in reached} == norms


def test_full_weights_hold_as_many_parameters_as_the_modules_they_choose():
    base, spec = base_of("whisper"), SPECS["full-weights"]
    chosen = find_sites(spec, base.architecture, base.params)
    assert {site.path for site in chosen} >= {"encoder", "decoder", "encoder/layers_0/fc1"}
    assert sum(leaf.size for leaf in jax.tree.leaves(fresh("whisper", "full-weights"))) == sum(
        leaf.size for leaf in jax.tree.leaves(base.params)
    )
