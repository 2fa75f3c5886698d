"""The cohort step: S independent jobs advance together, in two compiled programs, or several steps in one.

`gradient` is the forward and backward pass of a part of a batch; `apply` sums the parts, clips, and updates. `steps` is
a loop over both, for batches that are one part.

`jit` outside, `shard_map` over the mesh's speaker axis inside it, `vmap` over the local slots inside that. The base is
replicated and everything with a slot axis is sharded, so independent jobs need no collective. `vmap` under `jit` alone
would not do: XLA's partitioner gathers the operands of batched convolutions and FFTs.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from specialize.base import Batch
from specialize.base.architecture import Architecture, Augment
from specialize.submodel import Dropout, Submodel, inserted, size
from specialize.submodel.bank import (
    SPEAKER,
    check_slots,
    lay_out,
    lay_out_own,
    own_slots,
    replicated,
    slot_sharding,
)
from specialize.train.jobs import Hyper
from specialize.train.trainee import Trainee


class Frozen(NamedTuple):
    """What no step changes, replicated."""

    params: Any
    """Of the base."""
    shared: Any
    """Of the trainee."""


class CohortState(NamedTuple):
    """All that a cohort carries from step to step; every leaf leads with S."""

    trained: Any
    """Of the trainee: the Submodels, or points of a space."""
    moments: optax.ScaleByAdamState
    """Moments of Adam, a state of its own for each slot."""
    step: Any
    """int32 [S], steps that each job has made."""
    skipped: Any
    """int32 [S], steps that were not taken because loss or gradient was not finite."""
    best: Any
    """`trained` at each job's best evaluation."""


class Partial(NamedTuple):
    """What a part of a batch adds to a step, of each slot; parts are summed."""

    gradient: Any
    """Of `total`, by `trained`."""
    total: Any
    """float32 [S], summed loss."""
    count: Any
    """float32 [S], target tokens."""


class Metrics(NamedTuple):
    """What a step says of each slot, [S]; or K steps of one dispatch, [S, K]."""

    loss: Any
    """Mean training loss per target token; NaN for an idle slot."""
    grad_norm: Any
    """Norm of the gradient before clipping."""
    finite: Any
    """bool, whether the step was taken."""


_ALONE_TOGETHER = 4
"""Slots whose utterances the base alone hears together: it may see a window many times as long as they are."""
ADAM = optax.scale_by_adam(b1=0.9, b2=0.98, eps=1e-8)


