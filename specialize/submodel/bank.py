"""A bank: Submodels stacked on a leading slot axis S, which is what the mesh shards."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from specialize.errors import ConfigError
from specialize.submodel.insert import Submodel

SPEAKER = "speaker"
"""The mesh axis over which everything with a slot axis is laid out."""


def speaker_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over all devices, or those given.

    The axis is Auto: an Explicit one, the default of `jax.make_mesh`, would type every intermediate of the base.
    """
    devices = jax.devices() if devices is None else list(devices)
    return Mesh(np.array(devices), (SPEAKER,), axis_types=(AxisType.Auto,))


def check_slots(slots: int, mesh: Mesh) -> None:
    """Raises ConfigError unless S slots can be laid out evenly on the mesh."""
    n = mesh.devices.size
    if slots < 1 or slots % n:
        below, above = max(n, slots // n * n), (slots // n + 1) * n
        raise ConfigError(f"{slots} slots cannot be shared evenly by {n} devices. Use {below} or {above} slots.")


def slot_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [S, …]."""
    return NamedSharding(mesh, PartitionSpec(SPEAKER))


def replicated(mesh: Mesh) -> NamedSharding:
    """For the base."""
    return NamedSharding(mesh, PartitionSpec())


def stack(submodels: Sequence[Submodel]) -> Submodel:
    """Stacks Submodels of one spec: every leaf gains a leading axis S = len(submodels)."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *submodels)


def broadcast(trained: Any, slots: int) -> Any:
    """A bank of S equal Submodels, or of whatever else slots train."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), trained)


def take(bank: Submodel, slot: int) -> Submodel:
    """One Submodel out of a bank, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[slot]), bank)


def size(tree: Any) -> int:
    """How many parameters a Submodel (or a bank, or a base) has."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
