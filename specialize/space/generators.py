"""Generators: what turns a speaker's embedding, K numbers, into a Submodel.

A generator is a frozen dataclass, at once the specification that a user writes. What it learns is `shared`, a plain
dict pytree of float32 arrays that all speakers have in common. It is made from a template, the Submodel that everything
starts at: the one without effect, or one that was trained on the pooled speech of many.
"""

import dataclasses
import math
import zlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, Union, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from specialize.errors import SpecError
from specialize.submodel import Submodel, size

Shared = dict[str, Any]
"""What a generator has learned: plain nested dicts of float32 arrays."""


@runtime_checkable
class Generator(Protocol):
    """What a generator must offer. Add one by writing such a dataclass and naming it in `GENERATORS` and
    `AnyGenerator`."""

    untrained: ClassVar[frozenset[str]]
    """Names in `shared` that joint training leaves as they are."""

    def embedding_size(self, template: Submodel) -> int:
        """K, the numbers of an embedding."""
        ...

    def init(self, key: Any, template: Submodel) -> Shared:
        """What is shared, untrained; `generate` then gives the template, whatever the embedding of `init_embedding`."""
        ...

    def init_embedding(self, key: Any, shared: Shared) -> Float[Array, "K"]:
        """An embedding to begin joint training with."""
        ...

    def generate(self, shared: Shared, e: Float[Any, "K"]) -> Submodel:
        """The Submodel at a point. Pure; vmapped over embeddings by callers, with `shared` in common."""
        ...

    def metric(self, shared: Shared) -> Float[np.ndarray, "K K"] | None:
        """The inner product of embeddings by which distances are measured; None is the usual one."""
        ...


@dataclass(frozen=True)
class OneHot:
    """Each speaker its own: the embedding is the change of every parameter, and nothing is shared but the template.

    Joint training of it is independent training of Submodels from one start, the control of every other space.
    """

    untrained: ClassVar[frozenset[str]] = frozenset({"mean"})

    def embedding_size(self, template: Submodel) -> int:
        return size(template)

    def init(self, key: Any, template: Submodel) -> Shared:
        del key
        return {"mean": _floats(template)}

    def init_embedding(self, key: Any, shared: Shared) -> Float[Array, "K"]:
        del key
        return jnp.zeros((size(shared["mean"]),))

    def generate(self, shared: Shared, e: Float[Any, "K"]) -> Submodel:
        leaves, structure = jax.tree.flatten(shared["mean"])
        ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves]).tolist()
        changes = [e[end - math.prod(leaf.shape) : end] for leaf, end in zip(leaves, ends, strict=True)]
        moved = [leaf + change.reshape(leaf.shape) for leaf, change in zip(leaves, changes, strict=True)]
        return jax.tree.unflatten(structure, moved)

    def metric(self, shared: Shared) -> Float[np.ndarray, "K K"] | None:
        del shared
        return None


@dataclass(frozen=True)
class Linear:
    """A mean and `dim` directions: `mean + Σ_k e_k · basis_k`, for every parameter.

    The directions start at zero and embeddings at random, as LoRA's two matrices do (Hu et al. 2021, arXiv 2106.09685),
    so that everything starts at the template and the directions have a gradient. Cluster adaptive training (Gales 2000)
    and eigenvoices (Kuhn et al. 2000) are such spaces of speakers, over other parameters.
    """

    dim: int = 16
    """K, directions of the space."""
    untrained: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        _positive(self)

    def embedding_size(self, template: Submodel) -> int:
        del template
        return self.dim

    def init(self, key: Any, template: Submodel) -> Shared:
        del key
        mean = _floats(template)
        return {"mean": mean, "basis": jax.tree.map(lambda leaf: jnp.zeros((self.dim, *leaf.shape)), mean)}

    def init_embedding(self, key: Any, shared: Shared) -> Float[Array, "K"]:
        del shared
        return jax.random.normal(key, (self.dim,))

    def generate(self, shared: Shared, e: Float[Any, "K"]) -> Submodel:
        # One matrix product a parameter, for all slots together under vmap. Full precision, so that what is exported on
        # one device is what another trained.
        def at(mean, basis):
            return mean + jnp.tensordot(e, basis, axes=1, precision=jax.lax.Precision.HIGHEST)

        return jax.tree.map(at, shared["mean"], shared["basis"])

    def metric(self, shared: Shared) -> Float[np.ndarray, "K K"] | None:
        """That of the changes that embeddings make, so that turning or scaling embeddings and basis matters nothing."""
        gram = np.zeros((self.dim, self.dim))
        for leaf in jax.tree.leaves(shared["basis"]):
            flat = np.asarray(leaf, np.float64).reshape(self.dim, -1)
            gram += flat @ flat.T
        return gram


