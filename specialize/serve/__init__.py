"""Serving: from audio to text with anyone's Submodel, and who may use whose."""

from typing import TYPE_CHECKING

from specialize.lazy import lazy

if TYPE_CHECKING:
    from specialize.serve.app import create_app
    from specialize.serve.audio import AudioDecoder, cut_at_pauses
    from specialize.serve.batcher import Batcher
    from specialize.serve.cache import SubmodelCache
    from specialize.serve.keys import Grant, KeyFile, Keys
    from specialize.serve.recognizer import Recognizer
    from specialize.serve.service import Service

_HOMES = {
    "specialize.serve.app": ("create_app",),
    "specialize.serve.audio": ("AudioDecoder", "cut_at_pauses"),
    "specialize.serve.batcher": ("Batcher",),
    "specialize.serve.cache": ("SubmodelCache",),
    "specialize.serve.keys": ("Grant", "KeyFile", "Keys"),
    "specialize.serve.recognizer": ("Recognizer",),
    "specialize.serve.service": ("Service",),
}

__all__ = [
    "AudioDecoder",
    "Batcher",
    "Grant",
    "KeyFile",
    "Keys",
    "Recognizer",
    "Service",
    "SubmodelCache",
    "create_app",
    "cut_at_pauses",
]


__getattr__ = lazy(__name__, _HOMES)
