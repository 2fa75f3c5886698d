"""`specialize sweep`: what is typed, and what is printed."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from specialize.errors import ConfigError, SpecializeError
from specialize.files import exposed, run_file
from specialize.printable import printable
from specialize.sweep.axes import full_name, told
from specialize.sweep.config import Sweep
from specialize.sweep.report import failures, headline, incomparable, terminal_table
from specialize.sweep.sweeping import experiment_file, open_sweep, run_sweep
from specialize.train import Experiment

Positional = tyro.conf.Positional
_SHOWN = 12
"""At most so many trials of a run are listed before it begins."""


def sweep(words: list[str]) -> None:
    """Runs `specialize sweep` with these words.

    Raises:
        SpecializeError: the sweep cannot be made.
        Preempted: SIGTERM came; the same command goes on.
    """
    helps = bool({"-h", "--help"} & set(words))
    if not helps and (not words or words[0].startswith("-")):
        print(
            "usage: specialize sweep FILE.py FIELD=VALUE,VALUE … [--flag value …]\n\nThe file exposes `experiment`, a "
            "specialize.Experiment, or `sweep`, a specialize.Sweep; `specialize sweep --help` explains the rest.",
            file=sys.stderr,
        )
        sys.exit(2)
    file = Path("FILE.py") if not words or words[0].startswith("-") else Path(words[0])
    default = Sweep(file) if helps and not file.is_file() else read_sweep(file)

    @dataclass(frozen=True)
    class Command:
        file: Annotated[Positional[Path], tyro.conf.arg(metavar="FILE.py")]
        """Python file that exposes `experiment`, an Experiment, or `sweep`, a Sweep."""
        space: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUES")] = ()
        """What varies: any field of the experiment, dotted, with values, `lr=1e-4,1e-3 cohort.batch=2,4
        submodel.kind=lora,bias-only`; with --method random or tpe also ranges, `hyper.dropout=0..0.3`, or of
        logarithms, `lr=log:1e-4..1e-2`. A field of `hyper` may go without its first part. A single value is the same
        for all. An axis takes the place of the file's of the same field."""
        sweep: Annotated[Sweep, tyro.conf.arg(name="")] = default
        dry_run: bool = False
        """Print the runs, which trials each makes, and the command of each, which `specialize launch` takes too; write
        their experiment files, and train nothing. The sweep goes on with what came of the runs, wherever they were
        made: type the same sweep again, without --dry-run, when they have ended. With tpe these are the runs of
        the next batch."""
        overwrite: bool = False
        """Replace the sweep of this name, if there is one."""

    command = tyro.cli(
        Command,
        args=words,
        prog="specialize sweep",
        description=(
            "Train an experiment with many values of its fields. Those that differ only in `hyper` share one program "
            "and train at the same time; each other combination is a run of its own. What is interrupted goes on with "
            "the same command, and several processes may share a sweep."
        ),
    )
    if command.dry_run and command.overwrite:
        raise ConfigError(
            "--dry-run trains nothing, and --overwrite would delete the sweep that is there. Give one of them."
        )
    asked = dataclasses.replace(command.sweep, axes=_merged(default.axes, command.space))
    if warning := incomparable(asked):
        print(f"specialize sweep: {printable(warning)}", file=sys.stderr)
    if command.dry_run:
        _print_plan(asked)
        return
    swept = run_sweep(asked, overwrite=command.overwrite)
    console = Console()
    console.print(terminal_table(asked, swept.outcomes, swept.best, swept.failed))
    print(printable(headline(asked, swept.outcomes, swept.best)))
    print(f"{swept.folder / 'sweep.html'}\n{swept.folder / 'trials.csv'}")
    if swept.left:
        print(
            f"{len(swept.left)} runs are other processes'; the last to end writes all, and the same command does "
            "once they have ended."
        )
    if swept.best is not None:
        print(f"next: specialize train {shlex.quote(str(swept.folder / 'best.py'))}")
    if swept.failed:
        raise SpecializeError(failures(swept.failed, len(swept.runs)))


def read_sweep(file: Path) -> Sweep:
    """The sweep that a file exposes; of a file with an experiment, one without axes.

    Raises:
        ConfigError: the file exposes neither.
    """
    module = run_file(file)
    if hasattr(module, "sweep"):
        return exposed(file, module, "sweep", Sweep)
    if not hasattr(module, "experiment"):
        raise ConfigError(
            f"'{file}' must expose `experiment`, a specialize.Experiment, or `sweep`, a specialize.Sweep."
        )
    return Sweep(exposed(file, module, "experiment", Experiment))


def _merged(of_file: tuple[str, ...], typed: tuple[str, ...]) -> tuple[str, ...]:
    named = {full_name(axis) for axis in typed}
    return (*(axis for axis in of_file if full_name(axis) not in named), *typed)


def _print_plan(asked: Sweep) -> None:
    source = open_sweep(asked)
    if asked.method == "tpe":
        with source.take():  # suggests the next batch, where there is one
            pass
    runs, failed = source.runs(), source.folder.failures()
    trials = sum(len(run.trials) for run in runs)
    print(f"{_count(trials, 'trial')} in {_count(len(runs), 'run')}, {sum(run.ended for run in runs)} of them ended")
    for run in runs:
        state = ", ended" if run.ended else f", failed: {failed[run.id]}" if run.id in failed else ""
        print(printable(f"run {run.id}: {_count(len(run.trials), 'trial')}{state}"))
        for trial in run.trials[:_SHOWN]:
            print(printable(f"  {trial.number}: {told(trial.values)}"))
        if len(run.trials) > _SHOWN:
            print(f"  … and {len(run.trials) - _SHOWN} more")
        print(f"  specialize train {shlex.quote(str(experiment_file(run, asked)))}")
    print("Runs may be launched elsewhere. Type the same sweep again when they have ended: it collects them.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
