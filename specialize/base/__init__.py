"""The base: a frozen recogniser, with its front end and its tokenizer."""

from specialize.base.architecture import Architecture, Augment, Decoded, Losses
from specialize.base.batch import Batch
from specialize.base.conformer import ConformerCTC, ConformerTransducer, conformer
from specialize.base.conformer_model import ConformerConfig
from specialize.base.folder import Base, load_base, save_base
from specialize.base.huggingface import import_base
from specialize.base.tokenizer import Tokenizer, TokenizerError, character_tokenizer, sentence_case
from specialize.base.transducer_model import TransducerConfig
from specialize.base.whisper import Whisper
from specialize.base.whisper_model import WhisperConfig

__all__ = [
    "Architecture",
    "Augment",
    "Base",
    "Batch",
    "ConformerCTC",
    "ConformerConfig",
    "ConformerTransducer",
    "Decoded",
    "Losses",
    "Tokenizer",
    "TokenizerError",
    "TransducerConfig",
    "Whisper",
    "WhisperConfig",
    "character_tokenizer",
    "conformer",
    "import_base",
    "load_base",
    "save_base",
    "sentence_case",
]
