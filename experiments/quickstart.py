"""Thirty Submodels in minutes on two processor cores, with nothing to download.

    python experiments/quickstart.py

Trains a Submodel for each of thirty people, scores them, writes the report and says what to do with them. All of the
speech is SYNTHETIC: corpus and base are in the package (`specialize/embedded`), thirty made-up people with a distortion
each, and a small Conformer that knows undistorted voices. Flags are those of `specialize train`.
"""

import sys

from specialize.cli import main
from specialize.corpus import CorpusConfig
from specialize.embedded import BASE, MANIFEST
from specialize.submodel import LoRA
from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

experiment = Experiment(
    name="quickstart",
    base=BASE,
    corpus=CorpusConfig(manifest=MANIFEST),
    submodel=LoRA(where=("**/linear*", "**/*_proj", "**/pointwise_conv*"), rank=16),
    hyper=HyperParameters(learning_rate=7e-3, warmup=8),
    stop=Stopping(max_steps=72, every=12, patience=4),
    cohort=CohortConfig(slots=15, batch=4, rows=4, shapes=2, chunk=0),
)

if __name__ == "__main__":
    # The same as `specialize train experiments/quickstart.py --evaluate`.
    main(["train", __file__, "--evaluate", *sys.argv[1:]])
