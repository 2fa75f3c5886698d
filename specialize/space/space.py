"""A space of speakers: a generator that was trained, the embedding of each speaker, and how both are stored."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from specialize.errors import SpecError, StoreError
from specialize.space.generators import Generator, Shared, generator_from_json, generator_to_json
from specialize.submodel import Kind, StoredSubmodel, Submodel
from specialize.submodel.checkpoint import absolute, check_base, near, read_arrays, read_metadata, write_checkpoint
from specialize.submodel.kinds import spec_from_json, spec_to_json

FORMAT = 1
"""Version of the metadata; a space of a later version is refused."""
_TOLD = 256
"""Up to so many numbers of an embedding are among the facts of a Submodel that is made from it."""
_ENTRIES = {"base": str, "spec": dict, "generator": dict, "speakers": list, "training": dict, "facts": dict}


@dataclass(frozen=True)
class Space:
    """Speakers as points, each of which is a Submodel."""

    generator: Generator
    spec: Kind
    """Of the Submodels that it generates."""
    base: str
    """Fingerprint of the base that it belongs to."""
    shared: Shared
    """What the generator has learned, on the host."""
    embeddings: dict[str, np.ndarray]
    """{speaker: float32 [K]}."""
    training: dict[str, Any] = field(default_factory=dict)
    """What the run says of the making of the whole. JSON data."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{speaker: what the run says of its Submodel}: dev losses, whether it beats the base. JSON data."""

    def speakers(self) -> Iterator[str]:
        """Those that have an embedding."""
        return iter(self.embeddings)

    def embedding(self, speaker: str) -> Float[np.ndarray, "K"]:
        """The point of a speaker.

        Raises:
            StoreError: the space has no such speaker.
        """
        if speaker not in self.embeddings:
            some = ", ".join(list(self.embeddings)[:10])
            raise StoreError(f"The space has no speaker '{speaker}'. It has {len(self.embeddings)}: {some}, ….")
        return self.embeddings[speaker]

    def submodel(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        """The plain Submodel of a speaker, with the facts of its training.

        Args:
            speaker: one of `speakers`.
            base: fingerprint of the base that it will be used with; None asks for no check.

        Raises:
            StoreError: the space has no such speaker.
            FingerprintMismatch: it belongs to another base.
        """
        check_base(f"Submodel of '{speaker}'", self.base, base)
        made = self.submodel_at(self.embedding(speaker), speaker)
        return StoredSubmodel(made.submodel, self.spec, speaker, self.base, self.facts.get(speaker, {}) | made.training)

    def submodel_at(self, e: Float[Any, "K"], speaker: str = "a point of a space") -> StoredSubmodel:
        """The plain Submodel at a point, bit for bit what the generator gives there, alone and compiled.

        Args:
            e: the embedding.
            speaker: whose it is to be.
        """
        e = np.asarray(e, np.float32)
        submodel = jax.device_get(generated(self.generator, self.shared, e))
        return StoredSubmodel(submodel, self.spec, speaker, self.base, told_of(e))

    def middle(self) -> Float[np.ndarray, "K"]:
        """The mean of the embeddings."""
        points = np.stack(list(self.embeddings.values()))
        return np.asarray(points.mean(axis=0, dtype=np.float64), np.float32)


def told_of(e: Float[np.ndarray, "K"]) -> dict[str, Any]:
    """An embedding among the facts of a Submodel: JSON data."""
    return {"embedding": e.tolist()} if e.size <= _TOLD else {}


@functools.cache
def _compiled(generator: Generator) -> Any:
    return jax.jit(generator.generate)


def generated(generator: Generator, shared: Shared, e: Float[Any, "K"]) -> Submodel:
    """The Submodel at one point, by the program that everything that is exported comes from."""
    return _compiled(generator)(shared, e)


def save_space(path: Any, space: Space, *, overwrite: bool = False) -> None:
    """Writes a space as one Orbax checkpoint with its metadata, whole or not at all (see `write_checkpoint`).

    Args:
        path: the folder to make; not in a bucket.
        space: what to write.
        overwrite: replace the space that is there.

    Raises:
        StoreError: the path is of a bucket, something is there already, the space has no speakers, its facts are no
            JSON data, or the file system refused.
    """
    path = near(path)
    if path.exists():
        if not overwrite:
            raise StoreError(f"'{path}' is there already. Choose another path, or overwrite.")
        space_metadata(path)
    if not space.embeddings:
        raise StoreError("The space has no speakers, and is not written.")
    arrays = {
        "shared": jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), space.shared),
        "embeddings": np.stack([np.asarray(e, np.float32) for e in space.embeddings.values()]),
    }
    metadata = {
        "format": FORMAT,
        "base": space.base,
        "spec": spec_to_json(space.spec),
        "generator": generator_to_json(space.generator),
        "speakers": list(space.embeddings),
        "training": space.training,
        "facts": space.facts,
    }
    write_checkpoint(path, arrays, metadata, "space")


def space_metadata(path: Any) -> dict[str, Any]:
    """The metadata of a stored space, without its arrays.

    Raises:
        StoreError: nothing is there, or it is not a space, or it is of a later version.
    """
    return read_metadata(absolute(path), "space", "generator", FORMAT, _ENTRIES)


def load_space(path: Any, *, base: str | None = None) -> Space:
    """Reads a space onto the host, whatever devices and processes it was written from.

    Args:
        path: its folder, `runs/<name>/space`.
        base: fingerprint of the base that it will be used with; None reads it without that check.

    Raises:
        StoreError: nothing is there, or it is damaged or of a later version.
        FingerprintMismatch: it belongs to another base.
    """
    path = absolute(path)
    metadata = space_metadata(path)
    check_base(f"space at '{path}'", metadata["base"], base)
    try:
        spec, generator = spec_from_json(metadata["spec"]), generator_from_json(metadata["generator"])
    except SpecError as error:
        raise StoreError(f"The space at '{path}' is of a kind that cannot be read: {error}") from error
    arrays = read_arrays(path, "space")
    try:
        shared = jax.tree.map(np.asarray, arrays["shared"])
        embeddings = dict(zip(metadata["speakers"], np.asarray(arrays["embeddings"]), strict=True))
    except Exception as error:  # whatever a damaged file gives
        raise StoreError(f"The space at '{path}' is damaged: {error}") from error
    return Space(generator, spec, metadata["base"], shared, embeddings, metadata["training"], metadata["facts"])
