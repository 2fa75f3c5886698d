"""A Submodel of its own for each row of a batch, in one pass of the base: its matrices serve all rows at once."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from specialize.base.architecture import Architecture, Decoded
from specialize.submodel.insert import Submodel, changed_calls, inserted
from specialize.submodel.kinds import Kind


def decode_rows(
    architecture: Architecture,
    spec: Kind,
    params: Any,
    bank: Submodel,
    audio: Any,
    samples: Any,
    *,
    max_tokens: int,
) -> Decoded:
    """As `architecture.decode`, each row with its own Submodel.

    The sites' calls are changed row by row, and all else is computed for the batch. Where that cannot be, because the
    Submodel rewrites the base's parameters or goes where the base's results do not lead with the rows, the whole of the
    decoding is vmapped over the rows, which costs more.

    Args:
        architecture: of the base.
        spec: of all Submodels.
        params: of the base.
        bank: Submodels [B, …].
        audio: float32 [B, N].
        samples: int32 [B].
        max_tokens: of each row.

    Returns:
        As `architecture.decode`.
    """
    if not spec.rewrites and _are_row_by_row(architecture, params, bank):
        with inserted_rows(spec, bank, audio.shape[0]):
            return architecture.decode(params, audio, samples, max_tokens=max_tokens)

    def row(submodel, clip, length):
        with inserted(spec, submodel, params) as changed:
            decoded = architecture.decode(changed, clip[None], length[None], max_tokens=max_tokens)
        return jax.tree.map(lambda leaf: leaf[0], decoded)

    return jax.vmap(row)(bank, audio, samples)


@contextlib.contextmanager
def inserted_rows(spec: Kind, bank: Mapping[str, Mapping[str, Any]], rows: int) -> Iterator[None]:
    """Within this context, each row of a call of the base's modules is changed by its own Submodel.

    A module may compute several vectors for each row, as a beam does: B x K of them, those of a row together. One that
    computes the same for all rows, with a leading axis of 1, then gives each its own.

    Args:
        spec: the kind of all; one that does not rewrite.
        bank: `{module path: {name: array [B, …]}}`.
        rows: B.

    Raises:
        SpecError: when the context closes, if a module that the Submodels name was never called.
    """

    def change(path: str, x: Any, y: Any) -> Any:
        if not hasattr(x, "shape") or x.shape[:1] != y.shape[:1]:
            x = y  # no kind looks at an input of another form (`Kind.misfit`)

        def of_row(weights, x, y):
            return spec.call(weights, x, y, None)

        if y.shape[0] == 1:
            return jax.vmap(of_row, (0, None, None))(dict(bank[path]), x, y)[:, 0]
        apart = [jnp.reshape(array, (rows, -1, *array.shape[1:])) for array in (x, y)]
        return jax.vmap(of_row)(dict(bank[path]), *apart).reshape(y.shape)

    with changed_calls(bank, change):
        yield


def _are_row_by_row(architecture: Architecture, params: Any, paths: Iterable[str]) -> bool:
    """Whether the results of all these modules lead with the rows in decoding, or with 1, for any number of rows."""
    two, three = (_leading(architecture, params, frozenset(paths), rows) for rows in (2, 3))

    def fits(some: int, more: int) -> bool:
        return some == more == 1 or (some % 2 == 0 and 3 * some == 2 * more)

    return all(len(two[path]) == len(three[path]) and all(map(fits, two[path], three[path])) for path in paths)


def _leading(architecture: Architecture, params: Any, paths: frozenset[str], rows: int) -> dict[str, list[int]]:
    """The leading axis of the result of each call of some modules, while so many rows are decoded."""
    found: dict[str, list[int]] = {path: [] for path in paths}

    def record(next_fn, args, kwargs, context):
        y = next_fn(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in found:
            found[path].append(y.shape[0] if getattr(y, "ndim", 0) else 0)
        return y

    def trace(params, audio, samples):
        with nn.intercept_methods(record):
            return architecture.decode(params, audio, samples, max_tokens=2)

    audio = jax.ShapeDtypeStruct((rows, architecture.sample_rate), jnp.float32)
    jax.eval_shape(trace, params, audio, jax.ShapeDtypeStruct((rows,), jnp.int32))
    return found
