"""One Orbax checkpoint with metadata, written whole or not at all: what a stored Submodel and a stored space are."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from specialize.errors import FingerprintMismatch, StoreError, StoreUnavailable
from specialize.submodel.bucket import (
    copy_here,
    is_far,
    is_there,
    names_in,
    read_all_far,
    read_far,
    remove_far,
)
from specialize.submodel.shards import read_shards

UNFINISHED = ".orbax-checkpoint-tmp"
"""In the names of folders that Orbax has not finished."""
_METADATA = "_CHECKPOINT_METADATA"
_MANIFEST = "state/manifest.ocdbt"
"""Names the files of the arrays, which are called differently each time that they are written."""
NEW, OLD = "%%new", "%%old"
"""Beside a checkpoint that is being replaced. No speaker's folder is called so."""
_LOOKS = 3
"""How often a checkpoint is looked for in both places: it may go from one to the other and back between two looks."""


def absolute(path: Any) -> epath.Path:
    """A path to read from: absolute where it is local, and as it is where it names a bucket."""
    path = epath.Path(path)
    return path if is_far(path) else epath.Path(os.path.abspath(path))


def near(path: Any) -> epath.Path:
    """A path to write to: absolute.

    Raises:
        StoreError: it names a bucket.
    """
    path = absolute(path)
    if is_far(path):
        raise StoreError(
            f"'{path}' is in a bucket, where nothing can be replaced at once. Save to a folder, and copy that, "
            f"'{_MANIFEST}' and '{_METADATA}' last, so that it is not read before it is whole."
        )
    return path


def write_checkpoint(path: epath.Path, arrays: Any, metadata: dict[str, Any], whose: str) -> None:
    """Writes arrays and metadata, replacing what is there.

    Orbax writes beside `path` and renames when all is there, so a save that is killed leaves nothing that loads. One
    that replaces leaves the old or the new in place, or, killed between its two renames, the old beside it, where
    `standing` finds it; never a part.

    Args:
        path: the folder to make; from `near`.
        arrays: nested dicts of arrays.
        metadata: JSON data.
        whose: for messages: "Submodel of 'ana'".

    Raises:
        StoreError: the metadata is no JSON data, or the file system refused.
    """
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise StoreError(f"What is said of the training of the {whose} is not JSON data: {error}.") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new, old = (path.parent / f"{path.name}{mark}" for mark in (NEW, OLD))
        if path.exists():
            ocp.save(new, arrays, custom_metadata=metadata, overwrite=True)
            if old.exists():
                old.rmtree()
            path.rename(old)
            new.rename(path)
            _discard(old, new)
        else:
            ocp.save(path, arrays, custom_metadata=metadata)
            if old.exists():  # of a write that was killed between its renames
                _discard(old, new)
    except (OSError, ValueError) as error:
        raise StoreError(f"The {whose} could not be written to '{path}': {error}") from error


def _discard(old: epath.Path, aside: epath.Path) -> None:
    """Removes what is replaced. Whoever reads it finds all of it gone at once, not one file after another."""
    if aside.exists():
        aside.rmtree()
    old.rename(aside).rmtree()


def clear_unfinished(folder: epath.Path) -> None:
    """Removes what killed writes have left in a folder. Not while another process writes there.

    What was killed between its two renames is put back.
    """
    for path in folder.iterdir() if folder.exists() else ():
        if path.name.endswith(OLD) and not (folder / path.name.removesuffix(OLD)).exists():
            path.rename(folder / path.name.removesuffix(OLD))
        elif path.name.endswith((NEW, OLD)) or UNFINISHED in path.name:
            path.rmtree()


def checkpoint_version(path: epath.Path) -> str | None:
    """What differs after each time that a checkpoint is written; None where there is none.

    In a bucket, where it is copied file by file, it is that of the metadata and of the arrays, and there is none before
    it has both: whatever is read while they are copied has another version than what is there when all is.

    Args:
        path: its folder; from `absolute`.

    Raises:
        StoreError: it cannot be told whether there is one.
    """
    file = path / _METADATA
    try:
        if is_far(path):
            return hashlib.sha256(b"".join(read_all_far(path, (_METADATA, _MANIFEST)))).hexdigest()
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnavailable(f"'{file}' cannot be looked at: {error}") from error
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def standing(path: epath.Path) -> tuple[epath.Path, str] | None:
    """Where a checkpoint is now, and its version; None where there is none.

    That is `path`, or the place beside it where a write that replaces it has put the old one and not yet the new one in
    its place. Nobody has to wait for such a write, and it does no harm if it never ends.

    Raises:
        StoreError: it cannot be told whether there is one.
    """
    for _ in range(1 if is_far(path) else _LOOKS):
        for place in (path, path.parent / f"{path.name}{OLD}"):
            version = checkpoint_version(place)
            if version is not None:
                return place, version
    return None


