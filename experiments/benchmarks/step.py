"""One training step of a cohort at several numbers of slots, next to the frozen-base floor.

    python experiments/benchmarks/step.py --base bases/whisper-tiny.en --slots 1 8 16 32 --json step.json
    python experiments/benchmarks/step.py --experiment experiments/quickstart.py --json step.json

The floor is what no method that trains something at the same place can avoid: forward pass and gradient of the
activations of the same S x B utterances, down to the first module that the spec adapts, with no Submodel, no optimizer
and no gradient of any parameter. Step and floor are computed in the same chunks of slots, measured first, unless
--chunk says otherwise. They take turns, and the median of each is reported.

Without --submodel.where, residual adapters go after every layer of the encoder, and of the decoder where the base has
one. With --experiment, base, Submodel, context, batch, rows and dropout are those of a file: `specialize plan` takes
such a step (--measured).
"""

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from fitting import EVERY_LAYER, fitted

from specialize.base import Base, Batch, load_base
from specialize.commands import load_experiment
from specialize.corpus import Size
from specialize.errors import ConfigError
from specialize.submodel import AnyKind, find_sites
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, Experiment, HyperParameters, Job
from specialize.train.estimate import Workload, choose_layout
from specialize.train.jobs import parse_grid, stack_hyper
from specialize.train.trainee import Plain


@dataclass(frozen=True)
class Benchmark:
    """Seconds of a cohort step for each Submodel, and their ratio to the floor."""

    experiment: Path | None = None
    """Experiment file: what its jobs train, on its base, in its batches, whatever other flags say of these."""
    base: Path = Path("bases/whisper-tiny.en")
    """Base folder."""
    slots: tuple[int, ...] = (1, 8, 16, 32)
    """Numbers of slots S."""
    batch: tuple[int, ...] = (4,)
    """Numbers of utterances B of each slot."""
    rows: int = 2
    """Utterances of a slot that are computed together, or all where B is no multiple of it."""
    seconds: float = 4.0
    """Length of every utterance."""
    labels: int = 16
    """Tokens of every utterance."""
    repeats: int = 5
    """How often step and floor are timed, in turns."""
    chunk: int | Literal["auto"] = "auto"
    """Slots computed together; 0 is all; `auto` measures, as `specialize train` does."""
    random: bool = False
    """Draw dropout and SpecAugment too."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = EVERY_LAYER
    """What is trained."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times each number of slots and prints a line for each."""
    context = "needed"
    if options.experiment is not None:
        options, context = _as_in(options, load_experiment(options.experiment))
    base = load_base(options.base).with_context(context)
    options = replace(options, submodel=fitted(options.submodel, base))
    device = jax.devices()[0]
    print(
        f"{jax.device_count()} x {device.platform} {device.device_kind}, {platform.processor() or platform.machine()}"
    )
    print(f"{options.seconds:g} s and {options.labels} tokens for each utterance, {options.submodel}")
    print(f"{'B':>4} {'S':>4} {'chunk':>6} {'step/Submodel':>14} {'floor/Submodel':>15} {'step/floor':>11}")
    rows: list[dict[str, Any]] = []
    for batch, slots in itertools.product(options.batch, options.slots):
        step, floor, chunk = _time(options, base, slots, batch)
        row = {
            "batch": batch,
            "rows": _rows(options, batch),
            "slots": slots,
            "chunk": chunk,
            "step_seconds_per_submodel": step / slots,
            "floor_seconds_per_submodel": floor / slots,
            "ratio_to_floor": step / floor,
        }
        rows.append(row)
        print(
            f"{batch:>4} {slots:>4} {chunk:>6} {1e3 * step / slots:>11.2f} ms {1e3 * floor / slots:>12.2f} ms "
            f"{step / floor:>11.2f}",
            flush=True,
        )
    if options.json is not None:
        about = {
            "device": f"{jax.device_count()} x {device.platform} {device.device_kind}",
            "devices": jax.device_count(),
            "platform": device.platform,
            "device_kind": device.device_kind,
            "context": context,
            "random": options.random,
            "fingerprint": base.fingerprint,
            "seconds": options.seconds,
            "labels": options.labels,
            "spec": str(options.submodel),
            "jax": jax.__version__,
        }
        about |= {"rows": rows, "ratio_to_floor": rows[-1]["ratio_to_floor"]}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _as_in(options: Benchmark, experiment: Experiment) -> tuple[Benchmark, Literal["needed", "full"]]:
    """The options of an experiment's jobs, and the context that they hear.

    Raises:
        ConfigError: its jobs are points of a space.
    """
    if experiment.space is not None:
        raise ConfigError(
            f"'{options.experiment}' trains points of a space, whose steps are not measured here. Give an experiment "
            "without a space."
        )
    points = [hyper for _, hyper in parse_grid(experiment.grid, experiment.hyper, experiment.submodel)]
    as_there = replace(
        options,
        base=experiment.base,
        submodel=experiment.submodel,
        batch=(experiment.cohort.batch,),
        rows=experiment.cohort.rows,
        random=any(point.dropout > 0 or point.spec_augment > 0 for point in points),
    )
    return as_there, experiment.context


