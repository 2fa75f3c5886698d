"""One Submodel for all 125 `base` speakers of speechocean762: a control, and the start of the personal Submodels."""

from pathlib import Path

from specialize.corpus import CorpusConfig
from specialize.submodel import ResidualAdapter
from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

experiment = Experiment(
    name="speechocean_pooled",
    base=Path("bases/whisper-tiny.en"),
    corpus=CorpusConfig(manifest=Path("../shared/corpora/speechocean762/manifest.jsonl"), role="base", pool="pooled"),
    submodel=ResidualAdapter(where=("encoder/layers_*", "decoder/layers_*"), bottleneck=48),
    hyper=HyperParameters(learning_rate=1e-3, warmup=12, dropout=0.1),
    stop=Stopping(max_steps=210, every=42, patience=4),
    cohort=CohortConfig(slots=1, batch=16, rows=4),
)
