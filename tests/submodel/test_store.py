"""The store: what is saved comes back anywhere, belongs to one base and one speaker, and is whole or not there."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from specialize.errors import FingerprintMismatch, StoreError
from specialize.submodel import (
    LoRA,
    StoredSubmodel,
    SubmodelStore,
    find_sites,
    init_submodel,
    load_submodel,
    save_submodel,
    size,
)
from specialize.submodel.store import speaker_folder, submodel_metadata
from tests.bases import tiny_whisper

SPEC = LoRA(rank=2)


def stored(speaker: str = "ana", seed: int = 0) -> StoredSubmodel:
    base = tiny_whisper()
    submodel = init_submodel(SPEC, find_sites(SPEC, base.architecture, base.params), jax.random.key(seed))
    return StoredSubmodel(submodel, SPEC, speaker, base.fingerprint, {"steps": 7, "looks": [[0, 1.5], [3, None]]})


def assert_same(left: StoredSubmodel, right: StoredSubmodel) -> None:
    assert (left.spec, left.speaker, left.base, left.training) == (
        right.spec,
        right.speaker,
        right.base,
        right.training,
    )
    jax.tree.map(np.testing.assert_array_equal, dict(left.submodel), dict(right.submodel))


def test_round_trip(tmp_path):
    save_submodel(tmp_path / "one", stored())
    assert_same(load_submodel(tmp_path / "one", base=tiny_whisper().fingerprint), stored())


def test_loads_in_a_process_of_one_device_without_the_run(tmp_path):
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("x",)), jax.P())
    spread = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), stored().submodel)
    save_submodel(tmp_path / "one", StoredSubmodel(spread, SPEC, "ana", "f" * 32))
    script = (
        "import sys, jax, numpy as np; from specialize.submodel import load_submodel\n"
        "assert jax.device_count() == 1\n"
        "loaded = load_submodel(sys.argv[1]); print(sum(float(np.abs(v).sum()) for w in loaded.submodel.values() for v in w.values()))"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "one")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(stored().submodel))
    np.testing.assert_allclose(float(result.stdout), expected, rtol=1e-6)


def test_another_base_is_refused_naming_both(tmp_path):
    save_submodel(tmp_path / "one", stored())
    with pytest.raises(FingerprintMismatch, match=f"(?s){tiny_whisper().fingerprint}.*{'e' * 32}"):
        load_submodel(tmp_path / "one", base="e" * 32)


def test_overwriting_needs_leave_and_the_same_speaker(tmp_path):
    save_submodel(tmp_path / "one", stored())
    with pytest.raises(StoreError, match="there already"):
        save_submodel(tmp_path / "one", stored(seed=1))
    assert_same(load_submodel(tmp_path / "one"), stored())
    save_submodel(tmp_path / "one", stored(seed=1), overwrite=True)
    assert_same(load_submodel(tmp_path / "one"), stored(seed=1))
    with pytest.raises(StoreError, match="another speaker"):
        save_submodel(tmp_path / "one", stored("bob"), overwrite=True)


HARD = [
    "../x",
    ".",
    "..",
    "a/b",
    "a%2Fb",
    "%41",
    "A",
    "a",
    " ",
    "a b",
    "ä",
    "中文",
    "x" * 500,
    "x" * 501,
    "end.",
    "nul\0",
    "~",
    "-",
]


def test_any_speaker_id_has_a_folder_of_its_own(tmp_path):
    names = [speaker_folder(speaker) for speaker in HARD]
    assert len(set(names)) == len(HARD)
    for name in names:
        assert len(name.encode()) <= 120
        assert not name.startswith(".")
        assert not name.endswith(".")
        assert not set(name) & set('/\\\0 :*?"<>|')
    store = SubmodelStore(tmp_path / "store")
    for speaker in HARD[:6]:
        store.save(stored(speaker))
    for speaker in HARD[:6]:
        assert store.load(speaker).speaker == speaker
        assert speaker in store
        assert store.path(speaker).parent == store.folder
    assert set(store.speakers()) == set(HARD[:6])
    assert "nobody" not in store


def test_an_empty_id_is_refused():
    with pytest.raises(StoreError, match="empty"):
        speaker_folder("")


def test_damage_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no Submodel at"):
        load_submodel(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="not a stored Submodel"):
        load_submodel(tmp_path / "empty")
    save_submodel(tmp_path / "one", stored())
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        load_submodel(tmp_path / "one")


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("specialize.submodel.store.FORMAT", 99)
    save_submodel(tmp_path / "one", stored())
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 99"):
        submodel_metadata(tmp_path / "one")


@pytest.mark.parametrize("after", [0.0, 0.05, 0.15])
def test_a_killed_save_leaves_nothing_that_loads(tmp_path, after):
    script = (
        "import sys; from specialize.submodel import SubmodelStore; from tests.submodel.test_store import stored\n"
        "one = stored(); store = SubmodelStore(sys.argv[1]); store.save(stored('before')); print('now', flush=True)\n"
        "store.save(one)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "now\n"
    time.sleep(after)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = SubmodelStore(tmp_path)
    found = set(store.speakers())
    assert "before" in found
    assert found <= {"before", "ana"}
    if "ana" in found:
        assert size(store.load("ana").submodel) == size(stored().submodel)
    else:
        with pytest.raises(StoreError):
            store.load("ana")
        store.save(stored(), overwrite=True)
        assert_same(store.load("ana"), stored())


def test_metadata_is_plain_json(tmp_path):
    save_submodel(tmp_path / "one", stored())
    assert json.loads(json.dumps(submodel_metadata(tmp_path / "one")))["speaker"] == "ana"
