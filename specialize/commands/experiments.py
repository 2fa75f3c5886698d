"""The experiment that a command line begins with."""

import sys
from pathlib import Path
from typing import Any, Literal

from specialize.files import exposed, run_file

KindName = Literal["residual-adapter", "lora", "bias-only", "layer-norm-only", "full-weights"]
"""The names in `submodel.KINDS`, which takes long to import."""


def load_experiment(file: Path, *kinds: Any) -> Any:
    """The `experiment` that a Python file exposes.

    Args:
        file: the Python file.
        kinds: what it may be; none named is an Experiment, of Submodels.

    Raises:
        ConfigError: there is no such file, it cannot be run, or it has no experiment of these kinds.
    """
    from specialize.train import Experiment

    return exposed(file, run_file(file), "experiment", *(kinds or (Experiment,)))


def experiment_of(command: str, words: list[str], example: Any, *kinds: type) -> tuple[Path, list[str], Any]:
    """The file that the words begin with, the words after it, and its experiment.

    Args:
        command: that the words are of.
        words: where they only ask for help, it is that of the `example`.
        example: an experiment of the same kind, with every default.
        kinds: other kinds that the command takes.
    """
    if words and not words[0].startswith("-"):
        file = Path(words[0])
        return file, words[1:], load_experiment(file, type(example), *kinds)
    if {"-h", "--help"} & set(words):
        print("The defaults below are those of an experiment that says nothing; a FILE.py has its own.\n")
        return Path("FILE.py"), words, example
    print(
        f"usage: specialize {command} FILE.py [--field value …]\n\nThe file exposes `experiment`, a "
        f"specialize.{type(example).__name__}; `specialize {command} --help` explains its fields.",
        file=sys.stderr,
    )
    sys.exit(2)