@dataclass(frozen=True)
class Hypernetwork:
    """A network from the embedding and a learned code of each site to the change of the site's parameters.

    A trunk of two layers is shared by all sites; a head for each name and shape of a parameter is shared by the sites
    that have such a one (Ha et al. 2016, arXiv 1609.09106; Karimi Mahabadi et al. 2021, arXiv 2106.04489). Heads start
    at zero.
    """

    dim: int = 16
    """K, numbers of an embedding."""
    code: int = 16
    """Numbers of the code of a site."""
    hidden: int = 64
    """Width of the trunk."""
    untrained: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        _positive(self)

    def embedding_size(self, template: Submodel) -> int:
        del template
        return self.dim

    def init(self, key: Any, template: Submodel) -> Shared:
        for_codes, for_input, for_middle = jax.random.split(key, 3)
        mean, width, wide = _floats(template), self.hidden, self.dim + self.code
        codes = {
            path: jax.random.normal(jax.random.fold_in(for_codes, zlib.crc32(path.encode())), (self.code,))
            for path in mean
        }
        trunk = {
            "input_kernel": jax.random.normal(for_input, (wide, width)) / math.sqrt(wide),
            "input_bias": jnp.zeros((width,)),
            "middle_kernel": jax.random.normal(for_middle, (width, width)) / math.sqrt(width),
            "middle_bias": jnp.zeros((width,)),
        }
        heads = {name: jnp.zeros((width, *shape)) for name, (shape, _) in _heads(mean).items()}
        return {"mean": mean, "codes": codes, "trunk": trunk, "heads": heads}

    def init_embedding(self, key: Any, shared: Shared) -> Float[Array, "K"]:
        del shared
        return jax.random.normal(key, (self.dim,))

    def generate(self, shared: Shared, e: Float[Any, "K"]) -> Submodel:
        mean, trunk = shared["mean"], shared["trunk"]
        paths = sorted(mean)
        codes = jnp.stack([shared["codes"][path] for path in paths])
        h = jnp.concatenate([jnp.broadcast_to(e, (len(paths), self.dim)), codes], axis=1)
        for name in ("input", "middle"):
            h = jax.nn.silu(_product(h, trunk[f"{name}_kernel"]) + trunk[f"{name}_bias"][None])
        # So that heads learn at the pace of the mean, whatever the width.
        h = h / math.sqrt(self.hidden)
        made: Submodel = {path: dict(weights) for path, weights in mean.items()}
        for head, (_, users) in _heads(mean).items():
            changes = _product(h[np.array([paths.index(path) for path, _ in users])], shared["heads"][head])
            for row, (path, name) in enumerate(users):
                made[path][name] = mean[path][name] + changes[row]
        return made

    def metric(self, shared: Shared) -> Float[np.ndarray, "K K"] | None:
        del shared
        return None


GENERATORS: dict[str, type] = {"one-hot": OneHot, "linear": Linear, "hypernetwork": Hypernetwork}
"""The generators by the name that the command line and stored spaces use."""

AnyGenerator = Union[  # noqa: UP007  (tyro reads the annotations of the members)
    Annotated[OneHot, tyro.conf.subcommand("one-hot")],
    Annotated[Linear, tyro.conf.subcommand("linear")],
    Annotated[Hypernetwork, tyro.conf.subcommand("hypernetwork")],
]
"""A generator, for a configuration that lets the user choose."""


def generator_name(generator: Any) -> str:
    """The public name of a generator, `linear`."""
    for name, cls in GENERATORS.items():
        if type(generator) is cls:
            return name
    raise SpecError(f"{type(generator).__name__} is not a known generator. Known: {', '.join(GENERATORS)}.")


def generator_to_json(generator: Any) -> dict[str, Any]:
    """A generator as plain JSON data; `generator_from_json` reads it back."""
    return {"kind": generator_name(generator)} | dataclasses.asdict(generator)


def generator_from_json(data: dict[str, Any]) -> Any:
    """A generator from `generator_to_json`'s data. Raises SpecError for an unknown one, or an unknown field."""
    fields = dict(data)
    name = fields.pop("kind", None)
    if name not in GENERATORS:
        raise SpecError(f"Unknown generator '{name}'. Known: {', '.join(GENERATORS)}.")
    try:
        return GENERATORS[name](**fields)
    except TypeError as error:
        raise SpecError(f"The generator '{name}' has fields that this version does not know: {error}.") from error


def _heads(mean: Submodel) -> dict[str, tuple[tuple[int, ...], list[tuple[str, str]]]]:
    """{head: (shape of the parameter, (path, name) of those that it makes)}, in the order of the paths."""
    heads: dict[str, tuple[tuple[int, ...], list[tuple[str, str]]]] = {}
    for path in sorted(mean):
        for name, value in sorted(mean[path].items()):
            head = f"{name} {'x'.join(map(str, value.shape))}"
            heads.setdefault(head, (tuple(value.shape), []))[1].append((path, name))
    return heads


def _product(h: Float[Any, "T H"], kernel: Float[Any, "H *shape"]) -> Float[Array, "T *shape"]:
    return jnp.tensordot(h, kernel, axes=1, precision=jax.lax.Precision.HIGHEST)


def _floats(submodel: Submodel) -> Submodel:
    """A copy, for what is shared is donated while it is trained."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), submodel)


def _positive(generator: Any) -> None:
    for field in dataclasses.fields(generator):
        if getattr(generator, field.name) < 1:
            name, value = type(generator).__name__, getattr(generator, field.name)
            raise SpecError(f"{name}: {field.name}={value}, but it must be at least 1.")