class Programs:
    """The compiled functions of cohorts that differ in nothing but their arrays, their slots and who is in them.

    Nothing here knows which architecture the base has.
    """

    def __init__(
        self, architecture: Architecture, alone: Architecture, trainee: Trainee, mesh: Mesh, random: bool, chunk: int
    ):
        self._architecture, self._alone, self._trainee = architecture, alone, trainee
        self._mesh, self._random, self._chunk = mesh, random, chunk
        self.gradient = self._compile(self._slot_gradient, shared=(0, 4))
        self.apply = self._compile(self._slot_apply, shared=(3,), donate=(0,))
        self.steps = self._compile(self._slot_steps, shared=(0, 4), donate=(1,))
        self.evaluate = self._compile(self._slot_evaluate, shared=(0,))
        self.evaluate_alone = self._compile(self._slot_evaluate_alone, shared=(0,), chunk=_ALONE_TOGETHER)
        self.reset = self._compile(self._slot_reset, donate=(0,))
        self.keep_best = self._compile(self._slot_keep_best, donate=(0,))
        several = not slot_sharding(mesh).is_fully_addressable
        everywhere: dict[str, Any] = {"out_shardings": replicated(mesh)} if several else {}
        self.take = jax.jit(lambda bank, slot: jax.tree.map(lambda leaf: leaf[slot], bank), **everywhere)
        self.gather = jax.jit(lambda tree: tree, **everywhere) if several else None

    def _compile(
        self,
        of_slot: Callable,
        *,
        shared: tuple[int, ...] = (),
        donate: tuple[int, ...] = (),
        chunk: int | None = None,
    ) -> Any:
        """jit(shard_map(vmap(of_slot))); arguments at the positions `shared` are replicated and have no slot axis."""

        chunk = self._chunk if chunk is None else chunk

        def local(*arguments):
            common = {i: arguments[i] for i in shared}
            stacked = tuple(a for i, a in enumerate(arguments) if i not in shared)

            def one(mapped):
                rest = iter(mapped)
                return of_slot(*(common[i] if i in shared else next(rest) for i in range(len(arguments))))

            slots = jax.tree.leaves(stacked)[0].shape[0]
            if chunk and chunk < slots:
                return jax.lax.map(one, stacked, batch_size=chunk)
            return jax.vmap(one)(stacked)

        def specs(count):
            return tuple(PartitionSpec() if i in shared else PartitionSpec(SPEAKER) for i in range(count))

        def sharded(*arguments):
            # The specs say how everything is laid out and nothing crosses slots, so there is nothing to check.
            return jax.shard_map(
                local,
                mesh=self._mesh,
                in_specs=specs(len(arguments)),
                out_specs=PartitionSpec(SPEAKER),
                check_vma=False,
            )(*arguments)

        sharded.__name__ = of_slot.__name__.removeprefix("_slot_")  # what profiles and dumps of XLA call it
        return jax.jit(sharded, donate_argnums=donate)

    def _submodel(self, frozen: Frozen, trained: Any) -> Submodel:
        return self._trainee.submodel(frozen.shared, trained)

    def fresh(self, seed: Any) -> CohortState:
        """What a slot begins a job with. Traced."""
        trained = self._trainee.fresh(seed)
        zero = jnp.zeros((), jnp.int32)
        return CohortState(trained, adam_init(trained), zero, zero, trained)

    def _slot_reset(self, state: CohortState, hyper: Hyper, mask: Any) -> CohortState:
        return jax.tree.map(partial(jnp.where, mask), self.fresh(hyper.seed), state)

    def _slot_keep_best(self, state: CohortState, mask: Any) -> CohortState:
        return state._replace(best=jax.tree.map(partial(jnp.where, mask), state.trained, state.best))

    def _slot_evaluate(self, frozen: Frozen, trained: Any, batch: Batch) -> tuple[Any, Any]:
        with inserted(self._trainee.spec, self._submodel(frozen, trained), frozen.params) as changed:
            losses = self._architecture.losses(changed, batch)
        return losses.total.sum(), losses.count.sum()

    def _slot_evaluate_alone(self, frozen: Frozen, batch: Batch) -> tuple[Any, Any]:
        losses = self._alone.losses(frozen.params, batch)
        return losses.total.sum(), losses.count.sum()

    def _slot_gradient(self, frozen: Frozen, trained: Any, hyper: Hyper, step: Any, part: Any, batch: Batch) -> Partial:
        dropout, augment = None, None
        if self._random:
            # Keyed by job, step and part, never by slot.
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(hyper.seed), step), part)
            for_dropout, for_augment = jax.random.split(key)
            dropout, augment = Dropout(for_dropout, hyper.dropout), Augment(for_augment, hyper.spec_augment)

        def total_loss(trained):
            with inserted(self._trainee.spec, self._submodel(frozen, trained), frozen.params, dropout) as changed:
                losses = self._architecture.losses(changed, batch, augment=augment)
            return losses.total.sum(), losses.count.sum()

        (total, count), gradient = jax.value_and_grad(total_loss, has_aux=True)(trained)
        return Partial(gradient, total, count)

    def _slot_apply(
        self, state: CohortState, hyper: Hyper, active: Any, anchor: Any, partials: tuple[Partial, ...]
    ) -> tuple[CohortState, Metrics]:
        summed = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *partials)
        count = jnp.maximum(summed.count, 1.0)
        loss = summed.total / count
        gradient = self._trainee.masked(jax.tree.map(lambda g: g / count, summed.gradient), hyper, state.step)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        scale = jnp.minimum(1.0, hyper.clip / jnp.maximum(norm, 1e-12))
        gradient = jax.tree.map(lambda g: g * scale, gradient)
        direction, moments = ADAM.update(gradient, self._trainee.begin_anew(state.moments, hyper, state.step))
        rates, decays = (jax.tree.broadcast(of, state.trained) for of in self._trainee.pace(hyper, state.step))
        moved = jax.tree.map(
            lambda p, d, a, rate, decay: p - rate * (d + decay * (p - a)),
            state.trained,
            direction,
            anchor,
            rates,
            decays,
        )
        taken = state._replace(trained=moved, moments=moments, step=state.step + 1)
        left = state._replace(step=state.step + active, skipped=state.skipped + (active & ~finite))
        state = jax.tree.map(partial(jnp.where, active & finite), taken, left)
        return state, Metrics(jnp.where(active, loss, jnp.nan), norm, finite)

    def _slot_steps(
        self, frozen: Frozen, state: CohortState, hyper: Hyper, active: Any, anchor: Any, batches: Batch
    ) -> tuple[CohortState, Metrics]:
        # The loop is inside the chunks of `_compile`, so that a chunk makes all its steps while it is in the cache.
        def one(state: CohortState, batch: Batch) -> tuple[CohortState, Metrics]:
            partial = self._slot_gradient(frozen, state.trained, hyper, state.step, np.uint32(0), batch)
            return self._slot_apply(state, hyper, active, anchor, (partial,))

        return jax.lax.scan(one, state, batches)


# Another run of the same process mostly differs in its data: it should not wait for what has been traced and compiled.
_programs = functools.lru_cache(maxsize=16)(Programs)


