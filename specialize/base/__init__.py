"""The base: a frozen recogniser, with its front end and its tokenizer."""

from specialize.base.architecture import Architecture, Augment, Losses
from specialize.base.batch import Batch
from specialize.base.folder import Base, load_base, save_base
from specialize.base.huggingface import import_base
from specialize.base.tokenizer import Tokenizer, TokenizerError, sentence_case
from specialize.base.whisper import Whisper
from specialize.base.whisper_model import WhisperConfig

__all__ = [
    "Architecture",
    "Augment",
    "Base",
    "Batch",
    "Losses",
    "Tokenizer",
    "TokenizerError",
    "Whisper",
    "WhisperConfig",
    "import_base",
    "load_base",
    "save_base",
    "sentence_case",
]
