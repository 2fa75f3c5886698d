"""One file for the Submodels of very many speakers: mean, basis, and a row of coefficients for each.

A safetensors file. All of it is memory-mapped, so that opening it, and loading one Submodel, costs the same whether it
holds a hundred speakers or a hundred thousand. Ids are found through a hash table in the file: `table` holds places, an
id's search begins at its hash and goes on to the next entry until the id at the place is its own, or there is none.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from specialize.errors import NoSubmodel, SpecError, StoreError
from specialize.space.generators import Linear, Shared
from specialize.space.space import Space, generated, told_of
from specialize.submodel import StoredSubmodel, Submodel
from specialize.submodel.checkpoint import check_base
from specialize.submodel.kinds import spec_from_json, spec_to_json
from specialize.submodel.tensors import unfinished, write_tensors

FORMAT = 1
"""Version of the layout; a file of a later version is refused."""
_LOAD = 0.6
"""Share of the hash table that is used, at most."""
_SAMPLE = 64
"""Speakers that the error of rounding is measured on, at most."""
_ROWS = ("coefficients", "losses", "beats_base", "checks")
"""Tensors that have a row for each speaker."""
_LOSSES = ("dev_loss", "base_dev_loss")
_UNKNOWN = 2
"""In `beats_base`, beside 0 and 1."""


@dataclass(frozen=True)
class Written:
    """What `write_compact` made."""

    path: Path
    bytes: int
    speakers: int
    largest_error: float
    """Largest difference of a parameter from that of the space, over up to 64 speakers."""
    relative_error: float
    """Root mean square of the differences over that of what the space adds to its mean, over the same."""


class CompactStore:
    """Submodels in a file of `write_compact`. Several threads and processes may read.

    Args:
        path: the file.

    Raises:
        StoreError: there is no such file, or it is something else, damaged, or of a later version.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"There is no compact store at '{path}'.")
        try:
            self._file = safe_open(self.path, framework="numpy")
            metadata = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise StoreError(f"'{path}' is not a compact store, or it is damaged: {error}") from error
        if set(metadata) != {"specialize", "check"}:
            raise StoreError(f"'{path}' is a safetensors file, but not a compact store, or it is damaged.")
        if metadata["check"] != str(zlib.crc32(metadata["specialize"].encode())):
            raise StoreError(f"The header of '{path}' is damaged. Write the file anew.")
        self._header = json.loads(metadata["specialize"])
        if self._header["format"] > FORMAT:
            raise StoreError(
                f"'{path}' has format {self._header['format']}; this version of specialize reads up to {FORMAT}."
            )
        try:
            self.spec = spec_from_json(self._header["spec"])
        except SpecError as error:
            raise StoreError(f"'{path}' holds Submodels of a kind that cannot be read: {error}") from error
        self._shared: tuple[Shared, np.ndarray] | None = None

    @property
    def base(self) -> str:
        """Fingerprint of the base that the Submodels belong to."""
        return self._header["base"]

    def __len__(self) -> int:
        return self._header["speakers"]

    def __contains__(self, speaker: str) -> bool:
        return self._find(speaker) is not None

    def speakers(self) -> Iterator[str]:
        """All ids, in the order of the space. This one costs more the more there are."""
        for place in range(len(self)):
            yield _decoded(self._id(place))

    def version(self, speaker: str) -> str | None:
        """What a recogniser tells versions apart by; None for a speaker who is not here. The file does not change."""
        place = self._find(speaker)
        if place is None:
            return None
        return f"{self._header['check']}-{int(self._read('checks', place, place + 1)[0])}"

    def load(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        """The Submodel of a speaker.

        Args:
            speaker: any id.
            base: fingerprint of the base that it will be used with; None asks for no check.

        Raises:
            StoreError: there is no such speaker here, or what is here is damaged.
            FingerprintMismatch: it belongs to another base.
        """
        check_base(f"Submodel of '{speaker}' in '{self.path}'", self.base, base)
        place = self._find(speaker)
        if place is None:
            raise NoSubmodel(f"'{self.path}' has no speaker '{speaker}'. It has {len(self)}.")
        row = self._read("coefficients", place, place + 1)
        losses = self._read("losses", place, place + 1)
        beats = self._read("beats_base", place, place + 1)
        if _check(_encoded(speaker), row[0], losses[0], beats[0]) != self._read("checks", place, place + 1)[0]:
            raise StoreError(f"What '{self.path}' has of '{speaker}' is damaged. Write the file anew.")
        shared, scale = self._load_shared()
        e = row[0].astype(np.float32) * scale
        submodel = {
            path: {name: np.asarray(value) for name, value in weights.items()}
            for path, weights in generated(Linear(e.size), shared, e).items()
        }
        facts: dict[str, Any] = {} if beats[0] == _UNKNOWN else {"beats_base_on_dev": bool(beats[0])}
        facts |= {name: float(loss) for name, loss in zip(_LOSSES, losses[0], strict=True) if np.isfinite(loss)}
        return StoredSubmodel(submodel, self.spec, speaker, self.base, facts | told_of(e))

    def _load_shared(self) -> tuple[Shared, np.ndarray]:
        """Mean and basis as float32, and what coefficients are to be multiplied with; read and checked once."""
        if self._shared is not None:
            return self._shared
        mean: Submodel = {}
        basis: Submodel = {}
        of_coefficients = self._read("coefficient_scale")
        check = zlib.crc32(of_coefficients.tobytes())
        for path, name in self._header["parameters"]:
            stored = [self._read(f"{part}/{path}/{name}") for part in ("mean", "basis", "scale")]
            for array in stored:
                check = zlib.crc32(np.ascontiguousarray(array).data, check)
            mean.setdefault(path, {})[name] = stored[0]
            scale = stored[2].reshape(-1, *(1,) * stored[0].ndim)
            basis.setdefault(path, {})[name] = stored[1].astype(np.float32) * scale
        if check != self._header["check"]:
            raise StoreError(f"Mean and basis of '{self.path}' are damaged. Write the file anew.")
        self._shared = jax.tree.map(jnp.asarray, {"mean": mean, "basis": basis}), of_coefficients
        return self._shared

    def _find(self, speaker: str) -> int | None:
        """The place of an id; None if it is not here."""
        wanted, size = _encoded(speaker), self._header["table"]
        at = _hash(wanted) % size
        for _ in range(size):
            place = int(self._read("table", at, at + 1)[0]) - 1
            if place < 0:
                return None
            if place >= len(self):
                raise StoreError(f"The table of '{self.path}' is damaged. Write the file anew.")
            if self._id(place) == wanted:
                return place
            at = (at + 1) % size
        return None

    def _id(self, place: int) -> bytes:
        start, end = (int(end) for end in self._read("ends", place, place + 2))
        return self._read("ids", start, end).tobytes() if end > start else b""

    def _read(self, name: str, start: int | None = None, end: int | None = None) -> np.ndarray:
        """A tensor, or rows of it; nothing else of the file is touched."""
        try:
            if start is None:
                return self._file.get_tensor(name)
            return self._file.get_slice(name)[start:end]
        except (SafetensorError, OSError) as error:
            raise StoreError(f"'{self.path}' is damaged: {error}") from error


def write_compact(space: Space, path: Path | str, *, dtype: Literal["float32", "float16"] = "float16") -> Written:
    """Writes a linear space as one file, whole or not at all.

    Args:
        space: a linear one.
        path: the file to make; one that is there is replaced. A link is followed.
        dtype: of basis and coefficients. float16 halves the file; the mean is float32 always, and every direction of
            every parameter has a scale of its own.

    Returns:
        Its size, and the error that was measured.

    Raises:
        StoreError: the space is not linear or has no speakers, or the file system refused.
    """
    path = Path(path)
    if not isinstance(space.generator, Linear):
        raise StoreError(
            f"A compact store is of a linear space, and this one is {space.generator}. Its Submodels have a linear "
            "space through them, which `fit_linear` finds (`specialize compact --dim`)."
        )
    if not space.embeddings:
        raise StoreError("The space has no speakers, and is not written.")
    ids = [_encoded(speaker) for speaker in space.embeddings]
    rows, row_scale = _scaled(np.stack(list(space.embeddings.values())).astype(np.float32).T, dtype)
    rows = np.ascontiguousarray(rows.T)
    losses = np.array([[_number(space, s, name) for name in _LOSSES] for s in space.embeddings], np.float32)
    beats = np.array([space.facts.get(s, {}).get("beats_base_on_dev", _UNKNOWN) for s in space.embeddings], np.uint8)
    tensors: dict[str, np.ndarray] = {
        "ids": np.frombuffer(b"".join(ids), np.uint8),
        "ends": np.concatenate([[0], np.cumsum([len(id_) for id_ in ids])]).astype(np.int64),
        "table": _table(ids),
        "coefficients": rows,
        "coefficient_scale": row_scale,
        "losses": losses,
        "beats_base": beats,
        "checks": np.array([_check(*row) for row in zip(ids, rows, losses, beats, strict=True)], np.uint32),
    }
    names, check = [], zlib.crc32(row_scale.tobytes())
    for part, weights in space.shared["mean"].items():
        for name, value in weights.items():
            mean = np.ascontiguousarray(value, np.float32)
            basis = np.asarray(space.shared["basis"][part][name], np.float32)
            flat, scale = _scaled(basis.reshape(basis.shape[0], -1), dtype)
            stored = {"mean": mean, "basis": flat.reshape(basis.shape), "scale": scale}
            for array in stored.values():
                check = zlib.crc32(np.ascontiguousarray(array).data, check)
            tensors |= {f"{kind}/{part}/{name}": array for kind, array in stored.items()}
            names.append([part, name])
    header = {
        "format": FORMAT,
        "base": space.base,
        "spec": spec_to_json(space.spec),
        "speakers": len(ids),
        "table": len(tensors["table"]),
        "parameters": names,
        "check": check,
        "dtype": dtype,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The compact store could not be written to '{path}': {error}") from error
    with changing(path, surely=False) as file:
        write_tensors(tensors, file, _metadata(header), "compact store")
        return Written(path, file.stat().st_size, len(ids), *_errors(space, CompactStore(file)))


@contextlib.contextmanager
def changing(path: Path, *, surely: bool = True) -> Iterator[Path]:
    """The file that a path leads to, for one change at a time. The lock is of the folder, for each replaces the file.

    Args:
        path: of the file, or of a link to it.
        surely: raise where the file system has no locks of folders, as NFS; else it is changed without.

    Raises:
        StoreError: the file system refused.
    """
    file = Path(os.path.realpath(path))
    try:
        lock = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"'{file.parent}' cannot be opened: {error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            if surely:
                raise
        yield file
    except OSError as error:
        raise StoreError(f"'{file}' cannot be changed: {error}") from error
    finally:
        os.close(lock)


def without_speaker(path: Path, speaker: str) -> None:
    """Replaces a compact file by one that is the same without a speaker.

    What killed writes have left beside it goes too, for it may have the speaker.

    Raises:
        NoSubmodel: the file has no such speaker.
        StoreError: it is no compact store or damaged, or the file system refused.
    """
    with changing(path) as file:
        for left in unfinished(file):
            left.unlink()
        _drop(file, speaker)


def _drop(path: Path, speaker: str) -> None:
    store = CompactStore(path)
    place = store._find(speaker)
    if place is None:
        raise NoSubmodel(f"'{path}' has no speaker '{speaker}'.")
    tensors = {name: store._read(name) for name in store._file.keys()}  # noqa: SIM118
    ends = tensors["ends"]
    tensors["ids"] = np.concatenate([tensors["ids"][: ends[place]], tensors["ids"][ends[place + 1] :]])
    tensors["ends"] = np.concatenate([ends[: place + 1], ends[place + 2 :] - (ends[place + 1] - ends[place])])
    for name in _ROWS:
        tensors[name] = np.delete(tensors[name], place, axis=0)
    bounds = tensors["ends"].tolist()
    whole = tensors["ids"].tobytes()
    tensors["table"] = _table([whole[start:end] for start, end in itertools.pairwise(bounds)])
    header = store._header | {"speakers": len(store) - 1, "table": len(tensors["table"])}
    write_tensors(tensors, path, _metadata(header), "compact store")


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    text = json.dumps(header)
    return {"specialize": text, "check": str(zlib.crc32(text.encode()))}


def _scaled(rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a type of fewer bits, and what each is to be multiplied with: its largest value, so that none is lost."""
    if dtype == "float32":
        return rows, np.ones(len(rows), np.float32)
    largest = np.abs(rows).max(1).astype(np.float32)
    scale = np.where(largest > 0, largest, np.float32(1.0)).astype(np.float32)
    return (rows / scale[:, None]).astype(np.float16), scale


def _table(ids: Sequence[bytes]) -> np.ndarray:
    """uint32 places plus one, 0 where there is none; each at its id's hash or the next free entry after it."""
    size = max(int(len(ids) / _LOAD) + 1, 2)
    table = np.zeros(size, np.uint32)
    for place, id_ in enumerate(ids):
        at = _hash(id_) % size
        while table[at]:
            at = (at + 1) % size
        table[at] = place + 1
    return table


def _hash(id_: bytes) -> int:
    """The same in every process, as Python's own is not."""
    return int.from_bytes(hashlib.blake2b(id_, digest_size=8).digest(), "little")


def _check(id_: bytes, row: np.ndarray, losses: np.ndarray, beats: Any) -> int:
    return zlib.crc32(b"".join([id_, row.tobytes(), losses.tobytes(), bytes([int(beats)])]))


def _encoded(speaker: str) -> bytes:
    return speaker.encode("utf-8", "surrogatepass")


def _decoded(id_: bytes) -> str:
    return id_.decode("utf-8", "surrogatepass")


def _number(space: Space, speaker: str, name: str) -> float:
    value = space.facts.get(speaker, {}).get(name)
    return float("nan") if value is None else float(value)


def _errors(space: Space, store: CompactStore) -> tuple[float, float]:
    speakers = list(space.embeddings)
    chosen = speakers[:: -(-len(speakers) // _SAMPLE)]
    largest = wrong = added = 0.0
    for speaker in chosen:
        ours, theirs = space.submodel(speaker).submodel, store.load(speaker).submodel
        for path, weights in ours.items():
            for name, value in weights.items():
                difference = np.asarray(theirs[path][name], np.float64) - value
                largest = max(largest, float(np.abs(difference).max(initial=0.0)))
                wrong += float(np.square(difference).sum())
                added += float(np.square(value - np.asarray(space.shared["mean"][path][name], np.float64)).sum())
    return largest, (wrong / added) ** 0.5 if added else 0.0
