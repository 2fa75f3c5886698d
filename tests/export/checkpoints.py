"""The tiny Whisper as a Hugging Face folder that transformers loads, and Submodels of it."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specialize.base import Base
from specialize.base.huggingface import read_base
from specialize.submodel import Kind, StoredSubmodel, find_sites, init_submodel, inserted
from tests.base.test_folder import checkpoint, tensors
from tests.bases import byte_tokenizer, tiny_whisper
from tests.submodel.programs import SPECS, shaken

MERGED = [kind for kind in SPECS if kind != "residual-adapter"]
"""The kinds that are changes of weights."""


def whisper_checkpoint(folder: Path, dtype: Any = np.float32, shards: int = 1) -> tuple[Path, Base]:
    """A folder of the tiny Whisper of two layers, and the base that importing it gives."""
    values = {name: value.astype(dtype) for name, value in tensors(tiny_whisper(layers=2)).items()}
    end = max(byte_tokenizer()[1].values())
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "pad_token_id": end, "bos_token_id": end, "dropout": 0.0}
    checkpoint(folder, values, shards, **sizes)
    return folder, read_base(folder)


def random_stored(base: Base, spec: Kind, speaker: str = "ana", scale: float = 0.05, **training: Any) -> StoredSubmodel:
    """A Submodel of a base that matters everywhere."""
    submodel = init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(0))
    return StoredSubmodel(shaken(submodel, scale=scale), spec, speaker, base.fingerprint, training)


@functools.cache
def program(base: Base, spec: Kind | None) -> Any:
    """Compiled logits of the base, or with a Submodel of a spec in it."""
    architecture: Any = base.architecture

    def logits(params, submodel, *arguments):
        if spec is None:
            return architecture.logits(params, *arguments)
        with inserted(spec, submodel, params) as changed:
            return architecture.logits(changed, *arguments)

    return jax.jit(logits)


def logits_of(base: Base, stored: StoredSubmodel | None, *arguments: Any) -> np.ndarray:
    """Ours, of the base or with a Submodel in it."""
    run = program(base, None if stored is None else stored.spec)
    return np.asarray(run(base.params, {} if stored is None else stored.submodel, *arguments))
