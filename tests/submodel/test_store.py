"""The store: what is saved comes back, on any number of devices, for its own base and its own speaker only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.errors import FingerprintMismatch, StoreError
from specialize.submodel import StoredSubmodel, SubmodelStore, load_submodel, save_submodel
from specialize.submodel.store import submodel_metadata
from tests.submodel.programs import SPECS, fresh, shaken
from tests.submodel.submodels import BASE, assert_same, stored


@pytest.mark.parametrize("kind", SPECS)
def test_every_kind_comes_back_bit_for_bit(kind, tmp_path):
    submodel = shaken(fresh("whisper", kind))
    training = {"steps": 7, "looks": [[0, 1.5], [3, None]], "lr": 1e-3, "name": "ä", "nested": {"best": True}}
    saved = StoredSubmodel(submodel, SPECS[kind], "ana", BASE, training)
    save_submodel(tmp_path / "run/submodels/ana", saved)
    loaded = load_submodel(tmp_path / "run/submodels/ana", base=BASE)
    assert_same(loaded, saved)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.submodel))


def test_what_eight_devices_saved_loads_on_one(tmp_path):
    mesh = jax.make_mesh((8,), ("speaker",))
    spread = jax.tree.map(
        lambda leaf: jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*[None] * (leaf.ndim - 1), "speaker"))),
        {"encoder/layers_0/fc1": {"b": stored().submodel["encoder/layers_0/fc1"]["b"]}},
    )
    save_submodel(tmp_path / "one", StoredSubmodel(spread, stored().spec, "ana", BASE))
    program = """if True:
        import sys, jax, numpy as np
        from specialize.submodel import load_submodel
        assert jax.device_count() == 1
        np.save(sys.argv[2], load_submodel(sys.argv[1]).submodel["encoder/layers_0/fc1"]["b"])
    """
    environment = os.environ | {"XLA_FLAGS": ""}
    arguments = [sys.executable, "-c", program, str(tmp_path / "one"), str(tmp_path / "b.npy")]
    subprocess.run(arguments, env=environment, check=True, cwd=Path(__file__).parents[2])
    np.testing.assert_array_equal(
        np.load(tmp_path / "b.npy"), stored().submodel["encoder/layers_0/fc1"]["b"], strict=True
    )


def test_another_base_is_refused_naming_both(tmp_path):
    save_submodel(tmp_path / "one", stored())
    with pytest.raises(FingerprintMismatch, match=f"{BASE}.*{'e' * 32}"):
        load_submodel(tmp_path / "one", base="e" * 32)
    store = SubmodelStore(tmp_path)
    store.save(stored())
    with pytest.raises(FingerprintMismatch, match=f"{BASE}.*{'e' * 32}"):
        store.load("ana", base="e" * 32)


def test_overwriting_needs_leave_and_the_same_speaker(tmp_path):
    path = tmp_path / "one"
    save_submodel(path, stored())
    with pytest.raises(StoreError, match="there already"):
        save_submodel(path, stored(seed=1))
    assert_same(load_submodel(path), stored())
    save_submodel(path, stored(seed=1), overwrite=True)
    assert_same(load_submodel(path), stored(seed=1))
    with pytest.raises(StoreError, match="another speaker"):
        save_submodel(path, stored("bob"), overwrite=True)
    assert_same(load_submodel(path), stored(seed=1))


def test_a_store_lists_its_speakers_and_nothing_else(tmp_path):
    store = SubmodelStore(tmp_path / "submodels")
    assert list(store.speakers()) == []
    assert "ana" not in store
    for speaker in ("ana", "bob"):
        store.save(stored(speaker))
    (store.folder / "notes.txt").write_text("not a Submodel")
    (store.folder / "empty").mkdir()
    assert sorted(store.speakers()) == ["ana", "bob"]
    assert "bob" in store
    assert "cyd" not in store
    with pytest.raises(StoreError, match="no Submodel at"):
        store.load("cyd")


def test_speakers_whose_folders_a_file_system_does_not_tell_apart_are_never_mixed_up(tmp_path):
    """As where case is ignored: there 'ANA' and 'ana' are one folder, which a link stands for here."""
    store = SubmodelStore(tmp_path)
    store.save(stored("ana"))
    os.symlink(store.path("ana"), store.path("ANA"))
    assert "ANA" not in store
    with pytest.raises(StoreError, match="'ana', not of 'ANA'"):
        store.load("ANA")
    for overwrite in (False, True):
        with pytest.raises(StoreError):
            store.save(stored("ANA", seed=1), overwrite=overwrite)
    assert_same(store.load("ana"), stored("ana"))


def test_metadata_is_plain_json_and_reads_without_the_arrays(tmp_path):
    save_submodel(tmp_path / "one", stored(steps=3))
    metadata = submodel_metadata(tmp_path / "one")
    assert json.loads(json.dumps(metadata)) == metadata
    assert (metadata["speaker"], metadata["base"], metadata["training"]) == ("ana", BASE, {"steps": 3})


@pytest.mark.parametrize("fact", [np.float32(1), {1, 2}, b"bytes"])
def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path, fact):
    with pytest.raises(StoreError, match=r"'ana' is not JSON data"):
        save_submodel(tmp_path / "one", stored(fact=fact))
    assert list(tmp_path.iterdir()) == []
