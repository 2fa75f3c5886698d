"""A linear space of the thirty synthetic people of the package: nothing to download.

    specialize train experiments/synthetic_space.py --evaluate

What distinguishes them is known (`specialize/embedded/people.json`), so one can see whether the space finds it: the
report shows the speakers as points, by severity. The control that shares nothing:

    specialize train experiments/synthetic_space.py --name synthetic_alone --space.kind one-hot --embedding-rate 5e-3
"""

from specialize.corpus import CorpusConfig
from specialize.embedded import BASE, MANIFEST
from specialize.space import Linear
from specialize.submodel import LoRA
from specialize.train import CohortConfig, HyperParameters, SpaceTraining, Stopping

experiment = SpaceTraining(
    name="synthetic_space",
    base=BASE,
    corpus=CorpusConfig(manifest=MANIFEST),
    submodel=LoRA(where=("**/linear*", "**/*_proj", "**/pointwise_conv*"), rank=16),
    space=Linear(dim=8),
    hyper=HyperParameters(learning_rate=1e-3, warmup=24),
    embedding_rate=0.3,
    stop=Stopping(max_steps=480, every=48, patience=4),
    cohort=CohortConfig(slots=15, batch=4, rows=4, shapes=4, chunk=0),
)
