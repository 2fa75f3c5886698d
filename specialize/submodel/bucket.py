"""What a store needs of a bucket (`gs://…`, `s3://…`): to read, to list, to copy a folder here, and to delete.

This asks fsspec itself. etils would take TensorFlow where that is installed, whose wheels know no `s3://`, and fsspec's
usual file systems, which remember listings and so never see what others publish. Orbax reads no `s3://` at all.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from specialize.errors import StoreUnavailable


def is_far(path: Any) -> bool:
    """Whether a path names a bucket."""
    return "://" in str(path)


def read_far(file: Any) -> bytes:
    """The bytes of a file, as they are now.

    Raises:
        FileNotFoundError: there is none.
        StoreUnavailable: the bucket cannot be read.
        ImportError: what reads such a bucket is not installed (extra `bucket`).
    """
    with _asking(file) as (files, key):
        return files.cat_file(key)


def read_all_far(folder: Any, files: Sequence[str]) -> list[bytes]:
    """The bytes of files of a folder, asked for at once. Raises as `read_far`, also where only one is missing."""
    with _asking(folder) as (of, key):
        keys = [f"{key}/{file}" for file in files]
        found = of.cat(keys)
        return [found[file] for file in keys]


def is_there(path: Any) -> bool:
    """Whether a bucket has a file or anything in a folder. Raises as `read_far`."""
    with _asking(path) as (files, key):
        return files.exists(key)


def names_in(folder: Any) -> list[str]:
    """The names of what is in a folder; none where there is no folder. Raises as `read_far`."""
    try:
        with _asking(folder) as (files, key):
            found = {name.rstrip("/") for name in files.ls(key, detail=False)} - {key.rstrip("/")}
            return sorted(name.rsplit("/", 1)[-1] for name in found)
    except FileNotFoundError:
        return []


def copy_here(folder: Any, here: Path) -> None:
    """Copies all that is in a folder into `here`, which is made. Raises as `read_far`."""
    with _asking(folder) as (files, key):
        for file, content in files.cat(files.find(key)).items():  # all at once
            to = here / file[len(key) :].lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)


def remove_far(folder: Any) -> None:
    """Deletes a folder. Raises as `read_far`."""
    with _asking(folder) as (files, key):
        files.rm(key, recursive=True)


@contextlib.contextmanager
def _asking(path: Any) -> Iterator[tuple[Any, str]]:
    """The file system of a bucket, and what it calls a path. What goes wrong meanwhile is `StoreUnavailable`."""
    try:
        files, key = fsspec.core.url_to_fs(str(path), use_listings_cache=False)
        yield files, key
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # clients of buckets raise many types
        raise StoreUnavailable(f"'{path}' cannot be read: {error}") from error
