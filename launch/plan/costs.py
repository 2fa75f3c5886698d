"""What the programs of a run cost on any device: operations and bytes, by the compiler's own count, and memory.

Operations and bytes are those of XLA's cost analysis of the programs that train, compiled on this machine for one slot
and for two, whose difference is what a slot adds. They are counted without chunks and without a loop over steps, whose
bodies the analysis counts once.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from specialize.corpus import Shapes, Size
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, Plan
from specialize.train.estimate import Layout, Memory, Workload, abstract_batch, lowered, needed_memory
from specialize.train.jobs import stack_hyper
from specialize.train.planning import Program
from specialize.train.step import Frozen, Partial


@dataclass(frozen=True)
class Cost:
    """What a program does."""

    flops: float
    """Operations."""
    bytes: float
    """Bytes between memory and the arithmetic."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)

    @classmethod
    def of(cls, analysed: Any) -> "Cost":
        """Of a lowered or compiled program, of one device."""
        found = analysed.cost_analysis()
        return cls(float(found["flops"]), float(found["bytes accessed"]))


Curve = Mapping[int, Cost]
"""Cost by the samples that a batch is padded to; between them it is a line."""


@dataclass(frozen=True)
class Costs:
    """What each program of a cohort costs a device, by its slots."""

    shared: Cost
    """Of a part, whatever the slots: the base is read once."""
    part: Curve
    """Of a part, for each slot: forward and backward pass of `rows` utterances."""
    apply: Cost
    """Of the end of a step, for each slot."""
    look: Curve
    """Of a batch of the dev set with the Submodel, for each slot."""
    alone: Curve
    """Of a batch of the dev set with the base alone, for each slot."""
    refill: Cost
    """Of giving slots to new jobs, for each slot, new or not."""
    memory: tuple[int, Memory, Memory]
    """Slots of a device, what they need, and what twice as many need."""
    compiling: float
    """Seconds that the gradient took to compile here; next to none where it had been compiled before."""

    def memory_of(self, slots: int) -> Memory:
        """What so many slots of a device need: a line through what was compiled."""
        few, small, large = self.memory
        pairs = zip(dataclasses.astuple(small), dataclasses.astuple(large), strict=True)
        return Memory(*(round(one + (two - one) / few * (slots - few)) for one, two in pairs))

    def slots_in(self, usable: float) -> int:
        """Slots of a device that need at most so many bytes; 0 where not even one does."""
        few, small, large = self.memory
        each = max((large.total - small.total) / few, 1.0)
        return max(0, few + math.floor((usable - small.total) / each))


@runtime_checkable
class Pace(Protocol):
    """Seconds of the programs of a cohort, all of its slots together."""

    def part(self, size: Size) -> float:
        """Of a part of a step that is padded so, with its share of the end of the step."""
        ...

    def look(self, size: Size) -> float:
        """Of a batch of dev sets."""
        ...

    def alone(self, size: Size) -> float:
        """Of a batch of dev sets, with the base alone."""
        ...

    @property
    def refill(self) -> float:
        """Of giving slots to new jobs."""
        ...


@dataclass(frozen=True)
class Roofline:
    """A device that does so many operations and moves so many bytes a second, whichever takes longer.

    After Williams et al. 2009, "Roofline" (CACM 52(4)).
    """

    costs: Costs
    slots: int
    """Of a device."""
    parts: int
    """Of a step."""
    flops: float
    """Operations a second that the programs reach."""
    bandwidth: float
    """Bytes a second; infinite where `flops` was measured, and has everything in it."""

    def seconds(self, cost: Cost) -> float:
        """Of a program."""
        return max(cost.flops / self.flops, cost.bytes / self.bandwidth)

    def cost_of_part(self, size: Size) -> Cost:
        """With its share of the end of the step."""
        of_slot = at(self.costs.part, size.samples) + self.costs.apply * (1 / self.parts)
        return self.costs.shared + of_slot * self.slots

    def part(self, size: Size) -> float:
        """Seconds."""
        return self.seconds(self.cost_of_part(size))

    def look(self, size: Size) -> float:
        """Seconds."""
        return self.seconds(self.costs.shared * 0.5 + at(self.costs.look, size.samples) * self.slots)

    def alone(self, size: Size) -> float:
        """Seconds."""
        return self.seconds(self.costs.shared * 0.5 + at(self.costs.alone, size.samples) * self.slots)

    @property
    def refill(self) -> float:
        """Seconds."""
        return self.seconds(self.costs.refill * self.slots)


def at(curve: Curve, samples: int) -> Cost:
    """A cost between those that were counted."""
    return Cost(*(line({n: getattr(c, f) for n, c in curve.items()}, samples) for f in ("flops", "bytes")))


def line(known: Mapping[int, float], x: float) -> float:
    """Between known values a line; outside of them, in proportion."""
    xs = sorted(known)
    if not xs[0] <= x <= xs[-1]:
        near = xs[0] if x < xs[0] else xs[-1]
        return known[near] * x / near
    return float(np.interp(x, xs, [known[at] for at in xs]))


