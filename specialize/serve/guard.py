"""Around every request: its size, whom it calls, what is logged and counted."""

import json
import logging
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specialize.serve.metrics import Metrics
from specialize.serve.refusal import Refused, refusal

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_QUIET = ("/healthz", "/readyz", "/metrics")
"""What is asked for all the time, and not logged."""


class Guard:
    """Middleware. What others note in `scope["specialize"]` is logged with the request.

    Args:
        app: what it is around.
        limit: bytes of a request.
        hosts: names by which the server may be called; empty for any.
        metrics: counts.
    """

    def __init__(self, app: ASGIApp, limit: int, hosts: tuple[str, ...], metrics: Metrics):
        self._app, self._limit, self._hosts, self._metrics = app, limit, hosts, metrics
        self._log = logging.getLogger("specialize.requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        note: dict[str, Any] = {"id": uuid.uuid4().hex[:12]}
        scope["specialize"] = note
        status, started = 500, False

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                extra = {**_HEADERS, "X-Request-Id": note["id"]}
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        self._metrics.under_way.inc()
        try:
            refused = self._refusal(scope)
            if refused is not None:
                await refusal(refused)(scope, receive, sending)
            else:
                await self._app(scope, self._counting(receive), sending)
        except Exception:
            self._log.exception(json.dumps({"id": note["id"], "error": "unexpected"}))
            if started:
                raise
            broken = Refused(500, "The server has failed at this request; its log says how.")
            await refusal(broken)(scope, receive, sending)
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
