"""What the programs of a run cost on any device: operations and bytes, by the compiler's own count, and memory.

Operations and bytes are those of XLA's cost analysis of the programs that train, compiled on this machine for one slot
and for two, whose difference is what a slot adds. They are counted without chunks and without a loop over steps.

The analysis counts the body of a loop once, whatever its rounds (the joint network of a transducer, an LSTM, CTC). What
the other rounds do is added, by the body alone as it is lowered.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from launch.plan.compiling import Compiling
from specialize.corpus import Shapes, Size
from specialize.errors import ConfigError
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, Plan
from specialize.train.estimate import Layout, Memory, Workload, abstract_batch, lowered, needed_memory, traced
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
    def of(cls, traced: Any, compiled: Any = None) -> "Cost":
        """Of a traced program, of one device.

        Args:
            traced: the program.
            compiled: the same, compiled, whose bytes are fewer, for it is fused; None takes all as they are lowered.

        Raises:
            ConfigError: it has a loop whose rounds are known only when it runs.
        """
        as_lowered = cls._analysed(traced.lower())
        once = as_lowered if compiled is None else cls._analysed(compiled)
        rounds = _other_rounds(traced.jaxpr)
        return cls(once.flops + rounds.flops, once.bytes + rounds.bytes * once.bytes / as_lowered.bytes)

    @classmethod
    def _analysed(cls, program: Any) -> "Cost":
        found = program.cost_analysis()
        return cls(float(found["flops"]), float(found["bytes accessed"]))


def _other_rounds(program: Any) -> Cost:
    """What the loops of a program (a closed jaxpr) do in all rounds but the first, loops inside of them too."""
    total = Cost(0.0, 0.0)
    for equation in program.eqns:
        inner = [found for value in equation.params.values() for found in _programs(value)]
        if equation.primitive.name == "while":
            raise ConfigError(
                "The base has a loop whose rounds are known only when it runs, so its operations cannot be counted for "
                "a device that is not here. Leave out --accelerator, on a machine that has such a device."
            )
        if equation.primitive.name != "scan":
            for body in inner:
                total += _other_rounds(body)
            continue
        (body,), rounds = inner, equation.params["length"]
        arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
        alone = Cost._analysed(jax.jit(jaxpr_as_fun(body)).lower(*arguments))
        total += alone * max(rounds - 1, 0) + _other_rounds(body) * rounds
    return total


def _programs(value: Any) -> Iterator[Any]:
    """The closed jaxprs in a parameter of an equation."""
    if isinstance(value, ClosedJaxpr):
        yield value
    elif isinstance(value, Jaxpr):
        yield ClosedJaxpr(value, ())
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _programs(one)


_FORWARD = 0.5
"""Of what slots share, the parameters of the base: a gradient reads them forward and again backward, a look only
forward."""

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
    """Seconds that the gradient takes to compile here where no cache has it."""

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
    """Programs on a device that does so many operations and moves so many bytes a second, whichever takes longer.

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
        return self.seconds(self.costs.shared * _FORWARD + at(self.costs.look, size.samples) * self.slots)

    def alone(self, size: Size) -> float:
        """Seconds."""
        return self.seconds(self.costs.shared * _FORWARD + at(self.costs.alone, size.samples) * self.slots)

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
    gradients = [traced(cohort, params, single) for cohort in (one, two)]
    with Compiling() as compiling:
        of_one, of_two = (gradient.lower().compile() for gradient in gradients)
    whole, both = Cost.of(gradients[0], of_one), Cost.of(gradients[1], of_two)
    each = both + whole * -1
    shared = whole + each * -1
    part = {work.longest.samples: each}
    smallest = shapes[0].sizes[0]
    sizes = (smallest, work.longest)
    if smallest.samples < work.longest.samples:
        # Bytes in proportion to operations: a compilation less.
        short, long = (Cost.of(traced(one, params, dataclasses.replace(single, longest=of))).flops for of in sizes)
        part[smallest.samples] = each * ((short / long * whole.flops - shared.flops) / each.flops)
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
        shared,
        part,
        _apply_cost(one, work),
        look,
        alone,
        _refill_cost(one),
        (few, needed[0], needed[1]),
        compiling.seconds / 2,
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
            (look, cohort.evaluate.trace(frozen, trained, heard)),
            (alone, cohort.evaluate_alone.trace(frozen, heard)),
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
    program = cohort.apply.trace(state, hyper, active, anchor, partials)
    return Cost.of(program, program.lower().compile())


def _refill_cost(cohort: Cohort) -> Cost:
    """Of a reset, and of the copy of the best after each look."""
    state = _abstract(jax.eval_shape(cohort.empty_state), cohort.sharding)
    hyper = _abstract(stack_hyper([None]), cohort.sharding)
    mask = jax.ShapeDtypeStruct((1,), np.bool_, sharding=cohort.sharding)
    program = cohort.reset.trace(state, hyper, mask)
    return Cost.of(program, program.lower().compile())


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
    return Cost.of(traced(one, plan.base.params, work)) * (batch / rows * slots) + _apply_cost(one, work) * slots
