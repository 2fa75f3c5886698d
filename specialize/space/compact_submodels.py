"""A compact file as the store of a server: it is followed as it is replaced, and a speaker can be deleted from it."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specialize.errors import NoSubmodel, StoreError
from specialize.space.compact import CompactStore, changing, without_speaker
from specialize.submodel import Kind, StoredSubmodel
from specialize.submodel.tensors import unfinished


class CompactSubmodels:
    """Submodels in a file of `write_compact`, with the methods that a `SubmodelStore` has for a server.

    A file that replaces it is read from the next use on. Opening it and loading one Submodel cost the same however many
    there are. Safe for threads and processes.

    Args:
        path: the file, on a local disk, for it is memory-mapped.

    Raises:
        StoreError: there is no such file, or it is something else, damaged, or of a later version.
    """

    def __init__(self, path: Path | str):
        if "://" in str(path):
            raise StoreError(f"'{path}' is in a bucket; a compact file is memory-mapped. Copy it to a local disk.")
        self.folder = Path(os.path.abspath(path))
        """The file."""
        self._lock = threading.Lock()
        self._opened: tuple[tuple[int, int, int], CompactStore] | None = None
        self._now()

    def version(self, speaker: str) -> str | None:
        """What differs when the file is replaced by one that has another Submodel of `speaker`; None where it has none.

        Raises:
            StoreError: it cannot be told.
        """
        return self._now().version(speaker)

    def load(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        """The Submodel of a speaker; see `CompactStore.load`."""
        return self._now().load(speaker, base=base)

    def listed(self) -> Iterator[str]:
        """All ids."""
        return self._now().speakers()

    def specs(self, base: str) -> Counter[Kind]:
        """How many Submodels of a base there are of each spec.

        Args:
            base: its fingerprint.
        """
        now = self._now()
        return Counter({now.spec: len(now)} if now.base == base and len(now) else {})

    @property
    def base(self) -> str:
        """Fingerprint of the base that all belong to."""
        return self._now().base

    def __contains__(self, speaker: str) -> bool:
        return speaker in self._now()

    def remove(self, speaker: str) -> bool:
        """Deletes a speaker: the file is replaced by one without. False if it has none.

        That takes as long as copying the file. The others' Submodels stay as they are, bit for bit; mean and basis are
        everybody's, and stay too. What killed writes have left beside the file goes in any case.

        Raises:
            StoreError: the file is damaged, or the file system refused.
        """
        try:
            without_speaker(self.folder, speaker)
        except NoSubmodel:
            return False
        return True

    def remnants(self, speaker: str) -> list[Any]:
        """The file, if it has `speaker`, and what killed writes have left beside it, which may have anyone.

        Raises:
            StoreError: it cannot be told.
        """
        with changing(self.folder) as file:
            return ([self.folder] if speaker in self else []) + unfinished(file)

    def _now(self) -> CompactStore:
        """The file as it is now."""
        try:
            found = os.stat(self.folder)
        except OSError as error:
            raise StoreError(f"There is no compact store at '{self.folder}': {error}") from error
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        with self._lock:
            if self._opened is None or self._opened[0] != seen:
                self._opened = seen, CompactStore(self.folder)
            return self._opened[1]
