"""Trials that are known before the first begins: a grid, or random draws."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from specialize.sweep.axes import drawn, every
from specialize.sweep.config import Sweep
from specialize.sweep.folder import SweepFolder
from specialize.sweep.outcomes import Outcome
from specialize.sweep.trials import SweepRun, grouped, make_trials


class Listed:
    """The runs of a sweep by grid or at random; each is for the process that takes it first.

    Raises:
        SpecializeError: there are not so many trials, or values contradict each other.
    """

    def __init__(self, sweep: Sweep, folder: SweepFolder):
        start = sweep.started
        if sweep.method == "grid":
            values = every(sweep.parsed, start)
        else:
            assert sweep.trials is not None
            values = drawn(sweep.parsed, start, sweep.trials, sweep.seed)
        self._runs = grouped(make_trials(values, start), folder.runs, sweep.called, sweep.select, sweep.halving)
        self.folder = folder

    def runs(self) -> list[SweepRun]:
        """All runs."""
        return self._runs

    @contextmanager
    def take(self) -> Iterator[Sequence[SweepRun]]:
        """Runs for this process to train now, which no other takes meanwhile; empty where none is left."""
        for run in self._runs:
            if run.ended or not self.folder.tries(run.id):
                continue
            claim = self.folder.claim(run.id)
            if claim is None:
                continue
            with claim:
                if not run.ended and self.folder.tries(run.id) and not self.folder.trains(run.id):
                    yield [run]
                    return
        yield []

    def tell(self, runs: Sequence[SweepRun], found: Sequence[Outcome]) -> None:
        """Nothing follows from what came of them."""
