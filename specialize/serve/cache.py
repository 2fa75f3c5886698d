"""Submodels on their way from a store to the recogniser: each is read once, and told apart by its version."""

import contextlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from specialize.base import Base
from specialize.errors import NoSubmodel, SpecializeError, StoreError
from specialize.serve.slots import Resident
from specialize.serve.stores import asking
from specialize.submodel import Kind, StoredSubmodel
from specialize.submodel.layout import Layout

_TRIES = 20
"""How often a Submodel is read that is replaced meanwhile."""


@runtime_checkable
class Store(Protocol):
    """What Submodels are read from: a `SubmodelStore`, or anything that offers this."""

    def version(self, speaker: str) -> str | None:
        """What differs after each publication; None for a speaker who has no Submodel."""
        ...

    def load(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        """See `SubmodelStore.load`."""
        ...


@dataclass(frozen=True)
class CacheCounts:
    """What a cache holds and has done."""

    resident: int
    """Submodels in the memory of the host."""
    bytes: int
    """Of them."""
    hits: int
    misses: int
    evictions: int


class SubmodelCache:
    """The Submodels of a store in the memory of the host, the most recently used first; safe for threads.

    The store is asked for a speaker's version at every use: what is published is used by the next request, while those
    that have fetched the one before keep it. Whoever asks for what is being read waits for that one reading.

    Args:
        store: where Submodels are.
        base: the base that they are used with.
        bytes: of Submodels that are kept in memory, at most, pinned ones aside.
        dropped: is told of what was forgotten, so that slots are freed too.
        refresh: seconds for which a version counts as the newest without asking again, for a store that is far away.
        threads: that read ahead.
    """

    def __init__(
        self,
        store: Store,
        base: Base,
        *,
        bytes: int = 1 << 30,
        dropped: Callable[[Resident], bool] = lambda resident: False,
        refresh: float = 0.0,
        threads: int = 4,
    ):
        self._store, self._base, self._limit, self._refresh = store, base, bytes, refresh
        self._kept: OrderedDict[str, Resident] = OrderedDict()
        self._reading: dict[tuple[str, str], Future[Resident]] = {}
        self._dropped = dropped
        self._asked: dict[str, float] = {}
        self._alive: weakref.WeakSet[Resident] = weakref.WeakSet()
        self._layouts: dict[Kind, Layout] = {}
        self._pins: set[str] = set()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(threads, "submodels")
        self._bytes = self._hits = self._misses = self._evictions = 0

    def fetch(self, speaker: str) -> Resident:
        """The newest version of a speaker's Submodel.

        Raises:
            StoreError: there is none, or it is damaged.
            StoreUnavailable: the store cannot be asked.
            FingerprintMismatch: it belongs to another base.
        """
        for _ in range(_TRIES):
            kept = self._fresh(speaker)
            if kept is not None:
                return kept
            version = self._version(speaker)
            if version is None:
                self.forget(speaker)
                raise NoSubmodel(f"There is no Submodel of '{speaker}'.")
            with self._lock:
                self._asked[speaker] = time.monotonic()
                kept = self._kept.get(speaker)
                if kept is not None and kept.version == version:
                    return self._used(kept)
                in_use = self._find(speaker, version)
                if in_use is not None:  # it had made room for others here, and is in a slot still
                    self._keep(in_use)
                    self._hits += 1
                    return in_use
                reading = self._reading.get((speaker, version))
                mine = reading is None
                if reading is None:
                    reading = self._reading[speaker, version] = Future()
            if mine:
                self._read(speaker, version, reading)
            try:
                return reading.result()
            except StoreError:
                if self._version(speaker) == version:
                    raise
                # It was replaced while it was read.
        raise StoreError(f"The Submodel of '{speaker}' is replaced faster than it can be read.")

    def prefetch(self, speakers: Iterable[str]) -> None:
        """Begins to read Submodels; what fails is told to whoever fetches it."""
        for speaker in speakers:
            self._readers.submit(self._try, speaker)

    def pin(self, speaker: str) -> None:
        """Fetches a Submodel, and keeps it and those that replace it in memory, and in its slot once it is in one.

        Raises:
            StoreError, FingerprintMismatch: as `fetch`.
        """
        with self._lock:
            self._pins.add(speaker)  # whatever is kept from now on is pinned
            if speaker in self._kept:
                self._kept[speaker].pinned = True
        try:
            self.fetch(speaker)
        except Exception:
            self.unpin(speaker)
            raise

    def unpin(self, speaker: str) -> None:
        """Treats a Submodel as any other again."""
        with self._lock:
            self._pins.discard(speaker)
            if speaker in self._kept:
                self._kept[speaker].pinned = False

    def forget(self, speaker: str) -> int:
        """Drops what is held of a speaker, and marks it as forgotten for those that have fetched it already.

        Returns:
            How many copies were dropped, in memory and in slots, of all versions.
        """
        with self._lock:
            kept = self._kept.pop(speaker, None)
            if kept is not None:
                self._bytes -= kept.vector.nbytes
            self._asked.pop(speaker, None)
            for key in [key for key in self._reading if key[0] == speaker]:
                del self._reading[key]  # what is being read now is kept by nobody
            found = [r for r in self._alive if r.speaker == speaker and not r.forgotten]
            for resident in found:
                resident.forgotten = True
        return len(found) + sum(self._dropped(resident) for resident in found)

    def sweep(self) -> tuple[int, list[Exception]]:
        """Forgets those whose Submodel is in the store no more.

        Returns:
            How many copies were dropped, and what went wrong with each speaker who could not be looked for.
        """
        with self._lock:
            speakers = {resident.speaker for resident in self._alive if not resident.forgotten and resident.version}
        dropped, failed = 0, []
        for speaker in speakers:
            try:
                if self._store.version(speaker) is None:
                    dropped += self.forget(speaker)
            except Exception as error:  # one speaker's trouble is not the others'
                failed.append(error)
        return dropped, failed

    def held(self, speaker: str) -> int:
        """How many versions of a speaker's Submodel somebody holds and may use."""
        with self._lock:
            return sum(r.speaker == speaker and not r.forgotten for r in self._alive)

    def layout(self, spec: Kind) -> Layout:
        """The layout of a spec on the base. Raises SpecError if it does not fit."""
        with self._lock:
            found = self._layouts.get(spec)
        if found is None:
            found = Layout.of(spec, self._base.architecture, self._base.params)
            with self._lock:
                self._layouts[spec] = found
        return found

    def resident(self, stored: StoredSubmodel, version: str = "") -> Resident:
        """A loaded Submodel, checked against the base, outside of the cache.

        Raises:
            StoreError: its parameters are not those that its spec says.
            SpecError: its spec does not fit the base.
        """
        vector = self.layout(stored.spec).pack(stored.submodel, f"Submodel of '{stored.speaker}'")
        resident = Resident(stored.speaker, stored.spec, vector, stored.helps, version)
        with self._lock:
            self._alive.add(resident)
        return resident

    def counts(self) -> CacheCounts:
        """What there is now."""
        with self._lock:
            return CacheCounts(len(self._kept), self._bytes, self._hits, self._misses, self._evictions)

    def close(self) -> None:
        """Ends the reading ahead."""
        self._readers.shutdown(cancel_futures=True)

    def _version(self, speaker: str) -> str | None:
        with asking():
            return self._store.version(speaker)

    def _fresh(self, speaker: str) -> Resident | None:
        """What is kept, if its version was asked for so recently that it counts as the newest."""
        with self._lock:
            kept = self._kept.get(speaker)
            if kept is None or time.monotonic() - self._asked.get(speaker, 0.0) >= self._refresh:
                return None
            return self._used(kept)

    def _used(self, kept: Resident) -> Resident:
        self._kept.move_to_end(kept.speaker)
        self._hits += 1
        return kept

    def _read(self, speaker: str, version: str, reading: Future[Resident]) -> None:
        """Reads a version for all that wait for it."""
        try:
            stored = self._store.load(speaker, base=self._base.fingerprint)
            if self._version(speaker) != version:
                raise StoreError(f"The Submodel of '{speaker}' was replaced while it was read.")
            resident = self.resident(stored, version)
            with self._lock:
                if self._reading.get((speaker, version)) is not reading:
                    resident.forgotten = True
                    raise NoSubmodel(f"There is no Submodel of '{speaker}' any more.")
                self._keep(resident)
                self._misses += 1
        except BaseException as error:
            reading.set_exception(error)
        else:
            reading.set_result(resident)
        finally:
            with self._lock:
                if self._reading.get((speaker, version)) is reading:
                    del self._reading[speaker, version]

    def _find(self, speaker: str, version: str) -> Resident | None:
        """A version that something holds still."""
        alive = (r for r in self._alive if r.speaker == speaker and r.version == version and not r.forgotten)
        return next(alive, None)

    def _keep(self, resident: Resident) -> None:
        old = self._kept.pop(resident.speaker, None)
        if old is not None:
            old.pinned = False
            self._bytes -= old.vector.nbytes
        resident.pinned = resident.speaker in self._pins
        self._kept[resident.speaker] = resident
        self._bytes += resident.vector.nbytes
        for old in [r for r in self._kept.values() if not r.pinned and r is not resident]:
            if self._bytes <= self._limit:
                break
            del self._kept[old.speaker]
            self._bytes -= old.vector.nbytes
            self._evictions += 1

    def _try(self, speaker: str) -> None:
        with contextlib.suppress(SpecializeError):
            self.fetch(speaker)
