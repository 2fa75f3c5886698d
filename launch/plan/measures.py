"""What a run costs here, measured: seconds of its programs, of writing a Submodel and of reading an utterance."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.plan.compiling import Compiling
from launch.plan.costs import line
from specialize.base import Batch
from specialize.corpus import Corpus, Cut, Shapes, Size, cohort_batches
from specialize.submodel import Kind, StoredSubmodel, SubmodelStore
from specialize.train import Cohort, Finished, Job, Plan
from specialize.train.estimate import Layout
from specialize.train.jobs import stack_hyper
from specialize.train.planning import Program

_ROUNDS = 2
_READ = 8
"""Jobs whose utterances are read to time it."""


@dataclass(frozen=True)
class Measured:
    """Seconds that were measured, by samples; between them they are a line."""

    parts: Mapping[int, float]
    looks: Mapping[int, float]
    alones: Mapping[int, float]
    refill: float
    compiling: Mapping[str, float]
    """Seconds that a program takes to compile where no cache has it: `part`, `look`, `alone`."""

    def part(self, size: Size) -> float:
        """Seconds."""
        return line(self.parts, size.samples)

    def look(self, size: Size) -> float:
        """Seconds."""
        return line(self.looks, size.samples)

    def alone(self, size: Size) -> float:
        """Seconds."""
        return line(self.alones, size.samples)


def measure(plan: Plan, program: Program, layout: Layout, shapes: tuple[Shapes, Shapes]) -> Measured:
    """Runs the programs here, with noise, at the smallest and the largest size of each; median seconds.

    Args:
        plan: of the run.
        program: of it.
        layout: slots of all devices, and chunk.
        shapes: that batches and dev sets are padded to.
    """
    cohort, cut, slots = plan.cohort(program, layout), plan.cut, layout.slots
    frozen, anchor = cohort.place_frozen(plan.base.params), cohort.place_replicated(cohort.anchor())
    hyper, active = cohort.place((stack_hyper([None] * slots), np.ones(slots, bool)))
    mask = cohort.place(np.ones(slots, bool))
    state = cohort.reset(cohort.empty_state(), hyper, mask)
    compiling: dict[str, float] = {}

    def timed(kind: str, run: Callable[[], Any]) -> float:
        with Compiling() as first:
            jax.block_until_ready(run())
        times = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
        compiling[kind] = max(compiling.get(kind, 0.0), first.seconds - seconds)
        return seconds

    def step(parts: Any) -> Any:
        nonlocal state
        state, metrics = cohort.step(frozen, state, hyper, active, anchor, parts)
        return metrics

    def reset() -> Any:
        nonlocal state
        state = cohort.reset(state, hyper, mask)
        return state

    shape = (slots, cut.rows) if cut.together == 1 else (slots, cut.together, cut.rows)
    count = cut.batch // cut.rows
    parts, looks, alones = {}, {}, {}
    for size in _ends(shapes[0]):
        batches = cohort.place([_noise(shape, size) for _ in range(count)])
        parts[size.samples] = timed("part", lambda: step(batches)) / (count * cut.together)  # noqa: B023
    for size in _ends(shapes[1]):
        heard = cohort.place(_noise((slots, cut.batch), size))
        looks[size.samples] = timed("look", lambda: cohort.evaluate(frozen, state.trained, heard))  # noqa: B023
        alones[size.samples] = timed("alone", lambda: cohort.evaluate_alone(frozen, heard))  # noqa: B023
    return Measured(parts, looks, alones, timed("refill", reset), compiling)


def _ends(shapes: Shapes) -> list[Size]:
    """The smallest and the largest size."""
    return list(dict.fromkeys((shapes.sizes[0], shapes.sizes[-1])))


def _noise(shape: tuple[int, ...], size: Size) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        audio=(0.05 * rng.standard_normal((*shape, size.samples))).astype(np.float32),
        samples=np.full(shape, size.samples, np.int32),
        labels=np.ones((*shape, size.labels), np.int32),
        label_lengths=np.full(shape, size.labels, np.int32),
    )


@dataclass(frozen=True)
class Stored:
    """One Submodel, as it was written."""

    bytes: int
    files: int
    """Orbax makes a few more or less for the same arrays."""
    seconds: float
    """Of writing it, by one thread."""


def measure_store(cohort: Cohort, spec: Kind, base: str, job: Job, looks: int) -> Stored:
    """Writes a Submodel with noise for parameters into a folder that is then removed.

    Args:
        cohort: whose Submodels they are.
        spec: of it.
        base: fingerprint.
        job: whose facts go with it.
        looks: at the dev set, which its metadata lists.
    """
    rng = np.random.default_rng(0)
    submodel = jax.tree.map(
        lambda leaf: (0.05 * rng.standard_normal(leaf.shape)).astype(np.float32),
        jax.eval_shape(cohort.trainee.submodel, cohort.trainee.shared, jax.eval_shape(cohort.anchor)),
    )
    heard = [(at * job.max_steps // max(looks, 1), 1.0 + rng.random()) for at in range(looks + 1)]
    done = Finished(job, submodel, job.max_steps, job.max_steps, 2.0 + rng.random(), 1.0 + rng.random(), 0, heard)
    written = []
    with tempfile.TemporaryDirectory(prefix="specialize-plan-") as folder:
        for number in range(_ROUNDS + 1):
            store = SubmodelStore(Path(folder) / str(number))
            began = time.perf_counter()
            store.save(StoredSubmodel(submodel, spec, job.speaker.id, base, done.facts()))
            seconds = time.perf_counter() - began
            files = [path for path in Path(str(store.folder)).rglob("*") if path.is_file()]
            written.append((sum(path.stat().st_size for path in files), len(files), seconds))
    # The first write starts threads. Orbax lays the same arrays out in a few files more or less.
    sizes, files, times = zip(*written[1:], strict=True)
    return Stored(statistics.median_high(sizes), statistics.median_high(files), statistics.median(times))


def seconds_of_reading(corpus: Corpus, jobs: Sequence[Job], cut: Cut, shapes: Shapes, resident: bool) -> float:
    """Seconds of an utterance that is read and put into a batch, as this machine's training does it.

    Args:
        corpus: to read.
        jobs: of the queue.
        cut: of the batches.
        shapes: that they are padded to.
        resident: whether the audio lives on the devices, and only labels are read.
    """
    assignments = [job.at(0) for job in jobs[:_READ]]
    steps = max(cut.together, min(12, jobs[0].max_steps))
    began, read = time.perf_counter(), 0
    where = (lambda _: 0) if resident else None
    for dispatch in cohort_batches(corpus, assignments, steps, cut, shapes, None, where):
        read += sum(int(np.count_nonzero(part.samples)) for part in dispatch.parts)
    return (time.perf_counter() - began) / max(read, 1)