class Cohort:
    """A cohort of S slots: its compiled functions, and how its arrays lie on the devices.

    Args:
        architecture: of the base.
        trainee: what the slots train.
        mesh: of one axis, from `speaker_mesh`.
        slots: S, a multiple of the number of devices.
        random: whether any job uses dropout or SpecAugment. Without, the program draws no random numbers; a job with
            strengths of 0 comes out the same either way.
        chunk: how many slots of a device are computed together; the chunks follow one another. 0 is all. Small chunks
            keep the activations in a CPU's cache.
        alone: of the base where it serves without a Submodel (`Base.alone`); None is `architecture`.

    Raises:
        ConfigError: S does not fit the mesh.
    """

    def __init__(
        self,
        architecture: Architecture,
        trainee: Trainee,
        mesh: Mesh,
        slots: int,
        *,
        random: bool = True,
        chunk: int = 0,
        alone: Architecture | None = None,
    ):
        check_slots(slots, mesh)
        self.architecture, self.trainee, self.spec = architecture, trainee, trainee.spec
        self.mesh, self.slots = mesh, slots
        self.alone = architecture if alone is None else alone
        self.random, self.chunk = random, chunk
        self.sharding, self.replicated = slot_sharding(mesh), replicated(mesh)
        programs = _programs(architecture, self.alone, trainee, mesh, random, chunk)
        self._fresh, self._gather = programs.fresh, programs.gather
        self.gradient = programs.gradient
        """(frozen, trained, hyper, step [S], part, batch) → Partial. `part` is the number of the batch in its step."""
        self.apply = programs.apply
        """(state, hyper, active [S], anchor, partials) → (state, Metrics). The state is donated."""
        self.steps = programs.steps
        """(frozen, state, hyper, active [S], anchor, batches [S, K, B, …]) → (state, Metrics [S, K]), after K steps of
        one part each. The state is donated."""
        self.evaluate = programs.evaluate
        """(frozen, trained, batch) → (loss total [S], token count [S])."""
        self.evaluate_alone = programs.evaluate_alone
        """(frozen, batch) → (loss total [S], token count [S]) of the base as it serves alone."""
        self.take = programs.take
        """(trained, slot) → that of one slot, without a copy of the others to the host."""
        self.reset = programs.reset
        """(state, hyper, mask bool [S]) → state; slots where the mask is set start anew."""
        self.keep_best = programs.keep_best
        """(state, mask bool [S]) → state; slots where the mask is set remember what they have trained as their best."""

    def step(
        self, frozen: Frozen, state: CohortState, hyper: Hyper, active: Any, anchor: Any, parts: Sequence[Batch]
    ) -> tuple[CohortState, Metrics]:
        """One step of all jobs, or several in one dispatch.

        Args:
            frozen: from `place_frozen`.
            state: donated.
            hyper: [S].
            active: bool [S]; the other slots stay as they are.
            anchor: what weight decay pulls towards; replicated.
            parts: the batch, [S, rows, …] each. Their gradients add up before anything is clipped or applied, so that
                only the number of rows matters and not how they are cut. Or one [S, K, B, …]: the batches of K steps.
        """
        if np.ndim(parts[0].samples) > 2:
            (batches,) = parts
            return self.steps(frozen, state, hyper, active, anchor, batches)
        partials = tuple(
            self.gradient(frozen, state.trained, hyper, state.step, np.uint32(index), part)
            for index, part in enumerate(parts)
        )
        return self.apply(state, hyper, active, anchor, partials)

    def anchor(self) -> Any:
        """What weight decay pulls towards, which has the Submodel that jobs start with; the same for all slots."""
        return self.trainee.anchor()

    def parameters_each(self) -> tuple[int, int]:
        """Parameters of a Submodel, and how many of a slot are trained."""
        anchor = jax.eval_shape(self.trainee.anchor)
        return size(jax.eval_shape(self.trainee.submodel, self.trainee.shared, anchor)), size(
            self.trainee.learned(anchor)
        )

    @property
    def starts_as_base(self) -> bool:
        """Whether a job that has not made a step is exactly the base as it serves alone."""
        return self.trainee.starts_without_effect and self.alone == self.architecture

    def empty_state(self) -> CohortState:
        """A state with nothing in it; `reset` its slots before use."""
        shapes = jax.eval_shape(jax.vmap(self._fresh), jnp.zeros((self.slots,), jnp.uint32))
        make = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), out_shardings=self.sharding)
        return make()

    @property
    def own(self) -> range:
        """The slots on the devices of this process."""
        return own_slots(self.slots, self.mesh)

    def place(self, tree: Any) -> Any:
        """Lays host arrays [S, …] out on the mesh."""
        return lay_out(tree, self.sharding)

    def place_own(self, tree: Any) -> Any:
        """Lays host arrays out on the mesh, of which each process has the rows of its own slots."""
        return lay_out_own(tree, self.sharding)

    def place_replicated(self, tree: Any) -> Any:
        """Puts a copy of a tree on every device."""
        return lay_out(tree, self.replicated)

    def fetch(self, tree: Any) -> Any:
        """Brings arrays [S, …] to the host; of several processes, to each of them."""
        return jax.device_get(tree if self._gather is None else self._gather(tree))

    def place_frozen(self, params: Any) -> Frozen:
        """Puts the base's parameters, and what the trainee shares, on every device."""
        return self.place_replicated(Frozen(params, self.trainee.shared))


def adam_init(trained: Any) -> optax.ScaleByAdamState:
    state = ADAM.init(trained)
    assert isinstance(state, optax.ScaleByAdamState)
    return state
