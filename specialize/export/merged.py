"""A Submodel written into the weights of its base: a full Hugging Face folder, which transformers loads by itself.

Possible where the Submodel is exactly a change of weights that the base has: of every kind but residual adapters.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specialize.base import Base
from specialize.base.checkpoint import read_weights, weight_files
from specialize.base.folder import new_folder
from specialize.base.huggingface import read_base, tensor_names
from specialize.errors import ExportError, StoreError
from specialize.submodel import BiasOnly, FullWeights, LayerNormOnly, LoRA, StoredSubmodel
from specialize.submodel.checkpoint import check_base
from specialize.submodel.kinds import kind_name
from specialize.submodel.sites import flatten
from specialize.submodel.tensors import write_tensors

_COPIED = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of files beside the weights: settings and tokenizers. A model card would speak of another model."""
_HEAD, _EMBEDDING = "proj_out.weight", "model.decoder.embed_tokens.weight"
"""Whisper's output embedding is the input's; some checkpoints store it twice."""


@dataclass(frozen=True)
class Merged:
    """What `write_merged` made."""

    folder: Path
    tensors: int
    """Tensors that are not those of the original."""
    dtypes: tuple[str, ...]
    """Their types, which are the original's."""
    relative_error: float
    """Root mean square of what rounding to them changes, over that of what the Submodel changes; 0 in float32."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Hugging Face folder that a base was imported from, for however many Submodels."""

    folder: Path
    base: Base
    files: dict[str, dict[str, np.ndarray]]
    """Tensors by the name of the file and their own, in their own types."""


def open_checkpoint(folder: Path | str, base: Base) -> Checkpoint:
    """Reads a Hugging Face folder, and makes sure that it is the one that a base was imported from.

    Args:
        folder: that holds config.json and safetensors.
        base: whose sizes and weights it must have. What a Whisper is prompted for is not compared.

    Raises:
        BaseModelError: files are missing or damaged, or of a model that cannot be imported.
        ExportError: its sizes or weights are not those of the base.
    """
    folder = Path(folder)
    imported, advice = read_base(folder), "Name the folder that this base was imported from."
    theirs, ours = (_sizes(of) for of in (imported, base))
    if theirs != ours:
        raise ExportError(f"'{folder}' is of another model than the base: {theirs}, not {ours}. {advice}")
    found = flatten(imported.params)
    for path, value in flatten(base.params).items():
        if not np.array_equal(found[path], value):
            raise ExportError(f"'{folder}' has other weights than the base, the first at '{path}'. {advice}")
    return Checkpoint(folder, base, {name: read_weights(folder / name) for name in weight_files(folder)})


def _sizes(base: Base) -> tuple[Any, ...]:
    """What says which parameters there are, and of which shapes."""
    architecture = base.architecture
    return (type(architecture).__name__, *(getattr(architecture, name, None) for name in ("config", "transducer")))


def merged_parameters(stored: StoredSubmodel, base: Base) -> dict[str, np.ndarray]:
    """The parameters of the base that a Submodel changes, as changed: `{module path/name: float32 array}`.

    Raises:
        ExportError: the Submodel is no change of weights.
        FingerprintMismatch: it belongs to another base.
    """
    check_base(f"Submodel of '{stored.speaker}'", stored.base, base.fingerprint)
    spec, before = stored.spec, flatten(base.params)
    after: dict[str, np.ndarray] = {}
    for path, weights in stored.submodel.items():
        if isinstance(spec, LoRA):
            a, b = (np.asarray(weights[name], np.float64) for name in ("a", "b"))
            change = a @ b * (spec.alpha / spec.rank)
            after[f"{path}/kernel"] = before[f"{path}/kernel"] + change
        elif isinstance(spec, LayerNormOnly):
            gain = 1.0 + np.asarray(weights["gain"], np.float64)
            if f"{path}/bias" not in before:
                raise ExportError(f"The norm '{path}' of the base has no bias that could take up the Submodel's.")
            after[f"{path}/scale"] = before[f"{path}/scale"] * gain
            after[f"{path}/bias"] = before[f"{path}/bias"] * gain + weights["bias"]
        elif isinstance(spec, BiasOnly | FullWeights):
            after |= {f"{path}/{name}": before[f"{path}/{name}"] + change for name, change in weights.items()}
        else:
            raise ExportError(
                f"The Submodel of '{stored.speaker}' is of the kind {kind_name(spec)}, a function beside the base's "
                "that no change of its weights is equal to. Export it as safetensors or as a program."
            )
    return {name: value.astype(np.float32) for name, value in after.items()}


