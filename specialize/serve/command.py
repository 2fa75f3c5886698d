"""`specialize serve` and `specialize forget`."""

import asyncio
import html
import json
import logging
import os
import signal
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from specialize.errors import ConfigError, SpecializeError, StoreError
from specialize.printable import printable

_MAKING = ("space", "state", "candidates")
"""Folders of a run that have more of a speaker than a name."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Serve:
    """Serve transcriptions over HTTP, as OpenAI's API does: `model` is the speaker, or `base`.

    curl -F file=@clip.wav -F model=ana http://127.0.0.1:8000/v1/audio/transcriptions
    """

    base: Path
    """Base folder."""
    submodels: str
    """Folder of Submodels, one a speaker: `runs/people/submodels`, or `gs://…` or `s3://…` (extra `bucket`); or a file
    that `specialize compact` wrote."""
    host: str = "127.0.0.1"
    """Address to listen at. Anything but loopback needs keys."""
    port: int = 8000
    """Port to listen at."""
    keys: Path | None = None
    """Key file that `specialize keys` made. Without one, whoever reaches the server may use and delete everything."""
    hosts: tuple[str, ...] = ()
    """Names that the server may be called by, beside its address; without any, and with keys, every name is taken."""
    tls_cert: Path | None = None
    """Certificate chain (PEM) for HTTPS."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    base_name: str = "base"
    """The `model` that stands for the base alone."""
    slots: int = 64
    """Submodels of a kind that are on the device at a time."""
    banks: int = 8
    """Kinds of Submodel that have slots on the device at a time; those of the one that was not used for longest are
    freed for another."""
    rows: tuple[int, ...] = (1, 4, 16)
    """Sizes of compiled batches."""
    lengths: tuple[float, ...] = (2.0, 4.0, 8.0, 15.0, 30.0)
    """Seconds that utterances are padded to. Each, with each of `rows` and each kind of Submodel, is a program that is
    compiled before the server is ready."""
    linger: float = 0.01
    """Seconds that a batch waits for more rows."""
    budget: float = 10.0
    """Seconds that an utterance may have to wait for its turn, and its Submodel may take to come; a request that would
    wait longer is answered 429."""
    waiting: int = 256
    """Utterances that wait at most, and requests that wait for a Submodel."""
    cache_mib: int = 1024
    """Memory for Submodels, MiB."""
    refresh: float | None = None
    """Seconds for which a Submodel is used without asking the store for a newer one; None is 0 for a folder and 5 for a
    bucket."""
    pin: tuple[str, ...] = ()
    """Speakers whose Submodels always stay in memory."""
    gate: Literal["on", "off"] = "on"
    """Whether the base transcribes where the Submodel did not beat it on its speaker's dev utterances."""
    missing: Literal["error", "base"] = "error"
    """What a permitted speaker gets whose Submodel is missing, damaged or of another base: an error, or the base."""
    upload_mib: int = 25
    """Largest request, MiB."""
    audio_seconds: float = 600.0
    """Longest recording."""
    decoders: int = 2
    """Processes that decode uploaded audio."""
    drain: float = 30.0
    """Seconds for requests under way, after SIGTERM."""
    context: Literal["best", "needed", "full"] = "best"
    """For a base with a fixed window: what the audio needs with a Submodel and the whole window without (`best`), or
    the same for both."""
    log_speakers: bool = False
    """Name the speaker in the log of requests."""
    log_text: bool = False
    """Write what was said to the log of requests."""


@dataclass(frozen=True)
class Forget:
    """Delete a speaker's Submodel, and show that nothing is left of it."""

    speaker: Annotated[str, tyro.conf.Positional]
    """Whose."""
    submodels: str | None = None
    """Folder of Submodels, or a file that `specialize compact` wrote, which is replaced by one without the speaker."""
    server: str | None = None
    """Address of a running server, `http://127.0.0.1:8000`, which then deletes it from its folder, its memory and its
    slots, and looks whether anything is left. A key that was made with --manage is read from SPECIALIZE_KEY."""


