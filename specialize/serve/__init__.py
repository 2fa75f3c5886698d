"""Serving: from audio to text with anyone's Submodel."""

from specialize.serve.recognizer import Recognizer

__all__ = ["Recognizer"]
