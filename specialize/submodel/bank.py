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
    """A mesh of one axis over all devices of all processes, or those given; the devices of a process are neighbours.

    The axis is Auto: an Explicit one, the default of `jax.make_mesh`, would type every intermediate of the base.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: d.process_index)
    return Mesh(np.array(devices), (SPEAKER,), axis_types=(AxisType.Auto,))


def check_slots(slots: int, mesh: Mesh) -> None:
    """Raises ConfigError unless S slots can be laid out evenly on the mesh."""
    n = mesh.devices.size
    if slots < 1 or slots % n:
        below, above = max(n, slots // n * n), (slots // n + 1) * n
        raise ConfigError(
            f"{slots} slots cannot be shared evenly by {n} devices. Use {below} or {above} slots, or a number of "
            f"devices that divides {slots}."
        )


def slot_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [S, …]."""
    return NamedSharding(mesh, PartitionSpec(SPEAKER))


def replicated(mesh: Mesh) -> NamedSharding:
    """For the base."""
    return NamedSharding(mesh, PartitionSpec())


def own_slots(slots: int, mesh: Mesh) -> range:
    """The slots of S that are on the devices of this process."""
    each = slots // mesh.devices.size
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(own[0] * each, (own[-1] + 1) * each)


def lay_out(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays on the devices of a mesh. Of several processes, each has the whole of them and gives its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])

    return jax.tree.map(one, tree)


def lay_out_own(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays [S, …] on the devices of a mesh, of which each process has only the rows of its `own_slots`."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


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
