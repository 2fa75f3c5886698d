"""Trials that a model of those before suggests: TPE, by Optuna."""

import contextlib
import hashlib
import json
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specialize.errors import ConfigError, SpecializeError
from specialize.sweep.axes import Axis, Values, changed, kind_of
from specialize.sweep.config import Sweep
from specialize.sweep.folder import SweepFolder
from specialize.sweep.outcomes import Outcome
from specialize.sweep.trials import SweepRun, Trial, grouped
from specialize.train.run import HARMLESS

try:
    import optuna
except ImportError:
    optuna = None

_BATCH = "batch"
"""Attribute of a trial: [how many trials were suggested before its batch, how many the batch is to have]."""
_AGAIN = "again"
"""Attribute of a trial of the study that is none of the sweep: the number of the one whose result it has. What was told
as failed can be told no more, and the model is to learn from it all the same when its run has been tried again."""
_IN_VAIN = 3
"""So many batches that failed before anything has come of the sweep, and a sitting suggests no more: most likely they
have one reason, and what is suggested without any result is no better than random."""
_OWNER = "specialize_sweep"
"""Attribute of a study: {"id": of the sweep it belongs to, "asked": digest of what that was asked}."""


class Suggested:
    """A study of Optuna, whose trials are suggested, trained and told in batches.

    Each batch belongs to a process while it lives, and to the next that comes when it has died. What is suggested
    depends on the seed, the number of the trial and what the study knows, so that a sweep by one process that is killed
    anywhere goes on as if it had not been.

    Raises:
        ConfigError: there is no Optuna, its storage cannot be used, or it has another study of this name.
    """

    def __init__(self, sweep: Sweep, folder: SweepFolder, *, overwrite: bool = False):
        if optuna is None:
            raise ConfigError("--method tpe needs Optuna: pip install 'specialize[sweep]'. Random and grid do not.")
        self._sweep, self.folder = sweep, folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = sweep.storage or f"sqlite:///{folder.folder / 'optuna.db'}"
        shown = sweep.shown_storage or url
        self._in_vain = 0
        try:
            with folder.alone():
                if overwrite:
                    with contextlib.suppress(KeyError):
                        optuna.delete_study(study_name=sweep.called, storage=url)
                self._study = optuna.create_study(study_name=sweep.called, storage=url, load_if_exists=True)
                self._own(shown)
        except SpecializeError:  # SIGTERM among them
            raise
        except Exception as error:  # of a driver that is not ours: whatever it raises
            raise ConfigError(
                f"The storage '{shown}' cannot be used: {type(error).__name__}. Look at its address and its database's "
                "driver, or leave out --storage."
            ) from error

    def _own(self, storage: str) -> None:
        """Says in the study whose it is.

        Raises:
            ConfigError: it is another's.
        """
        mine = {"id": self.folder.id, "asked": _digest(self._sweep)}
        owner = self._study.user_attrs.get(_OWNER)
        if owner is None and not self._trials():  # new, or killed before it was told
            self._study.set_user_attr(_OWNER, mine)
        elif owner != mine:
            raise ConfigError(
                f"The storage '{storage}' has a study '{self._sweep.called}' already, which is of another sweep. Give "
                "this one another --name, or replace that study, and all its trials, with --overwrite."
            )

    def runs(self) -> list[SweepRun]:
        """The runs of all trials that have been suggested."""
        batches: dict[int, list[Trial]] = {}
        for trial in self._trials():
            batch = trial.user_attrs.get(_BATCH)
            if batch is not None and (values := self._values(trial)) is not None:
                of = Trial(trial.number, values, changed(self._sweep.started, values))
                batches.setdefault(batch[0], []).append(of)
        return [run for first in sorted(batches) for run in self._grouped(batches[first])]

    @contextmanager
    def take(self) -> Iterator[Sequence[SweepRun]]:
        """Runs of a batch for this process to train now: one that nobody is at, or a new one; empty after the last."""
        with contextlib.ExitStack() as held:
            with self.folder.alone():
                first = self._claim(held)
                trials = [] if first is None else self._suggest(first)
            yield self._grouped(trials)

    def tell(self, runs: Sequence[SweepRun], found: Sequence[Outcome]) -> None:
        """Tells the study what came of runs.

        A trial that lost speakers to quarantine, or was ended early by halving, is told as pruned: the model ranks such
        trials below the others, by how far they came. The trials of a run that failed are told as failed, of which
        nothing is learned until it is tried again.

        Args:
            runs: of the batch.
            found: outcomes of all trials so far.
        """
        assert optuna is not None
        numbers = {trial.number for run in runs for trial in run.trials}
        failures = self.folder.failures()
        trials, states = self._trials(), optuna.trial.TrialState
        waiting = {trial.number: trial for trial in trials if not trial.state.is_finished()}
        told = {trial.user_attrs.get(_AGAIN) for trial in trials}
        for of in found:
            number = of.trial.number
            if number not in numbers or number not in waiting:
                if number in numbers and trials[number].state == states.FAIL and number not in told:
                    self._tell_again(trials[number], of)
                continue
            if of.whole and not of.halved:
                self._study.tell(number, of.mean)
                continue
            for step, mean in of.looks.items() if of.whole else ():
                if step not in waiting[number].intermediate_values:  # a sitting that was killed may have told it
                    self._live(waiting[number]).report(mean, step)
            self._study.tell(number, state=states.PRUNED)
        for run in runs:
            for trial in run.trials if run.id in failures and not run.ended else ():
                if trial.number in waiting:
                    self._study.tell(trial.number, state=states.FAIL)
        if not found and numbers & set(waiting):
            self._in_vain += 1
            if self._in_vain == _IN_VAIN:
                said = f"{_IN_VAIN} batches have failed, and nothing has come of any: no more are suggested for now"
                print(said, file=sys.stderr, flush=True)

    def _tell_again(self, failed: Any, of: Outcome) -> None:
        """Tells what came of a trial that had failed when it was first tried."""
        assert optuna is not None
        complete = of.whole and not of.halved
        state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=of.mean if complete else None,
                params=failed.params,
                distributions=failed.distributions,
                user_attrs={_AGAIN: failed.number},
                intermediate_values=of.looks if of.whole and not complete else None,
            )
        )

    def _claim(self, held: contextlib.ExitStack) -> int | None:
        """The batch that this process is to do, as its trials name it; None where nothing is left."""
        trials = self._trials()
        begun = dict.fromkeys(
            t.user_attrs[_BATCH][0] for t in trials if _BATCH in t.user_attrs and not t.state.is_finished()
        )
        # A kill while suggesting may have left a trial that belongs to no batch yet.
        known = sum(_BATCH in trial.user_attrs for trial in trials)
        assert self._sweep.trials is not None
        failures = self.folder.failures()
        again = dict.fromkeys(
            trials[run.trials[0].number].user_attrs[_BATCH][0]
            for run in self.runs()
            if run.id in failures and not run.ended and self.folder.tries(run.id)
        )
        new = [known] if known < self._sweep.trials and self._in_vain < _IN_VAIN else []
        for first in dict.fromkeys([*begun, *again, *new]):
            claim = self.folder.claim(f"batch-{first:04d}")
            if claim is not None:
                if any(self._elsewhere(run) for run in self._batch(first)):
                    claim.close()
                    continue
                held.enter_context(claim)
                return first
        return None

    def _batch(self, first: int) -> list[SweepRun]:
        """The runs of a batch that has been suggested."""
        trials = self._trials()
        return [run for run in self.runs() if trials[run.trials[0].number].user_attrs[_BATCH][0] == first]

    def _elsewhere(self, run: SweepRun) -> bool:
        """Whether a run is left to another process, which is training it."""
        return not run.ended and (self.folder.leaves(run.id) or self.folder.trains(run.id))

    def _suggest(self, first: int) -> list[Trial]:
        """The trials of a batch; what is missing of it is suggested now."""
        assert self._sweep.trials is not None
        trials = self._trials()
        mine = [trial for trial in trials if trial.user_attrs.get(_BATCH, [None])[0] == first]
        spare = [trial for trial in trials if not {_BATCH, _AGAIN} & trial.user_attrs.keys()]
        size = min(self._sweep.together, self._sweep.trials - first)
        if mine:
            size = mine[0].user_attrs[_BATCH][1]
        while len(mine) < size:
            if spare:
                trial = spare.pop(0)
            else:
                self._seed(f"{len(self._trials())}")
                asked = self._study.ask()
                trial = self._trials()[asked.number]
            self._live(trial).set_user_attr(_BATCH, [first, size])
            mine.append(trial)
        made = []
        for trial in mine:
            if (values := self._values(trial)) is None:
                values = self._suggested(trial)
            made.append(Trial(trial.number, values, changed(self._sweep.started, values)))
        return made

    def _suggested(self, trial: Any) -> Values:
        """Suggests the values that a trial lacks."""
        live, values = self._live(trial), {}
        for axis in self._sweep.parsed:
            if axis.applies(kind_of(values, self._sweep.started)):
                self._seed(f"{trial.number}/{axis.name}")
                values[axis.name] = _suggest_value(live, axis)
        return values

    def _values(self, trial: Any) -> Values | None:
        """What a trial was suggested; None while something is missing."""
        values: Values = {}
        for axis in self._sweep.parsed:
            if not axis.applies(kind_of(values, self._sweep.started)):
                continue
            if axis.name not in trial.params:
                return None
            value = trial.params[axis.name]
            values[axis.name] = value if axis.range is not None else axis.values[axis.texts.index(value)]
        return values

    def _grouped(self, trials: Sequence[Trial]) -> list[SweepRun]:
        sweep = self._sweep
        return grouped(trials, self.folder.runs, sweep.called, sweep.select, sweep.halving)

    def _trials(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _live(self, trial: Any) -> Any:
        """A trial that can be written to. The study gives one only when it is asked."""
        assert optuna is not None
        return optuna.trial.Trial(self._study, trial._trial_id)

    def _seed(self, what: str) -> None:
        """Makes the next draw depend on the seed and on what is drawn, and not on what this process drew before."""
        assert optuna is not None
        with warnings.catch_warnings():
            # Before its version 5 this argument was called experimental. Trials of one batch do not know of each
            # other's results, and would be much the same without it.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = zlib.crc32(f"{self._sweep.seed}/{what}".encode())
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _suggest_value(live: Any, axis: Axis) -> Any:
    span = axis.range
    if span is None:
        return axis.values[axis.texts.index(live.suggest_categorical(axis.name, axis.texts))]
    if span.whole:
        return live.suggest_int(axis.name, int(span.low), int(span.high), log=span.log)
    return live.suggest_float(axis.name, span.low, span.high, log=span.log)


def _digest(sweep: Sweep) -> str:
    """Of what decides what trials there are and what comes of them, but not how many."""
    asked = sweep.asked()
    asked["experiment"] = {name: of for name, of in asked["experiment"].items() if name not in HARMLESS}
    asked["experiment"] |= {
        part: {field: value for field, value in of.items() if f"{part}.{field}" not in HARMLESS}
        for part, of in asked["experiment"].items()
        if isinstance(of, dict)
    }
    text = json.dumps({name: of for name, of in asked.items() if name != "trials"}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
