"""Import of Hugging Face checkpoint folders."""

from pathlib import Path

from specialize.base.architecture import Architecture
from specialize.base.checkpoint import Rename, find_checkpoint, read_json
from specialize.base.conformer import ConformerCTC, ConformerTransducer
from specialize.base.folder import Base, save_base
from specialize.base.import_parakeet import PARAKEETS, import_parakeet, parakeet_tensor
from specialize.base.import_whisper import import_whisper, whisper_tensor
from specialize.base.whisper import Whisper
from specialize.errors import BaseModelError


def import_base(source: str | Path, out: Path | str, *, language: str | None = None, task: str | None = None) -> Base:
    """Makes a base folder from a Hugging Face checkpoint.

    Args:
        source: checkpoint folder, or a name on the Hugging Face hub, which is downloaded.
        out: folder to make.
        language: what a multilingual Whisper is prompted for, as a code: `de`. None is what the checkpoint's own
            generation_config forces, or else English.
        task: `transcribe` or `translate`, likewise; None may come to transcribing.

    Raises:
        BaseModelError: files or tensors are missing, too many, or misshapen; the model is of an unknown type; the
            language or the task is unknown to it; or `out` is there already.
    """
    if Path(out).exists():
        raise BaseModelError(f"'{out}' is there already. Choose another folder, or remove it first.")
    base = read_base(find_checkpoint(source), language=language, task=task)
    save_base(base, Path(out))
    return base


def read_base(folder: Path, *, language: str | None = None, task: str | None = None) -> Base:
    """The base in a checkpoint folder, as `import_base`, without writing anything."""
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind == "whisper":
        return import_whisper(folder, config, language, task)
    if kind in PARAKEETS:
        return import_parakeet(folder, config)
    known = ", ".join(("whisper", *PARAKEETS))
    raise BaseModelError(f"'{folder}' is of model_type '{kind}'. This version imports {known}.")


def tensor_names(architecture: Architecture) -> Rename:
    """How transformers calls the parameters of an architecture.

    Raises:
        BaseModelError: transformers has no such model.
    """
    if isinstance(architecture, Whisper):
        return whisper_tensor
    if isinstance(architecture, ConformerCTC | ConformerTransducer):
        if architecture.config.conv_norm == "batch":
            return parakeet_tensor
        raise BaseModelError(
            f"transformers has no Conformer with conv_norm='{architecture.config.conv_norm}', only with batch norms, "
            "as imported Parakeets have them."
        )
    raise BaseModelError(f"transformers has no {type(architecture).__name__}.")
