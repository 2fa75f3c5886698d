"""Spaces of speakers: generators of Submodels from embeddings, how they are stored, and what is in them."""

from specialize.space.compact import CompactStore, write_compact
from specialize.space.compact_submodels import CompactSubmodels
from specialize.space.generators import (
    GENERATORS,
    AnyGenerator,
    Generator,
    Hypernetwork,
    Linear,
    OneHot,
    Shared,
)
from specialize.space.look import Principal, nearest, principal
from specialize.space.pca import fit_linear
from specialize.space.space import Space, generated, load_space, save_space, told_of

__all__ = [
    "GENERATORS",
    "AnyGenerator",
    "CompactStore",
    "CompactSubmodels",
    "Generator",
    "Hypernetwork",
    "Linear",
    "OneHot",
    "Principal",
    "Shared",
    "Space",
    "fit_linear",
    "generated",
    "load_space",
    "nearest",
    "principal",
    "save_space",
    "told_of",
    "write_compact",
]
