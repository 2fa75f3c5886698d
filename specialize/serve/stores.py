"""What a server reads Submodels from: a folder or a bucket of them, or one compact file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from specialize.errors import FingerprintMismatch, StoreError, StoreUnavailable
from specialize.space.compact_submodels import CompactSubmodels
from specialize.submodel import SubmodelStore
from specialize.submodel.checkpoint import exists

SpeakerStore = SubmodelStore | CompactSubmodels
"""A store that lists its speakers and deletes them."""
_COMPACT = ".safetensors"


def open_store(path: Path | str, base: str | None = None) -> SpeakerStore:
    """The store at a path: of a folder or bucket, or the compact file that `specialize compact` wrote.

    Args:
        path: of a folder, `gs://…`, `s3://…`, or a file.
        base: fingerprint of the base that all of a compact file must belong to; None asks for no check.

    Raises:
        StoreError: the file is no compact store, is damaged, or is not on a local disk.
        FingerprintMismatch: it is of another base.
    """
    if not os.path.isfile(path) and not str(path).endswith(_COMPACT):
        return SubmodelStore(path)
    store = CompactSubmodels(path)
    if base is not None and store.base != base:
        raise FingerprintMismatch(
            f"The Submodels in '{path}' are of the base {store.base}, but this base is {base}. Serve them with theirs."
        )
    return store


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Around what asks a store who is there: what goes wrong is a StoreUnavailable, and no fault of a Submodel."""
    try:
        yield
    except (StoreError, OSError) as error:
        raise StoreUnavailable(str(error)) from error


def check_there(store: SpeakerStore) -> None:
    """Raises StoreError where there is no folder."""
    if isinstance(store, SubmodelStore) and not exists(store.folder):
        raise StoreError(f"There is no folder '{store.folder}'. Name one of Submodels, `runs/NAME/submodels`.")
