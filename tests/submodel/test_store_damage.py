"""Whatever lies at a path, loading it ends in a StoreError or in the Submodel as it was saved, never in another."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from specialize.errors import StoreError
from specialize.submodel import SubmodelStore, load_submodel, save_submodel
from specialize.submodel.store import submodel_metadata
from tests.submodel.submodels import assert_same, stored

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Orbax awaits the first array that fails to load; that others fail too is told to nobody, after its loop is closed."""


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match="no Submodel at"):
        load_submodel(tmp_path / "nothing")


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("{}")], ids=["folder", "file"])
def test_something_else_there(tmp_path, make):
    make(tmp_path / "one")
    with pytest.raises(StoreError, match="not a stored Submodel"):
        load_submodel(tmp_path / "one")


def test_another_kind_of_checkpoint(tmp_path):
    from orbax.checkpoint import v1 as ocp

    ocp.save(tmp_path / "one", stored().submodel)
    with pytest.raises(StoreError, match="not a Submodel"):
        load_submodel(tmp_path / "one")


def test_a_later_format(tmp_path, monkeypatch):
    monkeypatch.setattr("specialize.submodel.store.FORMAT", 99)
    save_submodel(tmp_path / "one", stored())
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 99"):
        submodel_metadata(tmp_path / "one")


def test_each_file_in_turn_missing_cut_or_filled_with_zeros(tmp_path):
    store = SubmodelStore(tmp_path / "whole")
    store.save(stored())
    whole = Path(store.path("ana"))
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    needed = {max(files, key=lambda file: (whole / file).stat().st_size), Path("_CHECKPOINT_METADATA")}
    refused = []
    for number, file in enumerate(files):
        for way in ("missing", "cut", "zeros"):
            path = tmp_path / f"{number}-{way}"
            shutil.copytree(whole, path)
            content = (path / file).read_bytes()
            if way == "missing":
                (path / file).unlink()
            else:
                (path / file).write_bytes(content[: len(content) // 2] if way == "cut" else bytes(len(content)))
            try:
                assert_same(load_submodel(path), stored())
                assert file not in needed
            except StoreError as error:
                refused.append(str(path) in str(error))
    assert len(refused) > 3 * len(needed)
    assert all(refused)


def test_a_damaged_submodel_can_be_replaced(tmp_path):
    """A speaker is not lost for ever because of a broken folder: it can be deleted and saved anew."""
    store = SubmodelStore(tmp_path)
    store.save(stored())
    for path in Path(store.path("ana")).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert list(store.speakers()) == []
    assert "ana" not in store
    store.path("ana").rmtree()
    store.save(stored(seed=1))
    assert_same(store.load("ana"), stored(seed=1))


def test_what_cannot_be_read_may_be_anyones(tmp_path):
    store = SubmodelStore(tmp_path)
    store.save(stored("bob"))
    (tmp_path / "stray").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/_CHECKPOINT_METADATA").write_text("")
    assert store.remnants("ana") == []
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/_CHECKPOINT_METADATA").symlink_to("_CHECKPOINT_METADATA")  # which not even root can read
    with pytest.raises(StoreError, match=r"whose Submodel is at.*closed"):
        store.remnants("ana")
    assert list(store.speakers()) == ["bob"]
    assert store.remove("closed")


def test_whose_they_are_is_asked_of_many_at_once(tmp_path, monkeypatch):
    together = threading.Barrier(8, timeout=5)

    def asked(path):
        together.wait()
        raise StoreError("none")

    monkeypatch.setattr("specialize.submodel.store.submodel_metadata", asked)
    for number in range(8):
        (tmp_path / str(number)).mkdir()
    assert SubmodelStore(tmp_path).remnants("ana") == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spec", {"kind": "prefix"}, r"'prefix'.*Known"),
        ("spec", {"kind": "lora", "rank": -1}, "rank=-1"),
        ("spec", {"kind": "lora", "colour": 1}, "colour"),
        ("spec", None, "for spec"),
        ("format", "one", "for format"),
        ("speaker", 7, "for speaker"),
    ],
)
def test_metadata_that_a_person_edited(tmp_path, field, value, message):
    save_submodel(tmp_path / "one", stored())
    file = tmp_path / "one/_CHECKPOINT_METADATA"
    data = json.loads(file.read_text())
    data["custom_metadata"][field] = value
    file.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=message):
        load_submodel(tmp_path / "one")