def remnants(path: epath.Path) -> list[epath.Path]:
    """A checkpoint, if it is there, and what unfinished writes of it have left beside it."""
    marks = tuple(f"{path.name}{mark}" for mark in (UNFINISHED, NEW, OLD))
    return [p for p in children(path.parent) if p.name == path.name or p.name.startswith(marks)]


def exists(path: epath.Path) -> bool:
    """Whether there is something at `path`. Raises StoreError where that cannot be told of a bucket."""
    return is_there(path) if is_far(path) else path.exists()


def children(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder; nothing where there is none. Raises StoreError where that cannot be told of a bucket."""
    if is_far(folder):
        return [folder / name for name in names_in(folder)]
    return list(folder.iterdir()) if folder.exists() else []


def remove_checkpoint(path: epath.Path, whose: str) -> bool:
    """Deletes a checkpoint, and what unfinished writes have left beside it. False if there was nothing.

    Raises:
        StoreError: the file system refused.
    """
    there = remnants(path)
    try:
        for folder in there:
            if is_far(folder):
                remove_far(folder)
            else:
                folder.rmtree()
    except OSError as error:
        raise StoreError(f"The {whose} at '{path}' could not be deleted: {error}") from error
    return bool(there)


def read_metadata(path: epath.Path, what: str, mark: str, version: int, types: Mapping[str, type]) -> dict[str, Any]:
    """The metadata of a checkpoint, without its arrays.

    Args:
        path: its folder; from `absolute`.
        what: it should be, for messages: "Submodel".
        mark: an entry that no other kind of checkpoint has.
        version: the latest format that can be read.
        types: of the entries that it must have, beside `format`.

    Raises:
        StoreUnavailable: it cannot be read.
        StoreError: nothing is there, or it is something else, or it is of a later version.
    """
    try:
        data = _custom_metadata(path)
    except StoreUnavailable:
        raise
    except Exception as error:  # Orbax raises many types for a damaged or foreign folder.
        if not exists(path):
            raise StoreError(f"There is no {what} at '{path}'.") from error
        raise StoreError(f"'{path}' is not a stored {what}, or it is damaged: {error}") from error
    if not isinstance(data, dict) or "format" not in data or mark not in data:
        raise StoreError(f"'{path}' is a checkpoint, but not a {what}: its metadata lacks what a {what}'s has.")
    if isinstance(data["format"], int) and data["format"] > version:
        raise StoreError(f"'{path}' has format {data['format']}; this version of specialize reads up to {version}.")
    wrong = [name for name, kind in (("format", int), *types.items()) if not isinstance(data.get(name), kind)]
    if wrong:
        raise StoreError(f"'{path}' is damaged: its metadata has a wrong value, or none, for {', '.join(wrong)}.")
    return data


def _custom_metadata(path: epath.Path) -> Any:
    """What `ocp.metadata(path).custom_metadata` gives, without its 60 ms where the file is as Orbax 0.12 writes it."""
    if is_far(path):
        return json.loads(read_far(path / _METADATA))["custom_metadata"]
    try:
        data = json.loads((path / _METADATA).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        if not path.exists():  # Orbax would take long to say so
            raise
        data = None
    except OSError as error:
        raise StoreUnavailable(f"'{path}' cannot be read: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("custom_metadata"), dict) and "item_handlers" in data:
        return data["custom_metadata"]
    return ocp.metadata(path).custom_metadata


def read_arrays(path: epath.Path, what: str) -> Any:
    """The arrays of a checkpoint, whatever devices and processes they were written from.

    Raises:
        StoreError: they are damaged, or the bucket cannot be read.
    """
    if is_far(path):
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / "checkpoint"
            try:
                copy_here(path, here)
            except FileNotFoundError as error:
                raise StoreError(f"The {what} at '{path}' is damaged, or being replaced: {error}") from error
            try:
                return read_arrays(epath.Path(here), what)
            except StoreError as error:
                raise StoreError(str(error).replace(str(here), str(path))) from error
    try:
        arrays = read_shards(path)
        if arrays is None and not path.exists():  # as above
            raise FileNotFoundError("it is gone")
        return ocp.load(path) if arrays is None else arrays
    except Exception as error:  # Orbax raises many types for damaged arrays.
        raise StoreError(f"The {what} at '{path}' is damaged: {error}") from error


def check_base(what: str, made_for: str, base: str | None) -> None:
    """Raises FingerprintMismatch where `base` is not the one that something was made for; None checks nothing."""
    if base is not None and made_for != base:
        raise FingerprintMismatch(
            f"The {what} was trained for the base {made_for}, but this base is {base}. "
            "Load it with the base that it was trained for, or train it again for this one."
        )
