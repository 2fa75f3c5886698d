"""One dispatch of K training steps, next to K dispatches of one step each.

    python experiments/benchmarks/dispatch.py --slots 8 32 --together 1 3 6 --json dispatch.json

Both make the same K steps on the same batches from the same state, which are laid out on the devices within the time,
as a trainer does. They take turns, and the ratio is that of their medians: below 1, dispatches of several steps help.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from specialize.base import Base, Batch, load_base
from specialize.corpus import Size
from specialize.embedded import BASE
from specialize.submodel import AnyKind, ResidualAdapter, find_sites
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, Job
from specialize.train.estimate import Workload, choose_layout
from specialize.train.jobs import stack_hyper
from specialize.train.trainee import Plain


@dataclass(frozen=True)
class Benchmark:
    """Seconds of a step in one dispatch of K and in K dispatches, and their ratio."""

    base: Path = BASE
    """Base folder."""
    slots: tuple[int, ...] = (8, 32)
    """Numbers of slots S."""
    together: tuple[int, ...] = (1, 3, 6)
    """Numbers of steps K."""
    batch: int = 1
    """Utterances B of each slot in a step, which is one part."""
    seconds: float = 2.0
    """Length of every utterance."""
    labels: int = 16
    """Tokens of every utterance."""
    repeats: int = 7
    """How often each is timed, in turns."""
    chunk: int | Literal["auto"] = "auto"
    """Slots computed together; 0 is all; `auto` measures, as `specialize train` does."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(default_factory=ResidualAdapter)
    """What is trained."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times each pair of S and K and prints a line for each."""
    base = load_base(options.base)
    device = f"{jax.device_count()} x {jax.devices()[0].platform} {jax.devices()[0].device_kind}"
    print(f"{device}; B={options.batch}, {options.seconds:g} s and {options.labels} tokens, {options.submodel}")
    print(f"{'S':>4} {'K':>3} {'chunk':>6} {'one dispatch':>14} {'K dispatches':>14} {'ratio':>6}")
    rows: list[dict[str, Any]] = []
    for slots in options.slots:
        cohort = _cohort(options, base, slots)
        for together in options.together:
            one, several = _time(options, base, cohort, together)
            row = {
                "slots": slots,
                "together": together,
                "chunk": cohort.chunk,
                "one_dispatch_seconds_per_step": one / together,
                "k_dispatches_seconds_per_step": several / together,
                "ratio": one / several,
            }
            rows.append(row)
            print(
                f"{slots:>4} {together:>3} {cohort.chunk:>6} {one / together * 1e3:>11.1f} ms "
                f"{several / together * 1e3:>11.1f} ms {one / several:>6.2f}",
                flush=True,
            )
    if options.json is not None:
        about = {
            "device": device,
            "base": str(options.base),
            "batch": options.batch,
            "seconds": options.seconds,
            "labels": options.labels,
            "spec": str(options.submodel),
            "jax": jax.__version__,
        }
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def _cohort(options: Benchmark, base: Base, slots: int) -> Cohort:
    sites = find_sites(options.submodel, base.architecture, base.params)
    mesh = speaker_mesh()
    devices = mesh.devices.size

    def make(local: int, chunk: int) -> Cohort:
        return Cohort(
            base.architecture, Plain(options.submodel, sites), mesh, local * devices, random=False, chunk=chunk
        )

    size = Size(int(options.seconds * base.architecture.sample_rate), options.labels)
    work = Workload(options.batch, options.batch, size)
    return make(slots // devices, choose_layout(make, base.params, work, slots // devices, options.chunk).chunk)


def _time(options: Benchmark, base: Base, cohort: Cohort, together: int) -> tuple[float, float]:
    """Median seconds of K steps in one dispatch, and in K."""
    slots = cohort.slots
    jobs: list[Job | None] = [None] * slots
    frozen, anchor = cohort.place_frozen(base.params), cohort.place_replicated(cohort.anchor())
    hyper, active = cohort.place((stack_hyper(jobs), np.ones(slots, bool)))
    batches = _batches(options, base.architecture.sample_rate, slots, together)
    parts = [jax.tree.map(lambda leaf, k=k: leaf[:, k], batches) for k in range(together)]

    def run(of_dispatches: list[Batch]) -> Callable[[], Any]:
        def steps() -> Any:
            state = cohort.reset(cohort.empty_state(), hyper, active)
            jax.block_until_ready(state)
            began = time.perf_counter()
            for batch in of_dispatches:
                state, _ = cohort.step(frozen, state, hyper, active, anchor, (cohort.place(batch),))
            jax.block_until_ready(state)
            return time.perf_counter() - began

        return steps

    times: tuple[list[float], list[float]] = ([], [])
    for turn, (kept, steps) in itertools.product(
        range(options.repeats + 1), zip(times, (run([batches]), run(parts)), strict=True)
    ):
        seconds = steps()
        if turn:  # the first compiles
            kept.append(seconds)
    one, several = (statistics.median(kept) for kept in times)
    return one, several


def _batches(options: Benchmark, rate: int, slots: int, together: int) -> Batch:
    """[S, K, B, …] of noise."""
    rng = np.random.default_rng(0)
    shape, n = (slots, together, options.batch), int(options.seconds * rate)
    return Batch(
        audio=(0.05 * rng.standard_normal((*shape, n))).astype(np.float32),
        samples=np.full(shape, n, np.int32),
        labels=rng.integers(1, 20, (*shape, options.labels)).astype(np.int32),
        label_lengths=np.full(shape, options.labels, np.int32),
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
