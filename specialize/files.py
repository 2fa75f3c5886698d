"""Python files that expose what a command is to do: experiments, sweeps."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from specialize.errors import ConfigError, SpecializeError

_EXPOSED = ("experiment", "sweep")
_COMMANDS = {"Experiment": "train", "SpaceTraining": "train", "Pretraining": "pretrain", "Sweep": "sweep"}
"""{class of what a file exposes: the command that takes it}; the classes take long to import."""


def run_file(file: Path) -> Any:
    """Runs a Python file and returns it as a module.

    Raises:
        ConfigError: there is no such file, or it cannot be run.
    """
    if not file.is_file():
        raise ConfigError(f"There is no experiment file '{file}'.")
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{file}' is not a Python file. An experiment is a .py file that exposes `experiment`.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while they are made.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SpecializeError:
        raise
    except Exception as error:
        raise ConfigError(f"'{file}' cannot be run: {type(error).__name__}: {error}") from error
    return module


def exposed(file: Path, module: Any, name: str, *kinds: Any) -> Any:
    """What a file exposes under a name.

    Args:
        file: that was run, for messages.
        module: as `run_file` returns it.
        name: of the variable.
        kinds: what it may be.

    Raises:
        ConfigError: it has nothing of this name and these kinds.
    """
    value = getattr(module, name, None)
    if isinstance(value, kinds):
        return value
    named = " or a ".join(f"specialize.{kind.__name__}" for kind in kinds)
    found = next((of for of in (name, *_EXPOSED) if hasattr(module, of)), None)
    there = f"it has no `{name}`."
    if found is not None:
        kind = type(getattr(module, found))
        command = _COMMANDS.get(kind.__name__) if kind.__module__.startswith("specialize.") else None
        there = f"its `{found}` is of the type {kind.__qualname__}."
        if command is not None:
            there = f"its `{found}` is a specialize.{kind.__name__}, which `specialize {command} {file}` takes."
    raise ConfigError(f"'{file}' must expose `{name}`, a {named}; {there}")
