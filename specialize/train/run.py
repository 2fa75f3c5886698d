"""A run on disk: what was asked, what came of it, and where its Submodels are."""

import json
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specialize import __version__
from specialize.errors import ConfigError
from specialize.submodel import SubmodelStore
from specialize.train.experiment import Experiment, from_json, to_json


class Run:
    """The folder of a run.

    `config.json` (the experiment, its versions), `submodels/<speaker>/`, `metrics.jsonl`, `problems.json`
    (what was left out of the corpus, and why) and `summary.json` (what came of each job). `specialize evaluate` adds
    `results.json`, `transcripts.jsonl` and `report.html`.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise ConfigError(f"'{folder}' is not a run: it has no config.json. Make one with `specialize train`.")
        self.config = json.loads((self.folder / "config.json").read_text())
        self.experiment: Experiment = from_json(Experiment, self.config["experiment"])
        self.store = SubmodelStore(self.folder / "submodels")

    @classmethod
    def create(cls, experiment: Experiment, *, base: str, overwrite: bool = False) -> "Run":
        """Makes the folder of a new run.

        Args:
            experiment: what is to run.
            base: fingerprint of its base.
            overwrite: delete a run that is there.

        Raises:
            ConfigError: something is there already.
        """
        folder = experiment.folder
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                raise ConfigError(
                    f"'{folder}' is there already. Give the new run another --name, or replace it with --overwrite."
                )
            if not (folder / "config.json").is_file():
                raise ConfigError(f"'{folder}' is there and is not a run; not overwritten.")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        config = {
            "experiment": to_json(experiment),
            "base": base,
            "versions": {"specialize": __version__, "python": platform.python_version()}
            | {name: version(name) for name in packages},
            "command": sys.argv,
        }
        write_json(folder / "config.json", config)
        return cls(folder)

    @property
    def base(self) -> str:
        """Fingerprint of the base that the run's Submodels belong to."""
        return self.config["base"]

    def read(self, name: str) -> Any:
        """JSON data of a file of the run; None if it has not been written."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.is_file() else None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    beside.replace(path)
