"""The form of a request for a transcription, checked."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from specialize.serve.refusal import Refused

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


@dataclass(frozen=True)
class Asked:
    """What is asked for."""

    file: UploadFile
    model: str
    format: str
    stream: bool


async def read_form(request: Request) -> Any:
    """The form of a request, whose files are not in memory. Raises Refused if it cannot be read."""
    try:
        return await request.form(max_files=1, max_fields=len(_FIELDS), max_part_size=64 << 10)
    except (MultiPartException, HTTPException) as error:
        raise Refused(400, f"The form cannot be read: {getattr(error, 'message', None) or error}.") from error
    except (UnicodeDecodeError, KeyError, ValueError, AssertionError) as error:
        raise Refused(400, "The form cannot be read.") from error


def asked_in(form: Any, language: str) -> Asked:
    """The fields, checked; `language` is the one that the base writes. Raises Refused."""
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
    if _string(form, "language", language) not in (language, ""):
        raise Refused(400, f"This base writes '{language}'.", param="language")
    for name in ("timestamp_granularities", "timestamp_granularities[]"):
        if _string(form, name, "segment") != "segment":
            raise Refused(400, "Timestamps are of segments only.", param="timestamp_granularities")
    return Asked(file, model, kind, stream in ("true", "1"))


def _string(form: Any, name: str, default: str) -> str:
    value = form.get(name, default)
    if not isinstance(value, str):
        raise Refused(400, f"'{name}' is a text, not a file.", param=name)
    return value
