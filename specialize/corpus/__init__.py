"""Corpora: manifests as TFDS data sets, speakers and their splits, and cohort batches."""

from specialize.corpus.audio import read_audio
from specialize.corpus.batches import (
    Dispatch,
    cohort_batches,
    computed_samples,
    eval_batches,
    eval_rows,
    eval_shapes,
    train_shapes,
)
from specialize.corpus.collate import Faults, Positions, Recordings, audio_or_nan, collate, need
from specialize.corpus.config import CorpusConfig
from specialize.corpus.draws import drawn_batches
from specialize.corpus.epochs import Epochs, JoinedCorpus
from specialize.corpus.manifest import Problem, Row, read_manifest
from specialize.corpus.order import Assignment, Cut, Order, queue_order
from specialize.corpus.shapes import Shapes, Size, program_cost
from specialize.corpus.speakers import Corpus, Speaker, Utterance, open_corpus, split_by_hash

__all__ = [
    "Assignment",
    "Corpus",
    "CorpusConfig",
    "Cut",
    "Dispatch",
    "Epochs",
    "Faults",
    "JoinedCorpus",
    "Order",
    "Positions",
    "Problem",
    "Recordings",
    "Row",
    "Shapes",
    "Size",
    "Speaker",
    "Utterance",
    "audio_or_nan",
    "cohort_batches",
    "collate",
    "computed_samples",
    "drawn_batches",
    "eval_batches",
    "eval_rows",
    "eval_shapes",
    "need",
    "open_corpus",
    "program_cost",
    "queue_order",
    "read_audio",
    "read_manifest",
    "split_by_hash",
    "train_shapes",
]
