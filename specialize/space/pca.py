"""A linear space through Submodels that there are already."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from specialize.errors import SpecError
from specialize.space.generators import Shared
from specialize.submodel import Submodel


def fit_linear(submodels: Sequence[Submodel], dim: int) -> tuple[Shared, Float[np.ndarray, "N K"], float]:
    """The linear space of `dim` directions that is nearest to N plain Submodels: their principal components.

    Exact, but for the rounding of float32, where `dim` is at least N - 1; directions beyond are zero. Embeddings have
    mean zero and variance one in every direction, as joint training starts with.

    Args:
        submodels: of one spec.
        dim: K.

    Returns:
        What `Linear(dim)` generates from, the embedding of each Submodel, float32 [N, K], and the share of the sum of
        squares around the mean that the directions have, 1 where the Submodels are equal.

    Raises:
        SpecError: there are no Submodels, or they are not of one spec.
    """
    if not submodels:
        raise SpecError("There is no Submodel to fit a space to.")
    if dim < 1:
        raise SpecError(f"A space of {dim} dimensions was asked for, but it must have at least 1.")
    structure = jax.tree.structure(submodels[0])
    if any(jax.tree.structure(submodel) != structure for submodel in submodels):
        raise SpecError("The Submodels go to different places: a space is of one spec.")
    n = len(submodels)
    columns = list(zip(*(jax.tree.leaves(submodel) for submodel in submodels), strict=True))
    if any(leaf.shape != leaves[0].shape for leaves in columns for leaf in leaves):
        raise SpecError("The Submodels have different sizes: a space is of one spec.")

    def centred(leaves: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.stack([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
        return rows - rows.mean(0), rows.mean(0)

    # Inner products of the Submodels: N x N, however many parameters there are.
    gram = np.zeros((n, n))
    for leaves in columns:
        rows, _ = centred(leaves)
        gram += rows @ rows.T
    kept = min(dim, n - 1)
    values, vectors = np.linalg.eigh(gram)
    vectors = vectors[:, ::-1][:, :kept]
    share = float(values[::-1][:kept].sum() / values.sum()) if values.sum() > 0 else 1.0
    means, basis = [], []
    for leaves in columns:
        rows, mean = centred(leaves)
        directions = np.zeros((dim, rows.shape[1]))
        directions[:kept] = vectors.T @ rows / np.sqrt(n)
        means.append(mean.reshape(leaves[0].shape).astype(np.float32))
        basis.append(directions.reshape(dim, *leaves[0].shape).astype(np.float32))
    embeddings = np.zeros((n, dim), np.float32)
    embeddings[:, :kept] = np.sqrt(n) * vectors
    shared = {"mean": jax.tree.unflatten(structure, means), "basis": jax.tree.unflatten(structure, basis)}
    return shared, embeddings, share
