"""Commands that make or describe one folder or file: `import-base`, `corpus`, `inspect`, `components` and `compact`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from specialize.commands.experiments import KindName
from specialize.printable import printable

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class ImportBase:
    """Make a base folder from a Hugging Face checkpoint."""

    source: Positional[str]
    """Checkpoint folder, or a name on the Hugging Face hub."""
    out: Positional[Path]
    """Base folder to make."""
    language: str | None = None
    """Language that a multilingual checkpoint is prompted for, as a code (`de`); by default what its own
    generation_config forces, or else English."""
    task: Literal["transcribe", "translate"] | None = None
    """Task that it is prompted for; by default likewise, or else transcribing."""


def import_base(words: list[str]) -> None:
    """Make a base folder from a Hugging Face checkpoint."""
    from specialize.base import import_base as convert
    from specialize.submodel import size

    command = tyro.cli(ImportBase, args=words, prog="specialize import-base")
    base = convert(command.source, command.out, language=command.language, task=command.task)
    print(f"{command.out}: {size(base.params):,} parameters, fingerprint {base.fingerprint}")


def corpus(words: list[str]) -> None:
    """Read a manifest, build its data set, and list what is in it and what is wrong with it."""
    from specialize.base import load_base
    from specialize.corpus import CorpusConfig, open_corpus

    @dataclass(frozen=True)
    class CorpusCommand:
        """Read a manifest, build its data set, and list what is in it and what is wrong with it."""

        manifest: Positional[Path]
        """JSONL or CSV: audio, text, speaker; optional utterance, split, role and attributes."""
        base: Path | None = None
        """Also check texts and lengths against this base."""
        role: str | None = None
        """Only utterances whose `role` in the manifest is this; a manifest that names no roles is used whole."""
        speakers: tuple[str, ...] = ()
        """Only these speakers; none named means all."""
        limit: int | None = None
        """Only the first so many speakers, in the order of the manifest."""
        text: Literal["base", "verbatim"] = "base"
        """Training targets as the base writes, or exactly as in the manifest."""
        cache: Path | None = None
        """Where decoded corpora are kept; default $SPECIALIZE_CACHE/corpora, or ~/.cache/specialize/corpora."""
        strict: bool = False
        """Stop with an error if anything is wrong."""
        problems: int = 20
        """How many problems to list."""

    command = tyro.cli(CorpusCommand, args=words, prog="specialize corpus")
    names = {f.name for f in dataclasses.fields(CorpusConfig)}
    config = CorpusConfig(**{name: value for name, value in vars(command).items() if name in names})
    opened = open_corpus(config, None if command.base is None else load_base(command.base))
    summary = opened.summary()
    print(f"{summary['speakers']} speakers")
    for name, split in summary["splits"].items():
        print(f"  {name:<5} {split['utterances']:>7} utterances, {split['hours']:.2f} h")
    print(f"left out: {summary['left_out']}")
    for problem in opened.problems[: command.problems]:
        print(f"  {problem}")
    if len(opened.problems) > command.problems:
        print(f"  … and {len(opened.problems) - command.problems} more; --problems lists more of them")


@dataclass(frozen=True)
class Inspect:
    """Say what a base folder, a run, a space or a stored Submodel is."""

    path: Positional[Path]
    """The folder."""
    kind: KindName | None = None
    """With a base: show where a Submodel of this kind would go, and its size."""
    where: tuple[str, ...] | None = None
    """With --kind: patterns of module paths instead of the kind's default."""


def inspect(words: list[str]) -> None:
    """Say what a base, a run, a space or a Submodel is, and where a spec would insert."""
    from specialize.describe import describe

    command = tyro.cli(Inspect, args=words, prog="specialize inspect")
    for line in describe(command.path, kind=command.kind, where=command.where):
        print(printable(line))


def components(words: list[str]) -> None:
    """Write the linear space through the Submodels of a run, for new speakers: `specialize train … --space OUT`."""
    from specialize.space import save_space
    from specialize.train import linear_space_of

    @dataclass(frozen=True)
    class Components:
        """Write the linear space through the Submodels of a run: their mean, and their principal components.

        What `specialize train FILE.py --space OUT` finds new speakers' points in. It needs no joint training; the mean
        alone is worth looking at, for what people have in common adds up in it, and what is one person's does not.
        """

        run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a run."""
        out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
        """Folder to make."""
        dim: int = 16
        """Components, from the one along which the Submodels differ most."""
        overwrite: bool = False
        """Replace the space that is there."""

    command = tyro.cli(Components, args=words, prog="specialize components")
    space = linear_space_of(command.run, command.dim)
    save_space(command.out, space, overwrite=command.overwrite)
    print(
        printable(
            f"{command.out}: a linear space of {command.dim} components through {len(space.embeddings)} Submodels, "
            f"with {space.training['share_of_differences']:.0%} of what they differ by."
        )
    )


def compact(words: list[str]) -> None:
    """Write one file that has the Submodels of all speakers of a space, however many."""
    from specialize.space import write_compact
    from specialize.train import linear_space_of

    @dataclass(frozen=True)
    class Compact:
        """Write one file that has the Submodels of all speakers of a space: its mean, its basis, and a row for each."""

        run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a run, or of its `space`."""
        out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
        """File to make, NAME.safetensors."""
        dim: int | None = None
        """Take the principal components of the run's Submodels, so many of them: needed where the run has no linear
        space. Exact for one less than there are speakers."""
        dtype: Literal["float32", "float16"] = "float16"
        """Of basis and coefficients. The error that rounding makes is measured and told."""

    command = tyro.cli(Compact, args=words, prog="specialize compact")
    written = write_compact(linear_space_of(command.run, command.dim), command.out, dtype=command.dtype)
    print(
        f"{written.path}: {written.speakers} speakers in {written.bytes / 1e6:.1f} MB. Parameters differ from the "
        f"space's by at most {written.largest_error:.2g}: {written.relative_error:.2g} of what it adds to its mean."
    )
