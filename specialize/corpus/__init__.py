"""Corpora: manifests as TFDS data sets, speakers and their splits, and cohort batches."""

from specialize.corpus.audio import read_audio
from specialize.corpus.batches import (
    Assignment,
    Order,
    Shapes,
    cohort_batches,
    collate,
    eval_batches,
    queue_order,
)
from specialize.corpus.config import CorpusConfig
from specialize.corpus.manifest import Problem, Row, read_manifest
from specialize.corpus.speakers import Corpus, Speaker, Utterance, open_corpus, split_by_hash

__all__ = [
    "Assignment",
    "Corpus",
    "CorpusConfig",
    "Order",
    "Problem",
    "Row",
    "Shapes",
    "Speaker",
    "Utterance",
    "cohort_batches",
    "collate",
    "eval_batches",
    "open_corpus",
    "queue_order",
    "read_audio",
    "read_manifest",
    "split_by_hash",
]
