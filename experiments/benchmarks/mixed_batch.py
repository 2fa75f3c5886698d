"""Throughput of a batch in which every row has a Submodel of its own, against the same rows with the base alone.

    python experiments/benchmarks/mixed_batch.py --json mixed_batch.json
    python experiments/benchmarks/mixed_batch.py --base bases/whisper-tiny.en --json mixed_batch_whisper.json

Both are what `Recognizer` runs: greedy decoding from audio to text, Submodels gathered from their slots. They hear the
same audio in the same context and take turns. The Submodels have no effect, so that both write the same texts and have
the same work; they cost what any other values cost.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from stores import random_submodel

from specialize.base import Base, load_base
from specialize.corpus.audio import read_audio
from specialize.serve import Recognizer
from specialize.submodel import BiasOnly, LayerNormOnly, LoRA, ResidualAdapter


@dataclass(frozen=True)
class Benchmark:
    """Texts a second with Submodels, to texts a second without."""

    base: Path = Path("specialize/embedded/base")
    """Base folder."""
    audio: Path = Path("specialize/embedded/audio")
    """Folder of recordings to transcribe."""
    rows: int = 32
    """Rows of the batch, each with a Submodel of its own."""
    slots: int = 64
    """Slots on the device."""
    seconds: float | None = None
    """Length that recordings are cut or padded with silence to; None is that of the longest."""
    repeats: int = 21
    """How often each is timed, in turns."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times each spec beside the base alone, and prints a line for each."""
    base = load_base(options.base)
    clips = _clips(options, base.architecture.sample_rate)
    padded = -(-max(map(len, clips)) // base.architecture.sample_rate) * base.architecture.sample_rate
    print(f"{options.rows} rows of {padded / base.architecture.sample_rate:g} s, {options.slots} slots")
    print(f"{'throughput':>10} {'same texts':>10} {'parameters':>11}")
    rows = []
    size = sum(leaf.size for leaf in jax.tree.leaves(base.params))
    for spec in _specs(base):
        row = _time(options, base, spec, clips, padded)
        row["share_of_the_base"] = row["parameters_each"] / size
        rows.append(row)
        print(
            f"{row['throughput_ratio']:>10.3f} {row['same_texts']:>10} {row['parameters_each']:>11,} {spec}", flush=True
        )
    if options.json is not None:
        device = jax.devices()[0]
        about = {
            # Of the kinds as they are by default; the last line's Submodels are larger.
            "throughput_ratio": min(row["throughput_ratio"] for row in rows[:-1]),
            "base": options.base.name,
            "rows": options.rows,
            "slots": options.slots,
            "audio_seconds": padded / base.architecture.sample_rate,
            "device": f"{jax.device_count()} x {device.platform} {device.device_kind}, {platform.machine()}",
            "jax": jax.__version__,
            "specs": rows,
        }
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _time(options: Benchmark, base: Base, spec: Any, clips: list[np.ndarray], padded: int) -> dict[str, Any]:
    recognizer = Recognizer(base, batch=options.rows, slots=options.slots, alone=base)
    first = random_submodel(base, spec, 0)
    residents = [recognizer.cache.resident(first) for _ in range(options.rows)]
    times: dict[str, list[float]] = {"with": [], "without": []}
    texts: dict[str, list[str]] = {}
    for round_ in range(options.repeats + 1):
        for name, rows in (("with", residents), ("without", [None] * options.rows)):
            began = time.perf_counter()
            found = recognizer.decode(rows, clips, padded)
            if round_:  # the first compiles
                times[name].append(time.perf_counter() - began)
            texts[name] = [hypothesis.text for hypothesis in found]
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "spec": str(spec),
        "throughput_ratio": seconds["without"] / seconds["with"],
        "parameters_each": int(residents[0].vector.size),
        "same_texts": sum(a == b for a, b in zip(texts["with"], texts["without"], strict=True)),
        "seconds": seconds,
    }


def _specs(base: Base) -> list[Any]:
    """Each kind as it is by default, and what the experiments train."""
    layers = ("encoder/layers_*", "decoder/layers_*")
    large = [ResidualAdapter(layers, 48), LoRA(("**/linear*", "**/*_proj", "**/pointwise_conv*"), 16)]
    return [ResidualAdapter(), LoRA(), BiasOnly(), LayerNormOnly(), large[hasattr(base.architecture, "blank")]]


def _clips(options: Benchmark, rate: int) -> list[np.ndarray]:
    paths = sorted(p for p in options.audio.rglob("*") if p.suffix in (".ogg", ".wav", ".flac"))
    chosen = paths[:: max(1, len(paths) // options.rows)][: options.rows]
    clips = [read_audio(path, rate) for path in chosen]
    length = max(map(len, clips)) if options.seconds is None else int(options.seconds * rate)
    return [np.pad(clip[:length], (0, max(0, length - len(clip)))) for clip in clips]


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
