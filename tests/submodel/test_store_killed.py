"""A save that is killed, at any moment, leaves nothing that loads and no speaker in the list, and can be repeated."""

import functools
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specialize.errors import StoreError
from specialize.submodel import SubmodelStore
from tests.submodel.submodels import assert_same, stored

# Saves again and again, each time into a store of its own and in a child process that kills itself just before its n-th
# touch of the store's files, until a save comes through. What each child leaves is judged by the tests. JAX has not
# started any threads when the children are forked.
PROGRAM = """
import json, os, pathlib, signal, sys
from specialize.submodel import SubmodelStore
from tests.submodel.submodels import stored

folder, before = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])

def save(folder, moment):
    store = SubmodelStore(folder)
    touches = 0
    def hook(event, arguments):
        nonlocal touches
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"):
            if str(folder) in str(arguments[0]):
                touches += 1
                if touches == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
    if before:
        store.save(stored())
    store.save(stored("bob"))
    sys.addaudithook(hook)
    store.save(stored(seed=1), overwrite=before)

for moment in range(1, 1000):
    child = os.fork()
    if child == 0:
        save(folder / str(moment), moment)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The stores that killed saves left, in the order of the moments; the last one's save came through."""

    @functools.cache
    def stores(overwrite: bool) -> list[SubmodelStore]:
        folder = tmp_path_factory.mktemp("killed")
        arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), json.dumps(overwrite)]
        subprocess.run(arguments, check=True, cwd=Path(__file__).parents[2])
        found = [SubmodelStore(path) for path in sorted(folder.iterdir(), key=lambda path: int(path.name))]
        assert len(found) > 5, "the saves were not killed at several moments"
        return found

    return stores


def test_a_killed_save_leaves_nothing_that_loads(killed):
    *broken, whole = killed(False)
    assert_same(whole.load("ana"), stored(seed=1))
    absent = 0
    for store in broken:
        assert_same(store.load("bob"), stored("bob"))
        if "ana" in store:  # killed after the rename that completes a save
            assert_same(store.load("ana"), stored(seed=1))
            assert sorted(store.speakers()) == ["ana", "bob"]
        else:
            absent += 1
            assert list(store.speakers()) == ["bob"]
            with pytest.raises(StoreError):
                store.load("ana")
    assert absent > len(broken) / 2


def test_a_killed_save_can_be_repeated(killed):
    for store in killed(False)[:-1:4]:
        if "ana" not in store:
            store.save(stored(seed=2))
            assert_same(store.load("ana"), stored(seed=2))
            assert sorted(store.speakers()) == ["ana", "bob"]


def test_a_killed_overwrite_leaves_the_old_or_the_new(killed):
    *broken, whole = killed(True)
    assert_same(whole.load("ana"), stored(seed=1))
    assert sorted(path.name for path in whole.folder.iterdir()) == ["ana", "bob"]
    beside = 0
    for store in broken:
        assert list(store.speakers()) == sorted(store.listed()) == ["ana", "bob"]
        assert "ana" in store
        old_or_new = [stored(), stored(seed=1)]
        weights = store.load("ana").submodel["encoder/layers_0/fc1"]
        assert [one.submodel["encoder/layers_0/fc1"]["a"].tobytes() for one in old_or_new].count(
            weights["a"].tobytes()
        ) == 1
        beside += not store.path("ana").exists()
    assert beside == 1, "one was killed between its two renames"


def test_nobody_waits_for_a_writer_that_is_dead(tmp_path):
    store = SubmodelStore(tmp_path)
    store.save(stored())
    version = store.version("ana")
    store.path("ana").rename(tmp_path / "ana%%old")  # which is what is left of a writer that was killed then
    began = time.monotonic()
    for _ in range(20):
        assert store.version("ana") == version
        assert store.version("eve") is None
    assert time.monotonic() - began < 1.0
    assert_same(store.load("ana"), stored())
    store.save(stored(seed=1))
    assert store.version("ana") not in (version, None)
    assert_same(store.load("ana"), stored(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["ana"]


def test_a_speaker_whose_replacement_was_killed_can_be_forgotten(tmp_path):
    store = SubmodelStore(tmp_path)
    store.save(stored())
    store.path("ana").rename(tmp_path / "ana%%old")
    assert store.remove("ana")
    assert store.version("ana") is None
    assert not store.remnants("ana")


def test_whoever_reads_while_it_is_replaced_gets_the_old_or_the_new(tmp_path):
    store, told = SubmodelStore(tmp_path), []
    store.save(stored())
    known = [stored(seed=i).submodel["encoder/layers_0/fc1"]["a"].tobytes() for i in range(2)]
    program = (
        "import sys; from specialize.submodel import SubmodelStore; from tests.submodel.submodels import stored; "
        "[SubmodelStore(sys.argv[1]).save(stored(seed=i % 2), overwrite=True) for i in range(1, 40)]"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as writer:
        while writer.poll() is None:
            assert store.version("ana") is not None
            assert "ana" in store
            told.append(known.index(store.load("ana").submodel["encoder/layers_0/fc1"]["a"].tobytes()))
    assert writer.returncode == 0
    assert sum(a != b for a, b in itertools.pairwise(told)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["ana"]


def test_a_killed_overwrite_can_be_repeated(killed):
    for store in killed(True)[:-1:4]:
        store.save(stored(seed=2), overwrite=True)
        assert_same(store.load("ana"), stored(seed=2))
        assert sorted(path.name for path in store.folder.iterdir()) == ["ana", "bob"]
