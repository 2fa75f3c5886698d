"""A base as a program that runs without this package: `decode(base, submodel, audio, samples)`, by `jax.export`.

The weights are arguments, so that one program serves everybody, a Submodel is loaded by reading its file, and programs
for several lengths of audio share one file of weights. Arguments are flat dicts, as `safetensors` reads them.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import specialize
from specialize.base import Base
from specialize.base.architecture import Architecture
from specialize.base.folder import new_folder
from specialize.errors import ExportError, StoreError
from specialize.export.safetensors import by_module, write_safetensors
from specialize.submodel import Kind, StoredSubmodel, inserted
from specialize.submodel.checkpoint import check_base
from specialize.submodel.kinds import spec_to_json
from specialize.submodel.sites import flatten
from specialize.submodel.store import speaker_folder
from specialize.submodel.tensors import write_tensors

FORMAT = 1
"""Version of `program.json`."""
Platform = Literal["cpu", "cuda", "rocm", "tpu"]


@dataclass(frozen=True)
class ProgramConfig:
    """What a program is compiled for, and how it decodes."""

    seconds: tuple[float, ...] = ()
    """Lengths of audio, a program for each: an utterance costs as much as the length that it is padded to. None named
    is the longest that the base takes."""
    rows: int | None = None
    """Utterances in a call; None leaves it open, and JAX compiles anew for every number that it is called with."""
    own: bool = False
    """Each row brings its own Submodel, stacked on a leading axis, for a service that batches people together;
    otherwise all rows share one."""
    platforms: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
    """Where it runs."""
    max_tokens: int | None = None
    """Most tokens of an utterance; None is what the base allows."""
    context: Literal["needed", "full"] | None = None
    """Length that a Whisper's encoder sees: what the audio needs, or always 30 s. None is what the run trained for, or
    else what the base folder says."""
    beam: int = 1
    """Hypotheses of the search of a base with CTC or a transducer; 1 is greedy."""
    tokens_per_second: float | None = None
    """Most tokens that a Whisper writes for a second of audio; None is what the base folder says."""

    def __post_init__(self):
        if self.rows is not None and self.rows < 1:
            raise ExportError(f"rows={self.rows}, but a call has at least one utterance.")
        if not self.platforms:
            raise ExportError("A program needs at least one platform: cpu, cuda, rocm or tpu.")


def write_program(submodels: Iterable[StoredSubmodel], base: Base, folder: Path | str, config: ProgramConfig) -> None:
    """Writes a folder that recognises speech with JAX, safetensors and tokenizers alone, whole or not at all.

    `program.json` says what is there: `decode.<samples>.jax` for each length, `base.safetensors`,
    `submodels/<speaker>.safetensors` and `tokenizer.json`. A Submodel of the same spec that is exported later fits too.

    Args:
        submodels: one or many, of one spec; read one after another.
        base: what they belong to.
        folder: to make.
        config: what the program is for.

    Raises:
        ExportError: there are no Submodels, they are of several specs, or the base takes no such length or tokens.
        BaseModelError: the base has no such context, beam or limit of tokens.
        FingerprintMismatch: a Submodel belongs to another base.
        StoreError: something is there already.
        OSError: the file system refused.
    """
    folder = Path(folder)
    if folder.exists():
        raise StoreError(f"'{folder}' is there already. Choose another path, or remove it first.")
    used = base.with_beam(config.beam).with_tokens_per_second(config.tokens_per_second)
    used = used if config.context is None else used.with_context(config.context)
    lengths, most = _lengths(used.architecture, config.seconds), used.architecture.max_labels
    if config.max_tokens is not None and not 1 <= config.max_tokens <= most:
        raise ExportError(f"max_tokens={config.max_tokens}, but for this base it is 1 to {most}.")
    first: StoredSubmodel | None = None
    listed = {}
    with new_folder(folder) as beside:
        (beside / "submodels").mkdir()
        for stored in submodels:
            check_base(f"Submodel of '{stored.speaker}'", stored.base, base.fingerprint)
            first = first or stored
            if stored.spec != first.spec:
                raise ExportError(
                    f"The Submodels of '{first.speaker}' and '{stored.speaker}' differ: {first.spec} and "
                    f"{stored.spec}. A program is for one spec; name speakers of one with --speakers."
                )
            file = f"submodels/{speaker_folder(stored.speaker)}.safetensors"
            write_safetensors(stored, beside / file)
            listed[stored.speaker] = {"file": file, "helps": stored.helps}
        if first is None:
            raise ExportError("There are no Submodels, and a program is for those of one spec.")
        for samples, name in lengths.items():
            program = export_decode(first, used, samples, config)
            (beside / name).write_bytes(program.serialize())
        write_tensors(flatten(base.params), beside / "base.safetensors", {"base": base.fingerprint}, "base")
        (beside / "tokenizer.json").write_text(base.tokenizer.definition, encoding="utf-8")
        described = _described(first.spec, used, config, lengths) | {"submodels": listed}
        (beside / "program.json").write_text(json.dumps(described, indent=1) + "\n")


def export_decode(like: StoredSubmodel, base: Base, samples: int, config: ProgramConfig) -> export.Exported:
    """`decode(base, submodel, audio, samples) -> int32 [rows, max_tokens]`, lowered for every platform.

    Args:
        like: a Submodel of the spec and the shapes that the program takes.
        base: with the context, beam and limits that are to be compiled in; its parameters are an argument.
        samples: N of the audio [rows, N].
        config: rows and platforms.
    """
    decode = functools.partial(
        _decode, base.architecture, like.spec, config.max_tokens or base.architecture.max_labels, config.own
    )
    rows = config.rows if config.rows is not None else export.symbolic_shape("rows")[0]
    arguments = (
        _shapes(flatten(base.params)),
        _shapes(flatten(like.submodel), (rows,) if config.own else ()),
        jax.ShapeDtypeStruct((rows, samples), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return export.export(jax.jit(decode), platforms=config.platforms)(*arguments)


def _decode(
    architecture: Architecture,
    spec: Kind,
    max_tokens: int,
    own: bool,
    base: Any,
    submodel: Any,
    audio: Any,
    samples: Any,
) -> Any:
    params = _nested(base)

    def rows(submodel: Any, audio: Any, samples: Any) -> Any:
        with inserted(spec, by_module(submodel), params) as changed:
            return architecture.decode(changed, audio, samples, max_tokens=max_tokens).ids

    if not own:
        return rows(submodel, audio, samples)
    return jax.vmap(lambda one, clip, n: rows(one, clip[None], n[None])[0])(submodel, audio, samples)


def _shapes(tensors: Mapping[str, Any], leading: tuple[Any, ...] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((*leading, *np.shape(value)), jnp.float32) for name, value in tensors.items()}


def _nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that `flatten` made flat."""
    tree: dict[str, Any] = {}
    for full, tensor in tensors.items():
        *path, name = full.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = tensor
    return tree


