"""A base and its folder: `base.json`, `tokenizer.json`, and the parameters as one Orbax checkpoint."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from specialize.base.architecture import Architecture
from specialize.base.conformer import ConformerCTC, ConformerTransducer
from specialize.base.conformer_model import ConformerConfig
from specialize.base.tokenizer import Tokenizer
from specialize.base.transducer_model import TransducerConfig
from specialize.base.whisper import Whisper
from specialize.base.whisper_model import WhisperConfig
from specialize.errors import BaseModelError

FORMAT = 1
_RUNTIME = ("context", "tail", "tokens_per_second", "no_speech", "max_seconds", "max_symbols", "beam")
"""Fields of an architecture that say how it is used, not what it is: no part of the fingerprint."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
"""How Whisper's tokens for languages are spelled."""


def _whisper(data: dict[str, Any]) -> Whisper:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    fields["config"] = WhisperConfig(**data["config"])
    return Whisper(**fields)


def _conformer_ctc(data: dict[str, Any]) -> ConformerCTC:
    fields: dict[str, Any] = {**data, "config": ConformerConfig(**data["config"])}
    return ConformerCTC(**fields)


def _conformer_transducer(data: dict[str, Any]) -> ConformerTransducer:
    sizes = data["transducer"] | {"durations": tuple(data["transducer"]["durations"])}
    fields: dict[str, Any] = {**data, "config": ConformerConfig(**data["config"])}
    fields["transducer"] = TransducerConfig(**sizes)
    return ConformerTransducer(**fields)


ARCHITECTURES: dict[str, tuple[type, Any]] = {
    "whisper": (Whisper, _whisper),
    "conformer-ctc": (ConformerCTC, _conformer_ctc),
    "conformer-transducer": (ConformerTransducer, _conformer_transducer),
}
"""Architectures by the name in `base.json`: the class, and how to make one from its JSON data."""


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen recogniser: architecture, parameters, front end (part of the architecture) and tokenizer."""

    architecture: Architecture
    params: Any
    """Linen parameters of the architecture's module, float32 numpy arrays."""
    tokenizer: Tokenizer
    fingerprint: str
    """Hash of all four: a Submodel belongs to exactly one."""

    @classmethod
    def make(cls, architecture: Architecture, params: Any, tokenizer: Tokenizer) -> "Base":
        """A base with its fingerprint computed."""
        return cls(architecture, params, tokenizer, fingerprint(architecture, params, tokenizer))

    def with_context(self, context: Literal["needed", "full"]) -> "Base":
        """The same base with an encoder that sees what the audio needs, or always the full window.

        Raises:
            BaseModelError: the architecture has no fixed window.
        """
        if not hasattr(self.architecture, "context"):
            if context == "full":
                raise BaseModelError(f"{type(self.architecture).__name__} has no fixed window to fill.")
            return self
        return self._used(context=context)

    def with_beam(self, beam: int) -> "Base":
        """The same base, decoding with so many hypotheses.

        Raises:
            BaseModelError: the architecture decodes greedily only, or there are none.
        """
        if beam < 1:
            raise BaseModelError(f"A beam has at least 1 hypothesis, not {beam}.")
        if beam == 1 and not hasattr(self.architecture, "beam"):
            return self
        if not hasattr(self.architecture, "beam"):
            raise BaseModelError(f"{type(self.architecture).__name__} decodes greedily; it has no beam of {beam}.")
        return self._used(beam=beam)

    def with_tokens_per_second(self, rate: float | None) -> "Base":
        """The same base, whose decoder may write so many tokens a second of audio; None leaves it as it is.

        Scripts of which a letter takes several tokens need more than others.

        Raises:
            BaseModelError: the architecture has no such limit, or it would not be positive.
        """
        if rate is None:
            return self
        if not hasattr(self.architecture, "tokens_per_second"):
            raise BaseModelError(f"{type(self.architecture).__name__} has no limit of tokens a second.")
        if not 0 < rate < float("inf"):
            raise BaseModelError(f"tokens_per_second={rate}, but it must be positive and finite.")
        return self._used(tokens_per_second=float(rate))

    def _used(self, **how: Any) -> "Base":
        """The same base with other fields of `_RUNTIME`."""
        changed = dataclasses.replace(self.architecture, **how)  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(self, architecture=changed)

    @property
    def language(self) -> str:
        """Code of the language that it writes, as a Whisper's prompt says it; `en` where nothing does."""
        prompt = getattr(self.architecture, "prompt", ())
        spelled = [token for token, id_ in self.tokenizer.markup.items() if id_ in prompt]
        if "<|translate|>" in spelled:
            return "en"
        return next((found.group(1) for token in spelled if (found := _LANGUAGE.fullmatch(token))), "en")

    def adapt(self, text: str) -> str:
        """A transcript as this base writes; see `Tokenizer.adapt`."""
        return self.tokenizer.adapt(text, self.language)

    def alone(self) -> "Base":
        """The base as it is best without a Submodel: a Whisper with its whole window, for it loops on crops."""
        return self.with_context("full") if hasattr(self.architecture, "context") else self


