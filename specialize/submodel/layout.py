"""A Submodel as one vector: what a slot of a server holds, and what is written into it at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from specialize.base.architecture import Architecture
from specialize.errors import StoreError
from specialize.submodel.insert import Submodel, find_sites, init_submodel
from specialize.submodel.kinds import Kind


@dataclass(frozen=True)
class Layout:
    """Where each parameter of a spec on a base is in a vector of all. Hashable."""

    entries: tuple[tuple[str, str, tuple[int, ...]], ...]
    """(module path, name, shape) of each parameter, in the order of the vector."""

    @classmethod
    def of(cls, spec: Kind, architecture: Architecture, params: Any) -> "Layout":
        """The layout of a spec.

        Raises:
            SpecError: the spec does not fit the base.
        """
        sites = find_sites(spec, architecture, params)
        shapes = jax.eval_shape(lambda key: init_submodel(spec, sites, key), jax.random.key(0))
        return cls(
            tuple((path, name, leaf.shape) for path, weights in shapes.items() for name, leaf in weights.items())
        )

    @property
    def size(self) -> int:
        """P, the parameters of a Submodel."""
        return sum(int(np.prod(shape)) for _, _, shape in self.entries)

    def pack(self, submodel: Mapping[str, Mapping[str, Any]], whose: str) -> Float[np.ndarray, "P"]:
        """A Submodel as a float32 vector.

        Args:
            submodel: `{module path: {name: array}}`.
            whose: for messages: "Submodel of 'ana'".

        Raises:
            StoreError: it has other parameters than its spec says, or some that are not finite.
        """
        found = {(path, name): np.shape(value) for path, weights in submodel.items() for name, value in weights.items()}
        expected = {(path, name): shape for path, name, shape in self.entries}
        if found != expected:
            wrong = sorted(f"{path}/{name}" for path, name in dict(found.items() ^ expected.items()))
            raise StoreError(f"The {whose} has not the parameters that its spec says: {', '.join(wrong[:3])}, …")
        parts = [np.ravel(np.asarray(submodel[path][name], np.float32)) for path, name, _ in self.entries]
        vector = np.concatenate(parts)
        if not np.isfinite(vector).all():
            raise StoreError(f"The {whose} has parameters that are not finite. Train it again.")
        return vector

    def unpack(self, vectors: Float[Any, "*rows P"]) -> Submodel:
        """The Submodel, or bank of Submodels, of vectors: every leaf leads with their leading axes."""
        submodel: Submodel = {}
        at = 0
        for path, name, shape in self.entries:
            end = at + int(np.prod(shape))
            submodel.setdefault(path, {})[name] = vectors[..., at:end].reshape(*vectors.shape[:-1], *shape)
            at = end
        return submodel