def write_merged(stored: StoredSubmodel, checkpoint: Checkpoint, folder: Path | str) -> Merged:
    """Writes a full Hugging Face folder of the base with a Submodel in its weights, whole or not at all.

    What the Submodel does not change is copied as it is: other tensors, settings, tokenizer. Weights are of the same
    types as the original's.

    Args:
        stored: the Submodel.
        checkpoint: what its base was imported from.
        folder: to make.

    Raises:
        ExportError: the Submodel is no change of weights, or is too large for the type of the weights.
        FingerprintMismatch: it belongs to another base.
        StoreError: something is there already.
        OSError: the file system refused.
    """
    folder = Path(folder)
    if folder.exists():
        raise StoreError(f"'{folder}' is there already. Choose another path, or remove it first.")
    changed = _changed(checkpoint, merged_parameters(stored, checkpoint.base))
    rounded, added, types = 0.0, 0.0, set()
    with new_folder(folder) as beside:
        for name, tensors in checkpoint.files.items():
            new = {}
            for key, tensor in tensors.items():
                if key not in changed:
                    new[key] = tensor
                    continue
                with np.errstate(over="ignore"):
                    new[key] = changed[key].astype(tensor.dtype)
                error = new[key].astype(np.float64) - changed[key]
                if not np.isfinite(error).all():
                    raise ExportError(
                        f"'{key}' with the Submodel of '{stored.speaker}' is not finite in the {tensor.dtype} of "
                        f"'{checkpoint.folder}'. Save that model as float32 first."
                    )
                rounded += float(np.square(error).sum())
                added += float(np.square(changed[key] - tensor.astype(np.float64)).sum())
                types.add(str(tensor.dtype))
            write_tensors(new, beside / name, {"format": "pt"}, f"merged weights of '{stored.speaker}'")
        for path in sorted(checkpoint.folder.iterdir()):
            if path.is_file() and path.suffix in _COPIED:
                shutil.copyfile(path, beside / path.name)
    return Merged(folder, len(changed), tuple(sorted(types)), (rounded / added) ** 0.5 if added else 0.0)


def _changed(checkpoint: Checkpoint, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that parameters of the base are, in their own axes but float32."""
    names = tensor_names(checkpoint.base.architecture)
    tensors: dict[str, np.ndarray] = {}
    for file in checkpoint.files.values():
        tensors |= file
    changed = {}
    for path, value in parameters.items():
        parts = tuple(path.split("/"))
        name = names(parts)[0]
        if ".lstm.bias_" in name:
            # PyTorch adds two biases to the same gates; one of them takes the change.
            name, other = (name.replace("bias_", f"bias_{of}_") for of in ("ih", "hh"))
            value = value - tensors[other].astype(np.float32)
        name = name if name in tensors else name.removeprefix("model.")
        changed[name] = _tensor(value, tensors[name].shape) if parts[-1] == "kernel" else value
    for embedding in {_EMBEDDING, _EMBEDDING.removeprefix("model.")} & changed.keys():
        if _HEAD in tensors and np.array_equal(tensors[_HEAD], tensors[embedding]):
            changed[_HEAD] = changed[embedding]
    return changed


def _tensor(kernel: np.ndarray, shape: tuple[int, ...]) -> Any:
    """A kernel in the axes of its tensor: (out, in, taps …)."""
    out, width, *taps = shape
    return np.moveaxis(kernel.reshape(*taps, width, out), (-1, -2), (0, 1))