def _lengths(architecture: Architecture, seconds: tuple[float, ...]) -> dict[int, str]:
    """{samples: name of the program's file}, shortest first.

    Raises:
        ExportError: a length is none that the architecture takes.
    """
    rate, most = architecture.sample_rate, architecture.max_samples
    lengths = {}
    for length in sorted(seconds or (most / rate,)):
        samples = round(length * rate) if math.isfinite(length) else 0
        if not 1 <= samples <= most:
            raise ExportError(f"seconds={length:g}, but this base takes audio of up to {most / rate:g} s.")
        lengths[samples] = f"decode.{samples}.jax"
    return lengths


def _described(spec: Kind, base: Base, config: ProgramConfig, lengths: Mapping[int, str]) -> dict[str, Any]:
    """`program.json`, but for the Submodels."""
    architecture, own = base.architecture, ["rows"] if config.own else []
    return {
        "format": FORMAT,
        "made_by": {"specialize": specialize.__version__, "jax": jax.__version__},
        "base": base.fingerprint,
        "spec": spec_to_json(spec),
        "platforms": list(config.platforms),
        "programs": [{"file": name, "samples": samples} for samples, name in lengths.items()],
        "sample_rate": architecture.sample_rate,
        "rows": config.rows,
        "arguments": [
            {"name": "base", "is": "the tensors of base.safetensors, a dict by name"},
            {"name": "submodel", "is": "the tensors of a file in submodels/, a dict by name", "leading_axes": own},
            {
                "name": "audio",
                "dtype": "float32",
                "shape": ["rows", "samples"],
                "is": "mono in [-1, 1] at sample_rate, as long as the program's; after a row's own, nothing is read",
            },
            {"name": "samples", "dtype": "int32", "shape": ["rows"], "is": "samples of each row; 0 for an empty one"},
        ],
        "result": {
            "dtype": "int32",
            "shape": ["rows", config.max_tokens or architecture.max_labels],
            "end": base.tokenizer.end,
            "is": "token ids; those before the first `end` are the text",
        },
        "tokenizer": {
            "file": "tokenizer.json",
            "is": "of the library tokenizers; skip special tokens, then strip",
        },
    }
