"""Requests that are answered with an error, in OpenAI's form."""

from typing import Any

from fastapi.responses import JSONResponse, Response


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry: int = 0):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry


def error_data(error: Refused) -> dict[str, Any]:
    """What the client of OpenAI reads."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}


def refusal(error: Refused) -> Response:
    """The answer."""
    headers = {"Retry-After": str(error.retry)} if error.retry else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_data(error)}, error.status, headers=headers)
