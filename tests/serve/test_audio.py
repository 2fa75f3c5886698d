"""Audio of strangers: what is good is decoded as for training, and what is not harms nobody else."""

import asyncio
import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from specialize.corpus import read_audio
from specialize.errors import AudioRefused, ConfigError
from specialize.serve import AudioDecoder, cut_at_pauses

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "WAV": ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"],
    "RF64": ["PCM_16"],
    "W64": ["PCM_16"],
    "FLAC": ["PCM_16", "PCM_S8"],
    "OGG": ["VORBIS", "OPUS"],
    "MP3": ["MPEG_LAYER_III"],
    "AIFF": ["PCM_16"],
    "AU": ["PCM_16"],
    "CAF": ["PCM_16", "ALAC_16"],
}
FILES = [(kind, coding) for kind, codings in KINDS.items() for coding in codings]


def sound(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise with a tone in it, [N, channels], another in each channel."""
    rng, at = np.random.default_rng(seed), np.arange(int(seconds * rate))[:, None] / rate
    tones = np.sin(2 * np.pi * (300 + 200 * np.arange(channels)) * at)
    return (0.3 * tones + 0.05 * rng.standard_normal(tones.shape)).astype(np.float32)


def file_of(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", coding: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


def silence(seconds: int, rate: int = 16_000) -> bytes:
    """FLAC, which makes next to nothing of it."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16", format="FLAC") as out:
        for _ in range(seconds // 60):
            out.write(np.zeros(60 * rate, np.int16))
    return file.getvalue()


def claiming(flac: bytes, samples: int) -> bytes:
    """A FLAC file whose header says that it has so many samples; 0 is that it does not know."""
    field = int.from_bytes(flac[18:26], "big") >> 36 << 36 | samples
    return flac[:18] + field.to_bytes(8, "big") + flac[26:]


def with_decoder(test: Callable[[AudioDecoder], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with AudioDecoder(**options) as decoder:
            return await test(decoder)

    return asyncio.run(run())


async def refused(decoder: AudioDecoder, data: bytes) -> str:
    """Why; and that it was told without a path, an address or a line break."""
    with pytest.raises(AudioRefused) as caught:
        await decoder.decode(data)
    reason = str(caught.value)
    assert not {"\n", "<", "\\", "/"} & set(reason)
    return reason


def test_files_are_decoded_as_for_training(tmp_path):
    async def test(decoder: AudioDecoder) -> None:
        for kind, coding in FILES:
            for rate, channels in ((48_000, 1), (8_000, 2), (16_000, 2)):
                data = file_of(sound(1.1, rate, channels), rate, kind, coding)
                decoded = await decoder.decode(data)
                (tmp_path / "file").write_bytes(data)
                assert decoded.dtype == np.float32
                np.testing.assert_allclose(decoded, read_audio(tmp_path / "file", 16_000), atol=1e-6)
                assert abs(len(decoded) - 17_600) < 2_000, (kind, coding, rate)

    with_decoder(test)


@pytest.mark.parametrize("rate", [1_000, 11_025, 22_050, 44_100, 96_000, 384_000])
def test_pitch_and_loudness_stay_whatever_the_rate(rate):
    async def test(decoder: AudioDecoder) -> None:
        tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(2 * rate) / rate)
        decoded = await decoder.decode(file_of(np.stack([tone, 0 * tone], 1), rate))
        assert len(decoded) == 16_000
        middle = decoded[1_000:-1_000]
        assert np.argmax(np.abs(np.fft.rfft(middle))) == round(200 * len(middle) / 8_000)
        assert abs(np.abs(middle).max() - 0.25) < 0.01

    with_decoder(test, rate=8_000, workers=1)


def test_samples_stay_within_one():
    async def test(decoder: AudioDecoder) -> None:
        loud = np.repeat([[1e30], [-1e30], [3e38], [0.25]], 5_000, 0).astype(np.float32)
        for rate in (16_000, 44_100):
            decoded = await decoder.decode(file_of(loud, rate, coding="FLOAT"))
            assert np.abs(decoded).max() == 1

    with_decoder(test, workers=1)


def test_what_is_refused_is_told_in_a_sentence():
    wav, flac = file_of(sound(1, 16_000)), file_of(sound(1, 16_000), kind="FLAC")
    noise = np.random.default_rng(0).bytes(10_000)
    not_a_number = sound(1, 16_000)
    not_a_number[-1] = np.nan
    unreadable = [
        noise,
        b"\0",
        b"RIFF",
        b"fLaC" + noise,
        b"ID3" + noise,
        b"\xff\xfb" + bytes(10_000),
        b"<html>No such file</html>",
        flac[: len(flac) // 2],
        wav[:20],
        file_of(sound(1, 16_000), kind="MAT5"),
        b"\x1aE\xdf\xa3" + noise,
    ]

    async def test(decoder: AudioDecoder) -> None:
        for data in unreadable:
            assert "no audio in it that can be read (formats: WAV, FLAC" in await refused(decoder, data)
        for data in (b"", file_of(sound(0, 16_000)), file_of(sound(0, 48_000), 48_000)):
            assert await refused(decoder, data) == "The audio is empty."
        for value in (np.nan, np.inf, -np.inf):
            not_a_number[-1] = value
            for coding in ("FLOAT", "DOUBLE"):
                assert "not finite" in await refused(decoder, file_of(not_a_number, coding=coding))
        for rate in (999, 384_001, 2**31 - 1):
            assert "sample rate" in await refused(decoder, wav[:24] + struct.pack("<I", rate) + wav[28:])
        assert len(await decoder.decode(wav)) == 16_000, "and all the time the same process"
        assert decoder.pids == before

    before = []

    async def noted(decoder: AudioDecoder) -> None:
        before.extend(decoder.pids)
        await test(decoder)

    with_decoder(noted, workers=1)


def test_a_recording_that_breaks_off_is_decoded_as_far_as_it_goes():
    async def test(decoder: AudioDecoder) -> None:
        wav = file_of(sound(2, 16_000))
        for size in (0xFFFFFFFF, 0x7FFFFFFF, 2 * 32_000):  # written to a pipe, its header does not know
            streamed = wav[:40] + struct.pack("<I", size) + wav[44:]
            np.testing.assert_array_equal(await decoder.decode(streamed), await decoder.decode(wav))
        assert len(await decoder.decode(wav[: 44 + 32_000])) == 16_000
        flac = file_of(sound(2, 16_000), kind="FLAC")
        np.testing.assert_array_equal(await decoder.decode(claiming(flac, 0)), await decoder.decode(flac))

    with_decoder(test, workers=1)


def test_length_is_judged_by_the_header_and_by_what_comes():
    bomb = silence(3600)
    assert len(bomb) < 200_000

    async def test(decoder: AudioDecoder) -> None:
        for rate in (8_000, 16_000, 44_100):
            exact = sound(2, rate)
            assert len(await decoder.decode(file_of(exact, rate))) == 32_000
            longer = file_of(np.concatenate([exact, exact[:1]]), rate)
            assert await refused(decoder, longer) == "The audio is longer than 2 s."
        started = time.monotonic()
        assert "longer than 2 s" in await refused(decoder, bomb)
        assert "longer than 2 s" in await refused(decoder, claiming(bomb, 0))
        assert "longer than 2 s" in await refused(decoder, claiming(file_of(sound(1, 16_000), kind="FLAC"), 2**36 - 1))
        lying = claiming(bomb, 16_000)
        assert len(await decoder.decode(lying)) == 16_000, "no more is decoded than the header says"
        assert time.monotonic() - started < 1, "it took the time of hours of audio"

    with_decoder(test, max_seconds=2.0, workers=1)


def test_a_bomb_that_the_length_allows_ends_at_the_limit_of_memory():
    bomb, small = silence(1800), file_of(sound(1, 16_000))

    async def test(decoder: AudioDecoder) -> None:
        assert "more memory" in await refused(decoder, bomb)
        assert "larger than 8 MB" in await refused(decoder, bytes(9_000_000))
        before = await decoder.decode(small)
        await refused(decoder, bomb)
        np.testing.assert_array_equal(await decoder.decode(small), before)

    with_decoder(test, max_seconds=4e3, workers=1, memory_bytes=16_000_000)


def test_the_default_memory_is_enough_for_the_longest_audio():
    async def test(decoder: AudioDecoder) -> None:
        assert len(await decoder.decode(file_of(np.zeros((600 * 44_100, 2), np.int16), 44_100))) == 600 * 16_000

    with_decoder(test, workers=1)


def test_a_killed_process_is_replaced_and_the_others_go_on():
    data = [file_of(sound(10, 48_000, 2, seed), 48_000, "FLAC") for seed in range(6)]

    async def test(decoder: AudioDecoder) -> None:
        expected = [await decoder.decode(one) for one in data]
        for wait in (0.0, 0.02, 0.1):
            first, second = decoder.pids
            asked = [asyncio.ensure_future(decoder.decode(one)) for one in data]
            await asyncio.sleep(wait)
            os.kill(first, signal.SIGKILL)
            heard = await asyncio.gather(*asked, return_exceptions=True)
            failed = [one for one in heard if isinstance(one, BaseException)]
            assert len(failed) <= 1
            assert all(isinstance(one, AudioRefused) for one in failed)
            for one, right in zip(heard, expected, strict=True):
                if not isinstance(one, BaseException):
                    np.testing.assert_array_equal(one, right)
            # One that was killed while it waited is replaced when there is something for it to do.
            await asyncio.gather(*(decoder.decode(one) for one in data[:2]))
            assert second in decoder.pids
            assert first not in decoder.pids

    with_decoder(test)


def test_a_process_that_is_killed_while_it_waits_costs_no_request():
    async def test(decoder: AudioDecoder) -> None:
        data = file_of(sound(1, 16_000))
        for _ in range(3):
            for pid in decoder.pids:
                os.kill(pid, signal.SIGKILL)
            heard = await asyncio.gather(*(decoder.decode(data) for _ in range(4)))
            assert [len(one) for one in heard] == [16_000] * 4

    with_decoder(test)


WORKER = """
import os, sys, time, resource
sys.stdout.buffer.write(b"r"); sys.stdout.flush()
while size := int.from_bytes(sys.stdin.buffer.read(8), "little"):
    word = sys.stdin.buffer.read(size).decode()
    answer = {
        "hang": b"",
        "abort": b"b",
        "early": b"",
        "wrong": b"b" + bytes([77]) + bytes(8),
        "huge": b"b\\0" + b"\\xff" * 8,
        "half": b"b\\0" + (1000).to_bytes(8, "little") + bytes(100),
        "good": b"b\\0" + (2).to_bytes(8, "little") + bytes(8),
    }[word]
    sys.stdout.buffer.write(answer); sys.stdout.flush()
    if word == "abort":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()
    if word == "early":
        sys.exit(3)
    while word in ("hang", "half"):
        time.sleep(1)
"""
"""Behaves as the file that it gets says."""


def test_whatever_a_process_does_only_its_request_fails(caplog):
    async def test(decoder: AudioDecoder) -> None:
        for word, reason, told in (
            ("abort", "made its decoder fail", "ended with code -6"),
            ("early", "made its decoder fail", "ended with code 3"),
            ("wrong", "made its decoder fail", "did not answer"),
            ("huge", "made its decoder fail", "did not answer"),
            ("hang", "took longer than 0.4 s", ""),
            ("half", "took longer than 0.4 s", ""),
        ):
            caplog.clear()
            good = asyncio.gather(*(decoder.decode(b"good") for _ in range(5)))
            assert reason in await refused(decoder, word.encode())
            assert told in caplog.text
            assert [one.tolist() for one in await good] == [[0, 0]] * 5

    with_decoder(test, timeout=0.4, command=(sys.executable, "-c", WORKER))


def test_who_is_cancelled_stops_their_process_and_nothing_else():
    async def test(decoder: AudioDecoder) -> None:
        (before,) = decoder.pids
        hanging = asyncio.ensure_future(decoder.decode(b"hang"))
        waiting = [asyncio.ensure_future(decoder.decode(b"good")) for _ in range(3)]
        await asyncio.sleep(0.1)
        for one in (waiting[0], hanging):
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
        for one in waiting[1:]:
            assert len(await one) == 2
        assert before not in decoder.pids

    started = time.monotonic()
    with_decoder(test, workers=1, timeout=60.0, command=(sys.executable, "-c", WORKER))
    assert time.monotonic() - started < 20


def test_closing_ends_what_is_asked_and_leaves_no_process():
    async def test() -> list[int]:
        async with AudioDecoder(timeout=60.0, command=(sys.executable, "-c", WORKER)) as decoder:
            pids = decoder.pids
            asked = [asyncio.ensure_future(decoder.decode(b"hang")) for _ in range(5)]
            await asyncio.sleep(0.1)
        ended = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        assert {type(one) for one in ended} <= {AudioRefused, RuntimeError}
        with pytest.raises(RuntimeError, match="async with"):
            await decoder.decode(b"good")
        assert decoder.pids == []
        return pids

    for pid in asyncio.run(test()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_end_with_a_server_that_is_killed():
    program = (
        "import asyncio, time\nfrom specialize.serve import AudioDecoder\n"
        "async def main():\n    async with AudioDecoder() as decoder:\n"
        "        print(*decoder.pids, flush=True)\n        await asyncio.sleep(60)\nasyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        pids = [int(word) for word in server.stdout.readline().split()]
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGTERM)  # as service managers do to all of a service, while the server finishes
        server.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a process outlives its server"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_process_that_does_not_start_is_told_at_the_start():
    with pytest.raises(ConfigError, match="ended with code 5"):
        with_decoder(asyncio.sleep, command=(sys.executable, "-c", "raise SystemExit(5)"))  # pyright: ignore[reportArgumentType]
    wrongs: list[dict[str, Any]] = [{"workers": 0}, {"rate": 0}, {"max_seconds": float("inf")}, {"timeout": 0.0}]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="workers="):
            AudioDecoder(**wrong)


def test_damaged_files_never_take_the_processes_down():
    """Of each kind of file, a few hundred that are cut, overwritten, doubled and shuffled, always the same ones."""
    rng = np.random.default_rng(0)
    originals = [file_of(sound(0.4, 16_000, 1 + turn % 2), 16_000, *kind) for turn, kind in enumerate(FILES)]
    damaged = []
    for original in originals:
        for _ in range(25):
            data = bytearray(original)
            for _ in range(rng.integers(1, 6)):
                at = int(rng.integers(min(len(data), 128) if rng.random() < 0.7 else len(data)))
                match rng.integers(5):
                    case 0:
                        data[at] = rng.integers(256)
                    case 1:
                        data[at : at + 4] = rng.choice(
                            [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
                        )
                    case 2:
                        data[at : at + 16] = rng.bytes(16)
                    case 3 if len(data) < 100_000:
                        data[at:at] = data[at : at + int(rng.integers(1, 2_000))]
                    case 4 if at > 16:
                        del data[at:]
            damaged.append(bytes(data))

    async def test(decoder: AudioDecoder) -> None:
        heard = await asyncio.gather(*map(decoder.decode, damaged), return_exceptions=True)
        for one in heard:
            assert isinstance(one, (np.ndarray, AudioRefused))
            assert isinstance(one, AudioRefused) or (0 < len(one) <= 10 * 16_000 and np.abs(one).max() <= 1)
        assert sum(isinstance(one, np.ndarray) for one in heard) > len(damaged) / 10
        assert sum(isinstance(one, AudioRefused) for one in heard) > len(damaged) / 10
        assert not [one for one in heard if "took longer" in str(one)]
        decoded = await asyncio.gather(*map(decoder.decode, originals))
        assert all(len(one) for one in decoded)

    with_decoder(test, max_seconds=10.0, timeout=5.0)


def check_pieces(pieces: list[tuple[int, int]], samples: int, longest: int) -> None:
    assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])][: len(pieces)]
    assert (pieces[-1][1] if pieces else 0) == samples
    assert all(0 < end - start <= longest for start, end in pieces)
    if len(pieces) > 1:
        assert min(end - start for start, end in pieces) >= longest // 4


def test_pieces_cover_everything_and_keep_the_limit():
    rng = np.random.default_rng(0)
    for samples in (0, 1, 2, 3, 5, 16, 17, 100, 1_000, 4_001):
        for longest in (1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 100, 999, 1_000, 5_000):
            for audio in (rng.standard_normal(samples).astype(np.float32), np.zeros(samples, np.float32)):
                pieces = cut_at_pauses(audio, 1_000, longest / 1_000)
                check_pieces(pieces, samples, longest)
                assert len(pieces) == min(samples, 1) or samples > longest
    for _ in range(200):
        samples, rate = int(rng.integers(1, 100_000)), int(rng.choice([8_000, 16_000, 22_050]))
        seconds = float(rng.uniform(0.05, 5))
        audio = rng.standard_normal(samples).astype(np.float32)
        pieces = cut_at_pauses(audio, rate, seconds)
        check_pieces(pieces, samples, int(seconds * rate))
        assert pieces == cut_at_pauses(audio.copy(), rate, seconds)
    with pytest.raises(ValueError, match="no samples"):
        cut_at_pauses(np.zeros(5, np.float32), 16_000, 0.0)


@pytest.mark.parametrize("hush", [0.0, 0.01])
def test_cuts_are_in_pauses(hush):
    """Speech of 2 to 6 seconds between pauses of a third of one: with 15 seconds a piece, no word is ever cut."""
    rng, rate = np.random.default_rng(1), 16_000
    for _ in range(10):
        parts, pauses, at = [], [], 0
        while at < 100 * rate:
            speech, pause = int(rng.uniform(2, 6) * rate), int(0.35 * rate)
            pauses.append((at + speech, at + speech + pause))
            parts += [np.ones(speech), np.full(pause, hush)]
            at += speech + pause
        audio = (0.1 * np.concatenate(parts) * rng.standard_normal(at)).astype(np.float32)
        pieces = cut_at_pauses(audio, rate, 15.0)
        check_pieces(pieces, at, 15 * rate)
        for _, end in pieces[:-1]:
            assert any(first < end < last for first, last in pauses)
