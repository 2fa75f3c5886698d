"""A run on disk: what was asked, what came of it, and where its Submodels are."""

import fcntl
import json
import platform
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from specialize import __version__
from specialize.errors import ConfigError, RunTaken
from specialize.submodel import StoredSubmodel, SubmodelStore
from specialize.submodel.store import submodel_metadata
from specialize.train.experiment import Experiment, from_json, to_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
STATE = "state"
"""Folder in a run of what it goes on from, until it has ended."""
CANDIDATES = "candidates"
"""Folder in a run of the Submodels of each point of a grid, until one point is chosen for all."""
_LEFT = ("config.json.tmp", "lock")
"""What a run leaves that was killed before its first file was whole."""
HARMLESS = ("tensorboard", "wandb", "save_seconds", "cohort.resident", "corpus.cache", "runs")
"""Fields that change nothing of what comes of a run, so that it may go on with others."""


class RunFolder:
    """The folder of what was asked for, of any kind. Its `config.json` holds the experiment and its versions."""

    _OF: ClassVar[type[Any]]
    """What `config.json` describes."""
    _COMMAND: ClassVar[str]

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.config = read_config(self.folder, self._COMMAND)
        if self.config.get("kind", Experiment.__name__) != self.of():
            raise ConfigError(f"'{folder}' is a {self.config['kind']}, and no run of `{self._COMMAND}`.")
        self.experiment: Any = from_json(self._OF, self.config["experiment"])

    @classmethod
    def of(cls) -> str:
        """What its `config.json` says that it is."""
        return cls._OF.__name__

    @classmethod
    def begin(cls, experiment: Any, *, overwrite: bool = False, **identity: str | None) -> Any:
        """Opens the run of this name to go on with it, or makes its folder. One that has `ended` stays as it is.

        Args:
            experiment: what is to run.
            overwrite: delete a run that is there.
            identity: fingerprints of what the experiment names by a path: `base`, `corpus`, `start`, `space`.

        Raises:
            ConfigError: the run there was of another experiment or of other files; or something else is there.
        """
        folder = experiment.folder
        config = {
            "kind": cls.of(),
            "experiment": to_json(experiment),
            **identity,
            "versions": {"specialize": __version__, "python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
            "command": sys.argv,
            "sitting": secrets.token_hex(8),
        }
        if folder.exists() and any(path.name not in _LEFT for path in folder.iterdir()):
            if not (folder / "config.json").is_file():
                if overwrite:
                    raise ConfigError(f"'{folder}' is there and is not a run; not overwritten.")
                raise ConfigError(f"'{folder}' is there and is not a run. Give the run another --name.")
            if overwrite:
                with _alone(folder):
                    _empty(folder)
            else:
                old = cls(folder)
                old._check_same(config, tuple(identity))
                if old.ended:
                    return old
                # What it began with stays on record; a sitting with other versions is told (`changed_versions`).
                config |= {"versions": old.config["versions"], "went_on_with": config["versions"]}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
        return cls(folder)

    @property
    def ended(self) -> bool:
        """Whether all of it is there: its summary is what a run writes last."""
        return (self.folder / "summary.json").is_file()

    def leave_ended(self, tell: Callable[[str], None]) -> None:
        """Says that the run has ended, to whoever starts it again, as schedulers do; and removes what a run leaves
        that is killed as it ends.

        Args:
            tell: what shows a line.

        Raises:
            RunTaken: another process is just ending it.
        """
        tell(
            f"'{self.folder}' has ended already, with this configuration: nothing is trained. "
            "--overwrite trains it anew."
        )
        if any((self.folder / name).exists() for name in (STATE, CANDIDATES)):
            with self.held():
                self.clear()

    def clear(self) -> None:
        """Removes what only a run that goes on needs."""
        for name in (STATE, CANDIDATES):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    @property
    def changed_versions(self) -> list[str]:
        """Packages that are not those that the run began with: its bits may be others from here on."""
        now = self.config.get("went_on_with", {})
        changed = differences({name: self.config["versions"].get(name) for name in now}, now)
        return [f"{name} {old} -> {new}" for name, old, new in changed]

    def held(self) -> AbstractContextManager[None]:
        """Holds the run for this process, as long as the context lasts or the process lives.

        Raises:
            RunTaken: another process holds it.
        """
        return _alone(self.folder)

    def _check_same(self, config: dict[str, Any], identity: tuple[str, ...]) -> None:
        now = {key: config.get(key) for key in ("experiment", *identity)}
        changed = [
            f"{name.removeprefix('experiment.')}: {old!r} -> {new!r}"
            for name, old, new in differences({key: self.config.get(key) for key in now}, now)
            if name.removeprefix("experiment.") not in HARMLESS
        ]
        if changed:
            listed = "\n  ".join(changed)
            remedy = "Give the new run another --name, or replace this one with --overwrite."
            if self.ended:
                raise ConfigError(
                    f"The run '{self.folder}' has ended, and was of another configuration:\n  {listed}\n{remedy}"
                )
            raise ConfigError(
                f"The run '{self.folder}' has begun with another configuration, and would not go on as it was:\n"
                f"  {listed}\nUndo the change to go on. {remedy}"
            )

    @property
    def base(self) -> str:
        """Fingerprint of the base that it began with."""
        return self.config["base"]

    def read(self, name: str) -> Any:
        """JSON data of a file of the run; None if it has not been written."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.is_file() else None


def read_config(folder: Path, command: str) -> dict[str, Any]:
    """The `config.json` of a run of any kind.

    Args:
        folder: of the run.
        command: that makes such runs.

    Raises:
        ConfigError: there is none, or it is damaged or of something else.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"'{folder}' is not a run: it has no config.json. Make one with `{command}`.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ConfigError(f"'{path}' is damaged: {error}.") from error
    if not isinstance(config, dict) or not {"experiment", "versions"} <= config.keys():
        raise ConfigError(f"'{folder}' is not a run: its config.json is of something else.")
    return config


class SpeakersRun(RunFolder):
    """The folder of a run that makes a Submodel for each of many speakers.

    `config.json` (the experiment, its versions), `submodels/<speaker>/`, `jobs.jsonl` (what came of each job),
    `metrics.jsonl`, `problems.json` (what was left out of the corpus, and why), `state/` (to go on from, while it has
    not ended) and, when it has, `summary.json`. `specialize evaluate` adds `results.json`, `transcripts.jsonl` and
    `report.html`, and others whose names say how they were scored.
    """

    _COMMAND = "specialize train"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.store = SubmodelStore(self.folder / "submodels")

    def speakers(self) -> Iterator[str]:
        """Those that have a Submodel here."""
        return self.store.speakers()

    def submodel(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        """The Submodel of a speaker; see `load_submodel`."""
        return self.store.load(speaker, base=base)

    def helps(self, speaker: str) -> bool:
        """Whether the Submodel of a speaker is to be used, as `StoredSubmodel.helps`; its arrays are not read."""
        return submodel_metadata(self.store.path(speaker))["training"].get("beats_base_on_dev", True)

    @property
    def grid(self) -> tuple[str, ...]:
        """Of the experiment; empty where it has none."""
        return getattr(self.experiment, "grid", ())


class Run(SpeakersRun):
    """The folder of a run of independent Submodels."""

    _OF = Experiment
    experiment: Experiment


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunTaken(
                f"Another process is training '{folder}'. Wait for it, or give the new run another --name."
            ) from None
        yield


def _empty(folder: Path) -> None:
    """Deletes what is in a run's folder, and last what makes it one: a kill leaves a run that can be overwritten."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("config.json", "lock"):
            path.unlink()
    (folder / "config.json").unlink()


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, old, new) of every leaf of two JSON trees that is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new


def write_json(path: Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    beside.replace(path)


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a question that the run asks itself after every dispatch of steps."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
