"""Full fine-tuning for each `personal` speaker of speechocean762: the control that Submodels are measured against.

Every weight of the encoder's and decoder's layers is trained, from the base; a copy of the model for each person.
"""

from pathlib import Path

from specialize.corpus import CorpusConfig
from specialize.submodel import FullWeights
from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

experiment = Experiment(
    name="speechocean_full",
    base=Path("bases/whisper-tiny.en"),
    corpus=CorpusConfig(manifest=Path("../shared/corpora/speechocean762/manifest.jsonl"), role="personal"),
    submodel=FullWeights(where=("encoder/layers_*", "decoder/layers_*")),
    hyper=HyperParameters(learning_rate=1e-4, warmup=4),
    stop=Stopping(max_steps=24, every=3, patience=3),
    cohort=CohortConfig(slots=8, batch=4, rows=2),
)
