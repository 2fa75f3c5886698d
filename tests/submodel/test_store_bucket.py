"""A store in a bucket, S3's or Google's, on loopback: read, listed, followed and deleted from as a folder is."""

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import httpx
import numpy as np
import pytest
from fsspec.config import conf

import specialize.cli as cli
from specialize.errors import FingerprintMismatch, NoSubmodel, StoreError
from specialize.serve.cache import SubmodelCache
from specialize.serve.stores import check_there, open_store
from specialize.submodel import SubmodelStore
from tests.serve.stores import SPEC, made, store_of, talking
from tests.submodel.submodels import assert_same


class S3:
    """An S3 on loopback, by moto."""

    scheme, needs = "s3", ("moto", "flask_cors", "s3fs")
    environment: ClassVar = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}",
        "AWS_CONFIG_FILE": "/nowhere",
    }

    @staticmethod
    def command(port: int) -> list[str]:
        return ["moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def __init__(self, address: str):
        import boto3

        self._client = boto3.client("s3", endpoint_url=address)

    def make(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=bucket, Key=key, Body=content)

    def keys(self, bucket: str) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket=bucket).get("Contents", ())]


class GoogleStorage:
    """Google's, on loopback."""

    scheme, needs = "gs", ("gcp_storage_emulator", "gcsfs", "google.cloud.storage")
    environment: ClassVar = {
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:{port}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks Google what kind of bucket it is
    }

    @staticmethod
    def command(port: int) -> list[str]:
        return ["gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]

    def __init__(self, address: str):
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        options = {"api_endpoint": address}
        self._client = storage.Client("project", AnonymousCredentials(), client_options=options)

    def make(self, bucket: str) -> None:
        self._client.create_bucket(bucket)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._client.bucket(bucket).blob(key).upload_from_string(content)

    def keys(self, bucket: str) -> list[str]:
        return [found.name for found in self._client.list_blobs(bucket)]


@pytest.fixture(scope="module", params=[S3, GoogleStorage], ids=lambda kind: kind.scheme)
def server(request):
    """A client of a storage on loopback, to which this process goes."""
    kind = request.param
    missing = [name for name in kind.needs if not there(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", *kind.command(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                assert time.monotonic() < until
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as environment:
            for name, value in kind.environment.items():
                environment.setenv(name, value.format(port=port))
            environment.setitem(conf, "gs", {"token": "anon"})
            yield kind(address)
    finally:
        process.terminate()
        process.wait(10)


def there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it is in
        return False


class Bucket:
    """A bucket of its own for each test, filled from a folder as `aws s3 sync` and `gcloud storage rsync` do."""

    def __init__(self, server: S3 | GoogleStorage, name: str, folder: Path):
        self.server, self.name, self.folder = server, name, folder
        server.make(name)
        self.path = f"{server.scheme}://{name}/run/submodels"

    def sync(self) -> None:
        for file in self.files():
            self.put(file)

    def put(self, file: Path) -> None:
        self.write(f"run/submodels/{file.relative_to(self.folder)}", file.read_bytes())

    def write(self, key: str, content: bytes) -> None:
        self.server.put(self.name, key, content)

    def files(self) -> list[Path]:
        return [file for file in sorted(self.folder.rglob("*")) if file.is_file()]

    def listed(self) -> list[str]:
        return self.server.keys(self.name)


@pytest.fixture
def bucket(server, tmp_path, request) -> Bucket:
    store_of(tmp_path, talking(), 3)
    made_ = Bucket(server, f"people-{abs(hash(request.node.name)) % 10**9}", tmp_path)
    made_.sync()
    return made_


def test_what_is_in_a_bucket_is_what_is_in_the_folder(bucket):
    far, near = open_store(bucket.path), SubmodelStore(bucket.folder)
    assert isinstance(far, SubmodelStore)
    check_there(far)
    assert list(far.speakers()) == sorted(far.listed()) == ["s0", "s1", "s2"]
    for name in far.listed():
        assert name in far
        assert_same(far.load(name, base=talking().fingerprint), near.load(name))
    assert far.specs(talking().fingerprint) == {SPEC: 3}
    assert far.version("s0") not in (None, far.version("s1"))
    assert far.version("nobody") is None
    assert "nobody" not in far
    with pytest.raises(StoreError, match="no Submodel at"):
        far.load("nobody")
    with pytest.raises(FingerprintMismatch):
        far.load("s0", base="another")


def test_what_others_publish_in_a_bucket_is_used_next(bucket):
    cache = SubmodelCache(far := SubmodelStore(bucket.path), talking())
    old = cache.fetch("s0")
    assert "s9" not in list(far.listed())
    assert cache.fetch("s0") is old
    near = SubmodelStore(bucket.folder)
    near.save(made(talking(), "s0", 99), overwrite=True)
    near.save(made(talking(), "s9", 9))
    bucket.sync()
    new = cache.fetch("s0")
    np.testing.assert_array_equal(new.vector, cache.layout(SPEC).pack(near.load("s0").submodel, ""))
    assert not np.array_equal(new.vector, old.vector)
    assert "s9" in list(far.listed())
    assert cache.fetch("s9").speaker == "s9"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_store_damage.py
@pytest.mark.parametrize("order", ["by name", "arrays first", "arrays last"])
def test_whoever_asks_while_files_are_copied_has_the_new_ones_in_the_end(bucket, order):
    cache, near = SubmodelCache(SubmodelStore(bucket.path), talking()), SubmodelStore(bucket.folder)
    old = cache.fetch("s0").vector
    near.save(made(talking(), "s0", 99, beats_base_on_dev=False), overwrite=True)
    near.save(made(talking(), "s9", 9))
    files = [file for file in bucket.files() if file.relative_to(bucket.folder).parts[0] in ("s0", "s9")]
    arrays = [file for file in files if file.parent.name == "d"]
    others = [file for file in files if file not in arrays]
    for file in {"by name": files, "arrays first": arrays + others, "arrays last": others + arrays}[order]:
        bucket.put(file)
        with contextlib.suppress(StoreError):
            found = cache.fetch(file.relative_to(bucket.folder).parts[0])
            assert order != "arrays first" or file not in arrays or found.vector is old
    for name in ("s0", "s9"):
        found = cache.fetch(name)
        np.testing.assert_array_equal(found.vector, cache.layout(SPEC).pack(near.load(name).submodel, ""))
        assert found.helps == (name == "s9")


def test_who_is_forgotten_in_a_bucket_is_gone(bucket, capsys):
    for name, content in (("config.json", b"{}"), ("jobs.jsonl", b'{"speaker": "s1"}'), ("space/x", b"")):
        bucket.write(f"run/{name}", content)
    cli.main(["forget", "s1", "--submodels", bucket.path])
    said = capsys.readouterr().out
    assert "deleted; 0 files or folders left" in said
    assert "jobs.jsonl' names the speaker still" in said
    assert "run/space' may have what makes" in said
    assert not any("/s1/" in key for key in bucket.listed())
    far = SubmodelStore(bucket.path)
    assert far.version("s1") is None
    assert not far.remove("s1")
    assert sorted(far.listed()) == ["s0", "s2"]
    with pytest.raises(NoSubmodel):
        SubmodelCache(far, talking()).fetch("s1")


def test_a_speaker_may_be_called_as_the_folder_is(bucket):
    far = SubmodelStore(bucket.path)
    SubmodelStore(bucket.folder).save(made(talking(), "submodels", 7))
    bucket.sync()
    bucket.write("run/submodels/", b"")  # as consoles mark a folder
    assert "submodels" in list(far.listed())
    assert [path.name for path in far.remnants("submodels")] == ["submodels"]
    assert far.remove("submodels")
    assert far.version("submodels") is None
    assert sorted(far.listed()) == ["s0", "s1", "s2"]
    assert not any("/submodels/submodels/" in key for key in bucket.listed())


def test_a_look_that_fails_is_no_proof(bucket, monkeypatch):
    far = SubmodelStore(bucket.path)
    shutil.copytree(bucket.folder / "s1", bucket.folder / "copy")
    bucket.sync()
    assert far.remove("s1")
    with monkeypatch.context() as patch:
        patch.setattr("specialize.submodel.checkpoint.is_there", None)  # each costs one request
        assert [path.name for path in far.remnants("s1")] == ["copy"]
    asked = fsspec.core.url_to_fs

    def fails(path, **how):
        if "/copy/" in path:
            raise TimeoutError("no answer")
        return asked(path, **how)

    monkeypatch.setattr("fsspec.core.url_to_fs", fails)
    with pytest.raises(StoreError, match=r"whose Submodel is at.*copy.*no answer"):
        far.remnants("s1")
    assert sorted(far.listed()) == ["copy", "s0", "s2"]
    assert sorted(far.speakers()) == ["s0", "s2"]


def test_what_is_wrong_with_a_bucket_is_a_sentence(bucket, tmp_path):
    far = SubmodelStore(bucket.path)
    with pytest.raises(StoreError, match="Save to a folder, and copy that"):
        far.save(made(talking(), "s7", 7))
    nowhere = f"{bucket.server.scheme}://nowhere-at-all/x"
    with pytest.raises(StoreError, match=f"There is no folder '{nowhere}'"):
        check_there(open_store(nowhere))
    for key in bucket.listed():
        if "/s2/state/" in key:
            bucket.write(key, b"damaged")
    with pytest.raises(StoreError, match="is damaged"):
        far.load("s2")
    assert far.load("s0").speaker == "s0"
    shutil.rmtree(tmp_path / "s0")  # the folder is not what is read
    assert far.load("s0").speaker == "s0"
