"""From uploaded bytes to text, for many at a time: what the HTTP server serves, without HTTP."""

import asyncio
import contextlib
import math
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from specialize.base import Base
from specialize.errors import SpecError, SpecializeError, StoreError
from specialize.serve.audio import AudioDecoder, cut_at_pauses
from specialize.serve.batcher import Batch, Batcher, Busy, Closed
from specialize.serve.recognizer import Hypothesis, Recognizer
from specialize.serve.slots import Resident
from specialize.serve.stores import SpeakerStore, asking
from specialize.submodel import Kind

_WARMING_SECONDS = 30
"""What a client is told to wait while programs are compiled."""


class Preparing(SpecializeError):
    """What a request needs is being compiled; nothing compiles while others wait for it."""

    retry_after = _WARMING_SECONDS
    """Seconds."""


@dataclass(frozen=True)
class Segment:
    """A piece of a recording, cut at a pause, and what was decoded of it."""

    start: float
    """Seconds."""
    end: float
    found: Hypothesis

    @property
    def text(self) -> str:
        """Without spaces around it."""
        return self.found.text.strip()


@dataclass(frozen=True)
class Heard:
    """A recording that was understood to be audio, and who transcribes it."""

    audio: np.ndarray
    """float32 [N] at the base's rate."""
    pieces: tuple[tuple[int, int], ...]
    """(start, end) of each piece in samples."""
    resident: Resident | None
    """None is the base."""
    rate: int

    @property
    def seconds(self) -> float:
        """Of the recording."""
        return self.audio.size / self.rate


