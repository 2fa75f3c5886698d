"""A Submodel for each of the 75 `personal` speakers of speechocean762, on a weak Conformer RNN-T of our own.

specialize pretrain experiments/speechocean_transducer_base.py
specialize train experiments/speechocean_transducer.py --evaluate
"""

from pathlib import Path

from specialize.corpus import CorpusConfig
from specialize.submodel import LoRA
from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

experiment = Experiment(
    name="speechocean_transducer",
    base=Path("runs/speechocean_transducer_base/base"),
    corpus=CorpusConfig(manifest=Path("../shared/corpora/speechocean762/manifest.jsonl"), role="personal"),
    submodel=LoRA(where=("**/linear*", "**/*_proj", "**/pointwise_conv*", "decoder/decoder_projector"), rank=8),
    hyper=HyperParameters(learning_rate=2e-3, warmup=6, spec_augment=0.3),
    stop=Stopping(max_steps=60, every=6, patience=3),
    cohort=CohortConfig(slots=16, batch=4, rows=4, shapes=4),
)
