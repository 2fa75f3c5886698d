"""`specialize serve` and `specialize forget`: keys or loopback, HTTPS, and an end that leaves nobody waiting."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import specialize.cli as cli
from specialize.base import save_base
from specialize.errors import StoreError
from specialize.serve.command import _sweep
from specialize.serve.keys import KeyFile
from specialize.submodel import SubmodelStore
from tests.serve.services import wav
from tests.serve.stores import clips, made, store_of, talking

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base and a run with Submodels."""
    place = tmp_path_factory.mktemp("serve")
    save_base(talking(), place / "base")
    store_of(place / "run" / "submodels", talking(), 3)
    (place / "run" / "config.json").write_text("{}")
    (place / "run" / "jobs.jsonl").write_text('{"speaker": "s1"}\n')
    return place


def command(place: Path, *flags: str) -> list[str]:
    base, store = str(place / "base"), str(place / "run" / "submodels")
    words = ["serve", "--base", base, "--submodels", store, "--rows", "1", "--lengths", "1", *flags]
    return [sys.executable, "-W", "ignore", "-m", "specialize.cli", *words]


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_what_cannot_be_served_is_told_before_anything_is_loaded(place, tmp_path, capsys):
    start = ("serve", "--base", str(place / "base"), "--submodels", str(place / "run" / "submodels"))
    assert "there are no keys" in refused(capsys, *start, "--host", "0.0.0.0")
    assert "both --tls-cert and --tls-key" in refused(capsys, *start, "--tls-cert", "cert.pem")
    assert "There is no folder" in refused(capsys, *start[:4], str(tmp_path / "none"))
    assert "stands for the base" in refused(capsys, *start, "--base-name", "s0")
    assert "slots" in refused(capsys, *start, "--slots", "2")


def test_a_speaker_is_forgotten_in_a_folder(place, capsys):
    store = SubmodelStore(place / "run" / "submodels")
    store.save(made(talking(), "ana/1", 8))
    cli.main(["forget", "ana/1", "--submodels", str(store.folder)])
    assert "deleted; 0 files or folders left" in capsys.readouterr().out
    assert not store.remnants("ana/1")
    assert "There was nothing of 'ana/1'" in refused(capsys, "forget", "ana/1", "--submodels", str(store.folder))
    assert "Say where" in refused(capsys, "forget", "ana/1")
    assert sorted(store.speakers()) == ["s0", "s1", "s2"]


def test_a_server_that_cannot_start_ends_as_a_failure(place):
    """0 would be an end that was asked for, after which nobody starts it again."""
    python, *flags = command(place, "--port", "0")
    code = """
import sys
import specialize.cli as cli
from specialize.serve.service import Service

def warm(*_):
    raise MemoryError("no room to compile in")

Service.warm = warm
cli.main(sys.argv[1:])
"""
    words = flags[flags.index("specialize.cli") + 1 :]
    ended = subprocess.run([python, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "it cannot start: no room to compile in" in ended.stderr
    assert ended.returncode == 1


def test_who_cannot_be_looked_for_is_named_only_where_speakers_are_logged(capsys):
    class Cache:
        def sweep(self):
            return 0, [StoreError("'…/ana' cannot be looked at")]

    for log_speakers in (False, True):
        _sweep(Cache(), log_speakers)
        said = capsys.readouterr().err
        assert "1 speakers cannot be looked for" in said
        assert ("ana" in said) is log_speakers


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_from_start_to_end(place, tmp_path, capsys, monkeypatch):
    """HTTPS and keys; a speaker is forgotten through the server; SIGTERM lets what is under way end."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2"]
    subprocess.run([*make, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, stderr=-3)
    file = KeyFile(tmp_path / "keys.json")
    admin = file.add("admin", ("*",), manage=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ["--port", port, "--tls-cert", cert, "--tls-key", key, "--keys", str(file.path), "--pin", "s0"]
    server = subprocess.Popen(command(place, *flags), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(server.stderr or []))
    reading.start()
    try:
        address, headers = f"https://127.0.0.1:{port}", {"Authorization": f"Bearer {admin}"}
        monkeypatch.setenv("SSL_CERT_FILE", cert)
        monkeypatch.setenv("SPECIALIZE_KEY", admin)
        with httpx.Client(base_url=address, headers=headers, timeout=60) as browser:
            for _ in range(1200):
                assert server.poll() is None, "".join(lines)
                try:
                    if browser.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)

            def ask(name: str) -> httpx.Response:
                form = {"files": {"file": ("a.wav", wav(clips(1)[0]))}, "data": {"model": name}}
                return browser.post("/v1/audio/transcriptions", **form)

            texts = [ask(name).json()["text"] for name in ("base", "s0", "s1")]
            assert len(set(texts)) == 3
            cli.main(["forget", "s1", "--server", address, "--submodels", str(place / "run" / "submodels")])
            said = capsys.readouterr().out
            assert "deleted, 2 copies dropped from memory and slots; asked again, it answers 404" in said
            assert "jobs.jsonl' names the speaker still" in said
            assert ask("s1").status_code == 404
            assert ask("s0").json()["text"] == texts[1]
            answers: list[int] = []

            def keep_asking() -> None:
                try:
                    answers.append(ask("s0").status_code)
                except httpx.TransportError:  # it had not been taken
                    answers.append(0)

            askers = [threading.Thread(target=keep_asking) for _ in range(6)]
            for asker in askers:
                asker.start()
            while not answers:  # all have been taken by now, or are refused
                time.sleep(0.001)
            server.send_signal(signal.SIGTERM)
            for asker in askers:
                asker.join()
        assert server.wait(60) == 0, "".join(lines)
        reading.join()
        assert set(answers) <= {0, 200, 503}, answers
        assert 200 in answers
    finally:
        server.kill()
        reading.join()
        assert server.stderr is not None
        server.stderr.close()
    log = "".join(lines)
    assert "Traceback" not in log
    assert f"ready: {address}/" in log
    assert admin not in log
    assert os.fspath(tmp_path) not in said
