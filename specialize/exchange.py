"""What `specialize export` and `specialize import-submodel` do: stored Submodels to the formats of others, and back."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from specialize.base import Base, load_base
from specialize.base.checkpoint import find_checkpoint
from specialize.base.folder import new_folder
from specialize.errors import ConfigError, FingerprintMismatch, StoreError
from specialize.export import (
    Checkpoint,
    ProgramConfig,
    open_checkpoint,
    read_peft,
    read_safetensors,
    write_merged,
    write_peft,
    write_program,
    write_safetensors,
)
from specialize.submodel import StoredSubmodel, load_submodel, save_submodel, size
from specialize.submodel.checkpoint import check_base
from specialize.submodel.store import speaker_folder
from specialize.train import open_run
from specialize.train.run import SpeakersRun
from specialize.train.runs import is_run

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Export:
    """Write one Submodel, or all of a run, in a format that other programs load."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="SUBMODEL")]
    """A stored Submodel, runs/<name>/submodels/<speaker>; a file that `--format safetensors` wrote; or a whole run."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """File (safetensors) or folder to make. Of a run, a folder with a file or folder for each speaker; a program is one
    folder for all of them."""
    format: Literal["safetensors", "peft", "merged", "program"]
    """safetensors: the parameters of any kind, and what is known of them, in one file. peft: a folder of PEFT, of LoRA
    only. merged: a Hugging Face folder of the whole model with the Submodel in its weights, of all kinds but residual
    adapters. program: a folder that recognises speech by JAX without specialize, of any kind."""
    base: Path | None = None
    """Base folder, which all formats but safetensors need; of a run, its own if none is named."""
    huggingface: str | None = None
    """The Hugging Face folder, or name on the hub, that the base was imported from. merged needs it; peft only writes
    it down, as what the adapter belongs to."""
    speakers: tuple[str, ...] = ()
    """Of a run, only these speakers; none named means all."""
    program: ProgramConfig = field(default_factory=ProgramConfig)


@dataclass(frozen=True)
class ImportSubmodel:
    """Make a stored Submodel of a folder of PEFT, or of a file that `specialize export --format safetensors` wrote."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="SUBMODEL")]
    """Folder of PEFT, of plain LoRA; or the safetensors file."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder of the stored Submodel to make."""
    base: Annotated[Path, tyro.conf.arg(metavar="BASE")]
    """Base folder, imported from the weights that the adapter was trained on."""
    speaker: str | None = None
    """Whose it is to be; by default whose it was when it was exported, which PEFT itself does not say."""


def run_export(command: Export) -> Iterator[str]:
    """Exports, and gives a line for each thing that was made.

    Raises:
        ConfigError: flags are missing or do not fit what is at `source`.
        ExportError, StoreError, FingerprintMismatch, BaseModelError: as the writers of `specialize.export`.
    """
    run = open_run(command.source) if command.source.is_dir() and is_run(command.source) else None
    if run is not None and not isinstance(run, SpeakersRun):
        raise ConfigError(f"'{command.source}' is a pretraining, which has no Submodels.")
    if run is None and command.speakers:
        raise ConfigError(f"--speakers chooses from a run, but '{command.source}' is one Submodel.")
    base, checkpoint = _base(command, run), None
    if command.format == "merged":
        if command.huggingface is None:
            raise ConfigError("--format merged needs --huggingface: the folder that the base was imported from.")
        assert base is not None
        checkpoint = open_checkpoint(find_checkpoint(command.huggingface), base)
    submodels = _submodels(command, run)
    if command.format == "program":
        assert base is not None
        config = command.program
        if config.context is None and run is not None:
            base = base.with_context(run.experiment.context)
        write_program(submodels, base, command.out, config)
        yield f"{command.out}: program.json says what is there and how to call it"
    elif run is None:
        yield f"{command.out}: {_write(command, next(submodels), command.out, base, checkpoint)}"
    elif command.out.exists():
        raise StoreError(f"'{command.out}' is there already. Choose another path, or remove it first.")
    else:
        ending = ".safetensors" if command.format == "safetensors" else ""
        with new_folder(command.out) as beside:
            names = ((stored, speaker_folder(stored.speaker) + ending) for stored in submodels)
            lines = [f"{command.out / n}: {_write(command, s, beside / n, base, checkpoint)}" for s, n in names]
        yield from lines


def run_import(command: ImportSubmodel) -> StoredSubmodel:
    """Makes a stored Submodel of what another program, or `run_export`, wrote.

    Raises:
        StoreError, ExportError, FingerprintMismatch: as `read_peft`, `read_safetensors` and `save_submodel`.
        BaseModelError: `base` is no base folder.
    """
    base = load_base(command.base)
    if command.source.is_dir():
        stored = read_peft(command.source, base, speaker=command.speaker)
    else:
        stored = read_safetensors(command.source, base=base.fingerprint)
        stored = dataclasses.replace(stored, speaker=command.speaker or stored.speaker)
    save_submodel(command.out, stored)
    return stored


def _base(command: Export, run: SpeakersRun | None) -> Base | None:
    """The base to export with; None where the format needs none and none is named."""
    if command.base is None and command.format == "safetensors":
        return None
    folder = command.base or (None if run is None else run.experiment.base)
    if folder is None:
        raise ConfigError(f"--format {command.format} needs --base: the base folder that the Submodel belongs to.")
    base = load_base(folder)
    if run is not None and base.fingerprint != run.base:
        raise FingerprintMismatch(
            f"The run '{run.folder}' was trained on the base {run.base}, but '{folder}' is {base.fingerprint}. Name "
            "the right one with --base."
        )
    return base


def _submodels(command: Export, run: SpeakersRun | None) -> Iterator[StoredSubmodel]:
    if run is None:
        yield read_safetensors(command.source) if command.source.is_file() else load_submodel(command.source)
        return
    speakers = list(run.speakers())
    if unknown := [speaker for speaker in command.speakers if speaker not in speakers]:
        raise ConfigError(f"The run '{run.folder}' has no Submodel of {', '.join(map(repr, unknown))}.")
    if not speakers:
        raise ConfigError(f"The run '{run.folder}' has no Submodels yet.")
    for speaker in command.speakers or speakers:
        yield run.submodel(speaker)


def _write(
    command: Export, stored: StoredSubmodel, path: Path, base: Base | None, checkpoint: Checkpoint | None
) -> str:
    """Writes one Submodel, and says what it is."""
    told = f"{size(stored.submodel):,} parameters of '{stored.speaker}'"
    if command.format == "safetensors":
        check_base(f"Submodel of '{stored.speaker}'", stored.base, None if base is None else base.fingerprint)
        write_safetensors(stored, path)
    elif command.format == "peft":
        assert base is not None
        write_peft(stored, base, path, name=command.huggingface)
    else:
        assert checkpoint is not None
        made = write_merged(stored, checkpoint, path)
        told += f", in {made.tensors} tensors of {', '.join(made.dtypes)}"
        if made.relative_error:
            told += f"; rounding to that changes them by {made.relative_error:.2g} of what the Submodel does"
    return told if stored.helps else f"{told}; it did not beat the base on dev"
