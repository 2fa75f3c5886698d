"""Looking at a space: its principal coordinates, who is near whom, and what it is in a few lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from specialize.space.generators import generator_name
from specialize.space.space import Space
from specialize.submodel import size

_LISTED = 6
_NEIGHBOURS = 3


@dataclass(frozen=True)
class Principal:
    """Embeddings in coordinates that do not depend on how the generator's happen to be turned.

    Distances are those of the generator's metric: for a linear space, of the generated Submodels.
    """

    speakers: tuple[str, ...]
    coordinates: Float[np.ndarray, "N D"]
    """Of each speaker, the direction of most variance first; mean zero."""
    explained: Float[np.ndarray, "D"]
    """Share of the variance along each direction."""
    _turn: Any
    """[K, D], from an embedding without the mean to coordinates."""
    _mean: Any

    def place(self, e: Float[np.ndarray, "K"]) -> Float[np.ndarray, "D"]:
        """The coordinates of any point; what of it lies outside of the speakers' directions is left out."""
        return (np.asarray(e, np.float64) - self._mean) @ self._turn


def principal(space: Space) -> Principal:
    """The principal components of a space's embeddings."""
    points = np.stack([np.asarray(e, np.float64) for e in space.embeddings.values()])
    mean = points.mean(0)
    metric = space.generator.metric(space.shared)
    points = points - mean
    if metric is None:
        root = None
    else:
        values, vectors = np.linalg.eigh(metric)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        points = points @ root
    _, lengths, directions = np.linalg.svd(points, full_matrices=False)
    total = max(float((lengths**2).sum()), np.finfo(np.float64).tiny)
    turn = directions.T if root is None else root @ directions.T
    return Principal(tuple(space.embeddings), points @ directions.T, lengths**2 / total, turn, mean)


def nearest(space: Space, who: str | Float[Any, "K"], n: int = 5) -> list[tuple[str, float]]:
    """The n speakers nearest to one of them, or to any point, with their distances; nearest first.

    Args:
        space: the space.
        who: a speaker, who is left out of the result, or an embedding.
        n: how many.

    Raises:
        StoreError: the space has no such speaker.
    """
    if isinstance(who, str):
        return neighbours(principal(space), space.embedding(who), n, but=who)
    return neighbours(principal(space), who, n)


def neighbours(of: Principal, e: Float[Any, "K"], n: int, but: str | None = None) -> list[tuple[str, float]]:
    """As `nearest`, of a point in a space whose principal coordinates are known; `but` is a speaker to leave out."""
    distances = np.linalg.norm(of.coordinates - of.place(np.asarray(e))[None], axis=1)
    ranked = [int(i) for i in np.argsort(distances, kind="stable")]
    return [(of.speakers[i], float(distances[i])) for i in ranked if of.speakers[i] != but][:n]


def describe_space(space: Space) -> Iterator[str]:
    """Lines of plain text that say what a space is."""
    n, shared = len(space.embeddings), size(space.shared)
    each = size(space.shared["mean"])
    k = space.generator.embedding_size(space.shared["mean"])
    yield f"  space          {generator_name(space.generator)}: {space.generator}"
    yield f"  generates      {space.spec}, {each:,} parameters each"
    yield f"  speakers       {n}, of {k:,} numbers each"
    whole = shared + n * k
    yield f"  parameters     {shared:,} shared + {n * k:,} of embeddings; {n} plain Submodels have {n * each:,}"
    yield f"                 ({whole / (n * each):.1%} of them)"
    for name, value in space.training.items():
        if isinstance(value, int | float):
            yield f"  {name.replace('_', ' '):<14} {value if isinstance(value, int) else f'{value:.4f}'}"
    of = principal(space)
    shown = ", ".join(f"{share:.1%}" for share in of.explained[:8])
    yield f"  variance       {shown}{' …' if len(of.explained) > 8 else ''} by dimension"
    if n > 1:
        yield "nearest speakers:"
    for speaker in list(space.embeddings)[: _LISTED if n > 1 else 0]:
        near = neighbours(of, space.embeddings[speaker], _NEIGHBOURS, but=speaker)
        yield f"  {speaker}: " + ", ".join(f"{name} ({distance:.3g})" for name, distance in near)
