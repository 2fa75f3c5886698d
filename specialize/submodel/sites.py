"""Where a Submodel can go: the modules that a base calls, found by tracing it once."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from specialize.base.architecture import Architecture
from specialize.base.batch import Batch
from specialize.errors import SpecError


@dataclass(frozen=True)
class Site:
    """One module of a base, as its training forward pass calls it."""

    path: str
    """Module path, `encoder/layers_0/fc1`."""
    module: type[nn.Module]
    input_shape: tuple[int, ...] | None
    """Shape of the first argument, `[B, …, D]`; None if it is not one array."""
    output_shape: tuple[int, ...] | None
    """Shape of the result; None if it is not one array."""
    parameters: Mapping[str, tuple[int, ...]]
    """Shapes of the module's own parameters, and of those of the modules in it, by path relative to it."""

    @property
    def own(self) -> dict[str, tuple[int, ...]]:
        """The parameters of the module itself."""
        return {name: shape for name, shape in self.parameters.items() if "/" not in name}

    @property
    def width(self) -> int:
        """D of the result."""
        if self.output_shape is None:
            raise SpecError(f"'{self.path}' does not return one array, so it has no width.")
        return self.output_shape[-1]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts of parameters to `{path/name: leaf}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, path + "/")
        else:
            flat[path] = value
    return flat


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if hasattr(value, "shape") and hasattr(value, "dtype") else None


def sites(architecture: Architecture, params: Any) -> dict[str, Site]:
    """Every named module that `architecture.losses` calls, by path, in the order of the first call.

    Traces the base without computing anything, once. `params` may be arrays or `jax.ShapeDtypeStruct`s.
    """
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: params))
    return dict(_sites(architecture, structure, tuple(leaves)))


@functools.lru_cache(maxsize=8)
def _sites(architecture: Architecture, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> dict[str, Site]:
    params = jax.tree.unflatten(structure, leaves)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    found: dict[str, Site] = {}

    def record(next_fn, args, kwargs, context):
        result = next_fn(*args, **kwargs)
        path = "/".join(context.module.path)
        if path and path not in found and context.method_name == "__call__":
            inside = {name[len(path) + 1 :]: s for name, s in shapes.items() if name.startswith(path + "/")}
            first = _shape(args[0]) if args else None
            found[path] = Site(path, type(context.module), first, _shape(result), inside)
        return result

    def trace(params, batch):
        with nn.intercept_methods(record):
            return architecture.losses(params, batch)

    jax.eval_shape(trace, params, example_batch(architecture))
    return found


def example_batch(architecture: Architecture) -> Batch:
    """Shapes of the smallest sensible batch: one utterance of a second with 4 labels."""
    return Batch(
        audio=jax.ShapeDtypeStruct((1, architecture.sample_rate), jnp.float32),
        samples=jax.ShapeDtypeStruct((1,), jnp.int32),
        labels=jax.ShapeDtypeStruct((1, 4), jnp.int32),
        label_lengths=jax.ShapeDtypeStruct((1,), jnp.int32),
    )


def select(
    kind: str,
    patterns: Iterable[str],
    available: Mapping[str, Site],
    fits: Callable[[Site], str | None],
) -> list[Site]:
    """The sites that `patterns` choose for a kind of Submodel, in the order of `available`.

    In a pattern `*` stands for anything within one component of a path, `**` for any number of components. A pattern
    without `**` says exactly what it means, so everything it matches must fit. A pattern with `**` means all that fits
    among what it matches.

    Args:
        kind: name of the kind, for messages.
        patterns: the `where` of a spec.
        available: the base's sites.
        fits: None for a site that fits, otherwise the reason that it does not, as a clause.

    Raises:
        SpecError: a pattern matches nothing, or what it matches does not fit; the message lists what would.
    """
    reasons = {path: fits(site) for path, site in available.items()}
    fitting = [path for path, reason in reasons.items() if reason is None]
    chosen: set[str] = set()
    patterns = tuple(patterns)
    if not patterns:
        raise SpecError(f"{kind} has an empty `where`. {_listing(kind, fitting)}")
    for pattern in patterns:
        matched = [path for path in available if _regex(pattern).fullmatch(path)]
        if not matched:
            raise SpecError(f"{kind}: where='{pattern}' matches no module of the base. {_listing(kind, fitting)}")
        misfits = [path for path in matched if reasons[path] is not None]
        if len(misfits) == len(matched) or (misfits and "**" not in pattern):
            first = misfits[0]
            raise SpecError(
                f"{kind}: where='{pattern}' matches '{first}', which {reasons[first]}. {_listing(kind, fitting)}"
            )
        chosen.update(path for path in matched if reasons[path] is None)
    return [site for path, site in available.items() if path in chosen]


def _regex(pattern: str) -> re.Pattern[str]:
    parts = []
    for component in pattern.strip("/").split("/"):
        if component == "**":
            parts.append("(?:[^/]+/)*")
        else:
            parts.append("".join("[^/]*" if c == "*" else re.escape(c) for c in component) + "/")
    return re.compile("".join(parts)[:-1] if not parts[-1].endswith("*") else "".join(parts[:-1]) + ".+")


def _listing(kind: str, paths: list[str]) -> str:
    if not paths:
        return f"No module of this base fits {kind}."
    return f"{kind} fits: " + ", ".join(summarise(paths)) + "."


def summarise(paths: Iterable[str]) -> list[str]:
    """Folds the numbers of layers: `encoder/layers_0/fc1 … layers_3/fc1` becomes `encoder/layers_{0..3}/fc1`."""
    numbers: dict[str, list[int]] = {}
    for path in paths:
        hit = re.search(r"_(\d+)(?=/|$)", path)
        key = path if hit is None else f"{path[: hit.start()]}_\0{path[hit.end() :]}"
        numbers.setdefault(key, [])
        if hit is not None:
            numbers[key].append(int(hit.group(1)))
    folded = []
    for key, values in numbers.items():
        if not values:
            folded.append(key)
        elif len(values) == 1:
            folded.append(key.replace("\0", str(values[0])))
        else:
            contiguous = sorted(values) == list(range(min(values), max(values) + 1))
            inner = f"{min(values)}..{max(values)}" if contiguous else ",".join(map(str, sorted(values)))
            folded.append(key.replace("\0", "{" + inner + "}"))
    return folded
