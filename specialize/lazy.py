"""Names of a package that are loaded at first use, so that commands which need no JAX do not wait for it."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name, for messages.
        homes: modules, and the names that each defines.
    """

    def load(name: str) -> Any:
        for module, names in homes.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return load
