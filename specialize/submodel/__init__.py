"""Submodels: kinds, insertion into a base, banks of them, and the store."""

from specialize.submodel.bank import broadcast, size, stack, take
from specialize.submodel.insert import Submodel, find_sites, init_submodel, inserted
from specialize.submodel.kinds import (
    KINDS,
    AnyKind,
    BiasOnly,
    Dropout,
    FullWeights,
    Kind,
    LayerNormOnly,
    LoRA,
    ResidualAdapter,
)
from specialize.submodel.sites import Site, sites
from specialize.submodel.store import StoredSubmodel, SubmodelStore, load_submodel, save_submodel

__all__ = [
    "KINDS",
    "AnyKind",
    "BiasOnly",
    "Dropout",
    "FullWeights",
    "Kind",
    "LayerNormOnly",
    "LoRA",
    "ResidualAdapter",
    "Site",
    "StoredSubmodel",
    "Submodel",
    "SubmodelStore",
    "broadcast",
    "find_sites",
    "init_submodel",
    "inserted",
    "load_submodel",
    "save_submodel",
    "sites",
    "size",
    "stack",
    "take",
]