def serve(words: list[str]) -> None:
    """Serve transcriptions of any speaker over HTTP, as OpenAI's API does."""
    options = tyro.cli(Serve, args=words, prog="specialize serve")
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError("Serving needs more packages: pip install 'specialize[serve]'.") from error
    if options.host not in _LOOPBACK and options.keys is None:
        raise ConfigError(
            f"--host {options.host} lets others reach the server, and there are no keys. Make some with 'specialize "
            "keys add' and name the file with --keys, or stay on 127.0.0.1."
        )
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("HTTPS needs both --tls-cert and --tls-key.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("absl", "jax", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    app = _application(options)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        timeout_graceful_shutdown=int(options.drain),
        access_log=False,
        log_config=None,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
    )
    # uvicorn raises the signal that it has ended for once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(app.state.failed.is_set())))
    uvicorn.Server(config).run()


def _application(options: Serve) -> Any:
    from specialize.base import load_base
    from specialize.serve.app import Limits, Logging, create_app
    from specialize.serve.audio import AudioDecoder
    from specialize.serve.batcher import Closed
    from specialize.serve.keys import Keys
    from specialize.serve.metrics import Metrics
    from specialize.serve.recognizer import Recognizer
    from specialize.serve.service import Service
    from specialize.serve.stores import check_there, open_store

    keys = None if options.keys is None else Keys(options.keys)
    base = load_base(options.base)
    alone = None
    if options.context != "best":
        alone = base = base.with_context(options.context)
    try:
        store = open_store(options.submodels, base.fingerprint)
        check_there(store)
    except ImportError as error:  # of what reads a bucket
        raise ConfigError(f"'{options.submodels}' needs more packages: {error}") from error
    if options.base_name in store:
        raise ConfigError(
            f"A speaker is called '{options.base_name}', which stands for the base. Choose another --base-name."
        )
    if len(options.pin) > options.slots - max(options.rows):
        raise ConfigError(
            f"{len(options.pin)} speakers are pinned in {options.slots} slots, of which a batch needs "
            f"{max(options.rows)}. Pin fewer, or use more --slots."
        )
    far = "://" in str(store.folder)
    recognizer = Recognizer(
        base,
        store,
        batch=options.rows,
        slots=options.slots,
        banks=options.banks,
        gate=options.gate == "on",
        alone=alone,
        missing=options.missing,
        cache_bytes=options.cache_mib << 20,
        refresh=(5.0 if far else 0.0) if options.refresh is None else options.refresh,
    )
    metrics = Metrics()
    rate = base.architecture.sample_rate
    decoder = AudioDecoder(workers=options.decoders, rate=rate, max_seconds=options.audio_seconds)
    service = Service(
        recognizer,
        store,
        decoder,
        lengths=options.lengths,
        linger=options.linger,
        budget=options.budget,
        waiting=options.waiting,
        watch=metrics.batch,
    )
    ready, ending, failed = threading.Event(), threading.Event(), threading.Event()

    def prepare() -> None:
        try:
            specs = store.specs(base.fingerprint)
            kinds = f"{len(specs)} spec" + "s" * (len(specs) != 1)
            _tell(f"{sum(specs.values()):,} Submodels of {kinds} in '{store.folder}'; compiling …")
            service.warm(list(specs), lambda at: _tell(f"compiling {at}"))
        except Closed:
            return
        except BaseException as error:
            _tell(f"it cannot start: {error}")
            failed.set()
            os.kill(os.getpid(), signal.SIGTERM)
            raise
        for speaker in options.pin:
            try:
                recognizer.cache.pin(speaker)
            except SpecializeError as error:
                _tell(f"not pinned: {error}")
        ready.set()
        where = f"http{'s' if options.tls_cert else ''}://{options.host}:{options.port}"
        _tell(f"ready: {where}/ (the page), {where}/v1/audio/transcriptions")
        while not ending.wait(300.0 if far else 5.0):
            _sweep(recognizer.cache, options.log_speakers)

    @asynccontextmanager
    async def lifespan(_: Any):
        threading.Thread(target=prepare, name="prepare", daemon=True).start()
        async with decoder:
            yield
            ending.set()
            await asyncio.to_thread(service.close, 5.0)  # requests under way have had their time

    hosts = tuple(dict.fromkeys((*options.hosts, options.host, *_LOOPBACK, "[::1]")))
    app = create_app(
        service,
        keys=keys,
        base_name=options.base_name,
        limits=Limits(options.upload_mib << 20),
        logs=Logging(options.log_speakers, options.log_text),
        metrics=metrics,
        hosts=hosts if keys is None or options.hosts else (),
        ready=ready.is_set,
    )
    app.router.lifespan_context = lifespan
    app.state.failed = failed
    return app


