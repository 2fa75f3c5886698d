"""What a job trains: a Submodel by itself, or a point of a space and what the Submodel differs from it by."""

import hashlib
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from specialize.space import Generator, Shared, Space, generated, told_of
from specialize.submodel import Kind, Site, Submodel, init_submodel
from specialize.submodel.insert import neutral
from specialize.train.jobs import Hyper

Fit = Literal["embedding", "unfreeze", "embedding-then-unfreeze"]
"""What of a point of a space is fitted to a new speaker."""


@runtime_checkable
class Trainee(Protocol):
    """What the slots of a cohort carry, and what comes of it: a pytree of float32 arrays, called `trained` here.

    Trainees are equal, and hash alike, where their traced methods do the same: compiled programs are found by them.
    """

    spec: Kind
    """Of the Submodels."""
    name: str
    """Tells trainees of one spec apart that make other programs."""
    shared: Any
    """Arrays that all slots have in common and that do not change; replicated beside the base."""

    def fresh(self, seed: Any) -> Any:
        """What a job starts with. Traced; `seed` is the job's, uint32."""
        ...

    def anchor(self) -> Any:
        """What weight decay pulls `trained` towards, which has the Submodel that a job starts with."""
        ...

    def submodel(self, shared: Any, trained: Any) -> Submodel:
        """The Submodel to insert. Traced, and differentiated by `trained`."""
        ...

    def pace(self, hyper: Hyper, step: Any) -> Any:
        """Learning rates and strengths of decay of a step: a pair of trees that `trained` can be a leaf of."""
        ...

    def masked(self, gradient: Any, hyper: Hyper, step: Any) -> Any:
        """The gradient of what this step trains, and zero for the rest."""
        ...

    def begin_anew(self, moments: Any, hyper: Hyper, step: Any) -> Any:
        """The moments to make a step with: those that were, or none where something else begins to be trained."""
        ...

    def learned(self, trained: Any) -> Any:
        """The part of `trained` that any step trains."""
        ...

    def export(self, trained: Any) -> tuple[Submodel, dict[str, Any]]:
        """The plain Submodel of arrays on the host, and facts of it beside: JSON data."""
        ...

    @property
    def starts_without_effect(self) -> bool:
        """Whether a job starts at exactly the base."""
        ...


def learning_rate(step: Any, peak: Any, warmup: Any, steps: Any, final: Any) -> Any:
    """Linear warm-up over `warmup` steps, then half a cosine down to `final` of the peak at the last of `steps`."""
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup, 1.0))
    along = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1.0), 0.0, 1.0)
    return peak * warm * (final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * along)))


def _rate(hyper: Hyper, step: Any) -> Any:
    """That of a job."""
    return learning_rate(step, hyper.learning_rate, hyper.warmup, hyper.steps, hyper.final)


class Plain:
    """A Submodel by itself.

    Args:
        spec: its kind.
        sites: where it goes, from `find_sites`.
        start: a Submodel that every job starts from; None starts at no effect.
    """

    name = "plain"

    def __init__(self, spec: Kind, sites: list[Site], start: Submodel | None = None):
        self.spec, self._sites = spec, sites
        self._start = None if start is None else jax.tree.map(jnp.asarray, start)
        self.shared: Any = {}
        # Values too: what jobs begin with is in the program that resets slots.
        self._same = (spec, repr(sites), _content(start))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self._same)

    def fresh(self, seed: Any) -> Submodel:
        if self._start is not None:
            return self._start
        return init_submodel(self.spec, self._sites, jax.random.key(seed))

    def anchor(self) -> Submodel:
        if self._start is not None:
            return self._start
        return neutral(self.spec, init_submodel(self.spec, self._sites, jax.random.key(0)))

    def submodel(self, shared: Any, trained: Submodel) -> Submodel:
        del shared
        return trained

    def pace(self, hyper: Hyper, step: Any) -> tuple[Any, Any]:
        return _rate(hyper, step), hyper.weight_decay

    def masked(self, gradient: Submodel, hyper: Hyper, step: Any) -> Submodel:
        del hyper, step
        return gradient

    def begin_anew(self, moments: Any, hyper: Hyper, step: Any) -> Any:
        del hyper, step
        return moments

    def learned(self, trained: Submodel) -> Submodel:
        return trained

    def export(self, trained: Submodel) -> tuple[Submodel, dict[str, Any]]:
        return trained, {}

    @property
    def starts_without_effect(self) -> bool:
        return self._start is None