def count_costs(plan: Plan, program: Program, shapes: tuple[Shapes, Shapes], work: Workload, platform: str) -> Costs:
    """Compiles the programs of a run on one device of this machine, and counts what they do.

    Args:
        plan: of the run.
        program: of it.
        shapes: that batches and dev sets are padded to.
        work: the largest part; chunks are those of the experiment, and `auto` computes all slots together.
        platform: that the run is to be on.
    """
    plan = dataclasses.replace(plan, mesh=speaker_mesh(jax.devices()[:1]))
    params, config = plan.base.params, plan.experiment.cohort
    one, two = (plan.cohort(program, Layout(slots, 0)) for slots in (1, 2))
    single = dataclasses.replace(work, together=1)
    began = time.perf_counter()
    of_one, of_two = (lowered(cohort, params, single).compile() for cohort in (one, two))
    compiling = (time.perf_counter() - began) / 2
    each = Cost.of(of_two) + Cost.of(of_one) * -1
    shared = Cost.of(of_one) + each * -1
    part = {work.longest.samples: each}
    smallest = shapes[0].sizes[0]
    if smallest.samples < work.longest.samples:
        # Bytes in proportion to operations: a compilation less.
        flops = Cost.of(lowered(one, params, dataclasses.replace(single, longest=smallest))).flops
        whole = Cost.of(lowered(one, params, single)).flops
        part[smallest.samples] = each * ((flops / whole * Cost.of(of_one).flops - shared.flops) / each.flops)
    few = config.chunk if isinstance(config.chunk, int) and config.chunk else 1
    if few == 1 and work.together == 1:
        needed = [needed_memory(c, params, work, of, platform) for c, of in ((one, of_one), (two, of_two))]
    else:
        chunk = few if few > 1 else 0
        cohorts = [plan.cohort(program, Layout(slots, chunk)) for slots in (few, 2 * few)]
        needed = [needed_memory(c, params, work, lowered(c, params, work).compile(), platform) for c in cohorts]
    intensity = each.bytes / each.flops
    look, alone = _forward_costs(one, params, work.batch, shapes[1], intensity)
    return Costs(
        shared, part, _apply_cost(one, work), look, alone, _refill_cost(one), (few, needed[0], needed[1]), compiling
    )


def _abstract(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=sharding), tree)


def _forward_costs(cohort: Cohort, params: Any, batch: int, shapes: Shapes, intensity: float) -> tuple[Curve, Curve]:
    """Of a dev set with and without the Submodel, of one slot: operations as lowered, bytes in proportion to them."""
    frozen = _abstract(Frozen(params, cohort.trainee.shared), cohort.replicated)
    trained = _abstract(jax.eval_shape(cohort.empty_state).trained, cohort.sharding)
    look, alone = {}, {}
    for size in {shapes.sizes[0], shapes.sizes[-1]}:
        heard = abstract_batch((1, batch), size, cohort.sharding)
        for curve, program in (
            (look, cohort.evaluate.lower(frozen, trained, heard)),
            (alone, cohort.evaluate_alone.lower(frozen, heard)),
        ):
            flops = Cost.of(program).flops
            curve[size.samples] = Cost(flops, flops * intensity)
    return look, alone


def _apply_cost(cohort: Cohort, work: Workload) -> Cost:
    """Of the end of a step, of one slot."""
    state = _abstract(jax.eval_shape(cohort.empty_state), cohort.sharding)
    hyper = _abstract(stack_hyper([None]), cohort.sharding)
    scalar = jax.ShapeDtypeStruct((1,), np.float32, sharding=cohort.sharding)
    partials = (Partial(state.trained, scalar, scalar),) * (work.batch // work.rows)
    active = jax.ShapeDtypeStruct((1,), np.bool_, sharding=cohort.sharding)
    anchor = _abstract(jax.eval_shape(cohort.anchor), cohort.replicated)
    return Cost.of(cohort.apply.lower(state, hyper, active, anchor, partials).compile())


def _refill_cost(cohort: Cohort) -> Cost:
    """Of a reset, and of the copy of the best after each look."""
    state = _abstract(jax.eval_shape(cohort.empty_state), cohort.sharding)
    hyper = _abstract(stack_hyper([None]), cohort.sharding)
    mask = jax.ShapeDtypeStruct((1,), np.bool_, sharding=cohort.sharding)
    return Cost.of(cohort.reset.lower(state, hyper, mask).compile())


def step_cost(plan: Plan, program: Program, batch: int, rows: int, size: Size, slots: int) -> Cost:
    """What a step of one device costs, of a given size and so many slots.

    Args:
        plan: of the run.
        program: of it.
        batch: utterances of each slot.
        rows: of a part.
        size: of every utterance.
        slots: of the device.
    """
    plan = dataclasses.replace(plan, mesh=speaker_mesh(jax.devices()[:1]))
    one = plan.cohort(program, Layout(1, 0))
    work = Workload(batch, rows, size)
    return Cost.of(lowered(one, plan.base.params, work)) * (batch / rows * slots) + _apply_cost(one, work) * slots