class Service:
    """One base, a store of Submodels, and what is between requests and the device.

    Args:
        recognizer: with its store.
        store: the same store, from which speakers are listed and deleted.
        decoder: of untrusted audio.
        lengths: seconds that utterances are padded to; those that the base does not take are left out.
        linger, budget, waiting: see `Batcher`. Submodels have the budget too to come, and who waits for one counts.
        watch: is told of each batch.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        store: SpeakerStore,
        decoder: AudioDecoder,
        *,
        lengths: Sequence[float] = (2, 4, 8, 15, 30),
        linger: float = 0.01,
        budget: float = 10.0,
        waiting: int = 256,
        watch: Callable[[Batch], None] = lambda batch: None,
    ):
        self.recognizer, self.store, self.decoder = recognizer, store, decoder
        architecture = recognizer.base.architecture
        longest = architecture.max_samples
        wanted = {int(seconds * architecture.sample_rate) for seconds in lengths}
        self.lengths = tuple(sorted({n for n in wanted if n < longest} | {longest}))
        """Samples."""
        self.batcher = Batcher(recognizer, self.lengths, linger=linger, budget=budget, waiting=waiting, watch=watch)
        self._budget, self._waiting = budget, waiting
        self._decoding = asyncio.Semaphore(decoder.workers)
        self._fetching = 0
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._readers = ThreadPoolExecutor(8, "requests")
        self._keepers = ThreadPoolExecutor(4, "store")
        self._warm: set[Kind | None] = set()  # None is the base alone
        self._unfit: dict[Kind | None, SpecError] = {}
        self._preparing: dict[Kind, Future[None]] = {}
        self._preparer = ThreadPoolExecutor(1, "preparing")
        self._warming, self._asking = threading.Lock(), threading.Lock()
        self._closing = threading.Event()

    @property
    def base(self) -> Base:
        """The base that is served."""
        return self.recognizer.base

    def warm(self, specs: Sequence[Kind], tell: Callable[[str], None] = lambda at: None) -> None:
        """Compiles all that requests with Submodels of these specs, and with the base alone, will need.

        A spec that does not fit the base is told, and refused to whoever asks for it.

        Raises:
            Closed: the service has ended meanwhile.
        """
        with self._warming:
            alone = None not in self._warm
            for spec in [None, *specs] if alone else specs:
                if spec in self._warm:
                    continue
                try:
                    for at in self.recognizer.warm([] if spec is None else [spec], self.lengths, alone=spec is None):
                        if self._closing.is_set():
                            raise Closed("The server is ending.")
                        tell(f"{at}, {'the base alone' if spec is None else spec}")
                except SpecError as error:
                    self._unfit[spec] = error
                    tell(f"left out: {error}")
                else:
                    self._warm.add(spec)

    def check_warm(self, resident: Resident | None) -> None:
        """Has what a request needs compiled, once, where it is not yet.

        Raises:
            Preparing: it is being compiled.
            SpecError: it cannot be.
        """
        if None not in self._warm:
            raise Preparing("The server is starting.")
        if resident is None or resident.spec in self._warm:
            return
        with self._asking:
            if resident.spec in self._unfit:
                raise SpecError(*self._unfit[resident.spec].args)
            if resident.spec not in self._preparing:
                self._preparing[resident.spec] = self._preparer.submit(self.warm, [resident.spec])
            elif self._preparing[resident.spec].done() and resident.spec not in self._warm:
                self._preparing.pop(resident.spec).result()  # it was not the spec's fault: the next request tries again
        raise Preparing("Submodels of this kind are being prepared.")

    def admit(self) -> None:
        """Raises what `hear` would raise now, so that nothing is spent on a request that will be refused.

        Raises:
            Busy, Closed: as `Batcher.admit`; or too many wait for Submodels.
        """
        self.batcher.admit()
        if self._fetching + self.batcher.waiting >= self._waiting:
            raise Busy(f"{self._fetching} requests are waiting for Submodels already.", math.ceil(self._budget))

    async def hear(self, read: Callable[[], Awaitable[bytes]], speaker: str | None) -> Heard:
        """Decodes a recording and fetches the Submodel that is to transcribe it.

        Args:
            read: gives the audio file; called when a process is free to decode it, so that few are in memory.
            speaker: whose Submodel; None is the base.

        Raises:
            AudioRefused: it is no audio, or too long.
            StoreError, FingerprintMismatch, SpecError: of the Submodel.
            StoreUnavailable: the store cannot be asked for it.
            ConfigError: nothing can be decoded.
            Preparing: what it needs is being compiled.
            Busy, Closed: as `admit`; or the Submodel has not come, or no process has been free to decode, for as long
                as the budget is.
        """
        self.admit()
        self.check_warm(None)
        resident = None
        if speaker is not None:
            resident = await self._fetch(speaker)
            self.check_warm(resident)
        try:
            await asyncio.wait_for(self._decoding.acquire(), self._budget)
        except TimeoutError:
            raise Busy("Many recordings are waiting already.", math.ceil(self._budget)) from None
        try:
            audio = await self.decoder.decode(await read())
        finally:
            self._decoding.release()
        rate = self.base.architecture.sample_rate
        longest = self.base.architecture.max_samples / rate
        return Heard(audio, tuple(cut_at_pauses(audio, rate, longest)), resident, rate)

    async def _fetch(self, speaker: str) -> Resident | None:
        """As `Recognizer.fetch`, within the budget.

        Whoever asks for the same speaker waits for a turn, and not in a thread that others need; the turn lasts as long
        as the thread is at work, also for somebody who has given up.
        """
        loop = asyncio.get_running_loop()
        self._fetching += 1
        try:
            async with asyncio.timeout(self._budget):
                turn = self._turns.setdefault(speaker, asyncio.Lock())
                await turn.acquire()
                asked = self._readers.submit(self.recognizer.fetch, speaker)
                asked.add_done_callback(lambda _: _soon(loop, turn.release))
                return await asyncio.wrap_future(asked)
        except TimeoutError:
            raise Busy("Submodels are slow to come.", math.ceil(self._budget)) from None
        finally:
            self._fetching -= 1

    async def transcribe(self, heard: Heard) -> AsyncIterator[Segment]:
        """The pieces of a recording with their texts, in order, each as soon as it is there.

        Raises:
            Busy: too much is waiting.
            Closed: the server is ending.
            Forgotten: the speaker was deleted meanwhile.
            NoSlot: all slots are pinned.
        """
        clips = [self.recognizer.clip(heard.audio[start:end]) for start, end in heard.pieces]
        coming = [asyncio.wrap_future(found) for found in self.batcher.submit(heard.resident, clips)]
        try:
            for (start, end), found in zip(heard.pieces, coming, strict=True):
                yield Segment(start / heard.rate, end / heard.rate, await found)
        finally:
            for found in coming:
                found.cancel()

    async def forget(self, speaker: str) -> int | None:
        """Deletes a speaker's Submodel from the store, from memory and from the slots.

        Returns:
            How many copies were in memory and slots; None if there was nothing of the speaker anywhere.

        Raises:
            StoreError: it could not be deleted.
        """

        def everywhere() -> int | None:
            try:
                there = self.store.remove(speaker)
            finally:
                dropped = self.recognizer.forget(speaker)
            left = self.store.remnants(speaker)
            if left or self.recognizer.cache.held(speaker):
                raise StoreError(f"'{speaker}' is not gone: {left}.")
            return dropped if there or dropped else None

        return await asyncio.get_running_loop().run_in_executor(self._keepers, everywhere)

    async def has(self, speaker: str) -> bool:
        """Whether a speaker has a Submodel. Raises StoreUnavailable if it cannot be told."""

        def there() -> bool:
            with asking():
                return self.store.version(speaker) is not None

        return await asyncio.get_running_loop().run_in_executor(self._keepers, there)

    async def speakers(self) -> list[str]:
        """All that have a Submodel. Raises StoreUnavailable if it cannot be told."""

        def listed() -> list[str]:
            with asking():
                return sorted(self.store.listed())

        return await asyncio.get_running_loop().run_in_executor(self._keepers, listed)

    def close(self, seconds: float = 30.0) -> None:
        """Serves what waits, and ends; what is being compiled is the last that is."""
        self._closing.set()
        self.batcher.close(seconds)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._keepers.shutdown(wait=False, cancel_futures=True)
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self.recognizer.cache.close()


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Has a loop call something, from another thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(call)
