"""An experiment as a Python file that makes it again."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import specialize
from specialize.score.results import write_atomically
from specialize.train import Experiment

_WIDTH = 120


def experiment_source(experiment: Experiment, about: str) -> str:
    """Python source that exposes `experiment`, equal to this one, every field written out.

    Args:
        experiment: to write.
        about: the docstring of the file, without quotes and backslashes.
    """
    used: set[type] = set()
    body = _source(experiment, 0, len("experiment = "), used)
    names = sorted(cls.__name__ for cls in used)
    imports = [f"from specialize import {', '.join(names)}"]
    if len(imports[0]) > _WIDTH:
        imports = ["from specialize import (", *(f"    {name}," for name in names), ")"]
    assert set(names) <= set(specialize.__all__)
    return "\n".join([f'"""{about}"""', "", "from pathlib import Path", "", *imports, "", f"experiment = {body}", ""])


def write_experiment(path: Path, experiment: Experiment, about: str) -> None:
    """Writes `experiment_source`, whole or not at all."""
    write_atomically(path, experiment_source(experiment, about))


def _source(value: Any, indent: int, before: int, used: set[type]) -> str:
    """A value as source; over several lines where it would not fit into one after `before` characters."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        used.add(type(value))
        inner = indent + 4
        fields = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
        parts = [f"{name}={_source(of, inner, inner + len(name) + 1, used)}" for name, of in fields]
        one = f"{type(value).__name__}({', '.join(parts)})"
        if "\n" not in one and before + len(one) <= _WIDTH:
            return one
        lines = "".join(f"{' ' * inner}{part},\n" for part in parts)
        return f"{type(value).__name__}(\n{lines}{' ' * indent})"
    if isinstance(value, Path):
        return f"Path({_text(str(value))})"
    if isinstance(value, tuple):
        parts = [_source(of, indent, 0, used) for of in value]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _text(text: str) -> str:
    """A text in double quotes, where that needs no other escapes than Python's own."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text and "\\" not in written else written
