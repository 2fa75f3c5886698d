"""Batches that are read, and laid out on the devices, before they are needed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from specialize.base import Batch
from specialize.corpus import Dispatch

Placed = tuple[Dispatch, tuple[Batch, ...]]
"""A dispatch as it was made on the host, and its parts on the devices."""


class Reader:
    """Iterates over dispatches, one of them ahead in a thread of its own, so that no step waits for the host.

    Reading begins at once. It may be for a round that will not come: who has no use for it closes it.

    Args:
        key: what tells this round from others.
        dispatches: to read, made in the thread.
        place: lays the parts of one out on the devices.
    """

    def __init__(
        self,
        key: Any,
        dispatches: Callable[[], Iterable[Dispatch]],
        place: Callable[[Dispatch], tuple[Batch, ...]],
    ):
        self.key = key
        self._make, self._place = dispatches, place
        self._source: Iterator[Dispatch] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._next: Future[Placed | None] = self._pool.submit(self._read)

    def __iter__(self) -> Iterator[Placed]:
        try:
            while (ready := self._next.result()) is not None:
                self._next = self._pool.submit(self._read)
                yield ready
        finally:
            self.close()

    def close(self) -> None:
        """Gives up what is not read yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> Placed | None:
        if self._source is None:
            self._source = iter(self._make())
        dispatch = next(self._source, None)
        return None if dispatch is None else (dispatch, self._place(dispatch))
