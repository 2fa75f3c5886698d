"""Audio of strangers: decoded in processes of its own, and cut at pauses where it is long."""

import asyncio
import contextlib
import functools
import logging
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float

from specialize.errors import AudioRefused, ConfigError
from specialize.serve import audio_worker
from specialize.serve.audio_worker import ANSWER, BEGUN, FORMATS, RATES, READY, REQUEST, Verdict

_START_SECONDS = 60.0
"""A process that is not ready by then never will be."""
_UNREADABLE = f"There is no audio in it that can be read (formats: {FORMATS})."

logger = logging.getLogger(__name__)


class AudioDecoder:
    """Decodes audio files of strangers in child processes, so that no file takes the server down.

        async with AudioDecoder() as decoder:
            samples = await decoder.decode(upload)

    A process that crashes, hangs or needs too much memory is replaced, and only its request fails; one that was killed
    while it waited costs none. Requests beyond the number of processes wait for one.

    Why no pool of a library: those of `multiprocessing` and pebble send pickles and share a pipe among workers, so one
    that is killed at the wrong moment can stall the others, and one that a file has taken over can send the server code
    to run. A pipe for each process, with plain numbers on it, can do neither.

    Args:
        workers: processes, and so files that are decoded at the same time.
        rate: of the result, in Hz.
        max_seconds: longest audio that is taken.
        timeout: seconds that one file may take, not counting its wait for a process.
        memory_bytes: that decoding one file may take, the file included, which may be half of it; None is enough for
            `max_seconds`. Needs Linux.
        command: that starts a process, for tests; it gets the arguments of `audio_worker.main`.
    """

    def __init__(
        self,
        workers: int = 2,
        rate: int = 16_000,
        *,
        max_seconds: float = 600.0,
        timeout: float = 30.0,
        memory_bytes: int | None = None,
        command: Sequence[str] = (sys.executable, "-P", audio_worker.__file__),
    ):
        if workers < 1 or not RATES[0] <= rate <= RATES[1] or not 0 < max_seconds < math.inf or timeout <= 0:
            raise ConfigError(
                f"A decoder of audio needs a worker, a rate of {RATES[0]} to {RATES[1]} Hz, and some seconds; this has "
                f"workers={workers}, rate={rate}, max_seconds={max_seconds}, timeout={timeout}."
            )
        self.rate, self.max_seconds, self.timeout, self.workers = rate, max_seconds, timeout, workers
        most = math.ceil(rate * max_seconds)
        self.memory_bytes = (256 << 20) + 12 * most if memory_bytes is None else memory_bytes
        arguments = [str(one) for one in (rate, max_seconds, self.memory_bytes, math.ceil(timeout) + 1)]
        # A resampled file may be a little longer than its length says.
        self._workers = [_Worker([*command, *arguments], timeout, most + rate) for _ in range(workers)]
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="audio")
        self._open = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that run, each in its place; a process that is replaced has another."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    async def __aenter__(self) -> "AudioDecoder":
        loop = asyncio.get_running_loop()
        started = [loop.run_in_executor(self._threads, worker.start) for worker in self._workers]
        try:
            await asyncio.gather(*started)
        except BaseException:
            await self.__aexit__()
            raise
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        for worker in self._workers:
            worker.close()
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.stop(0)

    async def decode(self, data: bytes) -> Float[np.ndarray, "N"]:
        """The samples of a file: mono, at `rate`, in [-1, 1]. Whoever is cancelled here stops the process.

        Raises:
            AudioRefused: there is no audio in it, or more than `max_seconds`, or decoding it takes too much.
            ConfigError: no process can be started.
            RuntimeError: not inside `async with`.
        """
        if len(data) > self.memory_bytes // 2:
            raise AudioRefused(f"The file is larger than {self.memory_bytes / 2e6:.0f} MB.")
        self._check_open()
        given_up = threading.Event()
        worker = await self._idle.get()
        try:
            self._check_open()
            asked = asyncio.get_running_loop().run_in_executor(self._threads, worker.ask, data, given_up)
        except BaseException:
            self._idle.put_nowait(worker)
            raise
        asked.add_done_callback(functools.partial(self._give_back, worker))
        try:
            verdict, samples = await asyncio.shield(asked)
        except asyncio.CancelledError:
            given_up.set()
            if not asked.done():
                worker.kill()
            raise
        if verdict is not Verdict.DECODED:
            raise AudioRefused(self._reason(verdict))
        return samples

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError("An AudioDecoder decodes inside `async with` only.")

    def _give_back(self, worker: "_Worker", asked: asyncio.Future) -> None:
        if not asked.cancelled():
            asked.exception()  # where whoever asked is gone, nobody else looks at it
        self._idle.put_nowait(worker)

    def _reason(self, verdict: Verdict) -> str:
        return {
            Verdict.EMPTY: "The audio is empty.",
            Verdict.TOO_LONG: f"The audio is longer than {self.max_seconds:g} s.",
            Verdict.NOT_FINITE: "The audio has samples that are not finite.",
            Verdict.RATE: f"The sample rate of the audio is not between {RATES[0]} and {RATES[1]} Hz.",
            Verdict.MEMORY: "Decoding the audio takes more memory than is allowed.",
        }.get(verdict, _UNREADABLE)


