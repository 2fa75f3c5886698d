"""Python files that expose what a command is to do: experiments, sweeps."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from specialize.errors import ConfigError, SpecializeError


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
    if not isinstance(value, kinds):
        named = " or a ".join(f"specialize.{kind.__name__}" for kind in kinds)
        raise ConfigError(f"'{file}' must expose `{name}`, a {named}; it has {value!r}.")
    return value
