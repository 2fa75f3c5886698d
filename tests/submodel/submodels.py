"""Submodels to store, made without a base."""

import jax
import numpy as np

from specialize.submodel import LoRA, StoredSubmodel

SPEC = LoRA(("encoder/layers_0/fc1",), rank=2)
BASE = "0123456789abcdef" * 2


def stored(speaker: str = "ana", seed: int = 0, **training) -> StoredSubmodel:
    rng = np.random.default_rng(seed)
    weights = {"a": rng.standard_normal((16, 2)), "b": rng.standard_normal((2, 32))}
    submodel = {"encoder/layers_0/fc1": {name: value.astype(np.float32) for name, value in weights.items()}}
    return StoredSubmodel(submodel, SPEC, speaker, BASE, training)


def assert_same(left: StoredSubmodel, right: StoredSubmodel) -> None:
    assert (left.spec, left.speaker, left.base) == (right.spec, right.speaker, right.base)
    assert left.training == right.training
    jax.tree.map(np.testing.assert_array_equal, left.submodel, right.submodel)
