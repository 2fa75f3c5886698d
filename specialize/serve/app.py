"""HTTP: OpenAI's routes for transcription and models, health, metrics, and the page."""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specialize import __version__
from specialize.errors import AudioRefused, CorpusError, FingerprintMismatch, NoSubmodel, SpecializeError
from specialize.serve.batcher import Busy, Closed, Forgotten
from specialize.serve.keys import Grant, Keys
from specialize.serve.metrics import Metrics
from specialize.serve.service import Heard, Preparing, Segment, Service

FORMATS = ("json", "text", "verbose_json")
"""Of `response_format`."""
_FIELDS = {
    "file",
    "model",
    "response_format",
    "stream",
    "language",
    "prompt",
    "temperature",
    "timestamp_granularities",
    "timestamp_granularities[]",
}
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_QUIET = ("/healthz", "/readyz", "/metrics")
"""What is asked for all the time, and not logged."""
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


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry: int = 0):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry


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
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(_Guard, limit=limits.upload_bytes, hosts=tuple(hosts), metrics=metrics, logs=logs)  # pyright: ignore[reportArgumentType]
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
        form = await _form(request)
        try:
            asked = _asked(form)
            speaker = self._speaker(grant, asked.model)
            note = request.scope["specialize"]
            if self._logs.speakers:
                note["speaker"] = asked.model
            data = await asked.file.read()
        finally:
            await form.close()
        with _as_answers():
            heard = await self._service.hear(data, speaker)
        note["audio_seconds"] = round(heard.seconds, 3)
        self._metrics.audio.inc(heard.seconds)
        headers = {"X-Specialize-Transcribed-By": "base" if heard.resident is None else "submodel"}
        segments = self._service.transcribe(heard)
        if asked.stream:
            return await self._streamed(segments, note, headers)
        said: list[Segment] = []
        with _as_answers():
            async for segment in segments:
                said.append(segment)
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
        speakers = [name for name in await self._service.speakers() if grant.allows(name) and name != self._base]
        return JSONResponse({"object": "list", "data": [_model(name) for name in (self._base, *speakers)]})

    async def model(self, request: Request, name: str) -> Response:
        """OpenAI's `GET /v1/models/{model}`."""
        speaker = self._speaker(self._grant(request), name)
        if speaker is not None:
            loop = asyncio.get_running_loop()
            if await loop.run_in_executor(None, self._service.store.version, speaker) is None:
                raise _not_there()
        return JSONResponse(_model(name))

    async def delete(self, request: Request, name: str) -> Response:
        """OpenAI's `DELETE /v1/models/{model}`: the speaker is forgotten, in the store, in memory and in the slots."""
        grant = self._grant(request)
        speaker = self._speaker(grant, name)
        if not grant.manages or speaker is None:
            raise Refused(403, "This key may not delete that model.", code="not_allowed")
        with _as_answers():
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
        if model == self._base:
            return None
        if not grant.allows(model):
            raise Refused(403, "This key may not use that model.", code="not_allowed", param="model")
        return model

    async def _streamed(
        self, segments: AsyncIterator[Segment], note: dict[str, Any], headers: dict[str, str]
    ) -> Response:
        """Server-sent events, as OpenAI's: a delta for each piece, and the whole at the end."""
        with _as_answers():  # what fails before there is any text can still be an answer of its own
            first = await anext(aiter(segments), None)

        async def events() -> AsyncIterator[bytes]:
            said: list[Segment] = []
            try:
                segment = first
                while segment is not None:
                    said.append(segment)
                    space = " " if len(said) > 1 else ""
                    yield _event("transcript.text.delta", delta=space + segment.text)
                    with _as_answers():
                        segment = await anext(aiter(segments), None)
            except Refused as error:
                note["status"] = error.status
                yield _event("error", error=_error(error))
                return
            if self._logs.text:
                note["text"] = _joined(said)
            yield _event("transcript.text.done", text=_joined(said))

        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _verbose(self, heard: Heard, said: Sequence[Segment]) -> dict[str, Any]:
        segments = [{"id": i, "start": s.start, "end": s.end, "text": s.text} for i, s in enumerate(said)]
        return {
            "task": "transcribe",
            "language": self._service.base.language or "unknown",
            "duration": heard.seconds,
            "segments": segments,
            "transcribed_by": "base" if heard.resident is None else "submodel",
        }


@dataclass(frozen=True)
class _Asked:
    file: UploadFile
    model: str
    format: str
    stream: bool


async def _form(request: Request) -> Any:
    try:
        return await request.form(max_files=1, max_fields=len(_FIELDS), max_part_size=64 << 10)
    except (MultiPartException, HTTPException) as error:
        raise Refused(400, f"The form cannot be read: {getattr(error, 'message', None) or error}.") from error
    except (UnicodeDecodeError, KeyError, ValueError, AssertionError) as error:
        raise Refused(400, "The form cannot be read.") from error


