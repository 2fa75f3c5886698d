"""One frozen speech recogniser, and a small Submodel for each person, trained by the hundred in one job.

import specialize as sp

base = sp.load_base("bases/whisper-tiny.en")
submodel = sp.load_submodel("runs/speechocean_whisper/submodels/0024")
text = sp.Recognizer(base).transcribe("clip.wav", submodel=submodel)
"""

from typing import TYPE_CHECKING

from specialize.lazy import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from specialize.base import Base, ConformerConfig, TransducerConfig, import_base, load_base
    from specialize.corpus import CorpusConfig
    from specialize.errors import SpecializeError
    from specialize.serve import Recognizer
    from specialize.space import CompactStore, Hypernetwork, Linear, OneHot, Space, load_space
    from specialize.submodel import (
        BiasOnly,
        FullWeights,
        LayerNormOnly,
        LoRA,
        ResidualAdapter,
        StoredSubmodel,
        SubmodelStore,
        load_submodel,
        save_submodel,
    )
    from specialize.sweep import Sweep
    from specialize.train import (
        CohortConfig,
        Experiment,
        HyperParameters,
        Pretraining,
        Run,
        SpaceRun,
        SpaceTraining,
        Stopping,
    )

_HOMES = {
    "specialize.base": ("Base", "ConformerConfig", "TransducerConfig", "import_base", "load_base"),
    "specialize.corpus": ("CorpusConfig",),
    "specialize.errors": ("SpecializeError",),
    "specialize.serve": ("Recognizer",),
    "specialize.space": ("CompactStore", "Hypernetwork", "Linear", "OneHot", "Space", "load_space"),
    "specialize.submodel": (
        "BiasOnly",
        "FullWeights",
        "LayerNormOnly",
        "LoRA",
        "ResidualAdapter",
        "StoredSubmodel",
        "SubmodelStore",
        "load_submodel",
        "save_submodel",
    ),
    "specialize.sweep": ("Sweep",),
    "specialize.train": (
        "CohortConfig",
        "Experiment",
        "HyperParameters",
        "Pretraining",
        "Run",
        "SpaceRun",
        "SpaceTraining",
        "Stopping",
    ),
}

__all__ = [
    "Base",
    "BiasOnly",
    "CohortConfig",
    "CompactStore",
    "ConformerConfig",
    "CorpusConfig",
    "Experiment",
    "FullWeights",
    "HyperParameters",
    "Hypernetwork",
    "LayerNormOnly",
    "Linear",
    "LoRA",
    "OneHot",
    "Pretraining",
    "Recognizer",
    "ResidualAdapter",
    "Run",
    "Space",
    "SpaceRun",
    "SpaceTraining",
    "SpecializeError",
    "Stopping",
    "StoredSubmodel",
    "SubmodelStore",
    "Sweep",
    "TransducerConfig",
    "__version__",
    "import_base",
    "load_base",
    "load_space",
    "load_submodel",
    "save_submodel",
]


__getattr__ = lazy(__name__, _HOMES)
