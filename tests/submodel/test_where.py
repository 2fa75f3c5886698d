"""Where a Submodel goes: what a pattern matches, what fits there, and errors that list what there is."""

import pytest

from specialize.errors import SpecError
from specialize.submodel import (
    KINDS,
    BiasOnly,
    FullWeights,
    LayerNormOnly,
    LoRA,
    ResidualAdapter,
    find_sites,
    sites,
)
from specialize.submodel.sites import summarise
from tests.bases import BASES, tiny_whisper
from tests.submodel.programs import base_of


def paths(spec, base=None) -> list[str]:
    base = tiny_whisper(layers=2) if base is None else base
    return [site.path for site in find_sites(spec, base.architecture, base.params)]


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("name", BASES)
class TestEveryBase:
    def test_the_default_finds_sites(self, name, kind):
        assert paths(kind(), base_of(name))

    def test_two_stars_mean_all_that_fits_and_each_of_it_can_be_named(self, name, kind):
        everywhere = paths(kind(("**",)), base_of(name))
        assert everywhere == paths(kind(tuple(reversed(everywhere))), base_of(name))

    def test_what_matches_nothing_lists_what_would_fit(self, name, kind):
        with pytest.raises(SpecError, match=r"where='no/such_\*' matches no module") as error:
            paths(kind(("no/such_*",)), base_of(name))
        for entry in summarise(paths(kind(("**",)), base_of(name))):
            assert entry in str(error.value)

    def test_nothing_at_all_is_an_error(self, name, kind):
        with pytest.raises(SpecError, match=r"empty `where`.*fits: "):
            paths(kind(()), base_of(name))

    def test_one_bad_pattern_among_good_ones_is_an_error(self, name, kind):
        with pytest.raises(SpecError, match="where='typo'"):
            paths(kind((*kind().where, "typo")), base_of(name))


def test_a_star_stays_in_its_component():
    assert paths(ResidualAdapter(("encoder/layers_*",))) == ["encoder/layers_0", "encoder/layers_1"]
    assert paths(ResidualAdapter(("*/layers_0",))) == ["encoder/layers_0", "decoder/layers_0"]
    with pytest.raises(SpecError, match="matches no module"):
        paths(LoRA(("encoder/*/q_proj",)))


def test_two_stars_cross_any_number_of_components():
    layers = [f"decoder/layers_{layer}" for layer in (0, 1)]
    assert paths(LoRA(("**/encoder_attn/q_proj",))) == [f"{layer}/encoder_attn/q_proj" for layer in layers]
    assert paths(LoRA(("decoder/**/encoder_attn/q_proj",))) == paths(LoRA(("**/encoder_attn/q_proj",)))
    assert paths(ResidualAdapter(("**/decoder/layers_0",))) == ["decoder/layers_0"]


def test_a_pattern_is_no_prefix_and_no_regular_expression():
    assert "encoder/layers_10" not in paths(ResidualAdapter(("encoder/layers_1",)), tiny_whisper(layers=11))
    for pattern in ("encoder/layers_", "encoder/layers_.", "ncoder/layers_0", "encoder/layers_[01]"):
        with pytest.raises(SpecError, match="matches no module"):
            paths(ResidualAdapter((pattern,)))


def test_patterns_unite_in_the_order_of_the_base():
    both = paths(BiasOnly(("encoder/layer_norm", "encoder/conv1", "encoder/conv*")))
    assert both == ["encoder/conv1", "encoder/conv2", "encoder/layer_norm"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LoRA(("encoder/layers_0",)), "'encoder/layers_0', which is a EncoderLayer, not a Dense"),
        (BiasOnly(("encoder/layers_0/self_attn/k_proj",)), "'.*k_proj', which is a Dense without a bias"),
        (LayerNormOnly(("encoder/conv1",)), "'encoder/conv1', which is a Conv, not a LayerNorm or RMSNorm"),
        (LayerNormOnly(("**/fc1",)), "fc1', which is a Dense, not a LayerNorm"),
    ],
)
def test_what_does_not_fit_says_why_and_lists_what_does(spec, reason):
    with pytest.raises(SpecError, match=f"{reason}.* fits: .*layers_"):
        paths(spec)


def test_without_two_stars_all_that_matches_must_fit():
    """`encoder/layers_0/*` says each of them, `encoder/layers_0/**` says what fits among them."""
    with pytest.raises(SpecError, match="which is a LayerNorm, not a Dense"):
        paths(LoRA(("encoder/layers_0/*",)))
    assert "encoder/layers_0/fc1" in paths(LoRA(("encoder/layers_0/**",)))
    assert "encoder/layers_0/self_attn_layer_norm" not in paths(LoRA(("encoder/layers_0/**",)))


def test_full_weights_fit_a_module_by_what_is_in_it():
    base = tiny_whisper()
    found = sites(base.architecture, base.params)["encoder/layers_0"]
    assert FullWeights().misfit(found) is None
    assert BiasOnly().misfit(found) is not None
    assert set(found.parameters) > {"fc1/kernel", "self_attn/q_proj/bias"}


def test_a_site_says_what_it_takes_and_gives():
    base = tiny_whisper()
    site = sites(base.architecture, base.params)["encoder/layers_0/fc1"]
    assert site.own == {"kernel": (16, 32), "bias": (32,)}
    assert site.input_shape is not None
    assert (site.input_shape[-1], site.width) == (16, 32)


def test_lists_fold_the_numbers_of_layers():
    assert summarise(["a/x_0/b", "a/x_1/b", "a/x_2/b", "c"]) == ["a/x_{0..2}/b", "c"]
    assert summarise(["x_0", "x_2"]) == ["x_{0,2}"]
    assert summarise(["x_5"]) == ["x_5"]
