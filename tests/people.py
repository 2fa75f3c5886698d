"""A small made-up corpus for tests: each speaker a chord of their own, each sentence a pattern of loudness."""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WORDS = ("red", "blue", "one", "two", "cat", "dog")


def write_people(folder: Path, speakers: int = 4, utterances: int = 8, seconds: float = 0.8) -> Path:
    """Writes recordings and a manifest without splits; returns the manifest's path.

    Lengths vary between one and two times `seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for speaker in range(speakers):
        rng = np.random.default_rng(speaker)
        for number in range(utterances):
            time = np.arange(int(RATE * seconds * (1.0 + rng.random()))) / RATE
            words = rng.choice(WORDS, size=2 + number % 2)
            envelope = 0.5 + 0.5 * np.sin(2 * np.pi * (1 + number) * time)
            tone = sum(np.sin(2 * np.pi * 150 * (1 + speaker) * k * time) / k for k in (1, 2, 3))
            audio = 0.1 * envelope * tone + 0.01 * rng.standard_normal(time.size)
            name = f"p{speaker}_{number}.wav"
            soundfile.write(folder / name, audio.astype(np.float32), RATE)
            lines.append(
                {
                    "audio": name,
                    "text": " ".join(words),
                    "speaker": f"p{speaker}",
                    "utterance": f"p{speaker}/{number}",
                    "severity": ("mild", "severe")[speaker % 2],
                }
            )
    manifest = folder / "people.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return manifest
