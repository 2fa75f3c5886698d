"""What came of trials, and which is best."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from specialize.errors import ConfigError
from specialize.sweep.trials import SweepRun, Trial, settings
from specialize.train import Experiment, Run
from specialize.train.jobs import joint_axis
from specialize.train.recorder import Choice, read_jobs
from specialize.train.schedule import HALVED


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    trial: Trial
    run: str
    losses: dict[str, float]
    """Best dev loss per token of each speaker whose job was not quarantined."""
    quarantined: int
    """Speakers whose job was."""
    halved: int
    """Speakers for whom it was ended early by halving."""
    looks: dict[int, float]
    """{step: mean over speakers of the best dev loss until then}, of steps that all of them came to."""

    @property
    def mean(self) -> float | None:
        """Mean dev loss over its speakers; None without any."""
        return fmean(self.losses.values()) if self.losses else None


@dataclass(frozen=True)
class Best:
    """What a sweep chose."""

    trials: tuple[int, ...]
    """One for all, or those that are the best of some speaker."""
    mean: float
    """Mean over speakers of the dev loss with what was chosen."""
    chosen: dict[str, int]
    """{speaker: trial}."""
    experiment: Experiment
    """That makes it again, with the name and folder that the sweep began with."""


def outcomes(runs: Sequence[SweepRun]) -> list[Outcome]:
    """What came of the trials of those runs that have ended.

    Raises:
        ConfigError: runs of the same base or corpus found other files there.
    """
    found, seen = [], {}
    for of in runs:
        if of.ended:
            run = Run(of.folder)
            _check_same_files(run, seen)
            jobs: dict[int, list[dict[str, Any]]] = {}
            for job in read_jobs(run):
                jobs.setdefault(job["point"], []).append(job)
            found += [_outcome(trial, of.id, jobs.get(point, [])) for point, trial in enumerate(of.trials)]
    return found


def complete(found: Sequence[Outcome]) -> list[Outcome]:
    """Those that finished as many speakers as any: what one lost to quarantine must not make it win."""
    most = max((len(of.losses) for of in found), default=0)
    return [of for of in found if len(of.losses) == most > 0]


def choose(found: Sequence[Outcome], select: Literal["pooled", "speaker"]) -> Best | None:
    """The best of some outcomes; None where no job came to anything.

    Args:
        found: to choose from.
        select: one trial for all speakers, or of one set of settings the best trial of each speaker.
    """
    if not complete(found):
        return None
    if select == "pooled":
        choice = Choice(pooled=True)
        for of in found:
            for speaker, loss in of.losses.items():
                choice.offer(speaker, of.trial.number, loss)
        chosen = choice.chosen()
        best = next(of for of in found if of.trial.number in chosen.values())
        assert best.mean is not None
        return Best((best.trial.number,), best.mean, chosen, best.trial.experiment)
    groups: dict[Experiment, list[Outcome]] = {}
    for of in found:
        groups.setdefault(settings(of.trial.experiment), []).append(of)
    return min(map(_each_their_own, groups.values()), key=lambda best: (-len(best.chosen), best.mean, best.trials))


def _each_their_own(group: list[Outcome]) -> Best:
    choice = Choice(pooled=False)
    for of in sorted(group, key=lambda of: of.trial.number):
        for speaker, loss in of.losses.items():
            choice.offer(speaker, of.trial.number, loss)
    chosen, by_number = choice.chosen(), {of.trial.number: of for of in group}
    used = sorted(set(chosen.values()))
    experiments = [by_number[number].trial.experiment for number in used] or [group[0].trial.experiment]
    grid = (joint_axis([experiment.hyper for experiment in experiments]),) if len(used) > 1 else ()
    # What halving would end early is not among those that are left.
    stop = dataclasses.replace(experiments[0].stop, halving=0)
    experiment = dataclasses.replace(experiments[0], grid=grid, select="speaker", stop=stop)
    losses = [by_number[number].losses[speaker] for speaker, number in chosen.items()]
    return Best(tuple(used), fmean(losses) if losses else math.inf, chosen, experiment)


def _outcome(trial: Trial, run: str, jobs: list[dict[str, Any]]) -> Outcome:
    good = [job for job in jobs if job["quarantined"] is None and job["dev_loss"] is not None]
    curves = []
    for job in good:
        best, curve = math.inf, {}
        for step, loss in job["looks"]:
            best = min(best, math.inf if loss is None else loss)
            curve[step] = best
        curves.append(curve)
    common = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    means = {step: fmean(curve[step] for curve in curves) for step in common}
    return Outcome(
        trial,
        run,
        losses={job["speaker"]: job["dev_loss"] for job in good},
        quarantined=len(jobs) - len(good),
        halved=sum((job["ended"] or "").startswith(HALVED) for job in good),
        looks={step: mean for step, mean in means.items() if math.isfinite(mean)},
    )


def _check_same_files(run: Run, seen: dict[Any, str]) -> None:
    for what in ("base", "corpus"):
        asked = (what, run.experiment.base, getattr(run.experiment, what))
        if seen.setdefault(asked, run.config[what]) != run.config[what]:
            raise ConfigError(
                f"The {what} of '{run.folder}' is not that of the runs before, so their dev losses cannot be compared: "
                "its files have changed since. Begin the sweep anew with --overwrite."
            )
