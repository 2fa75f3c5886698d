"""The process that decodes audio of strangers: a script that `serve/audio.py` starts and may lose at any time.

It imports neither JAX nor `specialize`, so it is small and starts in an instant. On its pipes, after `READY`: a request
is `REQUEST` (bytes) and the file; the answer is `BEGUN` when all of it is here, then `ANSWER` (verdict, samples) and
the samples, float32. Nothing is pickled: what has read a hostile file is not trusted either. A process confines
crashes, memory and time; it is no sandbox.
"""

import contextlib
import enum
import io
import math
import os
import resource
import signal
import struct
import sys

import numpy as np
import soundfile
import soxr

READY, BEGUN = b"r", b"b"
REQUEST, ANSWER = struct.Struct("<Q"), struct.Struct("<BQ")
FORMATS = "WAV, FLAC, Ogg (Vorbis or Opus), MP3, AIFF, AU, CAF"
RATES = 1_000, 384_000
_MARKS = b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff"
"""How files of these formats begin; the parsers of others, which are old and rarely used, are not even tried."""
_UNKNOWN = 1 << 36
"""So many samples are no length: FLAC that was written to a pipe gives none, and libsndfile then the largest number."""
_BLOCK = 1 << 16
_NONE = np.zeros(0, np.float32)


class Verdict(enum.IntEnum):
    """What became of a file."""

    DECODED = 0
    UNREADABLE = 1
    EMPTY = 2
    TOO_LONG = 3
    NOT_FINITE = 4
    RATE = 5
    MEMORY = 6


class _Stream(soundfile.SoundFile):
    """Read from beginning to end: without the seeks of `soundfile`, which FLAC of unknown length refuses."""

    def seekable(self) -> bool:
        return False


def decode(data: bytes, rate: int, max_seconds: float) -> tuple[Verdict, np.ndarray]:
    """Decodes a file block by block, averages its channels and resamples it, as `corpus.read_audio` does.

    Args:
        data: the file.
        rate: wanted, in Hz.
        max_seconds: more is refused, by the header if that tells, or else as soon as there is more.

    Returns:
        The verdict, and float32 [N] in [-1, 1], empty unless it is DECODED.
    """
    try:
        verdict, pieces = _pieces(data, rate, max_seconds)
        samples = np.concatenate([_NONE, *pieces])
    except MemoryError:
        return Verdict.MEMORY, _NONE
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError):
        return Verdict.UNREADABLE, _NONE
    return (Verdict.EMPTY if verdict is Verdict.DECODED and not samples.size else verdict), samples


def _pieces(data: bytes, rate: int, max_seconds: float) -> tuple[Verdict, list[np.ndarray]]:
    if not data:
        return Verdict.EMPTY, []
    if not (data.startswith(_MARKS) or (data[0] == 0xFF and len(data) > 1 and data[1] >= 0xE0)):  # MPEG's sync word
        return Verdict.UNREADABLE, []
    with _Stream(io.BytesIO(data)) as file:
        if not RATES[0] <= file.samplerate <= RATES[1]:
            return Verdict.RATE, []
        most = math.floor(max_seconds * file.samplerate)
        if most < file.frames < _UNKNOWN:
            return Verdict.TOO_LONG, []
        resampler = None if file.samplerate == rate else soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
        pieces, seen = [], 0
        while (block := file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)).size:
            seen += len(block)
            if seen > most:
                return Verdict.TOO_LONG, []
            if not np.isfinite(block).all():
                return Verdict.NOT_FINITE, []
            mono = block.clip(-1, 1).mean(axis=1)
            pieces.append(mono if resampler is None else resampler.resample_chunk(mono).clip(-1, 1))
        if resampler is not None:
            pieces.append(resampler.resample_chunk(_NONE, last=True).clip(-1, 1))
    return Verdict.DECODED, pieces


def main(rate: int, max_seconds: float, memory: int, seconds: int) -> None:
    """Answers requests until there are no more.

    Args:
        rate, max_seconds: as for `decode`.
        memory: bytes that decoding may take, beyond what the libraries take by themselves.
        seconds: of the processor that a request may take; whoever asks stops it before, unless they are gone.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the server is stopped, not its requests: this ends when it does
    decode(_tiny(rate + 8_000), rate, max_seconds)  # loads all that is ever needed
    _confine(memory)
    answers.write(READY)
    answers.flush()
    with open(os.devnull, "wb") as nowhere:  # decoders talk of every damaged file
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        (size,) = REQUEST.unpack(head)
        data = requests.read(size)
        if len(data) < size:
            return
        answers.write(BEGUN)
        answers.flush()
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)
        verdict, samples = decode(data, rate, max_seconds)
        answers.write(ANSWER.pack(verdict, len(samples)))
        answers.write(samples.data)
        answers.flush()
        del data, samples


def _confine(memory: int) -> None:
    """Takes from this process what decoding does not need, as far as the system can."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where the machine's memory ends, this is to go and not the server
    with contextlib.suppress(OSError), open("/proc/self/statm") as pages:
        _limit(resource.RLIMIT_AS, int(pages.read().split()[0]) * resource.getpagesize() + memory)
    _limit(resource.RLIMIT_CORE, 0)  # it would have somebody's voice
    _limit(resource.RLIMIT_FSIZE, 0)


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _tiny(rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(rate // 10, np.float32), rate, format="WAV")
    return file.getvalue()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
