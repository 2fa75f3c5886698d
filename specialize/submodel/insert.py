"""Putting a Submodel into a base: the base's code knows nothing of it, and its parameters stay as they are."""

import contextlib
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from specialize.base.architecture import Architecture
from specialize.errors import SpecError
from specialize.submodel.kinds import Dropout, Kind, kind_name
from specialize.submodel.sites import Site, select, sites

Submodel = dict[str, dict[str, Any]]
"""A plain dict pytree, `{module path: {name: float32 array}}`."""


def find_sites(spec: Kind, architecture: Architecture, params: Any) -> list[Site]:
    """The sites of a base that `spec` chooses.

    Raises:
        SpecError: `where` matches nothing, or the kind does not fit what it matches; the message lists what would fit.
    """
    return select(kind_name(spec), spec.where, sites(architecture, params), spec.misfit)


def init_submodel(spec: Kind, chosen: list[Site], key: Any) -> Submodel:
    """A new Submodel that leaves the base exactly as it is.

    Args:
        spec: the kind and its sizes.
        chosen: from `find_sites`.
        key: a JAX key. A site's parameters depend on it and on the site's path alone.
    """
    submodel: Submodel = {}
    for site in chosen:
        weights = spec.init(_fold_path(key, site.path), site)
        for name, value in weights.items():
            owner, leaf = f"{site.path}/{name}".rsplit("/", 1)
            submodel.setdefault(owner, {})[leaf] = value
    return submodel


def neutral(spec: Kind, submodel: Submodel) -> Submodel:
    """What weight decay pulls a Submodel towards: the values without effect, with `submodel`'s shapes."""
    return {
        path: {name: jax.numpy.full_like(value, spec.neutral(name)) for name, value in weights.items()}
        for path, weights in submodel.items()
    }


@contextlib.contextmanager
def inserted(
    spec: Kind, submodel: Mapping[str, Mapping[str, Any]], params: Any, dropout: Dropout | None = None
) -> Iterator[Any]:
    """Within this context, calls of the base's Linen modules are changed by `submodel`.

    Yields the parameters to call the base with. Works under `jit`, `grad` and `vmap`; the base need not be bound.

        with inserted(spec, submodel, base.params) as params:
            losses = base.architecture.losses(params, batch)

    Args:
        spec: the kind that `submodel` was made from.
        submodel: `{module path: {name: array}}`.
        params: the base's parameters.
        dropout: randomness and rate for training; None for inference.

    Raises:
        SpecError: when the context closes, if a module that the Submodel names was never called: a Submodel is never
            silently without effect.
    """
    if spec.rewrites:
        yield _add(params, submodel)
        return

    def change(path: str, x: Any, y: Any) -> Any:
        local = None if dropout is None else Dropout(_fold_path(dropout.key, path), dropout.rate)
        return spec.call(dict(submodel[path]), x, y, local)

    with changed_calls(submodel, change):
        yield params


@contextlib.contextmanager
def changed_calls(paths: Collection[str], change: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Within this context, the results of calls of some Linen modules are changed.

    Args:
        paths: of the modules.
        change: `(path, first argument, result) -> result`; the argument is the result where a module takes none.

    Raises:
        SpecError: when the context closes, if one of the modules was never called.
    """
    called: set[str] = set()

    def intercept(next_fn, args, kwargs, context):
        y = next_fn(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or path not in paths:
            return y
        called.add(path)
        return change(path, args[0] if args else y, y)

    with nn.intercept_methods(intercept):
        yield
    missed = sorted(set(paths) - called)
    if missed:
        raise SpecError(f"The Submodel has parameters for modules that the base did not call: {', '.join(missed)}.")


def _fold_path(key: Any, path: str) -> Any:
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def _add(params: Any, submodel: Mapping[str, Mapping[str, Any]]) -> Any:
    changed = dict(params)
    for path, weights in submodel.items():
        parts = path.split("/")
        node = changed
        for part in parts:
            if part not in node:
                raise SpecError(f"The base has no parameters at '{path}', which the Submodel changes.")
            node[part] = dict(node[part])
            node = node[part]
        for name, value in weights.items():
            if name not in node:
                raise SpecError(f"The base has no parameter '{path}/{name}', which the Submodel changes.")
            node[name] = node[name] + value.astype(node[name].dtype)
    return changed