def fingerprint(architecture: Architecture, params: Any, tokenizer: Tokenizer) -> str:
    """32 hex digits over architecture, front end, tokenizer and every parameter's name, shape and bytes."""
    name, config = _describe(architecture)
    identity = {k: v for k, v in config.items() if k not in _RUNTIME}
    front_end = dataclasses.asdict(architecture.front_end) if hasattr(architecture, "front_end") else {}  # pyright: ignore
    digest = hashlib.sha256()
    described = [name, identity, front_end, tokenizer.end]
    if tokenizer.style != "whisper":  # which bases of the first format all are
        described.append(tokenizer.style)
    digest.update(json.dumps(described, sort_keys=True).encode())
    digest.update(hashlib.sha256(tokenizer.definition.encode()).digest())
    for path, leaf in sorted(_leaves(params)):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{path} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:32]


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{prefix}/{name}")]
    return [(prefix, tree)]


def _describe(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    for name, (cls, _) in ARCHITECTURES.items():
        if type(architecture) is cls:
            return name, dataclasses.asdict(architecture)  # pyright: ignore[reportArgumentType]
    raise BaseModelError(f"{type(architecture).__name__} is not a known architecture: {', '.join(ARCHITECTURES)}.")


def save_base(base: Base, folder: Path) -> None:
    """Writes a base folder. It appears whole or not at all.

    Raises:
        BaseModelError: something is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise BaseModelError(f"'{folder}' is there already. Choose another folder, or remove it first.")
    with new_folder(folder) as beside:
        name, config = _describe(base.architecture)
        data = {"format": FORMAT, "architecture": name, "fingerprint": base.fingerprint, "end": base.tokenizer.end}
        data |= {"tokenizer": base.tokenizer.style, "config": config}
        (beside / "base.json").write_text(json.dumps(data, indent=1) + "\n")
        (beside / "tokenizer.json").write_text(base.tokenizer.definition, encoding="utf-8")
        ocp.save(epath.Path(beside.absolute() / "params"), base.params)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the context ends without an error, and else is removed.

    Raises:
        OSError: `folder` is there and not empty, or the file system refused.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)
        os.rename(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load_base(folder: Path | str, *, verify: bool = True) -> Base:
    """Reads a base folder onto the host.

    Args:
        folder: as `save_base` or `specialize import-base` wrote it.
        verify: compute the fingerprint anew, which reads every parameter, and compare.

    Raises:
        BaseModelError: it is not a base folder, is of a later version, or has changed since it was written.
    """
    folder = Path(folder)
    if not (folder / "base.json").is_file():
        if (folder / "config.json").is_file():
            raise BaseModelError(
                f"'{folder}' is a Hugging Face checkpoint, not a base folder. Make one from it with "
                f"`specialize import-base {folder} bases/{folder.name}`."
            )
        raise BaseModelError(
            f"'{folder}' is not a base folder: it has no base.json. Make one from a Hugging Face checkpoint with "
            f"`specialize import-base CHECKPOINT {folder}`."
        )
    data, architecture = _read_description(folder)
    try:
        definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BaseModelError(f"The tokenizer.json of '{folder}' cannot be read: {error}. Import it again.") from error
    tokenizer = Tokenizer(definition, data["end"], data.get("tokenizer", "whisper"))
    if isinstance(architecture, Whisper) and architecture.no_speech is None:  # folders of before it was known
        architecture = dataclasses.replace(architecture, no_speech=tokenizer.no_speech)
    try:
        params = ocp.load(epath.Path(folder.absolute() / "params"))
    except Exception as error:  # Orbax raises many types for damaged folders.
        raise BaseModelError(f"The parameters of '{folder}' cannot be read: {error}") from error
    if verify and (found := fingerprint(architecture, params, tokenizer)) != data["fingerprint"]:
        raise BaseModelError(
            f"'{folder}' has changed since it was written: its fingerprint is {found}, base.json says "
            f"{data['fingerprint']}. Import it again."
        )
    return Base(architecture, params, tokenizer, data["fingerprint"])


def _read_description(folder: Path) -> tuple[dict[str, Any], Architecture]:
    """The data of `base.json`, and the architecture that it describes."""
    damaged = f"'{folder / 'base.json'}' is damaged"
    try:
        data = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise BaseModelError(f"{damaged}: {error}. Import it again.") from error
    if not isinstance(data, dict):
        raise BaseModelError(f"{damaged}: it holds no object. Import it again.")
    types = {"format": int, "architecture": str, "fingerprint": str, "end": int, "config": dict}
    if wrong := [name for name, kind in types.items() if not isinstance(data.get(name), kind)]:
        raise BaseModelError(f"{damaged}: it lacks {', '.join(wrong)}. Import it again.")
    if data["format"] > FORMAT:
        raise BaseModelError(
            f"'{folder}' has format {data['format']}; this version of specialize reads up to {FORMAT}."
        )
    if data["architecture"] not in ARCHITECTURES:
        raise BaseModelError(
            f"'{folder}' has the architecture '{data['architecture']}'; known are {', '.join(ARCHITECTURES)}."
        )
    try:
        return data, ARCHITECTURES[data["architecture"]][1](data["config"])
    except (KeyError, TypeError) as error:
        raise BaseModelError(f"{damaged}: its config does not fit ({error}). Import it again.") from error
