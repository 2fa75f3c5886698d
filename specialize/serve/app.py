"""HTTP: OpenAI's routes for transcription and models, health, metrics, and the page."""

import asyncio
import contextlib
import json
import logging
import math
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from specialize import __version__
from specialize.errors import (
    AudioRefused,
    ConfigError,
    CorpusError,
    FingerprintMismatch,
    Forgotten,
    NoSubmodel,
    SpecializeError,
    StoreUnavailable,
)
from specialize.serve.batcher import Busy, Closed
from specialize.serve.form import asked_in, read_form
from specialize.serve.guard import Guard
from specialize.serve.keys import Grant, Keys
from specialize.serve.metrics import Metrics
from specialize.serve.refusal import Refused, error_data, refusal
from specialize.serve.service import Heard, Preparing, Segment, Service
from specialize.serve.slots import NoSlot

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_SEEK_PER_SECOND = 100
"""`seek` is the start of a piece in Whisper's frames of 10 ms."""
_Found = TypeVar("_Found")
_GONE = 499
"""The status that logs know, after nginx, for who hung up."""
_OUTAGE_SECONDS = 5
"""Seconds after which a client is told to try again where the server lacks something."""
_EVERYTHING = Grant(name="loopback", speakers=("*",), manages=True)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    upload_bytes: int = 25 << 20
    """Of a request with its file; 25 MiB are OpenAI's limit too."""


@dataclass(frozen=True)
class Logging:
    """What is written of a request, beside its route, status and times."""

    speakers: bool = False
    """The speaker's id."""
    text: bool = False
    """What was said."""


def create_app(
    service: Service,
    *,
    keys: Keys | None = None,
    base_name: str = "base",
    limits: Limits | None = None,
    logs: Logging | None = None,
    metrics: Metrics | None = None,
    hosts: Sequence[str] = (),
    ready: Callable[[], bool] = lambda: True,
) -> FastAPI:
    """The application.

    Args:
        service: transcribes.
        keys: who may use what; None lets everyone do everything, and is for loopback only.
        base_name: the `model` that stands for the base alone.
        limits: of requests.
        logs: what is logged.
        metrics: counts.
        hosts: names by which the server may be called; empty for any. Without keys, a page of another site could reach
            a server on loopback by a name of its own.
        ready: whether everything is compiled.
    """
    limits, logs, metrics = limits or Limits(), logs or Logging(), metrics or Metrics()
    metrics.watch(service)
    app = FastAPI(title="specialize", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    http = _Http(service, keys, base_name, logs, metrics, ready)
    app.post("/v1/audio/transcriptions")(http.transcriptions)
    app.get("/v1/models")(http.models)
    app.get("/v1/models/{name:path}")(http.model)
    app.delete("/v1/models/{name:path}")(http.delete)
    app.get("/healthz")(http.alive)
    app.get("/readyz")(http.ready)
    app.get("/metrics")(http.metrics)
    for path, (name, kind) in _PAGE.items():
        app.get(path)(_static(name, kind))
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _of_starlette)
    app.add_middleware(Guard, limit=limits.upload_bytes, hosts=tuple(hosts), metrics=metrics)  # pyright: ignore[reportArgumentType]
    return app


