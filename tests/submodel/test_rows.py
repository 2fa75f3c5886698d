"""A Submodel for each row of one batch: each row comes out as alone, for every kind and every base."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base import Base
from specialize.base.conformer import ConformerCTC
from specialize.errors import SpecError
from specialize.submodel import (
    BiasOnly,
    FullWeights,
    LayerNormOnly,
    LoRA,
    ResidualAdapter,
    find_sites,
    init_submodel,
    inserted,
    stack,
)
from specialize.submodel.layout import Layout
from specialize.submodel.rows import _are_row_by_row, decode_rows, inserted_rows
from tests.bases import BASES, TALKING, tiny_whisper

KINDS = {
    "everywhere": ResidualAdapter(("**",), bottleneck=2),
    "lora": LoRA(("**",), rank=2),
    "bias": BiasOnly(("**",)),
    "norm": LayerNormOnly(("**",)),
    "full": FullWeights(("encoder/layers_0",)),
}
ROWS = 3


def encode(base: Base, audio: Any, samples: Any) -> Any:
    architecture: Any = base.architecture
    return architecture.encode(base.params, audio, samples)


def bank_of(spec, base, scale=0.3):
    sites = find_sites(spec, base.architecture, base.params)
    rng = np.random.default_rng(0)

    def one(seed):
        submodel = init_submodel(spec, sites, jax.random.key(seed))
        return jax.tree.map(lambda a: np.asarray(a + scale * rng.standard_normal(a.shape), np.float32), submodel)

    return [one(seed) for seed in range(ROWS)]


def sound(base, seconds=(0.5, 0.3, 0.4)):
    rate = base.architecture.sample_rate
    samples = np.array([int(s * rate) for s in seconds], np.int32)
    audio = np.random.default_rng(1).standard_normal((len(samples), samples.max())).astype(np.float32) * 0.1
    audio = np.where(np.arange(samples.max()) < samples[:, None], audio, 0.0).astype(np.float32)
    return jnp.asarray(audio), jnp.asarray(samples)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TALKING)
def test_the_texts_of_a_mixed_batch_are_those_of_each_row_alone(name, kind):
    base, spec = TALKING[name](), KINDS[kind]
    submodels, (audio, samples) = bank_of(spec, base), sound(base)

    @jax.jit
    def together(bank):
        return decode_rows(base.architecture, spec, base.params, bank, audio, samples, max_tokens=8).ids

    @jax.jit
    def alone(submodel, clip, length):
        with inserted(spec, submodel, base.params) as params:
            return base.architecture.decode(params, clip[None], length[None], max_tokens=8).ids[0]

    found = together(stack(submodels))
    for row, submodel in enumerate(submodels):
        np.testing.assert_array_equal(found[row], alone(submodel, audio[row], samples[row]))


@pytest.mark.parametrize("kind", ["lora"])
@pytest.mark.parametrize("name", BASES)
def test_what_the_encoder_gives_each_row_is_what_it_gives_it_alone(name, kind):
    base, spec = BASES[name](), KINDS[kind]
    sites = [site for site in find_sites(spec, base.architecture, base.params) if site.path.startswith("encoder/")]
    paths = {site.path for site in sites if _are_row_by_row(base.architecture, base.params, [site.path])}
    submodels = [{path: w for path, w in one.items() if path in paths} for one in bank_of(spec, base)]
    audio, samples = sound(base)

    @jax.jit
    def together(bank):
        with inserted_rows(spec, bank, ROWS):
            return encode(base, audio, samples)

    @jax.jit
    def alone(submodel, clip, length):
        with inserted(spec, submodel, base.params):
            return encode(base, clip[None], length[None])[0]

    found, plain = together(stack(submodels)), encode(base, audio, samples)
    assert paths
    for row, submodel in enumerate(submodels):
        # A row is as long as it was; what comes after it has no meaning.
        frames = round(found.shape[1] * int(samples[row]) / int(samples.max())) - 2
        expected = alone(submodel, audio[row], samples[row])
        np.testing.assert_allclose(found[row, :frames], expected[:frames], atol=2e-5, rtol=2e-4)
        assert not np.allclose(found[row, :frames], plain[row, :frames], atol=1e-3)


@pytest.mark.parametrize("name", BASES)
def test_every_module_of_ours_gives_a_result_for_each_row_or_one_for_all(name):
    base = BASES[name]()
    paths = [site.path for site in find_sites(LoRA(("**",), 1), base.architecture, base.params)]
    assert _are_row_by_row(base.architecture, base.params, paths)


def test_a_module_whose_results_lead_with_something_else_is_known():
    class Turned(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="time_first")(jnp.swapaxes(x, 0, 1)), nn.Dense(3, name="rows_first")(x)

    class Strange(ConformerCTC):
        def decode(self, params: Any, audio: Any, samples: Any, *, max_tokens: int) -> Any:
            return Turned().apply({"params": params}, audio[:, :, None])

    like: Any = TALKING["conformer-ctc"]().architecture
    architecture = Strange(**{field.name: getattr(like, field.name) for field in dataclasses.fields(like)})
    params = Turned().init(jax.random.key(0), jnp.zeros((1, 4, 1)))["params"]
    assert _are_row_by_row(architecture, params, ["rows_first"])
    assert not _are_row_by_row(architecture, params, ["time_first"])


def test_a_submodel_is_never_silently_without_effect():
    base = tiny_whisper()
    spec = LoRA(("encoder/layers_0/fc1",), rank=2)
    bank = {"encoder/layers_9/fc1": stack(bank_of(spec, base))["encoder/layers_0/fc1"]}
    audio, samples = sound(base)
    with pytest.raises(SpecError, match="layers_9"), inserted_rows(spec, bank, ROWS):
        encode(base, audio, samples)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_submodel(kind):
    base, spec = tiny_whisper(), KINDS[kind]
    layout, submodels = Layout.of(spec, base.architecture, base.params), bank_of(spec, base)
    vectors = np.stack([layout.pack(submodel, "") for submodel in submodels])
    assert vectors.shape == (ROWS, layout.size)
    jax.tree.map(np.testing.assert_array_equal, layout.unpack(jnp.asarray(vectors)), stack(submodels))
