"""Thirty Submodels on two processor cores in minutes, with nothing to download: `python experiments/quickstart.py`.

The corpus and the base are in the package, and all of their speech is SYNTHETIC: thirty made-up people, each with a
distortion of their own, and a small Conformer that knows undistorted voices. Flags are those of `specialize train`.
"""

from specialize.corpus import CorpusConfig
from specialize.embedded import BASE, MANIFEST
from specialize.submodel import ResidualAdapter
from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

experiment = Experiment(
    name="quickstart",
    base=BASE,
    corpus=CorpusConfig(manifest=MANIFEST),
    submodel=ResidualAdapter(bottleneck=24),
    hyper=HyperParameters(learning_rate=3e-3, warmup=6),
    stop=Stopping(max_steps=60, every=12, patience=3),
    cohort=CohortConfig(slots=15, batch=8, rows=8, shapes=4),
)
