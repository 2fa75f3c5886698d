"""The kinds of Submodel: what each adds to a module of the base, and where it fits.

A kind is a frozen dataclass, at once the specification that a user writes. Its parameters at a site are a flat dict
`{name: array}`. At initialisation every kind leaves the base exactly as it is.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Union, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float

from specialize.errors import SpecError
from specialize.submodel.sites import Site

Weights = dict[str, Any]


class Dropout(NamedTuple):
    """Randomness of one call of one site in training."""

    key: Any
    """A JAX key of its own for this site."""
    rate: Any
    """float32 scalar in [0, 1): the share of units that are zeroed; may be traced."""

    def __call__(self, x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        kept = jax.random.bernoulli(self.key, 1.0 - self.rate, x.shape)
        return jnp.where(kept, x / (1.0 - self.rate), 0.0).astype(x.dtype)


@runtime_checkable
class Kind(Protocol):
    """What a kind of Submodel must offer. Add one by writing such a dataclass and naming it in `AnyKind`."""

    rewrites: ClassVar[bool]
    """Whether the Submodel is a change of the base's own parameters, added before the call, instead of a call."""

    @property
    def where(self) -> tuple[str, ...]:
        """Patterns of module paths; `*` within a component, `**` over any number (see `sites.select`)."""
        ...

    def misfit(self, site: Site) -> str | None:
        """None if the kind can go there, otherwise why not, as a clause: `is a LayerNorm, not a Dense`."""
        ...

    def init(self, key: Any, site: Site) -> Weights:
        """float32 parameters for one site, without effect on the base."""
        ...

    def neutral(self, name: str) -> float:
        """The value of parameter `name` that weight decay pulls towards."""
        ...

    def call(
        self,
        weights: Weights,
        x: Any,
        y: Float[Array, "*axes W"],
        dropout: Dropout | None,
    ) -> Float[Array, "*axes W"]:
        """The changed result of a module, from its first argument `x`, whatever that is, and its own result `y`."""
        ...


