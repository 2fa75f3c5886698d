"""One file for a Submodel of any kind: it comes back to the last bit, or says what is wrong with it."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from specialize.errors import FingerprintMismatch, StoreError
from specialize.export import read_safetensors, write_safetensors
from specialize.export.safetensors import _check, read_file
from specialize.submodel import StoredSubmodel
from tests.bases import BASES
from tests.submodel.programs import SPECS, base_of, fresh, shaken
from tests.submodel.submodels import BASE, assert_same, stored


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("kind", SPECS)
def test_every_kind_comes_back_bit_for_bit(name, kind, tmp_path):
    base = base_of(name).fingerprint
    training = {"steps": 7, "looks": [[0, 1.5], [3, None]], "lr": 1e-3, "name": "ä", "nested": {"best": True}}
    saved = StoredSubmodel(shaken(fresh(name, kind)), SPECS[kind], "ana", base, training)
    write_safetensors(saved, tmp_path / "ana.safetensors")
    loaded = read_safetensors(tmp_path / "ana.safetensors", base=base)
    assert_same(loaded, saved)
    assert loaded.submodel.keys() == saved.submodel.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"ana.safetensors"}
    assert (tmp_path / "ana.safetensors").stat().st_mode & 0o777 == 0o644


def test_values_that_are_no_numbers_and_arrays_that_lie_otherwise_come_back(tmp_path):
    a = np.array([[np.nan, -0.0], [np.inf, 1e-42], [3.0, 4.0]], np.float32)
    saved = dataclasses.replace(stored(), submodel={"x": {"a": a.T, "b": np.zeros((0, 2), np.float32)}})
    write_safetensors(saved, tmp_path / "one")
    loaded = read_safetensors(tmp_path / "one").submodel["x"]
    np.testing.assert_array_equal(loaded["a"].view(np.uint32), np.ascontiguousarray(a.T).view(np.uint32))
    assert loaded["b"].shape == (0, 2)


@pytest.mark.parametrize("speaker", ["ana", "Ünä/..", "two\nlines", "\udc80", '"{}"'])
def test_any_speaker(tmp_path, speaker):
    write_safetensors(stored(speaker), tmp_path / "one")
    assert read_safetensors(tmp_path / "one").speaker == speaker


def test_others_read_it_by_name(tmp_path):
    write_safetensors(stored(steps=3), tmp_path / "one")
    assert load_file(tmp_path / "one").keys() == {"encoder/layers_0/fc1/a", "encoder/layers_0/fc1/b"}
    with safe_open(tmp_path / "one", framework="numpy") as file:
        told = json.loads(file.metadata()["submodel"])
    assert (told["speaker"], told["base"], told["training"]) == ("ana", BASE, {"steps": 3})
    assert (told["format"], told["spec"]["kind"], told["spec"]["rank"]) == (1, "lora", 2)


def test_nothing_is_replaced(tmp_path):
    write_safetensors(stored(), tmp_path / "one")
    with pytest.raises(StoreError, match="there already"):
        write_safetensors(stored(seed=1), tmp_path / "one")
    assert_same(read_safetensors(tmp_path / "one"), stored())


def test_another_base_is_refused_naming_both(tmp_path):
    write_safetensors(stored(), tmp_path / "one")
    with pytest.raises(FingerprintMismatch, match=f"one.*{BASE}.*{'e' * 32}"):
        read_safetensors(tmp_path / "one", base="e" * 32)


def test_training_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(StoreError, match="'ana' is not JSON data"):
        write_safetensors(stored(fact={1, 2}), tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_whatever_byte_is_changed_is_noticed(tmp_path):
    write_safetensors(stored(), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(StoreError, match="changed"):
            read_safetensors(tmp_path / "changed")
    for end in (0, 5, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:end])
        with pytest.raises(StoreError, match="cut"):
            read_safetensors(tmp_path / "cut")


def test_what_is_something_else_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no Submodel at"):
        read_safetensors(tmp_path / "nothing")
    (tmp_path / "text").write_text("{}")
    with pytest.raises(StoreError, match="text"):
        read_safetensors(tmp_path / "text")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "foreign", metadata={"specialize": "{}", "check": "0"})
    with pytest.raises(StoreError, match=r"foreign.*specialize export"):
        read_safetensors(tmp_path / "foreign")


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("specialize.export.safetensors.FORMAT", 99)
    write_safetensors(stored(), tmp_path / "one")
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"one.*format 99.*up to 1"):
        read_safetensors(tmp_path / "one")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"speaker": 7}, "for speaker"),
        ({"base": None, "training": []}, "for base, training"),
        ({"spec": {"kind": "prefix"}}, "'prefix'.*Known"),
        ({"spec": {"kind": "lora", "rank": -1}}, "rank=-1"),
    ],
)
def test_a_header_that_a_person_wrote_is_checked(tmp_path, entries, message):
    write_safetensors(stored(), tmp_path / "one")
    tensors, metadata = read_file(tmp_path / "one", "Submodel")
    text = json.dumps(json.loads(metadata["submodel"]) | entries)
    save_file(tensors, tmp_path / "one", metadata={"submodel": text, "check": _check(text, tensors)})
    with pytest.raises(StoreError, match=f"one.*{message}"):
        read_safetensors(tmp_path / "one")