class Point:
    """A point of a space, from the middle of its speakers, and a change of the Submodel that is generated there.

    With `fit="embedding"` only the embedding is carried and trained: K numbers and their moments a slot. With
    `"unfreeze"` the embedding stays in the middle and the change is trained; with both, the embedding for the first
    `embedding_steps`, and then the change. Decay pulls the embedding back to the middle, and the change to nothing,
    which is the space.

    Args:
        space: whose generator and speakers are taken.
        fit: what is trained.
    """

    def __init__(self, space: Space, fit: Fit):
        self.spec, self.fit = space.spec, fit
        self._generator: Generator = space.generator
        self.shared: Shared = space.shared
        self._middle = space.middle()
        self.name = f"{fit} of {space.generator}"
        self._same = (space.generator, space.spec, fit, self._middle.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self._same)

    def fresh(self, seed: Any) -> dict[str, Any]:
        del seed
        return self.anchor()

    def anchor(self) -> dict[str, Any]:
        point: dict[str, Any] = {"embedding": jnp.asarray(self._middle)}
        if self.fit != "embedding":
            shapes = jax.eval_shape(self._generator.generate, self.shared, self._middle)
            point["change"] = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
        return point

    def submodel(self, shared: Shared, trained: dict[str, Any]) -> Submodel:
        made = self._generator.generate(shared, trained["embedding"])
        return jax.tree.map(jnp.add, made, trained["change"]) if "change" in trained else made

    def pace(self, hyper: Hyper, step: Any) -> tuple[Any, Any]:
        of_embedding, of_change, late = hyper._replace(learning_rate=hyper.embedding_rate), hyper, step
        if self.fit == "embedding-then-unfreeze":
            of_embedding = of_embedding._replace(steps=hyper.embedding_steps)
            of_change, late = hyper._replace(steps=hyper.steps - hyper.embedding_steps), step - hyper.embedding_steps
        trains_embedding, trains_change = self._trains(hyper, step)
        rates = {
            "embedding": jnp.where(trains_embedding, _rate(of_embedding, step), 0.0),
            "change": jnp.where(trains_change, _rate(of_change, late), 0.0),
        }
        decays = {"embedding": hyper.embedding_decay, "change": hyper.weight_decay}
        return self._carried(rates), self._carried(decays)

    def masked(self, gradient: dict[str, Any], hyper: Hyper, step: Any) -> dict[str, Any]:
        trains_embedding, trains_change = self._trains(hyper, step)
        trains = jax.tree.broadcast(self._carried({"embedding": trains_embedding, "change": trains_change}), gradient)
        return jax.tree.map(lambda g, of: jnp.where(of, g, 0.0), gradient, trains)

    def begin_anew(self, moments: Any, hyper: Hyper, step: Any) -> Any:
        """As if the Submodel's first step were the first: Adam would else take those of the embedding for its own."""
        if self.fit != "embedding-then-unfreeze":
            return moments
        late = step - hyper.embedding_steps
        # Not only at that step, which may be one that is not taken.
        anew = (late >= 0) & (moments.count > late)
        return jax.tree.map(lambda leaf: jnp.where(anew, jnp.zeros_like(leaf), leaf), moments)

    def learned(self, trained: dict[str, Any]) -> Any:
        return trained["change"] if self.fit == "unfreeze" else trained

    def export(self, trained: dict[str, Any]) -> tuple[Submodel, dict[str, Any]]:
        e = np.asarray(trained["embedding"], np.float32)
        made = jax.device_get(generated(self._generator, self.shared, e))
        if "change" in trained:
            made = jax.tree.map(np.add, made, trained["change"])
        return made, {"fit": self.fit} | told_of(e)

    @property
    def starts_without_effect(self) -> bool:
        return False

    def _trains(self, hyper: Hyper, step: Any) -> tuple[Any, Any]:
        """Whether a step trains the embedding, and the change."""
        if self.fit == "embedding-then-unfreeze":
            return step < hyper.embedding_steps, step >= hyper.embedding_steps
        return self.fit == "embedding", self.fit == "unfreeze"

    def _carried(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self.fit != "embedding" else {"embedding": values["embedding"]}


def _content(tree: Any) -> bytes:
    """A digest of arrays."""
    digest = hashlib.blake2b()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.digest()
