"""Words of `specialize launch`: flags of the launcher, then the experiment file, then what the command in it gets."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_type_hints

import tyro

from specialize.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Flags of every launcher of runs."""

    command: Literal["train", "pretrain"] = "train"
    """Of specialize, which the experiment is for."""


Flags = TypeVar("Flags")
Options = TypeVar("Options", bound=Launcher)


@dataclass(frozen=True)
class Launch(Generic[Options]):
    """What is to be launched, and how."""

    options: Options
    """The launcher's own flags."""
    experiment: str
    """The experiment file, as it was typed: it may be a path of another machine."""
    rest: tuple[str, ...]
    """Words for the command after the file, unchanged."""

    def words(self, runs: str | None = None) -> list[str]:
        """What every process runs, after the word `specialize`.

        Args:
            runs: folder of runs that the launcher was given, if it was.

        Raises:
            ConfigError: the command is given another, or it is no path.
        """
        if runs is not None and "://" in runs:
            raise ConfigError(
                f"--runs {runs}: runs need a folder that can be locked and renamed in. Mount the bucket or a share "
                "(--mount, where the launcher has it), and give the path of a folder under it."
            )
        if runs is None:
            return [self.options.command, self.experiment, *self.rest]
        if value_of(self.rest, "--runs") is not None:
            raise ConfigError("--runs is given before and after the experiment file. Keep one.")
        return [self.options.command, self.experiment, "--runs", runs, *self.rest]

    @property
    def run_name(self) -> str:
        """What the run is called, as far as words tell: `--name` after the file, or else the file."""
        return value_of(self.rest, "--name") or self.experiment.rpartition("/")[2].removesuffix(".py")


def parse(kind: type[Options], words: list[str], prog: str, *, again: bool = True) -> Launch[Options]:
    """Reads the words of a launcher.

    Args:
        kind: dataclass of the launcher's flags.
        words: of the command line, after the launcher's name.
        prog: how the launcher is called, for usage and messages.
        again: whether the same words, given once more by whoever, go on with a run that was interrupted.

    Raises:
        ConfigError: no experiment file follows the flags, or the run would begin anew each time.
    """
    flags, after = split(kind, words)
    options = parse_flags(kind, flags, prog, "EXPERIMENT.py and flags of --command come after these flags.")
    if not after:
        raise ConfigError(f"Name the experiment file after the flags: {prog} … experiments/FILE.py [--field value …].")
    if not after[0].endswith(".py"):
        raise ConfigError(
            f"'{after[0]}' stands where the experiment file is expected, a FILE.py: {prog} [flags] FILE.py [flags of "
            "--command]."
        )
    if again and value_of(tuple(after), "--overwrite", alone=True) is not None:
        raise ConfigError(
            "--overwrite would delete what the run has done each time that it is started again. Delete the folder of "
            "the run that is there yourself, or give this one another --name."
        )
    return Launch(options, after[0], tuple(after[1:]))


def parse_flags(kind: type[Flags], words: list[str], prog: str, more: str = "") -> Flags:
    """Reads flags alone; wrong ones end the process with code 2, as everywhere.

    Args:
        kind: dataclass of the flags.
        words: the flags.
        prog: how the command is called.
        more: to say in its help after what the dataclass says.
    """
    described = f"{inspect.getdoc(kind) or ''}\n\n{more}".strip()
    # A flag of several values is given several times, so that each flag has one word after it.
    return tyro.cli(kind, args=words, prog=prog, description=described, config=(tyro.conf.UseAppendAction,))


def split(kind: type, words: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's flags, and the words from the first that is neither a flag nor the value of one.

    A flag that the launcher has not is left to be complained of, with all that follows.
    """
    single = _without_value(kind)
    at = 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, _ = words[at].partition("=")
        name = name.replace("_", "-")
        if name not in single:
            return words, []
        at += 1 if equals or single[name] else 2
    return words[:at], words[at:]


def value_of(words: tuple[str, ...], flag: str, *, alone: bool = False) -> str | None:
    """The last value of a flag among words of the command, None where it is not; "" of a flag that stands alone."""
    found = None
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else "" if alone else next(iter(words[at + 1 : at + 2]), None)
    return found


def _without_value(kind: type) -> dict[str, bool]:
    """Flags of a dataclass, and whether each stands alone."""
    known = {"-h": True, "--help": True}
    hints = get_type_hints(kind)
    assert dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind):
        flag, hint = field.name.replace("_", "-"), hints[field.name]
        known[f"--{flag}"] = hint is bool
        if hint is bool:
            known[f"--no-{flag}"] = True
    return known
