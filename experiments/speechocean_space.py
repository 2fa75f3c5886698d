"""A linear space of the 125 `base` speakers of speechocean762, around the Submodel that was pooled over them.

    specialize train experiments/speechocean_space.py
    specialize train experiments/speechocean_whisper.py --start None --space runs/speechocean_space --budget 3 --name n3

The second command finds the points of the 75 `personal` speakers, whom it has not seen, from three utterances each.
It finds nothing beside the pooled start; that of `learning_curve.py`, through Submodels, does (results/README.md).
"""

from pathlib import Path

from specialize.corpus import CorpusConfig
from specialize.space import Linear
from specialize.submodel import ResidualAdapter
from specialize.train import CohortConfig, HyperParameters, SpaceTraining, Stopping

experiment = SpaceTraining(
    name="speechocean_space",
    base=Path("bases/whisper-tiny.en"),
    corpus=CorpusConfig(manifest=Path("../shared/corpora/speechocean762/manifest.jsonl"), role="base"),
    submodel=ResidualAdapter(where=("encoder/layers_*", "decoder/layers_*"), bottleneck=48),
    space=Linear(dim=16),
    start=Path(__file__).parent / "results/speechocean_pooled",
    hyper=HyperParameters(learning_rate=1e-4, warmup=6, spec_augment=0.5, dropout=0.1),
    embedding_rate=0.02,
    stop=Stopping(max_steps=48, every=12, patience=2),
    cohort=CohortConfig(slots=24, batch=4, rows=2),
    store=False,
)
