"""From uploaded bytes to text, for many at a time: what the HTTP server serves, without HTTP."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from specialize.base import Base
from specialize.errors import SpecializeError
from specialize.serve.audio import AudioDecoder, cut_at_pauses
from specialize.serve.batcher import Batch, Batcher
from specialize.serve.recognizer import Recognizer
from specialize.serve.slots import Resident
from specialize.submodel import Kind, SubmodelStore

_WARMING_SECONDS = 30
"""What a client is told to wait while programs are compiled."""


class Preparing(SpecializeError):
    """What a request needs is being compiled; nothing compiles while others wait for it."""

    retry_after = _WARMING_SECONDS
    """Seconds."""


@dataclass(frozen=True)
class Segment:
    """A piece of a recording, cut at a pause, and its text."""

    start: float
    """Seconds."""
    end: float
    text: str


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
        linger, budget, waiting: see `Batcher`.
        watch: is told of each batch.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        store: SubmodelStore,
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
        self._readers = ThreadPoolExecutor(8, "requests")
        self._warm: set[Kind | None] = set()  # None is the base alone
        self._warming = threading.Lock()

    @property
    def base(self) -> Base:
        """The base that is served."""
        return self.recognizer.base

    def warm(self, specs: Sequence[Kind], tell: Callable[[str], None] = lambda at: None) -> None:
        """Compiles all that requests with Submodels of these specs, and with the base alone, will need."""
        with self._warming:
            new: list[Kind] = [spec for spec in specs if spec not in self._warm]
            for at in self.recognizer.warm(new, self.lengths):
                tell(at)
            self._warm.update(new, [None])

    async def hear(self, data: bytes, speaker: str | None) -> Heard:
        """Decodes a recording and fetches the Submodel that is to transcribe it.

        Args:
            data: of an audio file.
            speaker: whose Submodel; None is the base.

        Raises:
            AudioRefused: it is no audio, or too long.
            StoreError, FingerprintMismatch: of the Submodel.
            Preparing: what it needs is being compiled.
        """
        resident = None
        if None not in self._warm:
            raise Preparing("The server is starting.")
        if speaker is not None:
            loop = asyncio.get_running_loop()
            resident = await loop.run_in_executor(self._readers, self.recognizer.fetch, speaker)
            if resident is not None and resident.spec not in self._warm:
                self._readers.submit(self.warm, [resident.spec])
                raise Preparing("Submodels of this kind are being prepared.")
        audio = await self.decoder.decode(data)
        rate = self.base.architecture.sample_rate
        longest = self.base.architecture.max_samples / rate
        return Heard(audio, tuple(cut_at_pauses(audio, rate, longest)), resident, rate)

    async def transcribe(self, heard: Heard) -> AsyncIterator[Segment]:
        """The pieces of a recording with their texts, in order, each as soon as it is there.

        Raises:
            Busy: too much is waiting.
            Closed: the server is ending.
            Forgotten: the speaker was deleted meanwhile.
        """
        clips = [self.recognizer.clip(heard.audio[start:end]) for start, end in heard.pieces]
        texts = []
        try:
            for clip in clips:
                texts.append(asyncio.wrap_future(self.batcher.submit(heard.resident, clip)))
            for (start, end), text in zip(heard.pieces, texts, strict=True):
                yield Segment(start / heard.rate, end / heard.rate, (await text).strip())
        finally:
            for text in texts:
                text.cancel()

    async def forget(self, speaker: str) -> int | None:
        """Deletes a speaker's Submodel from the store, from memory and from the slots.

        Returns:
            How many copies were in memory and slots; None if there was nothing of the speaker anywhere.

        Raises:
            StoreError: it could not be deleted.
        """

        def everywhere() -> int | None:
            there = self.store.remove(speaker)
            dropped = self.recognizer.forget(speaker)
            return dropped if there or dropped else None

        return await asyncio.get_running_loop().run_in_executor(self._readers, everywhere)

    async def speakers(self) -> list[str]:
        """All that have a Submodel."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, lambda: sorted(self.store.listed()))

    def close(self, seconds: float = 30.0) -> None:
        """Serves what waits, and ends."""
        self.batcher.close(seconds)
        self._readers.shutdown(cancel_futures=True)
        self.recognizer.cache.close()
