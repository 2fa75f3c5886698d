"""Submodels on the device: slots that are written in place, and rows of a batch gathered from them."""

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from specialize.errors import Forgotten, SpecializeError
from specialize.submodel import Kind


class NoSlot(SpecializeError):
    """There is no slot for another Submodel."""


@dataclass(eq=False)
class Resident:
    """One version of a speaker's Submodel, in the memory of the host. Its identity is the version."""

    speaker: str
    spec: Kind
    vector: Float[np.ndarray, "P"]
    """From `Layout.pack`."""
    helps: bool = True
    """Whether it beat the base on its speaker's dev utterances."""
    version: str = ""
    """What the store says of its files."""
    pinned: bool = False
    """Whether it stays where it is, however long it is not used."""
    forgotten: bool = False
    """Whether its speaker was deleted: nothing may be transcribed with it any more."""


class Slots:
    """The slots of one spec: a bank [slots, P] on the device, from its first use until it is freed.

    A slot is written in place, at a cost that does not depend on how many there are or are taken. Rows of a batch are
    copies, made in the order of the calls: what has been gathered does not change when its slot is written anew.

    Args:
        slots: how many.
        size: P.
    """

    def __init__(self, slots: int, size: int):
        self.slots, self.size = slots, size
        self._bank: Any = None
        self._held: OrderedDict[Resident, int] = OrderedDict()  # the least recently used first
        self._free = list(range(slots))[::-1]
        self._lock = threading.Lock()
        self.writes = 0
        """How many slots have been written."""

    def rows(self, residents: Sequence[Resident], count: int) -> Float[Array, "count P"]:
        """The vectors of a batch's rows, from their slots; what is in none is written into one first.

        Args:
            residents: at most `count`, and no more different ones than there are slots.
            count: rows to give; the last ones repeat the first.

        Raises:
            Forgotten: the speaker of one was deleted.
            NoSlot: all are pinned.
        """
        with self._writing():
            needed = set(residents)
            places = [self._place(resident, needed) for resident in residents]
            index = np.array(places + [places[0]] * (count - len(places)), np.int32)
            return _gather(self._allocated(), index)

    def drop(self, resident: Resident) -> bool:
        """Frees the slot of a Submodel, and writes zeros over it. False if it has none."""
        with self._lock:
            slot = self._held.pop(resident, None)
            if slot is None:
                return False
            try:
                self._bank = _write(self._allocated(), np.int32(slot), np.zeros(self.size, np.float32))
                self._free.append(slot)
            except Exception:  # without the bank it is gone too
                self._clear()
            return True

    @property
    def on_device(self) -> bool:
        """Whether there is a bank."""
        with self._lock:
            return self._bank is not None

    def free(self) -> bool:
        """Frees the bank, unless a Submodel in it is pinned. False if nothing was freed.

        Rows that were given are copies, and stay. The next use makes a bank anew, and compiles nothing.
        """
        with self._lock:
            if self._bank is None or any(resident.pinned for resident in self._held):
                return False
            self._clear()
            return True

    def warm(self, counts: Sequence[int]) -> None:
        """Compiles what `rows` needs for so many rows."""
        with self._writing():
            self._bank = _write(self._allocated(), np.int32(self._free[-1]), np.zeros(self.size, np.float32))
            for count in counts:
                _gather(self._bank, np.zeros(count, np.int32))

    def held(self) -> list[Resident]:
        """What is in the slots."""
        with self._lock:
            return list(self._held)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Holds the lock. Where the device fails, what is in which slot is not known any more: the bank is freed."""
        with self._lock:
            try:
                yield
            except SpecializeError:
                raise
            except BaseException:
                self._clear()
                raise

    def _clear(self) -> None:
        self._bank = None
        self._held.clear()
        self._free = list(range(self.slots))[::-1]

    def _allocated(self) -> Any:
        if self._bank is None:
            self._bank = jnp.zeros((self.slots, self.size), jnp.float32)
        return self._bank

    def _place(self, resident: Resident, needed: set[Resident]) -> int:
        if resident.forgotten:
            raise Forgotten("The speaker was deleted.")
        if resident in self._held:
            self._held.move_to_end(resident)
            return self._held[resident]
        if not self._free:
            old = next((r for r in self._held if r not in needed and not r.pinned), None)
            if old is None:
                raise NoSlot(
                    f"All {self.slots} slots are pinned or needed at once. Pin fewer speakers, or use more slots."
                )
            self._free.append(self._held.pop(old))
        slot = self._free.pop()
        self._bank = _write(self._allocated(), np.int32(slot), resident.vector)
        self._held[resident] = slot
        self.writes += 1
        return slot


@functools.partial(jax.jit, donate_argnums=0)
def _write(bank: Any, slot: Any, vector: Any) -> Any:
    return jax.lax.dynamic_update_index_in_dim(bank, vector, slot, 0)


@jax.jit
def _gather(bank: Any, index: Any) -> Any:
    return jnp.take(bank, index, axis=0)
