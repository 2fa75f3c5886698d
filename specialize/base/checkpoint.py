"""Hugging Face checkpoint folders: their JSON files, their tensors, and how those fill a parameter tree."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from specialize.errors import BaseModelError

Rename = Callable[[tuple[str, ...]], tuple[str, Callable[[np.ndarray], np.ndarray] | None]]
"""From the path of a parameter to the name of its tensor, and what makes the one of the other."""
_SAVE_AGAIN = (
    "Load it with transformers (extra `torch`), save model and processor with `save_pretrained(FOLDER)`, and import "
    "that folder; or let https://huggingface.co/spaces/safetensors/convert convert it on the hub."
)


def find_checkpoint(source: str | Path) -> Path:
    """The folder `source`, or what the hub has under that name.

    Raises:
        BaseModelError: there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise BaseModelError(f"There is no folder '{source}', and it is not a name on the hub (organisation/model).")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), allow_patterns=["*.json", "merges.txt"]))
        # The index says which files are meant; many models have their weights twice, in another precision or format.
        snapshot_download(str(source), allow_patterns=weight_files(folder), revision=folder.name)
    except BaseModelError:
        raise
    except Exception as error:  # network, name and authorisation errors have no common type
        raise BaseModelError(f"There is no folder '{source}', and the hub did not give it: {error}") from error
    if not any((folder / name).is_file() for name in weight_files(folder)):
        raise BaseModelError(f"'{source}' on the hub has no safetensors. {_SAVE_AGAIN}")
    return folder


def read_json(folder: Path, name: str, optional: bool = False) -> dict[str, Any]:
    """One of the JSON files; empty if it is missing and `optional`.

    Raises:
        BaseModelError: it is missing, or no JSON object.
    """
    path = folder / name
    if not path.is_file():
        if optional:
            return {}
        raise BaseModelError(f"'{folder}' has no {name}; it is not a Hugging Face checkpoint folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise BaseModelError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise BaseModelError(f"'{path}' holds no JSON object, but {json.dumps(data)[:40]}.")
    return data


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of single or sharded safetensors, as float32.

    Raises:
        BaseModelError: a file is missing or damaged.
    """
    tensors = {}
    for name in weight_files(folder):
        tensors |= {key: tensor.astype(np.float32) for key, tensor in read_weights(folder / name).items()}
    return tensors


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file of a checkpoint, in their own types.

    Raises:
        BaseModelError: the file is missing or damaged.
    """
    if not path.is_file():
        hint = f" {_SAVE_AGAIN}" if any(path.parent.glob("pytorch_model*.bin")) else ""
        raise BaseModelError(f"'{path.parent}' has no {path.name}.{hint}")
    try:
        return tensors_in(path)[0]
    except SafetensorError as error:
        raise BaseModelError(f"'{path}' cannot be read: {error}") from error


def tensors_in(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of any safetensors file, in their own types, and its metadata.

    Raises:
        SafetensorError: it is damaged, or something else.
    """
    # JAX's reader knows bfloat16, which numpy's does not, but no integers of 64 bits.
    with safe_open(path, framework="numpy") as file, safe_open(path, framework="flax") as jax_file:
        of_jax = {key for key in file.keys() if file.get_slice(key).get_dtype() == "BF16"}  # noqa: SIM118
        tensors = {key: (jax_file if key in of_jax else file).get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return {key: np.asarray(tensor) for key, tensor in tensors.items()}, file.metadata() or {}


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a checkpoint.

    Raises:
        BaseModelError: there is an index of them, and it is damaged.
    """
    index = read_json(folder, "model.safetensors.index.json", optional=True)
    if not index:
        return ["model.safetensors"]
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise BaseModelError(f"'{folder / 'model.safetensors.index.json'}' has no weight_map of names of files.")
    return sorted(set(files.values()))


def fill(
    shapes: Any, tensors: dict[str, np.ndarray], rename: Rename, folder: Path, *, ignored: tuple[str, ...] = ()
) -> Any:
    """A parameter tree of `shapes` out of tensors; all must be used, and all must fit.

    Args:
        shapes: tree of arrays or of their shapes.
        tensors: by name.
        rename: which tensor a parameter is.
        folder: for messages.
        ignored: ends of the names of tensors that are not needed.

    Raises:
        BaseModelError: tensors are missing, unknown or misshapen.
    """
    used, problems = set(), []

    def leaf(path: tuple[str, ...], shape: Any) -> np.ndarray:
        name, change = rename(path)
        tensor = tensors.get(name, tensors.get(name.removeprefix("model.")))
        if tensor is None:
            problems.append(f"{name} is missing")
            return np.zeros(shape.shape, np.float32)
        used.update((name, name.removeprefix("model.")))
        tensor = tensor if change is None else change(tensor)
        if tensor.shape != shape.shape:
            problems.append(f"{name} has shape {tensor.shape}, expected {shape.shape}")
        return np.ascontiguousarray(tensor)

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {name: walk(child, (*path, name)) for name, child in node.items()}
        return leaf(path, node)

    params = walk(shapes, ())
    problems += [f"{name} is not known" for name in sorted(set(tensors) - used) if not name.endswith(ignored)]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise BaseModelError(f"The tensors of '{folder}' do not fit its config.json: {shown}.")
    return params
