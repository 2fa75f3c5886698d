"""Runs of every kind, opened by what their folder says they are."""

import json
from pathlib import Path

from specialize.errors import ConfigError
from specialize.train.joint import SpaceRun
from specialize.train.pretrain import PretrainRun
from specialize.train.run import Run, RunFolder

_RUNS: tuple[type[RunFolder], ...] = (Run, PretrainRun, SpaceRun)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run: a Hugging Face checkpoint has a `config.json` too."""
    config = Path(folder) / "config.json"
    return config.is_file() and "experiment" in json.loads(config.read_text())


def open_run(folder: Path) -> RunFolder:
    """The run in a folder: independent Submodels, a space, or a pretraining.

    Raises:
        ConfigError: the folder is no run, or one of a later version.
    """
    if not is_run(folder):
        raise ConfigError(f"'{folder}' is not a run: it has no config.json of one. Make one with `specialize train`.")
    kind = json.loads((Path(folder) / "config.json").read_text()).get("kind", Run.of())
    for cls in _RUNS:
        if cls.of() == kind:
            return cls(Path(folder))
    raise ConfigError(f"'{folder}' is a {kind}, which this version of specialize does not know.")
