"""The arrays of an Orbax checkpoint on a local disk, read as bytes: a few milliseconds where Orbax takes a hundred.

Orbax writes an OCDBT database of zarr 3 arrays. An array that is no larger than a shard is one zstd frame and an index
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed). That is what is read here; anything else is
left to Orbax.
"""

import functools
import json
import math
import struct
from typing import Any

import numpy as np
import tensorstore as ts
import zstandard
from etils import epath

_ARRAY = b"/zarr.json"
_INDEX = struct.Struct("<QQI")
"""Of a shard of one chunk: offset and bytes of the chunk, checksum of both."""
_CODECS = [
    {"configuration": {"endian": "little"}, "name": "bytes"},
    {"configuration": {"checksum": False, "level": 3}, "name": "zstd"},
]


def read_shards(path: epath.Path) -> dict[str, Any] | None:
    """The tree of arrays of a checkpoint that was saved with `ocp.save`, on the host.

    Args:
        path: its folder.

    Returns:
        Nested dicts of arrays; None where the checkpoint is not on a local disk, or is not laid out as described above.

    Raises:
        ValueError: it is damaged.
    """
    if "://" in str(path):
        return None
    place = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/state/"}}
    # A context of its own for every read: a shared one would remember files that have been replaced.
    database = ts.KvStore.open(place, context=ts.Context({})).result()
    keys = database.list().result()
    names = [key[: -len(_ARRAY)] for key in keys if key.endswith(_ARRAY)]
    described = [database.read(name + _ARRAY) for name in names]
    shapes = [_shape(future.result().value) for future in described]
    if not names or None in shapes:
        return None
    shards = [database.read(name + b"/c" + b"/0" * len(shape or ())) for name, shape in zip(names, shapes, strict=True)]
    decompress = zstandard.ZstdDecompressor().decompress
    tree: dict[str, Any] = {}
    for name, shape, shard in zip(names, shapes, shards, strict=True):
        *path_to, leaf = name.decode().split(".")
        node = tree
        for part in path_to:
            node = node.setdefault(part, {})
        node[leaf] = _array(name.decode(), shape or (), shard.result(), decompress)
    return tree


@functools.lru_cache(4096)
def _shape(description: bytes) -> tuple[int, ...] | None:
    """The shape of an array that is written in the one form that `_array` reads; None for any other."""
    layout = json.loads(description)
    return tuple(layout["shape"]) if _is_one_chunk(layout) else None


def _is_one_chunk(layout: Any) -> bool:
    shape = layout["shape"]
    shard = layout["codecs"][0] if len(layout["codecs"]) == 1 else {"name": "", "configuration": {}}
    inner = shard["configuration"]
    return (
        layout["data_type"] == "float32"
        and layout["fill_value"] == 0.0
        and math.prod(shape) > 0
        and layout["chunk_grid"] == {"configuration": {"chunk_shape": shape}, "name": "regular"}
        and layout["chunk_key_encoding"] == {"name": "default"}
        and shard["name"] == "sharding_indexed"
        and inner.get("chunk_shape") == shape
        and inner.get("codecs") == _CODECS
        and inner.get("index_location", "end") == "end"
        and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
    )


def _array(name: str, shape: tuple[int, ...], shard: Any, decompress: Any) -> np.ndarray:
    if shard.state != "value":  # zarr writes no chunk that holds nothing but zeros
        return np.zeros(shape, np.float32)
    offset, size, _ = _INDEX.unpack(shard.value[-_INDEX.size :])
    try:
        data = decompress(shard.value[offset : offset + size])
    except zstandard.ZstdError as error:
        raise ValueError(f"'{name}': {error}") from error
    if len(data) != 4 * math.prod(shape):
        raise ValueError(f"'{name}' has {len(data)} bytes, which are not those of {shape} float32")
    return np.frombuffer(data, np.dtype("<f4")).reshape(shape)
