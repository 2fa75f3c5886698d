"""Makes the synthetic corpus: sentences of a small grammar spoken by espeak-ng.

    pip install espeakng-loader==0.2.4
    python experiments/synthetic/make_corpus.py specialize/embedded
    python experiments/synthetic/make_corpus.py /tmp/synth_base --part base

The `personal` part has people with a distortion each, in Opus, and is in the package. The `base` part has undistorted
speakers to pretrain a base, in FLAC. A second run makes the same files, byte for byte with the same libraries. `all`
writes both into one manifest.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
import tyro

# Run as a script, this folder is on the path and not the one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.synthetic.distortion import SEVERITIES, Distortion, confusions, draw
from experiments.synthetic.grammar import CLASSES, covering, sentences
from experiments.synthetic.ogg import with_serial
from experiments.synthetic.voices import SOURCE_RATE, Synthesiser, Voice, base_voice, personal_voice

RATE = 16_000
"""Hz of the files."""
_OPUS_LEVEL = 0.98
"""libsndfile's compression level, from 0 to 1: about 14 kbit/s."""
_SHORTEST, _LONGEST = 1.5, 3.5
"""Seconds of an utterance in the personal part."""
_MARGIN = 0.1
"""Seconds of near silence before and after the speech."""


@dataclass(frozen=True)
class Corpus:
    """What to make, and how much."""

    out: tyro.conf.Positional[Path]
    """Folder for manifest.jsonl and audio."""
    part: Literal["personal", "base", "all"] = "personal"
    """People with a distortion, speakers for the base, or both."""
    seed: int = 1
    """All is drawn from it."""
    people: int = 10
    """Persons of each severity."""
    train: int = 36
    """Utterances of each person."""
    dev: int = 8
    """Likewise."""
    test: int = 12
    """Likewise; no one says these sentences in training."""
    base_speakers: int = 120
    """Undistorted voices."""
    base_utterances: int = 6000
    """Of all base speakers together; one in 25 is for dev, and one in 25 for test."""
    processes: int = os.cpu_count() or 1
    """How many speakers are made at the same time."""


@dataclass(frozen=True)
class Speaker:
    """Everything that makes one speaker's recordings, the same ones in any process."""

    id: str
    voice: Voice
    distortion: Distortion | None
    counts: dict[str, int]
    """Utterances of each split."""
    folder: Path
    """Where the manifest is."""
    seed: str
    """What the speaker's sentences and recordings are drawn from."""

    @property
    def severity(self) -> str:
        """`none` for the base."""
        return self.distortion.severity if self.distortion else "none"


def speakers(config: Corpus) -> list[Speaker]:
    """Who is to be made, in the order of the manifest."""
    found = []
    if config.part != "base":
        counts = {"train": config.train, "dev": config.dev, "test": config.test}
        for grade, severity in enumerate(SEVERITIES):
            for number in range(config.people):
                name = f"synth-{severity}-{number + 1:02d}"
                voice = personal_voice(config.seed, grade * config.people + number)
                seed = f"{config.seed}/{name}"
                found.append(Speaker(name, voice, draw(seed, severity), counts, config.out, seed))
    if config.part != "personal":
        share, more = divmod(config.base_utterances, config.base_speakers)
        for number in range(config.base_speakers):
            total = share + (number < more)
            apart = max(1, total // 25)
            counts = {"train": total - 2 * apart, "dev": apart, "test": apart}
            name = f"synth-base-{number + 1:03d}"
            voice = base_voice(config.seed, number)
            found.append(Speaker(name, voice, None, counts, config.out, f"{config.seed}/{name}"))
    return found


def record(speaker: Speaker) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Makes the recordings of one speaker; to be called once in a process.

    Returns:
        The lines of the manifest, each with `seconds`, and what the speaker is.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(speaker.seed.encode()).digest()[:8]))
    espeak = Synthesiser()
    espeak.use(speaker.voice)
    words = {word: espeak.phonemes(word) for group in CLASSES.values() for word in group}
    lines = []
    for split, texts in _texts(speaker).items():
        kept = 0
        for text in texts:
            if kept == speaker.counts[split]:
                break
            samples = _utterance(speaker, espeak, text, rng)
            seconds = samples.size / RATE
            if speaker.distortion and not _SHORTEST <= seconds <= _LONGEST:
                continue
            kept += 1
            path = Path("audio", speaker.id, f"{split}-{kept:02d}.{'ogg' if speaker.distortion else 'flac'}")
            _write(speaker.folder / path, samples)
            lines.append(
                {
                    "audio": path.as_posix(),
                    "text": text,
                    "speaker": speaker.id,
                    "utterance": f"{speaker.id}/{path.stem}",
                    "split": split,
                    "role": "personal" if speaker.distortion else "base",
                    "seconds": round(seconds, 3),
                    "severity": speaker.severity,
                    "synthetic": True,
                    "voice": speaker.voice.name,
                }
            )
        if kept < speaker.counts[split]:
            raise RuntimeError(
                f"{speaker.id} has {kept} sentences of {_SHORTEST} to {_LONGEST} s for {split} instead of "
                f"{speaker.counts[split]}. Ask for fewer."
            )
    about: dict[str, Any] = {"speaker": speaker.id, "synthetic": True, "voice": dataclasses.asdict(speaker.voice)}
    if speaker.distortion:
        alike = [confusions(speaker.distortion, {w: words[w] for w in group}) for group in CLASSES.values()]
        about["summary"] = speaker.distortion.describe()
        about["distortion"] = dataclasses.asdict(speaker.distortion)
        about["said_alike"] = [pair for pairs in alike for pair in pairs]
    return lines, about


