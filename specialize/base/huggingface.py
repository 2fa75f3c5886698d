"""Import of Hugging Face checkpoint folders."""

from pathlib import Path

from specialize.base.checkpoint import find_checkpoint, read_json
from specialize.base.folder import Base, save_base
from specialize.base.import_parakeet import PARAKEETS, import_parakeet
from specialize.base.import_whisper import import_whisper
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
    folder = find_checkpoint(source)
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind == "whisper":
        base = import_whisper(folder, config, language, task)
    elif kind in PARAKEETS:
        base = import_parakeet(folder, config)
    else:
        known = ", ".join(("whisper", *PARAKEETS))
        raise BaseModelError(f"'{folder}' is of model_type '{kind}'. This version imports {known}.")
    save_base(base, Path(out))
    return base
