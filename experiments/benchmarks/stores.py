"""Stores of as many Submodels as a benchmark wants, which take the disk space of one."""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np

from specialize.base import Base
from specialize.submodel import Kind, StoredSubmodel, SubmodelStore, find_sites, init_submodel
from specialize.submodel.store import speaker_folder

_METADATA = "_CHECKPOINT_METADATA"


def random_submodel(base: Base, spec: Kind, seed: int, scale: float = 0.0) -> StoredSubmodel:
    """A Submodel of the speaker 0, without effect where `scale` is 0."""
    submodel = init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(seed))
    rng = np.random.default_rng(seed)
    submodel = jax.tree.map(lambda a: np.asarray(a + scale * rng.standard_normal(a.shape), np.float32), submodel)
    return StoredSubmodel(submodel, spec, "0", base.fingerprint)


def store_of_many(folder: Path, first: StoredSubmodel, speakers: int, own: Collection[int] = ()) -> SubmodelStore:
    """A store of the speakers 0, 1, ….

    The files of all but the first are links to the first's, but for who it is, and those in `own` have files of their
    own.
    """
    store = SubmodelStore(folder)
    store.save(first)
    source = Path(str(store.path(first.speaker)))
    metadata = json.loads((source / _METADATA).read_text())
    for i in range(1, speakers):
        target = folder / speaker_folder(str(i))
        shutil.copytree(source, target, copy_function=shutil.copyfile if i in own else os.link)
        (target / _METADATA).unlink()
        metadata["custom_metadata"]["speaker"] = str(i)
        (target / _METADATA).write_text(json.dumps(metadata))
    return store


def out_of_memory(folder: Path) -> None:
    """Has the system forget what it knows of the files in a folder, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
