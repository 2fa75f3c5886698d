"""Forward pass of Submodels that a space generates, next to that of the same Submodels stored.

    python experiments/benchmarks/space.py --slots 32 --json space.json

Both compute the losses of the same S x B utterances with S Submodels. One takes a bank as it is; the other first makes
it out of S embeddings. They take turns, and the median of each is reported.
"""

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from specialize.base import Batch, load_base
from specialize.corpus import Size
from specialize.embedded import BASE
from specialize.space import Generator, Hypernetwork, Linear
from specialize.space.generators import generator_name
from specialize.submodel import AnyKind, ResidualAdapter, find_sites, init_submodel, size
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, HyperParameters
from specialize.train.estimate import Workload, choose_layout
from specialize.train.joint_step import JointStep
from specialize.train.trainee import Plain


@dataclass(frozen=True)
class Benchmark:
    """Seconds of a forward pass with stored and with generated Submodels, and their ratio."""

    base: Path = BASE
    """Base folder."""
    slots: int = 32
    """S, Submodels of a pass."""
    rows: int = 2
    """Utterances of each."""
    seconds: float = 4.0
    """Length of every utterance."""
    labels: int = 16
    """Tokens of every utterance."""
    dim: int = 64
    """K, numbers of an embedding."""
    repeats: int = 15
    """How often each is timed, in turns."""
    chunk: int | Literal["auto"] = "auto"
    """Slots computed together; 0 is all; `auto` measures, as `specialize train` does."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(default_factory=lambda: ResidualAdapter(bottleneck=48))
    """What is generated."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times a linear space and a hypernetwork, and prints a line for each."""
    base = load_base(options.base)
    device = jax.devices()[0]
    about = f"{jax.device_count()} x {device.platform} {device.device_kind}"
    print(f"{about}, S={options.slots}, B={options.rows}, {options.seconds:g} s each, {options.submodel}")
    print(f"{'space':>14} {'K':>4} {'shared':>11} {'stored':>9} {'generated':>10} {'ratio':>7}")
    sites = find_sites(options.submodel, base.architecture, base.params)
    mesh = speaker_mesh()
    local = options.slots // mesh.devices.size

    def make(local: int, chunk: int) -> Cohort:
        count = local * mesh.devices.size
        return Cohort(base.architecture, Plain(options.submodel, sites), mesh, count, random=False, chunk=chunk)

    rate = base.architecture.sample_rate
    work = Workload(options.rows, options.rows, Size(int(options.seconds * rate), options.labels))
    cohort = make(local, choose_layout(make, base.params, work, local, options.chunk).chunk)
    params, batch = cohort.place_frozen(base.params), cohort.place(_batch(options, rate))
    rows = []
    for generator in (Linear(options.dim), Hypernetwork(options.dim)):
        template = init_submodel(options.submodel, sites, jax.random.key(0))
        row = _time(options, cohort, generator, template, params, batch)
        rows.append(row)
        print(
            f"{row['space']:>14} {options.dim:>4} {row['shared_parameters']:>11,} {row['stored_seconds']:>8.4f}s "
            f"{row['generated_seconds']:>9.4f}s {row['ratio']:>7.3f}",
            flush=True,
        )
    if options.json is not None:
        facts = {"device": about, "slots": options.slots, "batch": options.rows, "seconds": options.seconds}
        facts |= {"spec": str(options.submodel), "base": str(options.base), "jax": jax.__version__}
        facts |= {"rows": rows, "ratio": max(row["ratio"] for row in rows)}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def _time(
    options: Benchmark, cohort: Cohort, generator: Generator, template: Any, params: Any, batch: Batch
) -> dict[str, Any]:
    joint = JointStep(cohort, generator, 1, HyperParameters(), embedding_rate=0.0, embedding_decay=0.0, steps=1)
    seeds = np.arange(options.slots, dtype=np.uint32)[:, None]
    state = joint.begin(template, seeds, jax.random.key(0))
    chosen = cohort.place(np.zeros(options.slots, np.int32))
    bank = joint.generate(state.shared, state.embeddings, chosen)
    times: dict[str, list[float]] = {"stored": [], "generated": []}
    for turn in range(options.repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(cohort.evaluate(params, bank, batch))
        between = time.perf_counter()
        made = joint.generate(state.shared, state.embeddings, chosen)
        jax.block_until_ready(cohort.evaluate(params, made, batch))
        if turn:  # the first compiles
            times["stored"].append(between - began)
            times["generated"].append(time.perf_counter() - between)
    stored, generated = (statistics.median(times[name]) for name in ("stored", "generated"))
    return {
        "space": generator_name(generator),
        "dim": options.dim,
        "shared_parameters": size(state.shared),
        "parameters_each": size(template),
        "stored_seconds": stored,
        "generated_seconds": generated,
        "ratio": generated / stored,
    }


def _batch(options: Benchmark, rate: int) -> Batch:
    rng = np.random.default_rng(0)
    shape, n = (options.slots, options.rows), int(options.seconds * rate)
    return Batch(
        audio=(0.05 * rng.standard_normal((*shape, n))).astype(np.float32),
        samples=np.full(shape, n, np.int32),
        labels=rng.integers(0, 20, (*shape, options.labels)).astype(np.int32),
        label_lengths=np.full(shape, options.labels, np.int32),
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
