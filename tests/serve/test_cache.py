"""Submodels between store, memory and slots: read once, the newest version, never torn, and gone when forgotten."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from specialize.errors import FingerprintMismatch, Forgotten, NoSubmodel, SpecError, SpecializeError, StoreError
from specialize.serve.cache import Store, SubmodelCache
from specialize.serve.slots import Resident, Slots
from specialize.space.compact import CompactStore, write_compact
from specialize.submodel import LoRA, ResidualAdapter, StoredSubmodel, SubmodelStore
from tests.serve.stores import SPEC, made, store_of, talking
from tests.space.spaces import small_space


@pytest.fixture(scope="module")
def base():
    return talking()


@pytest.fixture
def store(tmp_path, base) -> SubmodelStore:
    return store_of(tmp_path, base)


class Watched:
    """A store that counts its loads, and waits before each."""

    def __init__(self, store: SubmodelStore, seconds: float = 0.0):
        self.store, self.seconds, self.loads = store, seconds, []

    def version(self, speaker: str) -> str | None:
        return self.store.version(speaker)

    def load(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        self.loads.append(speaker)
        time.sleep(self.seconds)
        return self.store.load(speaker, base=base)


def test_a_submodel_is_read_once_however_many_ask(base, store):
    watched = Watched(store, 0.1)
    cache = SubmodelCache(watched, base)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(cache.fetch, ["s0"] * 16))
    assert watched.loads == ["s0"]
    assert all(one is found[0] for one in found)
    layout = cache.layout(SPEC)
    np.testing.assert_array_equal(found[0].vector, layout.pack(store.load("s0").submodel, ""))


def test_prefetched_is_not_read_again(base, store):
    watched = Watched(store)
    cache = SubmodelCache(watched, base)
    cache.prefetch(["s0", "s1", "nobody"])
    cache._readers.shutdown()
    for speaker in ("s0", "s1"):
        cache.fetch(speaker)
    assert sorted(watched.loads) == ["s0", "s1"]
    with pytest.raises(NoSubmodel, match="'nobody'"):
        cache.fetch("nobody")


def test_the_least_recently_used_goes_and_the_pinned_stays(base, store):
    watched = Watched(store)
    size = SubmodelCache(store, base).fetch("s0").vector.nbytes
    cache = SubmodelCache(watched, base, bytes=2 * size)
    cache.pin("s0")
    for speaker in ("s1", "s2", "s1", "s0", "s2"):
        cache.fetch(speaker)
    assert watched.loads == ["s0", "s1", "s2", "s1", "s2"]
    assert cache.counts().bytes <= 2 * size
    assert cache.counts().evictions == 3
    cache.unpin("s0")
    cache.fetch("s1")
    cache.fetch("s0")
    assert watched.loads[-1] == "s0"


def test_what_is_published_is_next_and_what_was_fetched_stays(base, store):
    cache = SubmodelCache(store, base)
    old = cache.fetch("s0")
    before = old.vector.copy()
    store.save(made(base, "s0", 99), overwrite=True)
    new = cache.fetch("s0")
    assert new is not old
    np.testing.assert_array_equal(old.vector, before)
    assert not np.array_equal(new.vector, before)
    assert cache.fetch("s0") is new


def test_a_far_store_is_not_asked_every_time(base, store):
    cache = SubmodelCache(store, base, refresh=3600.0)
    old = cache.fetch("s0")
    store.save(made(base, "s0", 99), overwrite=True)
    assert cache.fetch("s0") is old


def test_while_versions_change_every_fetch_is_one_of_them_whole(base, store):
    """Two versions whose vectors are constant: anything torn would show both numbers."""
    layout = SubmodelCache(store, base).layout(SPEC)

    def constant(value):
        tree = jax.tree.map(np.asarray, layout.unpack(np.full(layout.size, value, np.float32)))
        return StoredSubmodel(tree, SPEC, "s0", base.fingerprint)

    store.save(constant(1.0), overwrite=True)
    cache, seen, wrong, done = SubmodelCache(store, base), set(), [], threading.Event()

    def read():
        while not done.is_set():
            try:
                values = set(cache.fetch("s0").vector.tolist())
            except Exception as error:
                wrong.append(error)
                return
            seen.update(values)
            if len(values) != 1:
                wrong.append(values)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for swap in range(6):
        seen.discard(float(swap % 2))
        store.save(constant(float(swap % 2)), overwrite=True)
        while float(swap % 2) not in seen and not wrong:
            time.sleep(0.001)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert seen == {0.0, 1.0}


def test_what_is_forgotten_is_nowhere(base, store):
    slots = Slots(4, SubmodelCache(store, base).layout(SPEC).size)
    cache = SubmodelCache(store, base, dropped=slots.drop)
    old = cache.fetch("s0")
    slots.rows([old], 1)
    store.save(made(base, "s0", 99), overwrite=True)
    new = cache.fetch("s0")
    slots.rows([new, cache.fetch("s1")], 2)
    assert store.remove("s0")
    assert cache.forget("s0") == 4  # two versions, each in memory and in a slot
    assert old.forgotten
    assert new.forgotten
    assert [one.speaker for one in slots.held()] == ["s1"]
    bank = np.asarray(slots._bank)
    assert not any((row == vector).all() for row in bank for vector in (old.vector, new.vector))
    with pytest.raises(NoSubmodel):
        cache.fetch("s0")
    assert cache.fetch("s1").forgotten is False


def test_published_again_and_again_a_pinned_speaker_takes_one_slot(base, store):
    slots = Slots(2, SubmodelCache(store, base).layout(SPEC).size)
    cache = SubmodelCache(store, base, dropped=slots.drop)
    cache.pin("s0")
    for seed in range(4):
        store.save(made(base, "s0", 50 + seed), overwrite=True)
        slots.rows([cache.fetch("s0")], 1)
    slots.rows([cache.fetch("s1")], 1)
    assert {one.speaker for one in slots.held()} == {"s0", "s1"}


def test_whoever_is_replaced_while_being_pinned_is_not_pinned(base, store, monkeypatch):
    cache = SubmodelCache(store, base)
    fetch, found = cache.fetch, []

    def replaced(speaker):
        found.append(fetch(speaker))
        store.save(made(base, speaker, 99), overwrite=True)
        found.append(fetch(speaker))
        return found[0]

    monkeypatch.setattr(cache, "fetch", replaced)
    cache.pin("s0")
    assert [one.pinned for one in found] == [False, True]


def test_what_is_in_a_slot_is_not_read_again(base, store):
    watched = Watched(store)
    slots = Slots(4, SubmodelCache(store, base).layout(SPEC).size)
    cache = SubmodelCache(watched, base, bytes=1)
    slots.rows([cache.fetch("s0")], 1)
    cache.fetch("s1")
    slots.rows([cache.fetch("s0")], 1)
    assert watched.loads == ["s0", "s1"]
    assert slots.writes == 1


def test_what_is_forgotten_while_it_is_read_is_kept_by_nobody(base, store):
    watched = Watched(store, 0.3)
    cache = SubmodelCache(watched, base)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(cache.fetch, "s0")
        while not watched.loads:
            time.sleep(0.01)
        cache.forget("s0")
        with pytest.raises(NoSubmodel):
            reading.result()
    assert cache.held("s0") == 0
    assert cache.counts().resident == 0


def test_what_is_forgotten_gets_no_slot(base, store):
    cache = SubmodelCache(store, base)
    slots = Slots(2, cache.layout(SPEC).size)
    old = cache.fetch("s0")
    cache.forget("s0")
    with pytest.raises(Forgotten):
        slots.rows([old], 1)
    assert not slots.held()


def test_a_store_that_cannot_be_asked_forgets_nobody(base, store, monkeypatch):
    cache = SubmodelCache(store, base)
    kept = cache.fetch("s0")

    def fails(path):
        raise PermissionError(13, "no", str(path))

    monkeypatch.setattr("specialize.submodel.checkpoint.os.stat", fails)
    with pytest.raises(StoreError, match="cannot be looked at"):
        cache.fetch("s0")
    dropped, (error,) = cache.sweep()
    assert not dropped
    assert "cannot be looked at" in str(error)
    assert not kept.forgotten


def test_a_compact_file_is_a_store_too(tmp_path):
    """As many as there are in one file; the version is that of what the file says."""
    write_compact(small_space(), tmp_path / "people.safetensors")
    compact = CompactStore(tmp_path / "people.safetensors")
    speaker = next(iter(compact.speakers()))
    assert compact.version(speaker) is not None
    assert compact.version("nobody") is None
    assert isinstance(compact, Store)


def test_who_is_deleted_from_the_store_is_swept(base, store):
    cache = SubmodelCache(store, base)
    kept = [cache.fetch(speaker) for speaker in ("s0", "s1")]
    store.remove("s0")
    assert cache.sweep() == (1, [])
    assert [one.forgotten for one in kept] == [True, False]


@pytest.mark.parametrize("error", [StoreError("'s1' cannot be looked at"), RuntimeError("a client of a bucket")])
def test_who_cannot_be_looked_for_keeps_nobody_else_from_being_swept(base, store, monkeypatch, error):
    cache = SubmodelCache(store, base)
    kept = {speaker: cache.fetch(speaker) for speaker in ("s0", "s1", "s2")}
    for speaker in ("s0", "s2"):
        store.remove(speaker)
    look = store.version

    def version(speaker):
        if speaker == "s1":
            raise error
        return look(speaker)

    monkeypatch.setattr(store, "version", version)
    assert cache.sweep() == (2, [error])
    assert {speaker for speaker, one in kept.items() if one.forgotten} == {"s0", "s2"}


def test_trouble_is_the_trouble_of_one(base, store, tmp_path):
    cache = SubmodelCache(store, base)
    foreign = made(base, "foreign", 1)
    store.save(StoredSubmodel(foreign.submodel, SPEC, "foreign", "f" * 32))
    wide = made(base, "wide", 1, ResidualAdapter(bottleneck=3))
    store.save(StoredSubmodel(wide.submodel, SPEC, "wide", base.fingerprint))
    sick = made(base, "sick", 1)
    store.save(StoredSubmodel(jax.tree.map(lambda a: a * np.nan, sick.submodel), SPEC, "sick", base.fingerprint))
    elsewhere = LoRA(("nowhere/**",), rank=2)
    store.save(StoredSubmodel(sick.submodel, elsewhere, "elsewhere", base.fingerprint))
    store.save(made(base, "broken", 1))
    for path in (tmp_path / "broken" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    for speaker, error, words in (
        ("foreign", FingerprintMismatch, "f" * 32),
        ("wide", StoreError, "has not the parameters"),
        ("sick", StoreError, "not finite"),
        ("elsewhere", SpecError, "nowhere"),
        ("broken", StoreError, "damaged"),
        ("nobody", NoSubmodel, "nobody"),
        ("", StoreError, "empty"),
    ):
        with pytest.raises(error, match=words):
            cache.fetch(speaker)
    assert cache.fetch("s0").speaker == "s0"


def resident(value: float, size: int = 5) -> Resident:
    return Resident(str(value), SPEC, np.full(size, value, np.float32))


def test_slots_are_written_in_place_and_rows_stay_what_they_were():
    slots = Slots(3, 5)
    slots.warm([2])
    where = slots._bank.unsafe_buffer_pointer()
    a, b, c, d = (resident(float(i)) for i in range(1, 5))
    first = slots.rows([a, b], 2)
    second = slots.rows([c, d], 2)
    third = slots.rows([d, a], 2)
    assert slots.writes == 5
    assert slots._bank.unsafe_buffer_pointer() == where
    for rows, values in ((first, (1, 2)), (second, (3, 4)), (third, (4, 1))):
        np.testing.assert_array_equal(np.asarray(rows)[:, 0], values)


def test_a_slot_that_a_batch_needs_is_not_taken_for_another_of_it():
    slots = Slots(2, 5)
    a, b, c = (resident(float(i)) for i in range(1, 4))
    slots.rows([a, b], 2)
    np.testing.assert_array_equal(np.asarray(slots.rows([c, a], 2))[:, 0], (3, 1))
    c.pinned = a.pinned = True
    with pytest.raises(SpecializeError, match="pinned"):
        slots.rows([b], 1)


@pytest.mark.parametrize("written", [0, 2])
def test_a_write_that_failed_takes_no_slot_and_leaves_nothing_behind(monkeypatch, written):
    """The device had no room, with a bank or without one."""
    slots = Slots(2, 5)
    a, b, c = (resident(float(i)) for i in range(1, 4))
    for one in (a, b)[:written]:
        slots.rows([one], 1)

    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with monkeypatch.context() as patch:
        patch.setattr("specialize.serve.slots._write", full)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
                slots.rows([c], 1)
    assert not slots.held()
    assert not slots.on_device, "whoever made room would be in it still"
    np.testing.assert_array_equal(np.asarray(slots.rows([a, b], 2))[:, 0], (1, 2))


def test_who_cannot_be_written_over_is_gone_with_the_bank(monkeypatch):
    slots = Slots(2, 5)
    a, b = (resident(float(i)) for i in range(1, 3))
    slots.rows([a, b], 2)

    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with monkeypatch.context() as patch:
        patch.setattr("specialize.serve.slots._write", full)
        assert slots.drop(a)
    assert not slots.on_device
    np.testing.assert_array_equal(np.asarray(slots.rows([b, resident(3.0)], 2))[:, 0], (2, 3))
