"""A thousand speakers in 64 slots, some asked for often and most of them seldom, against slots for all of them.

    python experiments/benchmarks/many_speakers.py --json many_speakers.json

Clients ask one after another, each for a speaker drawn by Zipf's law and for the same clip, through cache and batches
of the server, without HTTP. Both take turns; the ratio is of texts a second.
"""

import json
import platform
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from stores import random_submodel, store_of_many

from specialize.base import load_base
from specialize.serve import Batcher, Recognizer
from specialize.submodel import AnyKind, LoRA


@dataclass(frozen=True)
class Benchmark:
    """Texts a second and latency of requests over many speakers."""

    base: Path = Path("specialize/embedded/base")
    """Base folder."""
    speakers: int = 1_000
    """In the store."""
    slots: int = 64
    """On the device, where not all fit."""
    cache_mib: int = 1024
    """Memory of the host for Submodels, where not all fit."""
    rows: int = 16
    """Of a batch."""
    clients: int = 32
    """That ask at the same time."""
    requests: int = 1_500
    """Of each round."""
    rounds: int = 3
    """In which both take turns."""
    exponent: float = 1.1
    """Of Zipf's law; larger draws the same few speakers more often."""
    seconds: float = 2.0
    """Of the clip."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(default_factory=lambda: LoRA(where=("encoder/**",), rank=8))
    """Of every speaker."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times both and prints their ratio."""
    base = load_base(options.base)
    first = random_submodel(base, options.submodel, 0)
    clip = (0.05 * np.random.default_rng(1).standard_normal(int(options.seconds * 16_000))).astype(np.float32)
    order = _zipf(options)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of_many(Path(folder), first, options.speakers)
        few = Recognizer(base, store, batch=options.rows, slots=options.slots, cache_bytes=options.cache_mib << 20)
        every = Recognizer(base, store, batch=options.rows, slots=options.speakers, cache_bytes=1 << 40)
        for recognizer in (few, every):
            list(recognizer.warm([options.submodel], [clip.size]))
        slots, _ = every._program(options.submodel)
        for speaker in range(options.speakers):
            slots.rows([every.cache.fetch(str(speaker))], 1)
        found: dict[str, list[tuple[float, list[float]]]] = {"few": [], "all": []}
        for round_ in range(options.rounds):
            part = order[round_ * options.requests : (round_ + 1) * options.requests]
            for name, recognizer in (("few", few), ("all", every)):
                found[name].append(_serve(options, recognizer, clip, part))
        writes, counts = few._program(options.submodel)[0].writes, few.cache.counts()
    rates = {name: len(order) / sum(seconds for seconds, _ in rounds) for name, rounds in found.items()}
    late = {name: np.concatenate([times for _, times in rounds]) for name, rounds in found.items()}
    about: dict[str, Any] = {
        "throughput_ratio": rates["few"] / rates["all"],
        "latency_ratio": {
            str(q): float(np.percentile(late["few"], q) / np.percentile(late["all"], q)) for q in (50, 99)
        },
        "slot_hits": 1 - writes / len(order),
        "memory_hits": counts.hits / (counts.hits + counts.misses),
        "speakers": options.speakers,
        "asked_for": len(set(order.tolist())),
        "slots": options.slots,
        "cache_mib": options.cache_mib,
        "requests": len(order),
        "spec": str(options.submodel),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}",
    }
    print(json.dumps(about, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _zipf(options: Benchmark) -> np.ndarray:
    """Speakers in the order in which they are asked for."""
    weights = np.arange(1, options.speakers + 1) ** -options.exponent
    rng = np.random.default_rng(0)
    return rng.choice(options.speakers, options.rounds * options.requests, p=weights / weights.sum())


def _serve(
    options: Benchmark, recognizer: Recognizer, clip: np.ndarray, order: np.ndarray
) -> tuple[float, list[float]]:
    """Seconds for all requests, and for each."""
    batcher = Batcher(recognizer, [clip.size], budget=1e9, waiting=1 << 20)
    left, times, lock = iter(order.tolist()), [], threading.Lock()

    def client() -> None:
        while True:
            with lock:
                speaker = next(left, None)
            if speaker is None:
                return
            began = time.perf_counter()
            batcher.submit(recognizer.fetch(str(speaker)), [clip])[0].result()
            times.append(time.perf_counter() - began)

    clients = [threading.Thread(target=client) for _ in range(options.clients)]
    began = time.perf_counter()
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    seconds = time.perf_counter() - began
    batcher.close()
    return seconds, times


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
