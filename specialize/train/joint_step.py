"""The step of a space: slots generate their Submodels, get a gradient each, and move the generator together.

`generate` makes the bank, the cohort's own `gradient` runs once for each part of a batch, and `apply` takes the
gradients of the Submodels back to the generator and to the embeddings. Everything with a slot axis is sharded on it,
the generator is replicated, and the sum of its gradient over the mesh is the only thing that crosses devices.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from specialize.base import Batch
from specialize.processes import ALONE, Peers
from specialize.space import Generator, Shared
from specialize.submodel import Submodel
from specialize.submodel.bank import SPEAKER
from specialize.train.jobs import Hyper, HyperParameters
from specialize.train.step import ADAM, Cohort, Frozen, Metrics, Partial, adam_init
from specialize.train.together import Collective
from specialize.train.trainee import learning_rate


class Sums(NamedTuple):
    """Of what was measured of each speaker since the last look, [S, Q]."""

    loss: Any
    norm: Any
    steps: Any
    """Steps that were taken."""


class Best(NamedTuple):
    """The space at its best look."""

    shared: Any
    embeddings: Any


class SpaceState(NamedTuple):
    """All that a space carries from step to step. S is the slot, Q the speaker of the slot."""

    shared: Shared
    """Replicated."""
    moments: optax.ScaleByAdamState
    """Of what is trained of `shared`."""
    embeddings: Any
    """float32 [S, Q, K]."""
    embedding_moments: optax.ScaleByAdamState
    """Of each embedding, a state of its own: [S, Q], [S, Q, K]."""
    skipped: Any
    """int32 [S, Q], steps that were not taken because loss or gradient was not finite."""
    sums: Sums
    step: Any
    """int32, steps of the space."""
    best: Best


_SLOT, _WHOLE = PartitionSpec(SPEAKER), PartitionSpec()
_SPECS: dict[str, Any] = {
    "shared": _WHOLE,
    "moments": _WHOLE,
    "embeddings": _SLOT,
    "embedding_moments": _SLOT,
    "skipped": _SLOT,
    "sums": _SLOT,
    "step": _WHOLE,
    "best": Best(_WHOLE, _SLOT),
}
_LAYOUT = SpaceState(**_SPECS)
"""How a state lies on the mesh."""


class JointStep:
    """The compiled functions of a space over a cohort of S slots.

    Args:
        cohort: computes the gradient of each slot's Submodel, and losses.
        generator: what is trained.
        rows: Q, speakers of a slot.
        hyper: learning rate and weight decay of the generator; warm-up, `final` and clip of all.
        embedding_rate: peak learning rate of embeddings.
        embedding_decay: decoupled decay of embeddings towards zero.
        steps: over which the learning rates fall.
        peers: the processes, which wait for each other in `apply`.
    """

    def __init__(
        self,
        cohort: Cohort,
        generator: Generator,
        rows: int,
        hyper: HyperParameters,
        *,
        embedding_rate: float,
        embedding_decay: float,
        steps: int,
        peers: Peers = ALONE,
    ):
        self._call = Collective(peers)
        self.cohort, self.generator, self.rows = cohort, generator, rows
        self._hyper, self._steps = hyper, steps
        self._embedding_rate, self._embedding_decay = embedding_rate, embedding_decay
        self.generate = jax.jit(self._sharded(self._generate, (_WHOLE, _SLOT, _SLOT), _SLOT))
        """(shared, embeddings [S, Q, K], rows [S]) → bank."""
        self.apply = jax.jit(
            self._sharded(self._apply, (_LAYOUT, _SLOT, _SLOT, _WHOLE, _SLOT), (_LAYOUT, _SLOT)), donate_argnums=0
        )
        """(state, rows [S], active [S], anchor, partials) → (state, Metrics). The state is donated."""
        self.shardings = jax.tree.map(lambda spec: jax.NamedSharding(cohort.mesh, spec), _LAYOUT)
        """How a state lies on the mesh."""
        changed = partial(jax.jit, out_shardings=self.shardings)
        # Made where it will lie: one device may not have room for all embeddings of a one-hot space.
        self._make = changed(self._begin)
        self.keep_best = changed(lambda state: state._replace(best=_copy(Best(state.shared, state.embeddings))))
        self.forget_sums = changed(lambda state: state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums)))

    def begin(self, template: Submodel, seeds: Any, key: Any) -> SpaceState:
        """The state before the first step, at which every Submodel is the template.

        Args:
            template: where everything starts.
            seeds: uint32 [S, Q], of each speaker's embedding.
            key: a JAX key, of what is shared.
        """
        data = np.asarray(jax.random.key_data(key))
        return self._make(jax.tree.map(np.asarray, template), np.asarray(seeds), data)

    def _begin(self, template: Submodel, seeds: Any, key: Any) -> SpaceState:
        shared = self.generator.init(jax.random.wrap_key_data(key), template)

        def embedding(seed):
            return self.generator.init_embedding(jax.random.key(seed), shared)

        embeddings = jax.vmap(jax.vmap(embedding))(seeds)
        shape = (self.cohort.slots, self.rows)
        counts = partial(jnp.zeros, shape, jnp.int32)
        sums = Sums(*(jnp.zeros(shape) for _ in Sums._fields))
        of_rows = optax.ScaleByAdamState(counts(), jnp.zeros_like(embeddings), jnp.zeros_like(embeddings))  # pyright: ignore[reportArgumentType]
        moments = adam_init(self._trained(shared))
        step = jnp.zeros((), jnp.int32)
        best = _copy(Best(shared, embeddings))
        return SpaceState(shared, moments, embeddings, of_rows, counts(), sums, step, best)

    def step(
        self,
        frozen: Frozen,
        state: SpaceState,
        rows: Any,
        active: Any,
        hyper: Hyper,
        steps: Any,
        anchor: Shared,
        parts: Sequence[Batch],
    ) -> tuple[SpaceState, Metrics]:
        """One step of the space.

        Args:
            frozen: of the cohort.
            state: donated.
            rows: int32 [S], the speaker of each slot.
            active: bool [S]; the other slots count for nothing and stay as they are.
            hyper: [S], of which seed, dropout and SpecAugment are used.
            steps: int32 [S], the number of the step, by which randomness is keyed.
            anchor: what weight decay pulls the generator towards.
            parts: the batch, [S, rows, …] each.
        """
        bank = self.generate(state.shared, state.embeddings, rows)
        partials = tuple(
            self.cohort.gradient(frozen, bank, hyper, steps, np.uint32(index), part) for index, part in enumerate(parts)
        )
        return self._call(self.apply, state, rows, active, anchor, partials)

    def _sharded(self, local: Any, inputs: Any, outputs: Any) -> Any:
        return jax.shard_map(local, mesh=self.cohort.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def _trained(self, shared: Shared) -> Shared:
        return {name: value for name, value in shared.items() if name not in self.generator.untrained}

    def _bank(self, shared: Shared, e: Any) -> Submodel:
        return jax.vmap(self.generator.generate, in_axes=(None, 0))(shared, e)

    def _generate(self, shared: Shared, embeddings: Any, rows: Any) -> Submodel:
        return self._bank(shared, jax.vmap(lambda table, row: table[row])(embeddings, rows))

    def _apply(
        self, state: SpaceState, rows: Any, active: Any, anchor: Shared, partials: tuple[Partial, ...]
    ) -> tuple[SpaceState, Metrics]:
        """Of the slots of one device."""
        of = self._hyper
        pace = learning_rate(state.step, 1.0, of.warmup, self._steps, of.final)
        loss, norm, finite, gradient = jax.vmap(self._slot_gradient)(_sum(partials))
        taken = active & finite
        gradient = jax.tree.map(lambda g: jnp.where(taken.reshape(-1, *(1,) * (g.ndim - 1)), g, 0.0), gradient)
        e = jax.vmap(lambda table, row: table[row])(state.embeddings, rows)
        trained = self._trained(state.shared)
        _, pull = jax.vjp(lambda trained, e: self._bank(state.shared | trained, e), trained, e)
        of_shared, of_e = pull(gradient)
        if trained:
            state = self._move_shared(state, of_shared, taken, pace, anchor)
        of_rows = (state.embeddings, state.embedding_moments, state.skipped, state.sums)
        embeddings, moments, skipped, sums = jax.vmap(partial(self._move_row, pace))(
            of_rows, rows, of_e, active, taken, loss, norm
        )
        state = state._replace(
            embeddings=embeddings, embedding_moments=moments, skipped=skipped, sums=sums, step=state.step + 1
        )
        return state, Metrics(jnp.where(active, loss, jnp.nan), norm, finite)

    def _slot_gradient(self, summed: Partial) -> tuple[Any, Any, Any, Submodel]:
        """Mean loss per token, norm, whether both are finite, and the clipped gradient: nobody drowns the others."""
        count = jnp.maximum(summed.count, 1.0)
        loss = summed.total / count
        gradient = jax.tree.map(lambda g: g / count, summed.gradient)
        norm = optax.tree.norm(gradient)
        scale = jnp.minimum(1.0, self._hyper.clip / jnp.maximum(norm, 1e-12))
        return loss, norm, jnp.isfinite(loss) & jnp.isfinite(norm), jax.tree.map(lambda g: g * scale, gradient)

    def _move_shared(self, state: SpaceState, gradient: Shared, taken: Any, pace: Any, anchor: Shared) -> SpaceState:
        """AdamW on the mean over the slots of all devices that count; where none does, nothing moves."""
        gradient, number = jax.lax.psum((gradient, taken.sum(dtype=jnp.float32)), SPEAKER)
        gradient = jax.tree.map(lambda g: g / jnp.maximum(number, 1.0), gradient)
        direction, moments = ADAM.update(gradient, state.moments)
        rate, decay = pace * self._hyper.learning_rate, self._hyper.weight_decay
        trained = self._trained(state.shared)
        moved = jax.tree.map(
            lambda p, d, a: p - rate * (d + decay * (p - a)), trained, direction, self._trained(anchor)
        )
        moved, moments = jax.tree.map(partial(jnp.where, number > 0), (moved, moments), (trained, state.moments))
        return state._replace(shared=state.shared | moved, moments=moments)

    def _move_row(
        self, pace: Any, of_slot: Any, row: Any, gradient: Any, active: Any, taken: Any, loss: Any, norm: Any
    ) -> Any:
        """AdamW on one embedding of a slot; `of_slot` is what the slot keeps, [Q, …] each."""
        table, moments, skipped, sums = of_slot
        e, before = table[row], jax.tree.map(lambda kept: kept[row], moments)
        direction, after = ADAM.update(gradient, before)
        moved = e - pace * self._embedding_rate * (direction + self._embedding_decay * e)
        e, after = jax.tree.map(partial(jnp.where, taken), (moved, after), (e, before))
        moments = jax.tree.map(lambda kept, new: kept.at[row].set(new), moments, after)
        measured = Sums(loss, norm, 1.0)
        sums = jax.tree.map(lambda kept, new: kept.at[row].add(jnp.where(taken, new, 0.0)), sums, measured)
        return table.at[row].set(e), moments, skipped.at[row].add(active & ~taken), sums


def _sum(partials: Sequence[Partial]) -> Partial:
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *partials)


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