def _time(options: Benchmark, base: Base, slots: int, batch: int) -> tuple[float, float, int]:
    """Median seconds of a step and of the floor, and the slots of a device that are computed together."""
    sites = find_sites(options.submodel, base.architecture, base.params)
    mesh = speaker_mesh()
    devices = mesh.devices.size

    def make(local: int, chunk: int) -> Cohort:
        count = local * devices
        return Cohort(
            base.architecture, Plain(options.submodel, sites), mesh, count, random=options.random, chunk=chunk
        )

    rows = _rows(options, batch)
    work = Workload(batch, rows, Size(int(options.seconds * base.architecture.sample_rate), options.labels))
    chunk = choose_layout(make, base.params, work, slots // devices, options.chunk).chunk
    cohort = make(slots // devices, chunk)
    frozen, anchor = cohort.place_frozen(base.params), cohort.place_replicated(cohort.anchor())
    jobs: list[Job | None] = [None] * slots
    hyper = cohort.place(stack_hyper(jobs))._replace(learning_rate=jnp.full((slots,), HyperParameters().learning_rate))
    state = cohort.reset(cohort.empty_state(), hyper, cohort.place(np.ones(slots, bool)))
    active = cohort.place(np.ones(slots, bool))
    parts = [_batch(options, base, slots, rows) for _ in range(0, batch, rows)]
    parts = cohort.place(parts)
    floor = _floor(base, sites[0].path, chunk)
    deltas = jnp.zeros((slots, sites[0].width))

    times: dict[str, list[float]] = {"step": [], "floor": []}
    for round_ in range(options.repeats + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(cohort.step(frozen, state, hyper, active, anchor, parts))
        between = time.perf_counter()
        jax.block_until_ready([floor(deltas, frozen.params, part) for part in parts])
        if round_:  # the first compiles
            times["step"].append(between - began)
            times["floor"].append(time.perf_counter() - between)
    return statistics.median(times["step"]), statistics.median(times["floor"]), chunk


def _rows(options: Benchmark, batch: int) -> int:
    """Utterances of a part."""
    return batch if batch % options.rows else options.rows


def _floor(base: Base, path: str, chunk: int) -> Callable[..., Any]:
    """Gradient of the mean loss with respect to the activations of one module, summed over its positions."""

    def loss(delta, params, batch):
        def change(next_fn, args, kwargs, context):
            y = next_fn(*args, **kwargs)
            if context.method_name == "__call__" and "/".join(context.module.path) == path:
                return y + delta.reshape((1,) * (y.ndim - 1) + (-1,))
            return y

        with nn.intercept_methods(change):
            losses = base.architecture.losses(params, batch)
        return losses.total.sum() / losses.count.sum()

    of_slot = jax.value_and_grad(loss)
    if not chunk:
        return jax.jit(jax.vmap(of_slot, in_axes=(0, None, 0)))

    def chunked(deltas, params, batch):
        return jax.lax.map(lambda both: of_slot(both[0], params, both[1]), (deltas, batch), batch_size=chunk)

    return jax.jit(chunked)


def _batch(options: Benchmark, base: Base, slots: int, rows: int) -> Batch:
    rng = np.random.default_rng(0)
    shape, n = (slots, rows), int(options.seconds * base.architecture.sample_rate)
    return Batch(
        audio=(0.05 * rng.standard_normal((*shape, n))).astype(np.float32),
        samples=np.full(shape, n, np.int32),
        labels=rng.integers(0, min(1000, base.tokenizer.end), (*shape, options.labels)).astype(np.int32),
        label_lengths=np.full(shape, options.labels, np.int32),
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