class _Worker:
    """One process at a time, started when there is none. One thread asks; any may `kill` or `close`."""

    def __init__(self, command: Sequence[str], timeout: float, most: int):
        self._command, self._timeout, self._most = command, timeout, most
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._closed = threading.Lock(), False

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def start(self) -> None:
        """Starts a process unless there is one.

        Raises:
            ConfigError: it does not start, which is no fault of any audio.
            RuntimeError: closed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        with self._lock:
            if self._closed:
                raise RuntimeError("The decoder of audio is closed.")
            # One thread for the libraries of linear algebra: others would take address space and do nothing.
            self._process = subprocess.Popen(
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the server
            )
            for pipe in (self._process.stdin, self._process.stdout):
                os.set_blocking(pipe.fileno(), False)  # pyright: ignore[reportOptionalMemberAccess]
        try:
            if self._receive(1, time.monotonic() + _START_SECONDS) == READY:
                return
        except (EOFError, TimeoutError, OSError):
            pass
        raise ConfigError(f"A process that decodes audio does not start: it {self.stop()}. See what it printed.")

    def ask(self, data: bytes, given_up: threading.Event) -> tuple[Verdict, np.ndarray]:
        """The verdict on a file, and its samples. What dies before it has the whole file is replaced, and asked again.

        Args:
            data: the file.
            given_up: set by who wants no answer any more, before they kill the process.

        Raises:
            AudioRefused: the process crashed or took too long, or the request was given up.
            ConfigError, RuntimeError: as `start`.
        """
        for last in (False, True):
            if given_up.is_set():
                break
            self.start()
            begun, deadline = False, time.monotonic() + self._timeout
            try:
                self._send(REQUEST.pack(len(data)), deadline)
                self._send(data, deadline)
                begun = self._receive(1, deadline) == BEGUN
                verdict, samples = ANSWER.unpack(self._receive(ANSWER.size, deadline))
                if not begun or verdict not in list(Verdict) or samples > self._most:
                    raise EOFError
                return Verdict(verdict), np.frombuffer(self._receive(4 * samples, deadline), np.float32)
            except TimeoutError:
                self.stop(0)
                raise AudioRefused(f"Decoding the audio took longer than {self._timeout:g} s.") from None
            except (EOFError, OSError):
                how = self.stop()
                if not given_up.is_set():
                    logger.warning("A process that decodes audio %s; another takes its place.", how)
                if begun or last or given_up.is_set():
                    raise AudioRefused("The audio made its decoder fail.") from None
            except BaseException:
                self.stop(0)  # it is in the middle of an answer
                raise
        raise AudioRefused("The request was given up.")

    def kill(self) -> None:
        """Makes whoever asks fail at once."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def close(self) -> None:
        """Kills the process, and starts no other."""
        with self._lock:
            self._closed = True
        self.kill()

    def stop(self, patience: float = 0.2) -> str:
        """Ends the process, if there is one; says how it ended by itself, for which it has some seconds."""
        process, self._process = self._process, None
        if process is None:
            return "is not there"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        code = process.poll()
        process.kill()
        for pipe in (process.stdin, process.stdout):
            pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
        process.wait()
        return "did not answer" if code is None else f"ended with code {code}"

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        pipe: Any = self._process.stdin  # pyright: ignore[reportOptionalMemberAccess]
        while view:
            _wait(pipe.fileno(), select.POLLOUT, deadline)
            view = view[pipe.write(view) or 0 :]

    def _receive(self, size: int, deadline: float) -> bytearray:
        received = bytearray(size)
        view = memoryview(received)
        pipe: Any = self._process.stdout  # pyright: ignore[reportOptionalMemberAccess]
        while view:
            _wait(pipe.fileno(), select.POLLIN, deadline)
            if not (got := pipe.readinto(view)):
                raise EOFError
            view = view[got:]
        return received


def _wait(pipe: int, event: int, deadline: float) -> None:
    """Until a pipe is ready, or closed at its other end. Raises TimeoutError at the deadline."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
        raise TimeoutError


def cut_at_pauses(audio: Float[np.ndarray, "N"], rate: int, longest_seconds: float) -> list[tuple[int, int]]:
    """Cuts audio that is longer than a base takes at its quietest moments.

    Each cut is where a fifth of a second has the least energy, in the second half of what a piece may be; of equals it
    is the last. No piece is shorter than a quarter of the longest.

    Args:
        audio: samples.
        rate: of them, in Hz.
        longest_seconds: that a piece may have.

    Returns:
        (start, end) of each piece, in samples: in order, without gaps. Audio that fits is one piece; no audio is none.

    Raises:
        ValueError: a piece could not have a sample.
    """
    longest = math.floor(longest_seconds * rate)
    if longest < 1:
        raise ValueError(f"Pieces of {longest_seconds} s at {rate} Hz have no samples.")
    if len(audio) <= longest:
        return [(0, len(audio))] if len(audio) else []
    frame = max(1, min(rate // 100, longest // 16))  # 10 ms; cuts are between frames
    half = max(1, min(10, longest // 16 // frame))
    whole = len(audio) // frame * frame
    frames = np.asarray(audio[:whole], np.float32).reshape(-1, frame)
    energy = np.einsum("tn,tn->t", frames, frames, dtype=np.float64)
    around = np.convolve(energy, np.ones(2 * half))[half - 1 :]  # [t]: of the frames t - half … t + half - 1
    pieces, start = [], 0
    while (rest := len(audio) - start) > longest:
        first = -(-(2 * start + longest) // (2 * frame))
        last = (start + min(longest, rest - longest // 4)) // frame
        window = around[first : last + 1]
        end = frame * (last - int(np.argmin(window[::-1])))
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(audio))]