class _Http:
    def __init__(
        self,
        service: Service,
        keys: Keys | None,
        base_name: str,
        logs: Logging,
        metrics: Metrics,
        ready: Callable[[], bool],
    ):
        self._service, self._keys, self._base, self._logs = service, keys, base_name, logs
        self._metrics, self._ready = metrics, ready

    async def transcriptions(self, request: Request) -> Response:
        """OpenAI's `POST /v1/audio/transcriptions`."""
        grant = self._grant(request)
        with self._as_answers(request):  # before anything is spent on what will be refused
            self._service.admit()
            self._service.check_warm(None)
        form = await read_form(request)
        try:
            asked = asked_in(form, self._service.base.language)
            speaker = self._speaker(grant, asked.model)
            note = request.scope["specialize"]
            if self._logs.speakers:
                note["speaker"] = asked.model
            with self._as_answers(request):
                heard = await self._service.hear(asked.file.read, speaker)
        finally:
            await form.close()
        note["audio_seconds"] = round(heard.seconds, 3)
        self._metrics.audio.inc(heard.seconds)
        headers = {"X-Specialize-Transcribed-By": "base" if heard.resident is None else "submodel"}
        segments = self._service.transcribe(heard)
        if asked.stream:
            return await self._streamed(request, segments, headers)
        with self._as_answers(request):
            said = await _unless_gone(request, _all(segments))
        text = _joined(said)
        if self._logs.text:
            note["text"] = text
        if asked.format == "text":
            return PlainTextResponse(text + "\n", headers=headers)
        answer: dict[str, Any] = {"text": text}
        if asked.format == "verbose_json":
            answer |= self._verbose(heard, said)
        return JSONResponse(answer, headers=headers)

    async def models(self, request: Request) -> Response:
        """OpenAI's `GET /v1/models`: the base, and the speakers that the key may use."""
        grant = self._grant(request)
        with self._as_answers(request):
            listed = await self._service.speakers()
        speakers = [name for name in listed if grant.allows(name) and name != self._base]
        return JSONResponse({"object": "list", "data": [_model(name) for name in (self._base, *speakers)]})

    async def model(self, request: Request, name: str) -> Response:
        """OpenAI's `GET /v1/models/{model}`."""
        speaker = self._speaker(self._grant(request), name)
        if speaker is not None:
            with self._as_answers(request):
                there = await self._service.has(speaker)
            if not there:
                raise _not_there()
        return JSONResponse(_model(name))

    async def delete(self, request: Request, name: str) -> Response:
        """OpenAI's `DELETE /v1/models/{model}`: the speaker is forgotten, in the store, in memory and in the slots."""
        grant = self._grant(request)
        speaker = self._speaker(grant, name)
        if not grant.manages or speaker is None:
            raise Refused(403, "This key may not delete that model.", code="not_allowed")
        with self._as_answers(request, _not_deleted, "The store gives no answer; what is in it may not be deleted."):
            dropped = await self._service.forget(speaker)
        if dropped is None:
            raise _not_there()
        return JSONResponse({"id": name, "object": "model", "deleted": True, "copies_dropped": dropped})

    async def alive(self) -> Response:
        """Whether the process answers."""
        return PlainTextResponse("ok\n")

    async def ready(self) -> Response:
        """Whether requests are served at once: everything is compiled, and the keys can be read."""
        problem = None if self._keys is None else self._keys.problem
        if not self._ready() or problem:
            return PlainTextResponse("the keys cannot be read\n" if problem else "starting\n", 503)
        return PlainTextResponse("ok\n")

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        if not self._grant(request).manages:
            raise Refused(403, "This key may not read metrics.", code="not_allowed")
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _grant(self, request: Request) -> Grant:
        """What the request's key allows. Raises Refused for none and for a wrong one alike."""
        if self._keys is None:
            return _EVERYTHING
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        grant = self._keys.check(key.strip()) if kind.lower() == "bearer" else None
        if grant is None:
            raise Refused(401, "Send a valid key: 'Authorization: Bearer …'.", code="invalid_api_key")
        request.scope["specialize"]["key"] = grant.name
        return grant

    def _speaker(self, grant: Grant, model: str) -> str | None:
        """The speaker that a model stands for; None is the base. Refused alike whether it exists or not."""
        if model == self._base and grant.speakers:
            return None
        if not model or not grant.allows(model):
            raise Refused(403, "This key may not use that model.", code="not_allowed", param="model")
        return model

    async def _streamed(self, request: Request, segments: AsyncIterator[Segment], headers: dict[str, str]) -> Response:
        """Server-sent events, as OpenAI's: a delta for each piece, and the whole at the end."""
        note = request.scope["specialize"]
        with self._as_answers(request):  # what fails before there is any text can still be an answer of its own
            first = await _unless_gone(request, _next(segments))

        async def events() -> AsyncIterator[bytes]:
            said: list[Segment] = []
            try:
                segment = first
                while segment is not None:
                    space = " " if _joined(said) and segment.text else ""
                    said.append(segment)
                    yield _event("transcript.text.delta", delta=space + segment.text)
                    with self._as_answers(request):
                        segment = await _next(segments)
            except Refused as error:
                note["status"] = error.status
                yield _event("error", error=error_data(error))
                return
            if self._logs.text:
                note["text"] = _joined(said)
            yield _event("transcript.text.done", text=_joined(said))

        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    @contextlib.contextmanager
    def _as_answers(
        self,
        request: Request,
        broken: Callable[[], Refused] | None = None,
        outage: str = "The store cannot be read at the moment.",
    ) -> Iterator[None]:
        """What goes wrong with a request, as an answer that says nothing of the server's files; else it is `broken`."""
        try:
            yield
        except Busy as error:
            raise Refused(429, f"{error} Try again.", code="busy", retry=error.retry_after) from error
        except Preparing as error:
            raise Refused(503, f"{error} Try again.", code="preparing", retry=error.retry_after) from error
        except Closed as error:
            raise Refused(503, "The server is ending.", code="ending", retry=1) from error
        except (AudioRefused, CorpusError) as error:
            raise Refused(400, str(error), code="invalid_audio", param="file") from error
        except (NoSubmodel, Forgotten) as error:
            raise _not_there() from error
        except FingerprintMismatch as error:
            self._tell(request, error)
            raise Refused(422, "That model was made for another base.", code="model_of_another_base") from error
        except StoreUnavailable as error:
            self._tell(request, error)
            raise _lacking(outage, "store_unavailable") from error
        except ConfigError as error:
            self._tell(request, error, named=False)
            raise _lacking("The server cannot decode audio at the moment.", "no_decoder") from error
        except NoSlot as error:
            self._tell(request, error, named=False)
            raise _lacking("The server has no slot free at the moment.", "no_slot") from error
        except SpecializeError as error:
            self._tell(request, error)
            raise (broken or _damaged)() from error

    def _tell(self, request: Request, error: Exception, *, named: bool = True) -> None:
        """Why a request fails that is not at fault; `named` says that the message may name the speaker."""
        note = {"id": request.scope["specialize"]["id"], "error": type(error).__name__}
        note |= {"message": "--log-speakers has it" if named and not self._logs.speakers else str(error)}
        logging.getLogger("specialize.requests").warning(json.dumps(note, ensure_ascii=False))

    def _verbose(self, heard: Heard, said: Sequence[Segment]) -> dict[str, Any]:
        segments = [_segment(i, segment) for i, segment in enumerate(said)]
        return {
            "task": "transcribe",
            "language": self._service.base.language,
            "duration": heard.seconds,
            "segments": segments,
            "transcribed_by": "base" if heard.resident is None else "submodel",
        }


