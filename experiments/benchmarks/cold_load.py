"""How long it takes until a Submodel is in a slot, from a local disk, with few and with many of them in the store.

    python experiments/benchmarks/cold_load.py --json cold_load.json

A load is what a request waits for: asking for the version, reading the files, checking them, and writing the slot,
until the rows of a batch have been gathered from it. No Submodel is loaded twice, all slots are taken, and each write
displaces another. Each has files of its own. In turns, the system has been told to forget them just before, so that
they come from the disk, and has them in its memory, as it has what was written or read not long ago.
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
from stores import out_of_memory, random_submodel, store_of_many

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
    loads: int = 400
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
    print(
        f"{options.submodel}\n{'in the store':>13} {'from':>7} {'loads':>6} {'median':>10} {'p99':>10} {'longest':>10}"
    )
    for count in options.stores:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            order = np.random.default_rng(0).permutation(count)[: options.loads].tolist()
            store = store_of_many(Path(folder), first, count, own=set(order))
            recognizer = Recognizer(base, store, batch=1, slots=options.slots)
            slots, _ = recognizer._program(options.submodel)
            slots.warm([1])
            filler = [recognizer.cache.resident(first) for _ in range(options.slots)]
            for one in filler:
                slots.rows([one], 1)
            times: dict[str, list[float]] = {"disk": [], "memory": []}
            for turn, speaker in enumerate(order):
                source = "disk" if turn % 2 else "memory"
                files = Path(str(store.path(str(speaker))))
                if source == "disk":
                    out_of_memory(files)
                began = time.perf_counter()
                resident = recognizer.cache.fetch(str(speaker))
                jax.block_until_ready(slots.rows([resident], 1))
                times[source].append(1e3 * (time.perf_counter() - began))
            recognizer.cache.close()
        for source, found in times.items():
            row = {
                "submodels": count,
                "files_from": source,
                "loads": len(found),
                "median_ms": float(np.median(found)),
                "p99_ms": float(np.percentile(found, 99)),
                "longest_ms": max(found),
            }
            rows.append(row)
            print(
                f"{count:>13,} {source:>7} {len(found):>6} {row['median_ms']:>7.2f} ms {row['p99_ms']:>7.2f} ms "
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