def _last(vector: Array, like: Array) -> Array:
    """Reshapes `[D]` to broadcast explicitly against `[…, D]`."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _one_array(site: Site) -> str | None:
    return (
        None if site.output_shape is not None and len(site.output_shape) >= 2 else "does not return one array [B, …, D]"
    )


def _is(site: Site, *types: type[nn.Module]) -> str | None:
    if issubclass(site.module, types):
        return None
    return f"is a {site.module.__name__}, not a {' or '.join(t.__name__ for t in types)}"


class _Kind:
    rewrites: ClassVar[bool] = False

    def neutral(self, name: str) -> float:
        """Zero, the value without effect."""
        del name
        return 0.0


@dataclass(frozen=True)
class ResidualAdapter(_Kind):
    """A bottleneck after a module: `y + up(relu(down(layer_norm(y))))`.

    Rebuffi et al. 2017 (arXiv 1705.08045); layer-normed form after Bapna & Firat 2019 (arXiv 1909.08478), as used for
    personal speech models by Tomanek et al. 2021 (arXiv 2109.06952).
    """

    where: tuple[str, ...] = ("encoder/layers_*",)
    """Modules to put an adapter after."""
    bottleneck: int = 32
    """R, the width inside the adapter."""

    def __post_init__(self):
        _positive("ResidualAdapter", "bottleneck", self.bottleneck)

    def misfit(self, site: Site) -> str | None:
        return _one_array(site)

    def init(self, key: Any, site: Site) -> Weights:
        d, r = site.width, self.bottleneck
        return {
            "norm_scale": jnp.ones((d,)),
            "norm_bias": jnp.zeros((d,)),
            "down_kernel": jax.random.normal(key, (d, r)) / jnp.sqrt(d),
            "down_bias": jnp.zeros((r,)),
            "up_kernel": jnp.zeros((r, d)),
            "up_bias": jnp.zeros((d,)),
        }

    def neutral(self, name: str) -> float:
        """One for the scale of the norm, otherwise zero."""
        return 1.0 if name == "norm_scale" else 0.0

    def call(
        self,
        weights: Weights,
        x: Any,
        y: Float[Array, "*axes W"],
        dropout: Dropout | None,
    ) -> Float[Array, "*axes W"]:
        del x
        h = y.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5)
        h = (h * _last(weights["norm_scale"], h) + _last(weights["norm_bias"], h)).astype(y.dtype)
        h = jax.nn.relu(h @ weights["down_kernel"].astype(y.dtype) + _last(weights["down_bias"], y))
        if dropout is not None:
            h = dropout(h)
        return y + (h @ weights["up_kernel"].astype(y.dtype) + _last(weights["up_bias"], y))


@dataclass(frozen=True)
class LoRA(_Kind):
    """A low-rank path beside a dense layer: `y + (x A) B · alpha / rank` (Hu et al. 2021, arXiv 2106.09685)."""

    where: tuple[str, ...] = ("**/q_proj", "**/v_proj")
    """Dense modules to put a path beside."""
    rank: int = 8
    """R, the rank of the change."""
    alpha: float = 16.0
    """Scale of the change: it is multiplied by alpha / rank."""

    def __post_init__(self):
        _positive("LoRA", "rank", self.rank)
        if not math.isfinite(self.alpha):
            raise SpecError(f"LoRA: alpha={self.alpha}, but it must be finite.")

    def misfit(self, site: Site) -> str | None:
        return _is(site, nn.Dense)

    def init(self, key: Any, site: Site) -> Weights:
        d, w = site.own["kernel"]
        # Uniform in ±1/sqrt(D), which is what PEFT's kaiming_uniform(a=sqrt(5)) comes to.
        bound = 1.0 / d**0.5
        return {
            "a": jax.random.uniform(key, (d, self.rank), minval=-bound, maxval=bound),
            "b": jnp.zeros((self.rank, w)),
        }

    def call(
        self,
        weights: Weights,
        x: Float[Array, "*axes D"],
        y: Float[Array, "*axes W"],
        dropout: Dropout | None,
    ) -> Float[Array, "*axes W"]:
        h = x.astype(y.dtype)
        if dropout is not None:
            h = dropout(h)
        return y + (h @ weights["a"].astype(y.dtype)) @ weights["b"].astype(y.dtype) * (self.alpha / self.rank)


@dataclass(frozen=True)
class BiasOnly(_Kind):
    """A change of the biases that the base has (BitFit, Ben Zaken et al. 2021, arXiv 2106.10199)."""

    where: tuple[str, ...] = ("encoder/**",)
    """Modules whose bias is changed."""

    def misfit(self, site: Site) -> str | None:
        if "bias" not in site.own:
            return f"is a {site.module.__name__} without a bias"
        # The change is added to the result, which is a change of the bias if the module adds that last.
        added = site.output_shape is not None and site.own["bias"] == site.output_shape[-1:]
        return None if added else "has a bias that is not added to its result"

    def init(self, key: Any, site: Site) -> Weights:
        del key
        return {"bias": jnp.zeros(site.own["bias"])}

    def call(
        self,
        weights: Weights,
        x: Any,
        y: Float[Array, "*axes W"],
        dropout: Dropout | None,
    ) -> Float[Array, "*axes W"]:
        del x, dropout
        return y + _last(weights["bias"], y)


@dataclass(frozen=True)
class LayerNormOnly(_Kind):
    """A change of gain and bias of layer norms, applied to the norm's result: `y · (1 + gain) + bias`.

    Equal to tuning the norm's own scale and bias wherever the scale is not zero.
    """

    where: tuple[str, ...] = ("encoder/**",)
    """Norms to change."""

    def misfit(self, site: Site) -> str | None:
        return _is(site, nn.LayerNorm, nn.RMSNorm)

    def init(self, key: Any, site: Site) -> Weights:
        del key
        return {"gain": jnp.zeros((site.width,)), "bias": jnp.zeros((site.width,))}

    def call(
        self,
        weights: Weights,
        x: Any,
        y: Float[Array, "*axes W"],
        dropout: Dropout | None,
    ) -> Float[Array, "*axes W"]:
        del x, dropout
        return y * (1.0 + _last(weights["gain"], y)) + _last(weights["bias"], y)


@dataclass(frozen=True)
class FullWeights(_Kind):
    """A change of every parameter of the chosen modules and of the modules in them: full fine-tuning, the ceiling.

    Stored as the difference from the base. `insert` adds it to the parameters; it has no call of its own. The
    statistics of batch norms get no gradient, and stay those of the base.
    """

    where: tuple[str, ...] = ("encoder/layers_*",)
    """Modules to tune in full."""
    rewrites: ClassVar[bool] = True

    def misfit(self, site: Site) -> str | None:
        return None if site.parameters else f"is a {site.module.__name__} without parameters"

    def init(self, key: Any, site: Site) -> Weights:
        del key
        return {name: jnp.zeros(shape) for name, shape in site.parameters.items()}

    def call(
        self,
        weights: Weights,
        x: Any,
        y: Float[Array, "*axes W"],
        dropout: Dropout | None,
    ) -> Float[Array, "*axes W"]:
        del weights, x, dropout
        return y


def _positive(kind: str, field: str, value: int) -> None:
    if value < 1:
        raise SpecError(f"{kind}: {field}={value}, but it must be at least 1.")


KINDS: dict[str, type] = {
    "residual-adapter": ResidualAdapter,
    "lora": LoRA,
    "bias-only": BiasOnly,
    "layer-norm-only": LayerNormOnly,
    "full-weights": FullWeights,
}
"""The kinds by the name that the command line and stored Submodels use."""

AnyKind = Union[  # noqa: UP007  (tyro reads the annotations of the members)
    Annotated[ResidualAdapter, tyro.conf.subcommand("residual-adapter")],
    Annotated[LoRA, tyro.conf.subcommand("lora")],
    Annotated[BiasOnly, tyro.conf.subcommand("bias-only")],
    Annotated[LayerNormOnly, tyro.conf.subcommand("layer-norm-only")],
    Annotated[FullWeights, tyro.conf.subcommand("full-weights")],
]
"""A spec, for a configuration that lets the user choose the kind."""


def kind_name(spec: Any) -> str:
    """The public name of a spec's kind, `residual-adapter`."""
    for name, kind in KINDS.items():
        if type(spec) is kind:
            return name
    raise SpecError(f"{type(spec).__name__} is not a known kind of Submodel. Known: {', '.join(KINDS)}.")


def spec_to_json(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON data; `spec_from_json` reads it back."""
    return {"kind": kind_name(spec)} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(spec).items()
    }


def spec_from_json(data: dict[str, Any]) -> Any:
    """A spec from `spec_to_json`'s data. Raises SpecError for an unknown kind or field."""
    fields = dict(data)
    name = fields.pop("kind", None)
    if name not in KINDS:
        raise SpecError(f"Unknown kind of Submodel '{name}'. Known: {', '.join(KINDS)}.")
    try:
        return KINDS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError as error:
        raise SpecError(f"The spec of kind '{name}' has fields that this version does not know: {error}.") from error
