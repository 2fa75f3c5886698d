"""A Submodel for each of the 75 `personal` speakers of speechocean762, on Whisper tiny.en.

Each starts from one Submodel that was trained on the 125 `base` speakers (`speechocean_pooled.py`), which is kept in
`experiments/results/`, so that this command runs as it is, also on a manifest of other people (`--corpus.manifest`).
"""

from pathlib import Path

from specialize.corpus import CorpusConfig
from specialize.submodel import ResidualAdapter
from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

experiment = Experiment(
    name="speechocean_whisper",
    base=Path("bases/whisper-tiny.en"),
    corpus=CorpusConfig(manifest=Path("../shared/corpora/speechocean762/manifest.jsonl"), role="personal"),
    submodel=ResidualAdapter(where=("encoder/layers_*", "decoder/layers_*"), bottleneck=48),
    start=Path(__file__).parent / "results/speechocean_pooled",
    hyper=HyperParameters(learning_rate=3e-4, warmup=4, spec_augment=0.5, dropout=0.1),
    stop=Stopping(max_steps=12, every=3, patience=4),
    cohort=CohortConfig(slots=16, batch=4, rows=2),
)
