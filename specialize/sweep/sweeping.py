"""A sweep from end to end: runs one after another, then a table, a page and the best experiment."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from specialize.errors import ConfigError, Preempted, RunTaken, SpecializeError
from specialize.printable import printable
from specialize.sweep.axes import told
from specialize.sweep.config import Sweep
from specialize.sweep.folder import SweepFolder
from specialize.sweep.listed import Listed
from specialize.sweep.outcomes import Best, Failure, Outcome, choose, outcomes
from specialize.sweep.report import write_page, write_table
from specialize.sweep.source import write_experiment
from specialize.sweep.tpe import Suggested
from specialize.sweep.trials import SweepRun
from specialize.train import Experiment, train


@dataclass(frozen=True)
class Swept:
    """What a sweep has come to."""

    folder: Path
    runs: list[SweepRun]
    """All that are known."""
    outcomes: list[Outcome]
    best: Best | None
    """None while nothing has ended."""
    failed: list[Failure]
    """Runs that could not be made."""

    @property
    def left(self) -> list[SweepRun]:
        """Runs that have neither ended nor failed: other processes are at them."""
        failed = {of.run.id for of in self.failed}
        return [run for run in self.runs if not run.ended and run.id not in failed]


def run_sweep(sweep: Sweep, *, overwrite: bool = False) -> Swept:
    """Trains all trials of a sweep that no other process is at, and writes what came of all.

    A sweep of this name goes on: runs that have ended are not made again, one that was killed goes on from its last
    state, and what comes of it is the same as if nothing had been killed. A run that fails is told and ends nothing
    else; what had failed before is tried again.

    Args:
        sweep: what to try.
        overwrite: replace the sweep of this name.

    Raises:
        SpecializeError: the sweep cannot be made. Runs that cannot be are in what is returned.
        Preempted: SIGTERM came; the same command goes on.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            "A sweep is one process, and its runs may be of many: `specialize sweep … --dry-run` writes the "
            "experiment files of the runs. Launch these, and then sweep again for what came of them."
        )
    source = open_sweep(sweep, overwrite=overwrite)
    while True:
        with source.take() as runs:
            if not runs:
                break
            for run in runs:
                _train(run, sweep, source.folder)
            source.tell(runs, outcomes(source.runs()))
        write_results(sweep, source.runs(), source.folder)
    return write_results(sweep, source.runs(), source.folder)


def open_sweep(sweep: Sweep, *, overwrite: bool = False) -> Listed | Suggested:
    """Opens the folder of a sweep, or makes it; nothing is trained.

    Raises:
        SpecializeError: the sweep cannot be made, or another has its name.
    """
    assert sweep.parsed  # what is wrong with it is told before anything is written
    folder = SweepFolder(sweep.folder)
    if sweep.method == "tpe":
        folder.begin(sweep, overwrite=overwrite)
        return Suggested(sweep, folder, overwrite=overwrite)
    listed = Listed(sweep, folder)
    folder.begin(sweep, overwrite=overwrite)
    return listed


def experiment_file(run: SweepRun, sweep: Sweep) -> Path:
    """Writes the experiment file of a run, for `specialize train` and launchers; returns its path."""
    path = SweepFolder(sweep.folder).experiments / f"{run.id}.py"
    numbers = ", ".join(str(trial.number) for trial in run.trials)
    write_experiment(path, run.experiment, f"Trials {numbers} of the sweep {sweep.called}.")
    return path


def write_results(sweep: Sweep, runs: Sequence[SweepRun], folder: SweepFolder) -> Swept:
    """Writes `trials.csv`, `sweep.html` and `best.py` of the runs that have ended."""
    found, reasons = outcomes(runs), folder.failures()
    best = choose(found, sweep.select)
    failed = [Failure(run, reasons[run.id]) for run in runs if run.id in reasons and not run.ended]
    swept = Swept(sweep.folder, list(runs), found, best, failed)
    write_table(sweep.folder / "trials.csv", sweep, found, best, failed)
    write_page(sweep.folder / "sweep.html", sweep, found, best, failed, len(swept.left))
    if best is not None:
        numbers = ", ".join(map(str, best.trials))
        about = f"Best of the sweep {sweep.called}, trial {numbers}: mean dev loss {best.mean:.4f}."
        write_experiment(sweep.folder / "best.py", best_experiment(sweep, best), about)
    return swept


def best_experiment(sweep: Sweep, best: Best) -> Experiment:
    """What `best.py` exposes: what was chosen, as a run beside those of the experiment."""
    return dataclasses.replace(best.experiment, name=f"{sweep.called}-best")


def _train(run: SweepRun, sweep: Sweep, folder: SweepFolder) -> None:
    if run.ended or not folder.tries(run.id):
        return
    experiment_file(run, sweep)
    trials = f"{len(run.trials)} trial{'' if len(run.trials) == 1 else 's'}"
    print(f"run {run.id}: {trials} of the sweep {sweep.called}", file=sys.stderr, flush=True)
    try:
        train(run.experiment)
    except Preempted as error:
        raise Preempted(f"{error} So does that of the sweep.") from None
    except RunTaken:
        # `specialize train` takes a run only when it has planned it, so nobody had it when it was looked at.
        print(f"run {run.id}: left to another process, which is training it", file=sys.stderr, flush=True)
        folder.taken(run.id)
        return
    except SpecializeError as error:
        folder.failed(run.id, str(error))
        values = told(run.trials[0].values)
        print(printable(f"run {run.id}, which begins with {values}, has failed: {error}"), file=sys.stderr)
        return
    folder.ended(run.id)
