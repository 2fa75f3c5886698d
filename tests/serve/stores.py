"""A tiny base and a store of Submodels for it."""

from pathlib import Path

import jax
import numpy as np

from specialize.base import Base
from specialize.submodel import Kind, ResidualAdapter, StoredSubmodel, SubmodelStore, find_sites, init_submodel
from tests.bases import TALKING

SPEC = ResidualAdapter(bottleneck=2)


def talking() -> Base:
    """The base that is quickest to compile."""
    return TALKING["conformer-ctc"]()


def made(base: Base, speaker: str, seed: int, spec: Kind = SPEC, scale: float = 1.0, **training) -> StoredSubmodel:
    """A Submodel with an effect that depends on the seed."""
    rng = np.random.default_rng(seed)
    submodel = init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(seed))
    submodel = jax.tree.map(lambda a: np.asarray(a + scale * rng.standard_normal(a.shape), np.float32), submodel)
    return StoredSubmodel(submodel, spec, speaker, base.fingerprint, training)


def store_of(folder: Path, base: Base, speakers: int = 3) -> SubmodelStore:
    """A store of the speakers s0, s1, …."""
    store = SubmodelStore(folder)
    for i in range(speakers):
        store.save(made(base, f"s{i}", i))
    return store


def clips(count: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Noise of 0.3 to 0.9 s."""
    rng = np.random.default_rng(seed)
    return [(0.1 * rng.standard_normal(int(n))).astype(np.float32) for n in rng.integers(5_000, 15_000, count)]
