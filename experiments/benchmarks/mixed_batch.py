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
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import tyro

from specialize.base import load_base
from specialize.corpus.audio import read_audio
from specialize.serve import Recognizer
from specialize.submodel import AnyKind, LoRA, StoredSubmodel, find_sites, init_submodel


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
    repeats: int = 9
    """How often each is timed, in turns."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(
        default_factory=lambda: LoRA(where=("**/linear*", "**/fc*", "**/*_proj"), rank=16)
    )
    """What each row has."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times both and prints their ratio."""
    base = load_base(options.base)
    recognizer = Recognizer(base, batch=options.rows, slots=options.slots, alone=base)
    spec = _that_fits(options.submodel, base)
    sites = find_sites(spec, base.architecture, base.params)
    clips = _clips(options, base.architecture.sample_rate)
    padded = recognizer.padded(max(map(len, clips)))

    def one(row: int) -> StoredSubmodel:
        return StoredSubmodel(init_submodel(spec, sites, jax.random.key(row)), spec, f"s{row}", base.fingerprint)

    residents = [recognizer.cache.resident(one(row)) for row in range(options.rows)]
    nobody = [None] * options.rows
    times: dict[str, list[float]] = {"with": [], "without": []}
    texts: dict[str, list[str]] = {}
    for round_ in range(options.repeats + 1):
        for name, rows in (("with", residents), ("without", nobody)):
            began = time.perf_counter()
            texts[name] = recognizer.decode(rows, clips, padded)
            if round_:  # the first compiles
                times[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    same = sum(a == b for a, b in zip(texts["with"], texts["without"], strict=True))
    ratio = seconds["without"] / seconds["with"]
    device = jax.devices()[0]
    about = {
        "throughput_ratio": ratio,
        "base": options.base.name,
        "rows": options.rows,
        "slots": options.slots,
        "audio_seconds": padded / base.architecture.sample_rate,
        "parameters_each": int(residents[0].vector.size),
        "spec": str(spec),
        "same_texts": same,
        "seconds": seconds,
        "device": f"{jax.device_count()} x {device.platform} {device.device_kind}, {platform.machine()}",
        "jax": jax.__version__,
    }
    print(f"{options.rows} rows of {about['audio_seconds']:g} s, {spec}: {about['parameters_each']:,} parameters each")
    print(f"{same} of {options.rows} texts are the same; throughput with / without Submodels: {ratio:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _that_fits(spec: AnyKind, base) -> AnyKind:
    """The spec with those of its patterns that match something of this base."""
    from dataclasses import replace

    from specialize.errors import SpecError

    def fits(pattern: str) -> bool:
        try:
            return bool(find_sites(replace(spec, where=(pattern,)), base.architecture, base.params))
        except SpecError:
            return False

    return replace(spec, where=tuple(pattern for pattern in spec.where if fits(pattern)))


def _clips(options: Benchmark, rate: int) -> list[np.ndarray]:
    paths = sorted(p for p in options.audio.rglob("*") if p.suffix in (".ogg", ".wav", ".flac"))
    chosen = paths[:: max(1, len(paths) // options.rows)][: options.rows]
    clips = [read_audio(path, rate) for path in chosen]
    length = max(map(len, clips)) if options.seconds is None else int(options.seconds * rate)
    return [np.pad(clip[:length], (0, max(0, length - len(clip)))) for clip in clips]


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
