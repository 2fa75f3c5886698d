"""Serving: from audio to text with anyone's Submodel, and who may use whose."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specialize.serve.audio import AudioDecoder, cut_at_pauses
    from specialize.serve.keys import Grant, KeyFile, Keys
    from specialize.serve.recognizer import Recognizer

_HOMES = {
    "specialize.serve.audio": ("AudioDecoder", "cut_at_pauses"),
    "specialize.serve.keys": ("Grant", "KeyFile", "Keys"),
    "specialize.serve.recognizer": ("Recognizer",),
}

__all__ = ["AudioDecoder", "Grant", "KeyFile", "Keys", "Recognizer", "cut_at_pauses"]


def __getattr__(name: str) -> Any:
    # Loaded at first use, so that `specialize keys` need not wait for JAX.
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'specialize.serve' has no attribute '{name}'")
