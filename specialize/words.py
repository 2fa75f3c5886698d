"""Words of a command line that are read before tyro reads the others: kinds, and flags that stand for others."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from specialize.errors import ConfigError


def choose_kind(words: list[str], experiment: Any, field: str, known: Mapping[str, type]) -> tuple[list[str], Any]:
    """Takes `--submodel.kind KIND` out of the words: the flags of a kind depend on it, so it comes first.

    Args:
        words: of the command line.
        experiment: whose field is to be of that kind.
        field: its name, here `submodel`.
        known: kinds by name.
    """
    chosen: list[str] = []

    def choose(value: str | None) -> list[str]:
        if value is None:
            raise ConfigError(f"--{field}.kind needs a value: {', '.join(known)}.")
        chosen.append(value)
        return []

    rest = _written(words, f"--{field}.kind", choose)
    if not chosen:
        return rest, experiment
    kind = chosen[-1]
    if kind not in known:
        raise ConfigError(f"--{field}.kind {kind}: there is no such kind. Choose from {', '.join(known)}.")
    if type(getattr(experiment, field)) is known[kind]:
        return rest, experiment
    return rest, dataclasses.replace(experiment, **{field: known[kind]()})


def spelt_out(words: list[str], short: str, *flags: str) -> list[str]:
    """The words with a short flag written as the flags that it stands for."""
    return [flag for word in words for flag in (flags if word == short else (word,))]


def budgeted(words: list[str]) -> list[str]:
    """The words with `--budget 3` or `--budget 30s` written as the flags that it stands for."""

    def budget(value: str | None) -> list[str]:
        value = value or ""
        number, seconds = value.removesuffix("s"), value.endswith("s")
        if not number.replace(".", "", 1 if seconds else 0).isdigit():
            raise ConfigError(f"--budget {value}: write a number of utterances, `3`, or of seconds, `30s`.")
        other, this = ("utterances", "seconds") if seconds else ("seconds", "utterances")
        return [f"--hyper.{other}", "None", f"--hyper.{this}", number]

    return _written(words, "--budget", budget)


def _written(words: list[str], flag: str, write: Callable[[str | None], list[str]]) -> list[str]:
    """The words with each `flag VALUE` and `flag=VALUE` as `write` writes it; a value that is missing is None."""
    rest, coming = [], iter(words)
    for word in coming:
        name, equals, value = word.partition("=")
        rest += write(value if equals else next(coming, None)) if name == flag else [word]
    return rest