def _sweep(cache: Any, log_speakers: bool) -> None:
    _, failed = cache.sweep()
    if failed:
        why = failed[0] if log_speakers else "--log-speakers says why"  # for that names the speaker
        _tell(f"{len(failed):,} speakers cannot be looked for in the store: {why}")


def forget(words: list[str]) -> None:
    """Delete a speaker's Submodel everywhere, and prove it."""
    options = tyro.cli(Forget, args=words, prog="specialize forget")
    if options.submodels is None and options.server is None:
        raise ConfigError("Say where: --submodels FOLDER, or --server ADDRESS, or both.")
    found = False
    if options.server is not None:
        found |= _forget_at(options.server.rstrip("/"), options.speaker)
    if options.submodels is not None:
        found |= _forget_in(options.submodels, options.speaker)
    if not found:
        raise StoreError(f"There was nothing of '{options.speaker}'.")


def _forget_in(folder: str, speaker: str) -> bool:
    from specialize.serve.stores import check_there, open_store
    from specialize.space import CompactSubmodels
    from specialize.submodel.checkpoint import exists

    store = open_store(folder)
    check_there(store)
    there = store.remove(speaker)
    left = store.remnants(speaker)
    print(printable(f"'{store.folder}': {'deleted' if there else 'nothing there'}; {len(left)} files or folders left"))
    if left:
        raise StoreError(f"'{left[0]}' is still there.")
    if isinstance(store, CompactSubmodels):
        print("the run or space that the file was made of may have the speaker still; forget it there too")
        return there
    for path in _naming(store.folder.parent, speaker):
        print(printable(f"'{path}' names the speaker still; it is not a Submodel, and was left alone"))
    for path in [store.folder.parent / name for name in _MAKING]:
        if exists(path):
            print(
                printable(f"'{path}' may have what makes the Submodel again; delete it, or train without the speaker")
            )
    return there


def _naming(run: Any, speaker: str) -> list[Any]:
    """Files of a run that name a speaker: logs, results and reports, which are not deleted here."""
    from specialize.submodel.bucket import is_far, read_far
    from specialize.submodel.checkpoint import children, exists

    if not exists(run / "config.json"):
        return []
    ways = {json.dumps(speaker), json.dumps(speaker, ensure_ascii=False), html.escape(speaker)}
    files = [path for path in children(run) if path.suffix in (".json", ".jsonl", ".html")]
    read = [(path, read_far(path) if is_far(path) else path.read_bytes()) for path in sorted(files)]
    return [path for path, content in read if any(way.encode() in content for way in ways)]


def _forget_at(server: str, speaker: str) -> bool:
    place = f"{server}/v1/models/{urllib.parse.quote(speaker, safe='')}"
    status, answer = _ask("DELETE", place)
    if status not in (200, 404):
        raise ConfigError(f"{server} answered {status}: {answer.get('error', {}).get('message', '')}")
    after, _ = _ask("GET", place)
    copies = answer.get("copies_dropped", 0)
    done = f"deleted, {copies} copies dropped from memory and slots" if status == 200 else "nothing there"
    print(printable(f"{server}: {done}; asked again, it answers {after}"))
    if after != 404:
        raise StoreError(f"{server} still has '{speaker}'.")
    return status == 200


def _ask(method: str, place: str) -> tuple[int, dict[str, Any]]:
    key = os.environ.get("SPECIALIZE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(place, method=method, headers=headers), context=ssl.create_default_context()
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.load(error)
        except ValueError:
            return error.code, {}
    except (urllib.error.URLError, ValueError, OSError) as error:
        raise ConfigError(f"'{place}' cannot be asked: {error}") from error


def _tell(line: str) -> None:
    print(printable(f"specialize serve: {line}"), file=sys.stderr, flush=True)