def _asked(form: Any) -> _Asked:
    """The fields of a request for a transcription, checked."""
    unknown = sorted(set(form) - _FIELDS)
    if unknown:
        raise Refused(400, f"There is no field {unknown[0][:60]!r}. Known: {', '.join(sorted(_FIELDS))}.")
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise Refused(400, "Send the audio as the file 'file'.", param="file")
    model = _string(form, "model", "")
    if not model:
        raise Refused(400, "Name a model: a speaker, or the base (GET /v1/models lists them).", param="model")
    kind = _string(form, "response_format", "json")
    if kind not in FORMATS:
        raise Refused(400, f"response_format is one of {', '.join(FORMATS)}.", param="response_format")
    stream = _string(form, "stream", "false").lower()
    if stream not in ("true", "false", "1", "0"):
        raise Refused(400, "stream is true or false.", param="stream")
    if _string(form, "prompt", ""):
        raise Refused(400, "Prompts are not supported.", param="prompt")
    try:
        temperature = float(_string(form, "temperature", "0") or 0)
    except ValueError:
        temperature = float("nan")
    if temperature != 0:
        raise Refused(400, "Decoding is greedy: temperature is 0.", param="temperature")
    for name in ("timestamp_granularities", "timestamp_granularities[]"):
        if _string(form, name, "segment") != "segment":
            raise Refused(400, "Timestamps are of segments only.", param="timestamp_granularities")
    return _Asked(file, model, kind, stream in ("true", "1"))


def _string(form: Any, name: str, default: str) -> str:
    value = form.get(name, default)
    if not isinstance(value, str):
        raise Refused(400, f"'{name}' is a text, not a file.", param=name)
    return value


@contextlib.contextmanager
def _as_answers():
    """What goes wrong with a request, as an answer that says nothing of the server's files."""
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
    except FingerprintMismatch as error:
        logging.getLogger(__name__).warning("%s", error)
        raise Refused(409, "That model was made for another base.", code="model_of_another_base") from error
    except (NoSubmodel, Forgotten) as error:
        raise _not_there() from error
    except SpecializeError as error:
        logging.getLogger(__name__).warning("%s", error)
        raise Refused(500, "That model cannot be used; the server's log says why.", code="model_damaged") from error


def _not_there() -> Refused:
    return Refused(404, "There is no such model.", code="model_not_found", param="model")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "specialize"}


def _joined(said: Sequence[Segment]) -> str:
    return " ".join(segment.text for segment in said if segment.text)


def _event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()


def _error(error: Refused) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}


def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refused)
    headers = {"Retry-After": str(error.retry)} if error.retry else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": _error(error)}, error.status, headers=headers)


def _of_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refused(request, Refused(error.status_code, str(error.detail)))


def _broken(request: Request, error: Exception) -> Response:
    return _refused(request, Refused(500, "The server has failed at this request; its log says how."))


def _static(name: str, kind: str) -> Callable[[], Any]:
    content = files("specialize.serve").joinpath("page", name).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=kind)

    return page


class _Guard:
    """Around every request: its size, whom it calls, what is logged and counted."""

    def __init__(self, app: ASGIApp, limit: int, hosts: tuple[str, ...], metrics: Metrics, logs: Logging):
        self._app, self._limit, self._hosts, self._metrics, self._logs = app, limit, hosts, metrics, logs
        self._log = logging.getLogger("specialize.requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        note: dict[str, Any] = {"id": uuid.uuid4().hex[:12]}
        scope["specialize"] = note
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = {**_HEADERS, "X-Request-Id": note["id"]}
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        self._metrics.under_way.inc()
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refused(Request(scope), refusal)(scope, receive, sending)
            else:
                await self._app(scope, self._counting(receive), sending)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.under_way.dec()
            route = getattr(scope.get("route"), "path", "other")
            status = note.pop("status", status)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            line = {"route": route, "method": scope["method"], "status": status, "seconds": round(seconds, 4)}
            if route not in _QUIET:
                self._log.info(json.dumps({"time": round(time.time(), 3), **note, **line}, ensure_ascii=False))

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts and _without_port(host) not in self._hosts:
            return Refused(421, "The server is not called so. Name it with --hosts.", code="unknown_host")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            return Refused(403, "Pages of other sites may not use this server.", code="other_site")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self._limit:
            return self._too_large() if length.isdecimal() else Refused(400, "Content-Length is a number.")
        return None

    def _counting(self, receive: Receive) -> Receive:
        """As `receive`, until more has come than may."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._limit:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refused:
        return Refused(413, f"A request has at most {self._limit / (1 << 20):.0f} MiB.", code="too_large")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and (not name.count(":") or name.endswith("]")) else host
