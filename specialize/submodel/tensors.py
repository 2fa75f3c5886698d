"""Writing a safetensors file, whole or not at all."""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from specialize.errors import StoreError


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str], what: str) -> None:
    """Writes a safetensors file and replaces what is there, whose mode stays, and whose owner where that is allowed.

    Args:
        tensors: by name.
        path: the file to make.
        metadata: of its header.
        what: it is, for messages: "compact store".

    Raises:
        StoreError: the file system refused.
    """
    # The library writes the bytes of a transposed array in the order that they lie in.
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, beside, metadata=dict(metadata))
            mode = 0o644  # the library lets nobody else read
            if path.exists():
                old = path.stat()
                mode = stat.S_IMODE(old.st_mode)
                with contextlib.suppress(OSError):
                    os.chown(beside, old.st_uid, old.st_gid)
            beside.chmod(mode)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"The {what} could not be written to '{path}': {error}") from error


def unfinished(path: Path) -> list[Path]:
    """What killed writes of a file have left beside it, and what one that is under way has there."""
    return [file for file in path.parent.iterdir() if re.fullmatch(re.escape(path.name) + r"\.\d+\.tmp", file.name)]