def _texts(speaker: Speaker) -> dict[str, list[str]]:
    """Sentences to try for each split, more than are wanted: some are too short or too long."""
    # A person reads a list that covers the words; the base has enough sentences for that by itself.
    train, dev, test = (4 * speaker.counts[split] + 20 for split in ("train", "dev", "test"))
    known = sentences(f"{speaker.seed}/known", train + dev, held_out=False)
    reading = covering(known[:train]) if speaker.distortion else known[:train]
    return {
        "train": reading,
        "dev": known[train:],
        "test": sentences(f"{speaker.seed}/test", test, held_out=True),
    }


def _utterance(speaker: Speaker, espeak: Synthesiser, text: str, rng: np.random.Generator) -> np.ndarray:
    """One recording: no two of a speaker are spoken quite alike, nor recorded equally loud."""
    voice, distortion = speaker.voice, speaker.distortion
    spread = 0.05 if distortion else 0.12
    voice = dataclasses.replace(
        voice, rate=voice.rate * (1 + spread * rng.uniform(-1, 1)), pitch=voice.pitch + 3 * rng.uniform(-1, 1)
    )
    espeak.use(distortion.voice(voice) if distortion else voice)
    words = espeak.phonemes(text)
    if distortion:
        samples = distortion.sound(espeak.say(distortion.articulate(words)), rng, RATE)
    else:
        samples = soxr.resample(espeak.say(words), SOURCE_RATE, RATE, "VHQ")
    samples = _trimmed(samples)
    samples *= 0.5 * 10 ** (rng.uniform(-6, 0) / 20) / np.abs(samples).max()
    noise_db = -45 if distortion else rng.uniform(-50, -25)
    noise = rng.standard_normal(samples.size) * np.sqrt(np.mean(samples**2)) * 10 ** (noise_db / 20)
    return (samples + noise).astype(np.float32)


def _trimmed(samples: np.ndarray) -> np.ndarray:
    """Cut to the speech and a margin; silence is added where there is less of it."""
    margin = round(_MARGIN * RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    padded = np.pad(samples, margin)
    return padded[loud[0] : loud[-1] + 1 + 2 * margin].copy()


def _write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".flac":
        soundfile.write(path, samples, RATE, format="FLAC", subtype="PCM_16")
        return
    soundfile.write(path, samples, RATE, format="OGG", subtype="OPUS", compression_level=_OPUS_LEVEL)
    # libsndfile draws a serial number from the clock.
    path.write_bytes(with_serial(path.read_bytes(), int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4])))


def make(config: Corpus) -> list[dict[str, Any]]:
    """Writes `manifest.jsonl`, `people.json` and `audio/`; returns the lines of the manifest."""
    config.out.mkdir(parents=True, exist_ok=True)
    lines, about = [], []
    # espeak-ng cannot be reset: a process for each speaker (see `Synthesiser`).
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for made, person in pool.map(record, speakers(config)):
            lines += made
            about.append(person)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (config.out / "manifest.jsonl").write_text(text, encoding="utf-8")
    text = "[\n" + ",\n".join(json.dumps(person) for person in about) + "\n]\n"
    (config.out / "people.json").write_text(text, encoding="utf-8")
    return lines


def main() -> None:
    """Makes what the command line asks for, and prints what came of it."""
    config = tyro.cli(Corpus, description=__doc__)
    started = time.monotonic()
    lines = make(config)
    for severity in ("none", *SEVERITIES):
        rows = [line for line in lines if line["severity"] == severity]
        if not rows:
            continue
        who = {line["speaker"] for line in rows}
        size = sum((config.out / line["audio"]).stat().st_size for line in rows)
        splits = ", ".join(f"{sum(r['split'] == s for r in rows)} {s}" for s in ("train", "dev", "test"))
        print(
            f"{severity}: {len(who)} synthetic speakers, {len(rows)} utterances ({splits}), "
            f"{sum(r['seconds'] for r in rows):.0f} s, {size:,} bytes"
        )
    size = sum(file.stat().st_size for file in config.out.rglob("*") if file.is_file())
    print(f"'{config.out}' has {size:,} bytes; made in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
