"""A Submodel as one safetensors file: what a service needs to load it, in a format that every language reads.

Each parameter is a tensor called `module path/name`. The header's entry `submodel` is JSON: format, base, spec, speaker
and training, as the store keeps them; `check` is a checksum of all that and of the tensors.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from specialize.base.checkpoint import tensors_in
from specialize.errors import SpecError, StoreError
from specialize.submodel import StoredSubmodel, Submodel
from specialize.submodel.checkpoint import check_base
from specialize.submodel.kinds import spec_from_json, spec_to_json
from specialize.submodel.sites import flatten
from specialize.submodel.tensors import write_tensors

FORMAT = 1
"""Version of the header; a file of a later version is refused."""
_ENTRIES = {"format": int, "base": str, "spec": dict, "speaker": str, "training": dict}


def write_safetensors(stored: StoredSubmodel, path: Path | str) -> None:
    """Writes a Submodel of any kind as one file, whole or not at all.

    Args:
        stored: what to write.
        path: the file to make, NAME.safetensors.

    Raises:
        StoreError: something is there already, or `training` is no JSON data, or the file system refused.
    """
    path = Path(path)
    if path.exists():
        raise StoreError(f"'{path}' is there already. Choose another path, or remove it first.")
    tensors = {name: np.asarray(value, np.float32) for name, value in flatten(stored.submodel).items()}
    write_tensors(tensors, path, header(stored, tensors), f"Submodel of '{stored.speaker}'")


def read_safetensors(path: Path | str, *, base: str | None = None) -> StoredSubmodel:
    """Reads what `write_safetensors` wrote, the same to the last bit.

    Args:
        path: the file.
        base: fingerprint of the base that it will be used with; None reads it without that check.

    Raises:
        StoreError: there is no such file, or it is something else, damaged, or of a later version.
        FingerprintMismatch: it belongs to another base.
    """
    tensors, metadata = read_file(Path(path), "Submodel")
    told = read_header(Path(path), metadata, tensors)
    if told is None:
        raise StoreError(
            f"'{path}' is a safetensors file, but not a Submodel that `specialize export` wrote: its header says "
            "nothing of one."
        )
    check_base(f"Submodel in '{path}'", told["base"], base)
    return StoredSubmodel(by_module(tensors), told["spec"], told["speaker"], told["base"], told["training"])


def header(stored: StoredSubmodel, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The metadata of a safetensors file that holds a Submodel as these tensors.

    Raises:
        StoreError: `training` is no JSON data.
    """
    data = {
        "format": FORMAT,
        "base": stored.base,
        "spec": spec_to_json(stored.spec),
        "speaker": stored.speaker,
        "training": stored.training,
    }
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"What is said of the training of the Submodel of '{stored.speaker}' is not JSON data: {error}."
        ) from error
    return {"submodel": text, "check": _check(text, tensors)}


def read_file(path: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file, in their own types, and its metadata.

    Args:
        path: the file.
        what: it should be, for messages: "Submodel".

    Raises:
        StoreError: there is no such file, or it is damaged, or something else.
    """
    if not path.is_file():
        raise StoreError(f"There is no {what} at '{path}'.")
    try:
        return tensors_in(path)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"'{path}' is not a safetensors file, or it is damaged: {error}") from error


def read_header(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The entries that `header` wrote, `spec` as a spec; None where the metadata says nothing of a Submodel.

    Raises:
        StoreError: they are damaged or of a later version, or the tensors are not those that were written with them.
    """
    text = metadata.get("submodel")
    if text is None:
        return None
    damaged = f"'{path}' is damaged"
    try:
        told = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{damaged}: {error}. Export it again.") from error
    told = told if isinstance(told, dict) else {}
    if isinstance(told.get("format"), int) and told["format"] > FORMAT:
        raise StoreError(f"'{path}' has format {told['format']}; this version of specialize reads up to {FORMAT}.")
    if metadata.get("check") != _check(text, tensors):
        raise StoreError(f"{damaged}: it does not have the checksum that it was written with. Export it again.")
    if wrong := [name for name, kind in _ENTRIES.items() if not isinstance(told.get(name), kind)]:
        raise StoreError(f"{damaged}: its header has a wrong value, or none, for {', '.join(wrong)}. Export it again.")
    try:
        return told | {"spec": spec_from_json(told["spec"])}
    except SpecError as error:
        raise StoreError(f"The Submodel in '{path}' is of a kind that cannot be read: {error}") from error


def by_module(tensors: Mapping[str, Any]) -> Submodel:
    """`{module path: {name: array}}` of tensors called `module path/name`."""
    submodel: Submodel = {}
    for full, tensor in tensors.items():
        path, _, name = full.rpartition("/")
        submodel.setdefault(path, {})[name] = tensor
    return submodel


def _check(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    check = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        check = zlib.crc32(f"{name} {tensor.dtype.str} {tensor.shape}".encode(), check)
        check = zlib.crc32(np.ascontiguousarray(tensor).tobytes(), check)
    return f"{check:08x}"
