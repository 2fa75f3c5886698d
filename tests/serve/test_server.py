"""The server over HTTP: OpenAI's own client, keys, limits, publication, forgetting, and rubbish."""

import copy
import dataclasses
import functools
import json
import logging
import random
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from openai.types.audio import TranscriptionVerbose

from specialize.errors import ConfigError, SpecError, StoreError, StoreUnavailable
from specialize.serve.app import Limits, Logging, _segment
from specialize.serve.audio import AudioDecoder
from specialize.serve.batcher import Closed
from specialize.serve.keys import KeyFile, Keys
from specialize.serve.recognizer import Hypothesis, Recognizer
from specialize.serve.service import Preparing, Segment, Service
from specialize.serve.slots import NoSlot, Resident
from specialize.submodel import LoRA, SubmodelStore
from tests.bases import talking_whisper, whisper_of
from tests.serve.services import listening, wav
from tests.serve.stores import SPEC, clips, made, store_of, talking

LORA = LoRA(("encoder/layers_0/feed_forward1/linear1",), rank=2)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    base = talking()
    store = store_of(tmp_path_factory.mktemp("store"), base, 4)
    store.save(made(base, "worse", 9, beats_base_on_dev=False))
    recognizer = Recognizer(base, store, batch=(1, 4), slots=4)
    service = Service(recognizer, store, AudioDecoder(), lengths=(1.0,), linger=0.002)
    service.warm([SPEC])
    yield service
    service.close()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A key file, and a key for each of some names."""
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    granted = {"clinic": ("s0", "s1", "worse", "new", "nobody"), "other": ("s2",), "admin": ("*",)}
    return file, {name: file.add(name, speakers, manage=name == "admin") for name, speakers in granted.items()}


@pytest.fixture(scope="module")
def server(service, tokens):
    with listening(service, keys=Keys(tokens[0].path), limits=Limits(upload_bytes=1 << 20)) as address:
        yield address


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return clips(1)[0]


def client(server: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0)


def post(
    server: str, key: str | None, clip: np.ndarray, model: str = "s0", *, timeout: float = 60, **fields: str
) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    files = {"file": ("a.wav", wav(clip))}
    return httpx.post(
        f"{server}/v1/audio/transcriptions",
        headers=headers,
        files=files,
        data={"model": model} | fields,
        timeout=timeout,
    )


def test_openais_client_gets_what_the_recogniser_says(server, service, tokens, clip):
    ours = client(server, tokens[1]["clinic"])
    expected = {name: service.recognizer.transcribe(clip, speaker=name).strip() for name in ("s0", "s1")}
    expected["base"] = service.recognizer.transcribe(clip).strip()
    assert len(set(expected.values())) == 3
    for name, text in expected.items():
        file = ("a.wav", wav(clip))
        assert ours.audio.transcriptions.create(file=file, model=name).text == text
        assert ours.audio.transcriptions.create(file=file, model=name, response_format="text") == text + "\n"
        verbose = ours.audio.transcriptions.create(file=file, model=name, response_format="verbose_json")
        assert verbose.text == text
        assert verbose.duration == pytest.approx(clip.size / 16_000)
        assert verbose.segments is not None
        assert [segment.text for segment in verbose.segments] == [text]
        segment = verbose.segments[0]
        assert service.base.tokenizer.decode(segment.tokens).strip() == text
        assert segment.avg_logprob < 0
        assert segment.no_speech_prob is None, "a CTC cannot say"
    assert [model.id for model in ours.models.list()] == ["base", "s0", "s1", "worse"]
    assert ours.models.retrieve("s1").id == "s1"


def test_long_audio_comes_in_pieces(server, service, tokens):
    long = np.concatenate([np.pad(clip, (0, 8_000)) for clip in clips(9, seed=3)])[: 8 * 16_000]
    assert long.size > service.base.architecture.max_samples
    ours = client(server, tokens[1]["clinic"])
    events = list(ours.audio.transcriptions.create(file=("a.wav", wav(long)), model="s0", stream=True))
    whole = ours.audio.transcriptions.create(file=("a.wav", wav(long)), model="s0", response_format="verbose_json")
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole.text
    assert whole.segments is not None
    assert [delta.strip() for delta in deltas] == [segment.text for segment in whole.segments]
    assert len(deltas) > 1
    assert [segment.start for segment in whole.segments[1:]] == [segment.end for segment in whole.segments[:-1]]


def test_openais_client_reads_all_that_it_knows_of_a_whispers_segments(tmp_path, clip):
    base = dataclasses.replace(
        talking_whisper(), architecture=dataclasses.replace(whisper_of(talking_whisper()), no_speech=9)
    )
    long = np.concatenate([np.pad(clip, (0, 20_000)) for clip in clips(4, seed=3)])
    assert 8 * 16_000 > long.size > base.architecture.max_samples
    store = SubmodelStore(tmp_path)
    spec = LoRA(("decoder/layers_0/fc1",), rank=2)
    store.save(made(base, "ana", 1, spec, 0.5))
    service = Service(Recognizer(base, store, batch=2), store, AudioDecoder(), lengths=())
    service.warm([spec])
    full = base.alone().architecture
    decode = jax.jit(functools.partial(full.decode, max_tokens=full.max_labels))
    with listening(service) as address:
        for speaker in ("base", "ana"):
            said = client(address, "none").audio.transcriptions.create(
                file=("a.wav", wav(long)), model=speaker, response_format="verbose_json"
            )
            TranscriptionVerbose.model_validate(said.model_dump(), strict=True)  # the client itself checks nothing
            assert said.segments is not None
            assert len(said.segments) > 1
            for segment in said.segments:
                piece = long[round(16_000 * segment.start) : round(16_000 * segment.end)]
                resident = None if speaker == "base" else service.recognizer.fetch(speaker)
                found = service.recognizer.decode([resident], [piece], service.lengths[-1])[0]
                assert (segment.text, tuple(segment.tokens)) == (found.text, found.tokens)
                assert segment.avg_logprob == pytest.approx(found.avg_logprob, rel=1e-5)
                assert segment.no_speech_prob == pytest.approx(found.no_speech_prob, rel=1e-5)
                assert 0 < segment.no_speech_prob < 1
                assert segment.temperature == 0.0
                assert segment.seek == round(100 * segment.start)
                if speaker == "base":
                    decoded = decode(base.params, jnp.asarray(piece[None]), jnp.array([piece.size]))
                    average = float(decoded.log_prob[0]) / (len(segment.tokens) + 1)
                    assert segment.avg_logprob == pytest.approx(average, rel=1e-4)
                text = segment.text.encode()
                assert segment.compression_ratio == len(text) / len(zlib.compress(text))
    service.close()


def test_a_probability_that_is_no_number_is_left_out():
    broken = Hypothesis("a", (1,), float("nan"), None)
    assert not {"avg_logprob", "no_speech_prob"} & set(_segment(0, Segment(0.0, 1.0, broken)))


def test_a_submodel_that_does_not_help_is_not_used(server, service, tokens, clip):
    answer = post(server, tokens[1]["clinic"], clip, "worse", response_format="verbose_json")
    assert answer.headers["x-specialize-transcribed-by"] == "base"
    assert answer.json()["transcribed_by"] == "base"
    assert answer.json()["text"] == service.recognizer.transcribe(clip).strip()


@pytest.mark.parametrize("key", [None, "sk-wrong", "x" * 10_000])
def test_without_a_key_there_is_nothing(server, key, clip):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/models/s0"),
        ("GET", "/v1/models/nobody"),
        ("DELETE", "/v1/models/s0"),
        ("GET", "/metrics"),
        ("POST", "/v1/audio/transcriptions"),
    ):
        answer = httpx.request(method, server + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    with pytest.raises(openai.AuthenticationError):
        client(server, "sk-wrong").models.list()


def test_another_speaker_is_refused_alike_whether_there_is_one_or_not(server, tokens, clip):
    key = tokens[1]["other"]
    answers = [post(server, key, clip, name) for name in ("s0", "there is no such one")]
    answers += [
        httpx.get(f"{server}/v1/models/{name}", headers={"Authorization": f"Bearer {key}"}) for name in ("s0", "s9")
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert len({answer.text for answer in answers}) == 1
    assert [m.id for m in client(server, key).models.list()] == ["base", "s2"]
    deletes = [
        httpx.delete(f"{server}/v1/models/{name}", headers={"Authorization": f"Bearer {key}"}) for name in ("s2", "s0")
    ]
    assert {answer.status_code for answer in deletes} == {403}


def test_a_model_without_a_name(server, tokens):
    headers = {"Authorization": f"Bearer {tokens[1]['admin']}"}
    for method in ("GET", "DELETE"):
        assert httpx.request(method, f"{server}/v1/models/", headers=headers).status_code in (403, 404, 405)


def test_a_key_for_metrics_alone_hears_nothing(server, tokens, clip):
    key = tokens[0].add("metrics", (), manage=True)
    assert httpx.get(f"{server}/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert post(server, key, clip, "base").status_code == 403


def test_a_permitted_speaker_who_is_not_there(server, tokens, clip):
    answer = post(server, tokens[1]["clinic"], clip, "nobody")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_revoked_key_is_refused_at_once(server, tokens, clip):
    key = tokens[0].add("short-lived", ("s0",))
    assert post(server, key, clip).status_code == 200
    tokens[0].revoke("short-lived")
    assert post(server, key, clip).status_code == 401


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": ""}, "Name a model"),
        ({"response_format": "srt"}, "response_format"),
        ({"stream": "maybe"}, "stream"),
        ({"temperature": "0.7"}, "greedy"),
        ({"temperature": "hot"}, "greedy"),
        ({"prompt": "Dear"}, "Prompts"),
        ({"language": "de"}, "writes 'en'"),
        ({"timestamp_granularities[]": "word"}, "segments"),
        ({"speed": "2"}, "no field"),
    ],
)
def test_what_is_not_understood_is_told(server, tokens, clip, fields, says):
    answer = post(server, tokens[1]["clinic"], clip, **fields)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_limits(server, tokens, clip):
    key = tokens[1]["clinic"]
    large = post(server, key, np.zeros(300_000, np.float32))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")

    def endless():  # says no length
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        yield from (b"x" * 65_536 for _ in range(40))

    kind = {"Authorization": f"Bearer {key}", "Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{server}/v1/audio/transcriptions", headers=kind, content=endless())
    assert answer.status_code == 413
    long = post(server, key, np.zeros(16_000 * 9, np.float32))
    assert (long.status_code, long.json()["error"]["code"]) == (400, "invalid_audio")
    assert "longer than 8 s" in long.json()["error"]["message"]


def test_pages_of_other_sites_may_not_use_it(server):
    assert httpx.get(f"{server}/healthz", headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.get(f"{server}/healthz", headers={"Origin": server}).status_code == 200


def test_a_name_of_another_site_is_not_ours(service):
    with listening(service, hosts=("127.0.0.1",)) as address:
        assert httpx.get(f"{address}/v1/models").status_code == 200
        assert httpx.get(f"{address}/v1/models", headers={"Host": "rebound.example"}).status_code == 421


def test_health_and_metrics(server, tokens):
    assert httpx.get(f"{server}/healthz").text == "ok\n"
    assert httpx.get(f"{server}/readyz").status_code == 200
    headers = {"Authorization": f"Bearer {tokens[1]['admin']}"}
    text = httpx.get(f"{server}/metrics", headers=headers).text
    assert "specialize_batch_rows_bucket" in text
    assert "specialize_slots_taken" in text
    assert 'route="/v1/audio/transcriptions",status="200"' in text
    for name in ("s0", "s1", "worse"):
        assert f'"{name}"' not in text
    assert httpx.get(f"{server}/metrics", headers={"Authorization": f"Bearer {tokens[1]['clinic']}"}).status_code == 403


def test_the_log_says_neither_who_nor_what_unless_asked(service, tokens, clip, caplog):
    text = service.recognizer.transcribe(clip, speaker="s0").strip()
    for logs, told in ((Logging(), False), (Logging(speakers=True, text=True), True)):
        caplog.clear()
        level, server = caplog.at_level(logging.INFO, "specialize.requests"), Keys(tokens[0].path)
        with level, listening(service, keys=server, logs=logs) as address:
            assert post(address, tokens[1]["clinic"], clip).status_code == 200
        lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "specialize.requests"]
        line = next(line for line in lines if line["route"] == "/v1/audio/transcriptions")
        assert (line["status"], line["key"]) == (200, "clinic")
        assert line["audio_seconds"] == pytest.approx(clip.size / 16_000, abs=1e-3)
        assert ("speaker" in line) is told
        assert (text in caplog.text) is told
        assert tokens[1]["clinic"] not in caplog.text


def test_publication_under_load(server, service, tokens, clip):
    """Every answer is that of one version or of the other, none fails, and the newest is served after the last."""
    versions = [made(service.base, "s3", seed) for seed in (3, 77)]
    expected = []
    for version in versions:
        service.store.save(version, overwrite=True)
        expected.append(service.recognizer.transcribe(clip, speaker="s3").strip())
    assert expected[0] != expected[1]
    done, answers, key = threading.Event(), [], tokens[1]["admin"]

    def ask():
        while not done.is_set():
            answers.append(post(server, key, clip, "s3"))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for swap in range(25):
        service.store.save(versions[swap % 2], overwrite=True)
    done.set()
    for asker in askers:
        asker.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["text"] for answer in answers} == set(expected)
    assert post(server, key, clip, "s3").json()["text"] == expected[0]


def test_a_deleted_speaker_is_gone(server, service, tokens, clip):
    service.store.save(made(service.base, "new", 21))
    key, admin = tokens[1]["clinic"], {"Authorization": f"Bearer {tokens[1]['admin']}"}
    assert post(server, key, clip, "new").status_code == 200
    answer = httpx.delete(f"{server}/v1/models/new", headers=admin).json()
    assert answer["deleted"] is True
    assert answer["copies_dropped"] == 2  # in memory and in a slot
    assert not service.store.remnants("new")
    assert post(server, key, clip, "new").status_code == 404
    assert httpx.delete(f"{server}/v1/models/new", headers=admin).status_code == 404
    assert httpx.delete(f"{server}/v1/models/base", headers=admin).status_code == 403


def test_submodels_of_a_new_spec_do_not_make_others_wait(server, service, tokens, clip):
    service.store.save(made(service.base, "new", 22, LORA))
    key = tokens[1]["clinic"]
    with ThreadPoolExecutor(20) as threads:  # more than there are threads for requests
        first = list(threads.map(lambda _: post(server, key, clip, "new"), range(20)))
        assert post(server, key, clip, "s0").status_code == 200
    assert (first[0].status_code, first[0].json()["error"]["code"]) == (503, "preparing")
    assert int(first[0].headers["retry-after"]) > 0
    statuses = [503]
    while statuses[-1] == 503 and len(statuses) < 600:
        time.sleep(0.1)
        statuses.append(post(server, key, clip, "new").status_code)
    assert statuses[-1] == 200


def test_a_submodel_that_does_not_fit_is_the_trouble_of_whoever_asks_for_it(server, service, tokens, clip):
    good = made(service.base, "new", 23)
    key = tokens[1]["clinic"]
    foreign = dataclasses.replace(good, base="f" * 32)
    elsewhere = dataclasses.replace(good, spec=LoRA(("nowhere/**",), rank=2))
    for bad, status in ((foreign, 422), (elsewhere, 500)):
        service.store.save(bad, overwrite="new" in service.store)
        assert post(server, key, clip, "new").status_code == status
        assert post(server, key, clip, "s0").status_code == 200
    told: list[str] = []
    fresh = Service(Recognizer(service.base, service.store), service.store, AudioDecoder(), lengths=(1.0,))
    specs = service.store.specs(service.base.fingerprint)
    assert elsewhere.spec in specs
    fresh.warm([elsewhere.spec, SPEC], told.append)
    assert any("left out" in line for line in told)
    fresh.check_warm(fresh.recognizer.fetch("s0"))
    refusals = []
    for _ in range(2):
        with pytest.raises(SpecError) as refused:
            fresh.check_warm(Resident("new", elsewhere.spec, np.zeros(1, np.float32)))
        refusals.append(refused.value)
    assert refusals[0] is not refusals[1], "its traceback would have grown with every request"
    fresh.close()
    service.store.remove("new")


def test_where_so_configured_the_base_answers_for_what_is_missing(service, tokens, clip):
    lenient = Recognizer(service.base, service.store, missing="base")
    assert lenient.fetch("nobody") is None
    assert lenient.fetch("s0") is not None


def test_who_would_wait_too_long_is_told_when_to_come_again(service, clip):
    hasty = Service(service.recognizer, service.store, AudioDecoder(), lengths=(1.0,), budget=0.02, waiting=4)
    hasty._warm = service._warm
    with listening(hasty) as address, ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda _: post(address, None, clip, "s0"), range(120)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["type"] == "rate_limit_error"
    hasty.close()


def test_who_waits_for_a_cold_submodel_keeps_nobody_from_theirs(service, clip, monkeypatch):
    service.recognizer.forget("s1")
    service.recognizer.fetch("s0")
    load, go = service.store.load, threading.Event()

    def slow(*args, **how):
        go.wait(30)
        return load(*args, **how)

    monkeypatch.setattr(service.store, "load", slow)
    with listening(service) as address, ThreadPoolExecutor(20) as threads:
        cold = [threads.submit(post, address, None, clip, "s1") for _ in range(20)]  # more than there are readers
        while not service.recognizer.cache._reading:
            time.sleep(0.01)
        time.sleep(0.3)
        try:
            assert httpx.get(f"{address}/v1/models", timeout=5).status_code == 200
            warm = post(address, None, clip, "s0", timeout=5)
        finally:
            go.set()
        assert warm.status_code == 200
        assert {one.result().status_code for one in cold} == {200}


def test_who_waits_too_long_for_a_submodel_is_told_and_is_one_of_few(service, clip, monkeypatch):
    slow = Service(service.recognizer, service.store, AudioDecoder(), lengths=(1.0,), budget=0.5, waiting=12)
    slow._warm = service._warm
    go, asked = threading.Event(), []

    def fetch(speaker):
        asked.append(speaker)
        go.wait(30)

    monkeypatch.setattr(service.recognizer, "fetch", fetch)
    try:
        with listening(slow) as address, ThreadPoolExecutor(30) as threads:
            waiting = [threads.submit(post, address, None, clip, f"p{i}", timeout=20) for i in range(30)]
            while len(asked) < 8:
                time.sleep(0.01)
            assert httpx.get(f"{address}/v1/models", timeout=5).status_code == 200
            assert httpx.delete(f"{address}/v1/models/nobody", timeout=5).status_code == 404
            answers = [one.result() for one in waiting]
            assert {(one.status_code, one.headers["retry-after"]) for one in answers} == {(429, "1")}
            assert len(asked) == 8
            again = [post(address, None, clip, asked[0], timeout=20) for _ in range(2)]
            assert {one.status_code for one in again} == {429}
            assert len(asked) == 8, "who gave up has a thread at work still, and nobody needs another for the same"
            go.set()
            assert post(address, None, clip, asked[0], timeout=20).status_code == 200
    finally:
        go.set()
        slow.close()


@pytest.mark.parametrize("stream", ["false", "true"])
def test_whoever_hangs_up_is_computed_no_further(service, monkeypatch, caplog, stream):
    long = np.concatenate([np.pad(clip, (0, 8_000)) for clip in clips(9, seed=3)])[: 8 * 16_000]
    decode, began, go, rows = service.recognizer.decode, threading.Event(), threading.Event(), []
    slow_one = Service(service.recognizer, service.store, AudioDecoder(), lengths=(1.0,), budget=600.0)
    slow_one._warm = service._warm

    def slow(residents, clips, padded):
        rows.append(len(clips))
        began.set()
        go.wait(30)
        return decode(residents, clips, padded)

    monkeypatch.setattr(service.recognizer, "decode", slow)
    asked = slow_one.batcher.submit(None, [long[:8_000]])  # the batch that is computed meanwhile
    began.wait(10)
    try:
        with caplog.at_level(logging.INFO, "specialize.requests"), listening(slow_one) as address:
            with pytest.raises(httpx.ReadTimeout):
                post(address, None, long, timeout=2, stream=stream)
            lines: list[dict] = []
            for _ in range(3000):
                lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "specialize.requests"]
                if lines:
                    break
                time.sleep(0.01)
            assert slow_one.batcher.waiting > 1, "it had come so far"
            assert [line["status"] for line in lines] == [499]
            go.set()
            asked[0].result(30)
            assert post(address, None, long[:8_000]).status_code == 200
    finally:
        go.set()
        slow_one.close()
    assert rows == [1, 1]


def test_a_failure_of_ours_is_told_without_its_details(service, clip, monkeypatch, caplog):
    broken = copy.copy(service)
    monkeypatch.setattr(broken.recognizer, "fetch", lambda speaker: 1 / 0)
    with listening(broken) as address:
        answer = post(address, None, clip)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "division" not in answer.text
        assert answer.headers["x-request-id"] in caplog.text
        assert httpx.get(f"{address}/healthz").status_code == 200
    assert "ZeroDivisionError" in caplog.text


def raising(error: Exception):
    def fails(*_, **__):
        raise error

    return fails


@pytest.mark.parametrize(
    ("place", "error", "status", "code", "logged"),
    [
        (
            "audio.AudioDecoder.decode",
            ConfigError("A process does not start."),
            503,
            "no_decoder",
            "A process does not start.",
        ),
        ("recognizer.Recognizer.decode", NoSlot("All 4 slots are pinned."), 503, "no_slot", "All 4 slots are pinned."),
        (
            "stores.SubmodelStore.version",
            StoreError("'s3://b/s0' cannot be read"),
            503,
            "store_unavailable",
            "--log-speakers",
        ),
        ("stores.SubmodelStore.load", StoreError("'s3://b/s0' is damaged"), 500, "model_damaged", "--log-speakers"),
    ],
)
def test_what_is_no_fault_of_a_model_is_not_told_as_one(
    service, clip, monkeypatch, caplog, place, error, status, code, logged
):
    service.recognizer.forget("s0")
    with listening(service) as address:
        monkeypatch.setattr(f"specialize.serve.{place}", raising(error))
        answer = post(address, None, clip)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) is (status == 503)
    assert ("model" in answer.json()["error"]["message"]) is (status == 500)
    assert str(error) not in answer.text
    assert logged in caplog.text
    assert "s3://b" not in caplog.text


def test_a_store_that_cannot_be_asked_is_told_by_every_route(service, monkeypatch, caplog):
    for name, kind in (("version", StoreError), ("listed", StoreError), ("remove", StoreUnavailable)):
        monkeypatch.setattr(service.store, name, raising(kind("'s3://b/s0' cannot be read")))
    with listening(service) as address:
        answers = [httpx.get(f"{address}/v1/models{path}") for path in ("", "/s0")]
        deleted = httpx.delete(f"{address}/v1/models/s0")
        monkeypatch.setattr(service.store, "remove", raising(StoreError("'s3://b/s0' is another's")))
        refused = httpx.delete(f"{address}/v1/models/s0")
    everywhere = [*answers, deleted]
    assert {(one.status_code, one.json()["error"]["code"]) for one in everywhere} == {(503, "store_unavailable")}
    assert all("retry-after" in one.headers for one in everywhere)
    assert "may not be deleted" in deleted.json()["error"]["message"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "not_deleted")
    assert "could not be deleted" in refused.json()["error"]["message"]
    assert "Traceback" not in caplog.text
    assert "s3://b" not in caplog.text


def test_nothing_is_served_before_all_is_compiled(service, clip):
    cold = Service(Recognizer(service.base, service.store), service.store, AudioDecoder())
    with listening(cold, ready=lambda: False) as address:
        assert httpx.get(f"{address}/readyz").status_code == 503
        answer = post(address, None, clip, "base")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    cold.close()


def test_the_end_does_not_wait_for_programs_that_nobody_will_run(service, monkeypatch):
    fresh = Service(Recognizer(service.base, service.store), service.store, AudioDecoder(), lengths=(1.0,))
    began, go, compiled = threading.Event(), threading.Event(), []

    def warm(*_, **__):
        for at in range(3):
            yield str(at)
            began.set()
            go.wait(10)
            compiled.append(at)

    monkeypatch.setattr(fresh.recognizer, "warm", warm)
    with ThreadPoolExecutor(1) as threads:
        warming = threads.submit(fresh.warm, [])
        began.wait(10)
        fresh.close()
        go.set()
        with pytest.raises(Closed):
            warming.result()
    assert compiled == [0]
    with pytest.raises(Preparing):
        fresh.check_warm(None)


def test_nothing_compiles_in_traffic(server, service, tokens):
    """Any number of rows, any length, any speaker: all programs were there before."""
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        sound = [np.zeros(n, np.float32) + 0.1 for n in range(1_000, 33_000, 1_700)]
        with ThreadPoolExecutor(6) as threads:
            names = [("s0", "s1", "base")[i % 3] for i in range(len(sound))]
            answers = list(threads.map(lambda c, n: post(server, tokens[1]["clinic"], c, n), sound, names))
    finally:
        jax.monitoring.clear_event_listeners()
    assert {answer.status_code for answer in answers} == {200}
    assert not [name for name in compiled if "compile" in name]


def test_many_at_once(server, service, tokens):
    sound, names = clips(24, seed=5), ["s0", "s1", "base"] * 8
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda c, n: post(server, tokens[1]["clinic"], c, n), sound, names))
    assert {answer.status_code for answer in answers} == {200}
    for answer, c, name in zip(answers, sound, names, strict=True):
        alone = service.recognizer.transcribe(c, speaker=None if name == "base" else name)
        assert answer.json()["text"] == alone.strip()


def test_rubbish_is_answered_and_the_server_lives(server, service, tokens, clip):
    draw = random.Random(0)
    good = wav(clip)
    headers = {"Authorization": f"Bearer {tokens[1]['clinic']}"}
    statuses = []
    with httpx.Client(base_url=server, timeout=60) as browser:
        for _ in range(300):
            data = bytearray(good)
            kind = draw.randrange(5)
            if kind == 0:  # of the audio
                for _ in range(draw.randint(1, 60)):
                    data[draw.randrange(60)] = draw.randrange(256)
            elif kind == 1:
                del data[draw.randrange(len(data)) :]
            elif kind == 2:
                data = bytearray(draw.randbytes(draw.randrange(5_000)))
            files = {"file": (draw.choice(["a.wav", "../../etc/passwd", "\u2603" * 90, "a\r\nb"]), bytes(data))}
            fields = {"model": draw.choice(["s0", "s0", "\x00", "../s0", "s0\n", "", "s2", "é" * 3_000, "*"])}
            if kind == 3:  # of the form
                body = bytearray(httpx.Request("POST", server, files=files, data=fields).read())
                for _ in range(draw.randint(1, 9)):
                    body[draw.randrange(min(len(body), 400))] = draw.randrange(256)
                content = {"Content-Type": "multipart/form-data; boundary=" + draw.choice(["x", "", "\u00e9"])}
                answer = (
                    browser.post(
                        "/v1/audio/transcriptions",
                        content=bytes(body),
                        headers=headers | content,  # pyright: ignore
                    )
                    if content["Content-Type"].isascii()
                    else browser.post("/v1/audio/transcriptions", headers=headers)
                )
            elif kind == 4:  # of the request
                path = draw.choice(["/v1/models/%00", "/v1/models/..%2f..%2fetc", "/v2", "//", "/v1/audio", "/%ff"])
                answer = browser.request(draw.choice(["GET", "POST", "PUT", "DELETE"]), path, headers=headers)
            else:
                answer = browser.post("/v1/audio/transcriptions", files=files, data=fields, headers=headers)
            statuses.append(answer.status_code)
            assert answer.status_code < 500, (kind, answer.text)
            for secret in ("s2", "s3", str(service.store.folder), "Traceback", "site-packages"):
                assert secret not in answer.text
    assert {400, 403, 404} <= set(statuses)
    assert post(server, tokens[1]["clinic"], clip).status_code == 200
