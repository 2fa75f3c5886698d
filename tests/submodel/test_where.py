"""Where a Submodel goes: what matches, what fits, and errors that list what there is."""

import jax
import pytest

from specialize.errors import SpecError
from specialize.submodel import (
    KINDS,
    BiasOnly,
    LayerNormOnly,
    LoRA,
    ResidualAdapter,
    find_sites,
    init_submodel,
    inserted,
    sites,
)
from specialize.submodel.sites import summarise
from tests.bases import random_batch, tiny_whisper


def paths(spec) -> list[str]:
    base = tiny_whisper(layers=2)
    return [site.path for site in find_sites(spec, base.architecture, base.params)]


def test_a_star_stays_in_its_component():
    assert paths(ResidualAdapter(where=("encoder/layers_*",))) == ["encoder/layers_0", "encoder/layers_1"]


def test_two_stars_cross_components_and_take_what_fits():
    assert paths(LayerNormOnly(where=("encoder/**",))) == [
        "encoder/layers_0/self_attn_layer_norm",
        "encoder/layers_0/final_layer_norm",
        "encoder/layers_1/self_attn_layer_norm",
        "encoder/layers_1/final_layer_norm",
        "encoder/layer_norm",
    ]
    assert paths(LoRA(where=("**/encoder_attn/q_proj",))) == [f"decoder/layers_{i}/encoder_attn/q_proj" for i in (0, 1)]


def test_patterns_unite_in_the_order_of_the_base():
    both = paths(BiasOnly(where=("encoder/layer_norm", "encoder/conv1", "encoder/conv*")))
    assert both == ["encoder/conv1", "encoder/conv2", "encoder/layer_norm"]


def test_every_default_fits_whisper():
    for kind in KINDS.values():
        assert paths(kind())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            LoRA(where=("nothing/here",)),
            r"where='nothing/here' matches no module.*encoder/layers_\{0..1\}/self_attn/q_proj",
        ),
        (LoRA(where=("encoder/layers_*",)), r"matches 'encoder/layers_0', which is a .*, not a Dense.*decoder/layers"),
        (LoRA(where=("encoder/layers_0/*",)), "not a Dense"),
        (BiasOnly(where=("encoder/layers_0/self_attn/k_proj",)), "without a bias"),
        (LayerNormOnly(where=("**/fc1",)), "not a LayerNorm"),
        (LoRA(where=()), "empty `where`"),
    ],
)
def test_what_does_not_match_or_fit_lists_what_does(spec, message):
    with pytest.raises(SpecError, match=f"(?s){message}"):
        paths(spec)


def test_a_submodel_without_effect_is_an_error_and_not_silent():
    base, spec = tiny_whisper(), LoRA(where=("encoder/layers_0/fc1",))
    submodel = init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(0))
    lost = {"encoder/layers_7/fc1": submodel["encoder/layers_0/fc1"]}
    with pytest.raises(SpecError, match="encoder/layers_7/fc1"), inserted(spec, lost, base.params) as params:
        base.architecture.losses(params, random_batch(base))


def test_sites_say_what_they_are():
    base = tiny_whisper()
    found = sites(base.architecture, base.params)
    site = found["encoder/layers_0/fc1"]
    assert site.own == {"kernel": (16, 32), "bias": (32,)}
    assert site.width == 32
    assert site.input_shape is not None
    assert site.input_shape[-1] == 16
    assert set(found["encoder/layers_0"].parameters) > {"fc1/kernel", "self_attn/q_proj/bias"}


def test_summaries_fold_numbers():
    assert summarise(["a/x_0/b", "a/x_1/b", "a/x_2/b", "c"]) == ["a/x_{0..2}/b", "c"]
    assert summarise(["x_0", "x_2"]) == ["x_{0,2}"]
    assert summarise(["x_5"]) == ["x_5"]
