"""Specs of every kind, and the compiled programs that the tests of Submodels share."""

import functools
from typing import Any

import jax
import numpy as np

from specialize.base import Base, Batch
from specialize.submodel import (
    BiasOnly,
    FullWeights,
    Kind,
    LayerNormOnly,
    LoRA,
    ResidualAdapter,
    Submodel,
    find_sites,
    init_submodel,
    inserted,
)
from tests.bases import BASES, random_batch, tiny_parakeet_tdt
from tests.conftest import OLD_COMPILER

EVERY = BASES | {"parakeet-tdt": tiny_parakeet_tdt}
"""Bases of every architecture, and one in the form of the imported Conformers."""
EVERYWHERE = ("**",)
SPECS: dict[str, Kind] = {
    "residual-adapter": ResidualAdapter(("*/*",), bottleneck=16),
    "lora": LoRA(EVERYWHERE, rank=3, alpha=5.0),
    "bias-only": BiasOnly(EVERYWHERE),
    "layer-norm-only": LayerNormOnly(EVERYWHERE),
    "full-weights": FullWeights(EVERYWHERE),
}
"""Each kind at every module of a base that it fits; adapters at every part of the encoder and the decoder."""

TOKENS = 6
AS_USERS_COMPILE: dict[str, bool | str] = {"xla_cpu_use_fusion_emitters": True} if OLD_COMPILER else {}
"""For what is claimed to the last bit: how an addition of zero is fused decides whether it rounds (see conftest)."""


@functools.cache
def base_of(name: str) -> Base:
    return EVERY[name]()


@functools.cache
def batch_of(name: str) -> Batch:
    return random_batch(base_of(name))


@functools.cache
def fresh(name: str, kind: str) -> Submodel:
    """A newly initialised Submodel of a kind at every site that it fits."""
    base, spec = base_of(name), SPECS[kind]
    return init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(0))


def shaken(submodel: Submodel, seed: int = 1, scale: float = 0.05) -> Submodel:
    """A copy with noise on every parameter."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: (np.asarray(p) + scale * rng.standard_normal(p.shape)).astype(np.float32), submodel)


@functools.cache
def losses_of(name: str, kind: str | None = None) -> Any:
    """Compiled `(params, submodel, batch) -> losses [B]` of a base, with a Submodel in it unless `kind` is None."""
    architecture = base_of(name).architecture

    def losses(params, submodel, batch):
        if kind is None:
            return architecture.losses(params, batch).total
        with inserted(SPECS[kind], submodel, params) as changed:
            return architecture.losses(changed, batch).total

    return jax.jit(losses, compiler_options=AS_USERS_COMPILE)


@functools.cache
def tokens_of(name: str, kind: str | None = None) -> Any:
    """Compiled `(params, submodel, batch) -> token ids [B, TOKENS]`, as `losses_of`."""
    architecture = base_of(name).architecture

    def tokens(params, submodel, batch):
        if kind is None:
            return architecture.decode(params, batch.audio, batch.samples, max_tokens=TOKENS).ids
        with inserted(SPECS[kind], submodel, params) as changed:
            return architecture.decode(changed, batch.audio, batch.samples, max_tokens=TOKENS).ids

    return jax.jit(tokens)
