"""Runs of every kind, opened by what their folder says they are."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from specialize.errors import ConfigError
from specialize.space import Linear, Space, fit_linear, load_space
from specialize.submodel.store import submodel_metadata
from specialize.train.joint import SpaceRun
from specialize.train.planning import space_folder
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


CURVE = "learning_curve.json"
"""What `specialize curve` writes into the folder of a run, and its report shows."""


def fitted_space(run: Run, *, known: bool = True) -> Space | None:
    """The space of a run that fitted new speakers to one, with their embeddings.

    Args:
        run: that has ended.
        known: with the speakers that the space was trained on, too.

    Returns:
        The space; None where the run has none, trained no embeddings, or does not say them, because they are very long.

    Raises:
        StoreError: the space is not where it was.
    """
    if run.experiment.space is None or run.experiment.fitted == "unfreeze":
        return None
    space = load_space(space_folder(Path(run.experiment.space)), base=run.base)
    told = {speaker: submodel_metadata(run.store.path(speaker))["training"] for speaker in run.speakers()}
    new = {speaker: np.asarray(of["embedding"], np.float32) for speaker, of in told.items() if "embedding" in of}
    if not new:
        return None
    facts = {speaker: {k: v for k, v in told[speaker].items() if k != "embedding"} for speaker in new}
    old = {speaker: e for speaker, e in space.embeddings.items() if known and speaker not in new}
    return dataclasses.replace(space, embeddings=old | new, facts=space.facts | facts)


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
    if isinstance(run, Run) and dim is None and run.experiment.fitted == "embedding":
        fitted = fitted_space(run, known=False)
        if fitted is not None and isinstance(fitted.generator, Linear):
            return fitted
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
    shared, embeddings, share = fit_linear([of.submodel for of in stored], dim)
    named = {of.speaker: np.asarray(e) for of, e in zip(stored, embeddings, strict=True)}
    facts = {of.speaker: {k: v for k, v in of.training.items() if k != "embedding"} for of in stored}
    told = {"principal_components": dim, "share_of_differences": share}
    return Space(Linear(dim), stored[0].spec, stored[0].base, shared, named, told, facts)