async def _all(segments: AsyncIterator[Segment]) -> list[Segment]:
    return [segment async for segment in segments]


async def _next(segments: AsyncIterator[Segment]) -> Segment | None:
    return await anext(segments, None)


async def _unless_gone(request: Request, coming: Coroutine[Any, Any, _Found]) -> _Found:
    """What is to come, which is given up where whoever asks hangs up. Raises Refused then, which nobody reads."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    found, hung_up = asyncio.ensure_future(coming), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((found, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise Refused(_GONE, "Whoever asked has hung up.", code="gone")
        return found.result()
    finally:
        found.cancel()
        hung_up.cancel()
        await asyncio.gather(found, hung_up, return_exceptions=True)


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    """A segment of OpenAI's, without the probabilities that the base cannot give, or that are not finite."""
    text, found = segment.text.encode(), segment.found
    said = {"avg_logprob": found.avg_logprob, "no_speech_prob": found.no_speech_prob}
    return {
        "id": number,
        "seek": round(_SEEK_PER_SECOND * segment.start),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": found.tokens,
        "temperature": 0.0,
        "compression_ratio": len(text) / len(zlib.compress(text)),
    } | {name: value for name, value in said.items() if value is not None and math.isfinite(value)}


def _lacking(message: str, code: str) -> Refused:
    return Refused(503, f"{message} Try again.", code=code, retry=_OUTAGE_SECONDS)


def _damaged() -> Refused:
    return Refused(500, "That model cannot be used; the server's log says why.", code="model_damaged")


def _not_deleted() -> Refused:
    return Refused(500, "That model could not be deleted; the server's log says why.", code="not_deleted")


def _not_there() -> Refused:
    return Refused(404, "There is no such model.", code="model_not_found", param="model")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "specialize"}


def _joined(said: Sequence[Segment]) -> str:
    return " ".join(segment.text for segment in said if segment.text)


def _event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()


def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refused)
    return refusal(error)


def _of_starlette(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return refusal(Refused(error.status_code, str(error.detail)))


def _static(name: str, kind: str) -> Callable[[], Any]:
    content = files("specialize.serve").joinpath("page", name).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=kind)

    return page
