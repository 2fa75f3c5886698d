"""A compact file is served as a folder of Submodels is: any speaker, by the same cache; replaced, and forgotten."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import jax
import numpy as np
import pytest
import soundfile

import specialize.cli as cli
from specialize.base import save_base
from specialize.errors import FingerprintMismatch, NoSubmodel, StoreError
from specialize.serve.audio import AudioDecoder
from specialize.serve.cache import SubmodelCache
from specialize.serve.recognizer import Recognizer
from specialize.serve.service import Service
from specialize.serve.stores import open_store
from specialize.space import CompactStore, CompactSubmodels, Linear, Space, compact, compact_submodels, write_compact
from specialize.submodel import SubmodelStore
from tests.serve.services import listening, wav
from tests.serve.stores import SPEC, clips, made, talking
from tests.space.spaces import small_space


def write(path: Path, speakers: int = 4, **moved: float) -> Path:
    """A compact file of s0, s1, …, some of whose embeddings are moved."""
    base = talking()
    mean = made(base, "", 0, scale=0.1).submodel
    rng = np.random.default_rng(0)
    basis = jax.tree.map(lambda leaf: rng.standard_normal((2, *leaf.shape)).astype(np.float32), mean)
    embeddings = {f"s{i}": rng.standard_normal(2).astype(np.float32) + moved.get(f"s{i}", 0.0) for i in range(speakers)}
    write_compact(Space(Linear(2), SPEC, base.fingerprint, {"mean": mean, "basis": basis}, embeddings), path)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path / "people.safetensors")


def test_a_recogniser_takes_anyone_from_a_file(file, monkeypatch):
    opened = []

    class Counted(CompactStore):
        def __init__(self, path):
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(compact_submodels, "CompactStore", Counted)
    recognizer, clip = Recognizer(talking(), str(file), batch=1), clips(1)[0]
    texts = [recognizer.transcribe(clip, speaker=f"s{i}") for i in range(4)]
    assert texts == [recognizer.transcribe(clip, CompactStore(file).load(f"s{i}")) for i in range(4)]
    assert len({*texts, recognizer.transcribe(clip)}) > 2
    assert len(opened) == 1
    with pytest.raises(NoSubmodel, match="'nobody'"):
        recognizer.transcribe(clip, speaker="nobody")


def test_a_file_that_is_replaced_is_followed(file):
    store = CompactSubmodels(file)
    before = {name: store.version(name) for name in ("s0", "s1")}
    cache = SubmodelCache(store, talking())
    old = {name: cache.fetch(name) for name in before}
    write(file, s0=1.0)
    assert store.version("s0") not in (before["s0"], None)
    assert not np.array_equal(cache.fetch("s0").vector, old["s0"].vector)
    np.testing.assert_allclose(cache.fetch("s1").vector, old["s1"].vector, atol=1e-2)


def test_who_is_deleted_is_gone_and_the_others_are_as_they_were(file):
    store, other = CompactSubmodels(file), CompactSubmodels(file)
    others = ("s0", "s1", "s3")
    versions, kept = [store.version(name) for name in others], [store.load(name) for name in others]
    assert other.version("s2") is not None
    assert store.remnants("s2")
    assert store.remove("s2")
    assert not store.remove("s2")
    for each in (store, other):  # also whoever had the file open
        assert each.version("s2") is None
        assert "s2" not in each
        assert list(each.listed()) == list(others)
        assert not each.remnants("s2")
        assert [each.version(name) for name in others] == versions
    for one, name in zip(kept, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, store.load(name).submodel, one.submodel)
    assert store.specs(talking().fingerprint) == {SPEC: 3}
    assert store.specs("another") == {}
    assert b"s0s1s3" in file.read_bytes()
    for name in others:
        assert store.remove(name)
    assert list(store.listed()) == []
    assert store.specs(talking().fingerprint) == {}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_those_who_are_deleted_at_once_are_all_gone(tmp_path):
    file = write(tmp_path / "people.safetensors", 12)
    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(lambda i: CompactSubmodels(file).remove(f"s{i}"), range(11)))
    assert list(CompactSubmodels(file).listed()) == ["s11"]


def test_a_link_stays_and_what_it_leads_to_changes(tmp_path):
    (tmp_path / "kept").mkdir()
    file, link = write(tmp_path / "kept/people.safetensors"), tmp_path / "current.safetensors"
    link.symlink_to("kept/people.safetensors")
    store = CompactSubmodels(link)
    assert store.remove("s2")
    assert link.is_symlink()
    assert list(CompactSubmodels(file).listed()) == list(store.listed()) == ["s0", "s1", "s3"]
    write(link, 5)
    assert link.is_symlink()
    assert len(list(CompactSubmodels(file).listed())) == 5
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [file.name]


def test_what_a_killed_write_left_goes_too(file):
    program = (
        "import os, sys; import specialize.submodel.tensors as tensors; from specialize.space import CompactSubmodels; "
        "save = tensors.save_file; "
        "tensors.save_file = lambda *told, **more: (save(*told, **more), os._exit(9)); "
        "CompactSubmodels(sys.argv[1]).remove('s0')"
    )
    subprocess.run([sys.executable, "-c", program, str(file)])
    store = CompactSubmodels(file)
    (file.parent / "people.safetensors.kept.tmp").touch()
    left = [path for path in file.parent.iterdir() if b"s1s2s3" in path.read_bytes() and path != file]
    assert len(left) == 1
    assert sorted(store.remnants("s1")) == sorted([file, *left])
    assert store.remnants("nobody") == left  # it may be anyone's
    assert store.remove("s1")
    assert not store.remnants("s1")
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, "people.safetensors.kept.tmp"]


def test_who_may_read_a_file_does_not_change(file):
    assert file.stat().st_mode & 0o777 == 0o644
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1234, 1235)
    before = file.stat()
    CompactSubmodels(file).remove("s0")
    write(file)
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_what_is_published_while_somebody_is_deleted_stays(file, monkeypatch):
    publisher, write_tensors = threading.Thread(target=lambda: write(file, s0=1.0)), compact.write_tensors

    def slow(*told):
        if threading.current_thread() is not publisher:
            publisher.start()
            publisher.join(1.0)
        write_tensors(*told)

    store = CompactSubmodels(file)
    old = store.version("s0")
    monkeypatch.setattr(compact, "write_tensors", slow)
    assert store.remove("s2")
    publisher.join()
    assert store.version("s0") not in (old, None)


def test_where_folders_have_no_locks_a_file_is_written_and_nobody_deleted(file, monkeypatch):
    def fails(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")  # what NFS says

    monkeypatch.setattr(compact.fcntl, "flock", fails)
    write(file, 5)
    store = CompactSubmodels(file)
    assert len(list(store.listed())) == 5
    for ask in (store.remove, store.remnants):
        with pytest.raises(StoreError, match=r"cannot be changed: .*Bad file descriptor"):
            ask("s0")
    assert "s0" in store


def test_a_server_forgets_a_speaker_of_a_file(file):
    store = CompactSubmodels(file)
    service = Service(Recognizer(talking(), store, batch=1), store, AudioDecoder(), lengths=(1.0,))
    service.warm(list(store.specs(talking().fingerprint)))
    clip = clips(1)[0]
    with listening(service) as address, httpx.Client(base_url=address, timeout=60) as browser:

        def ask(name: str) -> httpx.Response:
            return browser.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(clip))}, data={"model": name})

        assert [model["id"] for model in browser.get("/v1/models").json()["data"]] == ["base", "s0", "s1", "s2", "s3"]
        said = ask("s1").json()["text"]
        assert said == service.recognizer.transcribe(clip, speaker="s1").strip()
        assert ask("s2").status_code == 200
        assert browser.delete("/v1/models/s2").json()["copies_dropped"] == 2
        assert ask("s2").status_code == browser.get("/v1/models/s2").status_code == 404
        assert ask("s1").json()["text"] == said
    service.close()


def test_what_cannot_be_opened_is_told(file, tmp_path):
    assert isinstance(open_store(tmp_path), SubmodelStore)
    with pytest.raises(FingerprintMismatch, match="are of the base"):
        Recognizer(talking(), write_compact(small_space(), tmp_path / "other.safetensors").path)
    with pytest.raises(StoreError, match="There is no compact store"):
        open_store(tmp_path / "nothing.safetensors")
    with pytest.raises(StoreError, match="Copy it to a local disk"):
        open_store("gs://bucket/people.safetensors")
    (tmp_path / "text").write_text("no store")
    with pytest.raises(StoreError, match="not a compact store"):
        open_store(tmp_path / "text")
    store = CompactSubmodels(file)
    file.unlink()
    with pytest.raises(StoreError, match="There is no compact store"):
        store.version("s0")


def test_the_commands_take_a_file(file, tmp_path, capsys):
    save_base(talking(), tmp_path / "base")
    clip = clips(1)[0]
    soundfile.write(tmp_path / "a.wav", clip, 16_000, subtype="FLOAT")
    words = ["transcribe", str(tmp_path / "base"), str(tmp_path / "a.wav"), "--submodel", str(file)]
    cli.main([*words, "--speaker", "s1"])
    expected = Recognizer(talking(), file).transcribe(clip, speaker="s1")
    assert capsys.readouterr().out.strip() == expected.strip()
    for wrong, message in ((words, "Say whose"), ([*words[:3], "--speaker", "s1"], "name the folder or file")):
        with pytest.raises(SystemExit):
            cli.main(wrong)
        assert message in capsys.readouterr().err
    cli.main(["forget", "s1", "--submodels", str(file)])
    assert "deleted; 0 files or folders left" in capsys.readouterr().out
    assert list(CompactSubmodels(file).listed()) == ["s0", "s2", "s3"]
    serve = [sys.executable, "-m", "specialize.cli", "serve", "--base", str(tmp_path / "base"), "--base-name", "s0"]
    ended = subprocess.run([*serve, "--submodels", str(file)], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "stands for the base" in ended.stderr  # which is asked of the file
