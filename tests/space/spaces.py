"""Generators, and spaces of a few made-up speakers, for tests."""

from typing import Any

import jax
import numpy as np

from specialize.space import Generator, Hypernetwork, Linear, OneHot, Space
from tests.submodel.programs import SPECS, fresh, shaken
from tests.submodel.submodels import BASE

GENERATED: dict[str, Generator] = {
    "one-hot": OneHot(),
    "linear": Linear(dim=5),
    "hypernetwork": Hypernetwork(dim=4, code=3, hidden=8),
}
"""Each generator, small."""


def shared_of(generator: Generator, template: Any, noise: float = 0.0) -> Any:
    """What is shared, untrained, or with noise on all of it."""
    shared = generator.init(jax.random.key(0), template)
    return shaken(shared, scale=noise) if noise else shared


def points(generator: Generator, template: Any, n: int = 4, seed: int = 0) -> np.ndarray:
    """Random embeddings, float32 [n, K]."""
    k = generator.embedding_size(template)
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def small_space(name: str = "linear", speakers: int = 6, kind: str = "lora", **facts: Any) -> Space:
    """A space of `ana0`, `ana1`, … over the tiny Whisper, as if it had been trained."""
    generator, template = GENERATED[name], fresh("whisper", kind)
    embeddings = points(generator, template, speakers)
    named = {f"ana{i}": e for i, e in enumerate(embeddings)}
    shared = jax.device_get(shared_of(generator, template, noise=0.1))
    return Space(generator, SPECS[kind], BASE, shared, named, {"steps": 3}, {name: dict(facts) for name in named})
