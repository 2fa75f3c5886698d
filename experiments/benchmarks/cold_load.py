"""How long it takes until a Submodel is in a slot, from a local disk, with few and with many of them in the store.

    python experiments/benchmarks/cold_load.py --json cold_load.json

A load is what a request waits for: asking for the version, reading the files, checking them, and writing the slot,
until the rows of a batch have been gathered from it. No Submodel is loaded twice, all slots are taken, and each write
displaces another. The files come from the system's memory of them where it has them, as on a server that has run for a
while.
"""

import json
import platform
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import tyro
from stores import random_submodel, store_of_many

from specialize.base import load_base
from specialize.serve import Recognizer
from specialize.submodel import AnyKind, ResidualAdapter


@dataclass(frozen=True)
class Benchmark:
    """Milliseconds from a folder to a slot."""

    base: Path = Path("bases/whisper-tiny.en")
    """Base folder."""
    stores: tuple[int, ...] = (10, 1_000, 10_000)
    """Submodels in the store."""
    loads: int = 300
    """Loads that are timed, at most as many as there are Submodels."""
    slots: int = 64
    """Slots on the device."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(
        default_factory=lambda: ResidualAdapter(where=("encoder/layers_*", "decoder/layers_*"), bottleneck=48)
    )
    """What is loaded."""
    folder: Path | None = None
    """Where stores are made; None is the system's folder for temporary files."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times loads from each store and prints a line for each."""
    base = load_base(options.base)
    first = random_submodel(base, options.submodel, 0)
    rows = []
    print(f"{options.submodel}\n{'in the store':>13} {'loads':>6} {'median':>10} {'p99':>10} {'longest':>10}")
    for count in options.stores:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            store = store_of_many(Path(folder), first, count)
            recognizer = Recognizer(base, store, batch=1, slots=options.slots)
            slots, _ = recognizer._program(options.submodel)
            slots.warm([1])
            filler = [recognizer.cache.resident(first) for _ in range(options.slots)]
            for one in filler:
                slots.rows([one], 1)
            order = np.random.default_rng(0).permutation(count)[: options.loads]
            times = []
            for speaker in order:
                began = time.perf_counter()
                resident = recognizer.cache.fetch(str(speaker))
                jax.block_until_ready(slots.rows([resident], 1))
                times.append(1e3 * (time.perf_counter() - began))
            recognizer.cache.close()
        row = {
            "submodels": count,
            "loads": len(times),
            "median_ms": float(np.median(times)),
            "p99_ms": float(np.percentile(times, 99)),
            "longest_ms": max(times),
        }
        rows.append(row)
        print(
            f"{count:>13,} {len(times):>6} {row['median_ms']:>7.2f} ms {row['p99_ms']:>7.2f} ms "
            f"{row['longest_ms']:>7.2f} ms",
            flush=True,
        )
    if options.json is not None:
        about = {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}",
            "spec": str(options.submodel),
            "slots": options.slots,
            "rows": rows,
        }
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
