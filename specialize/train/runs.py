"""Runs of every kind, opened by what their folder says they are."""

import contextlib
from pathlib import Path

import numpy as np

from specialize.errors import ConfigError
from specialize.space import Linear, Space, fit_linear, load_space
from specialize.train.joint import SpaceRun
from specialize.train.pretrain import PretrainRun
from specialize.train.run import Run, RunFolder, SpeakersRun, read_config

_RUNS: tuple[type[RunFolder], ...] = (Run, PretrainRun, SpaceRun)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run: a Hugging Face checkpoint has a `config.json` too."""
    with contextlib.suppress(ConfigError):
        return bool(read_config(Path(folder), "specialize train"))
    return False


def open_run(folder: Path) -> RunFolder:
    """The run in a folder: independent Submodels, a space, or a pretraining.

    Raises:
        ConfigError: the folder is no run, or one of a later version.
    """
    kind = read_config(Path(folder), "specialize train").get("kind", Run.of())
    for cls in _RUNS:
        if cls.of() == kind:
            return cls(Path(folder))
    raise ConfigError(f"'{folder}' is a {kind}, which this version of specialize does not know.")


def linear_space_of(folder: Path, dim: int | None = None) -> Space:
    """The linear space of a run, or the one through its Submodels.

    Args:
        folder: of a run, or of a space.
        dim: take so many principal components of the Submodels; None takes the space as it was trained.

    Raises:
        ConfigError: the folder is neither, or it has no linear space and `dim` is None.
    """
    run = open_run(folder) if is_run(folder) else None
    if isinstance(run, SpaceRun):
        folder = run.space_folder
    elif run is not None and not isinstance(run, SpeakersRun):
        raise ConfigError(f"'{folder}' is a pretraining, which has no Submodels.")
    if isinstance(run, Run):
        if dim is None:
            raise ConfigError(f"'{folder}' has no space, but its Submodels have one through them: give its --dim.")
        stored = [run.submodel(speaker) for speaker in run.speakers()]
        if not stored:
            raise ConfigError(f"'{folder}' has no Submodels.")
    else:
        space = load_space(folder)
        if dim is None and isinstance(space.generator, Linear):
            return space
        if dim is None:
            raise ConfigError(
                f"The space in '{folder}' is {space.generator}, not linear. Give a --dim for one through it."
            )
        stored = [space.submodel(speaker) for speaker in space.speakers()]
    shared, embeddings = fit_linear([of.submodel for of in stored], dim)
    named = {of.speaker: np.asarray(e) for of, e in zip(stored, embeddings, strict=True)}
    facts = {of.speaker: {k: v for k, v in of.training.items() if k != "embedding"} for of in stored}
    return Space(Linear(dim), stored[0].spec, stored[0].base, shared, named, {"principal_components": dim}, facts)
