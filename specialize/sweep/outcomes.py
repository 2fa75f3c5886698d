"""What came of trials, and which is best."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeVar

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

    @property
    def people(self) -> int:
        """Speakers of its corpus."""
        return len(self.losses) + self.quarantined

    @property
    def whole(self) -> bool:
        """Whether it has finished all speakers of its corpus."""
        return bool(self.losses) and not self.quarantined


@dataclass(frozen=True)
class Failure:
    """A run that could not be made."""

    run: SweepRun
    reason: str


@dataclass(frozen=True)
class Best:
    """What a sweep chose."""

    trials: tuple[int, ...]
    """One for all, or those that are the best of some speaker."""
    mean: float
    """Mean dev loss with what was chosen, over the speakers that were compared."""
    compared: int
    """How many these are: all, or those whom all that might have been chosen have in common; 0 where these have nobody
    in common, and each was judged by its own speakers."""
    chosen: dict[str, int]
    """{speaker: trial}."""
    experiment: Experiment
    """That trains what was chosen, with the name and folder that the sweep began with. It has no halving: of several
    trials, those that were ended early for some speaker are trained to their end, and may then be that speaker's."""


def outcomes(runs: Sequence[SweepRun]) -> list[Outcome]:
    """What came of the trials of those runs that have ended.

    Raises:
        ConfigError: runs of the same base, corpus, start or space found other files there.
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


def comparable(found: Sequence[Outcome]) -> tuple[list[Outcome], set[str]]:
    """Which trials may be the best, and over which speakers they are compared.

    What a trial lost to quarantine must not make it win. So these are the trials that have lost the fewest of their own
    corpus's speakers, and they are compared on the speakers whom all of them have finished; where corpora have nobody
    in common, which has a warning of its own, each over its own. Where none is whole and they have nobody in common,
    there are none.
    """
    within = _fewest_lost([(of, set(of.losses), of.quarantined) for of in found])
    return [of for of, _ in within], _in_common([people for _, people in within])


def choose(found: Sequence[Outcome], select: Literal["pooled", "speaker"]) -> Best | None:
    """The best of some outcomes; None where no job came to anything.

    Args:
        found: to choose from.
        select: one trial for all speakers, or of one set of settings the best trial of each speaker.
    """
    if select == "pooled":
        trials, people = comparable(found)
        if not trials:
            return None
        best = min(trials, key=lambda of: (mean_over(of.losses, people), of.trial.number))
        chosen, number = dict.fromkeys(best.losses, best.trial.number), best.trial.number
        return Best((number,), mean_over(best.losses, people), len(people), chosen, best.trial.experiment)
    groups: dict[Experiment, list[Outcome]] = {}
    for of in found:
        if of.losses:
            groups.setdefault(settings(of.trial.experiment), []).append(of)
    own = [(group, _each_their_own(group)) for group in groups.values()]
    each = [((group, o), set(o), max(of.people for of in group) - len(o)) for group, o in own]
    within = _fewest_lost(each)
    people = _in_common([of for _, of in within])
    bests = [_best(group, numbers, people) for (group, numbers), _ in within]
    return min(bests, key=lambda best: (best.mean, best.trials), default=None)


def mean_over(losses: Mapping[str, float], people: Collection[str]) -> float:
    """Mean of the losses of these people; of all where none is named."""
    return fmean(losses[speaker] for speaker in people or losses)


T = TypeVar("T")


def _fewest_lost(each: Sequence[tuple[T, set[str], int]]) -> list[tuple[T, set[str]]]:
    """(what, speakers) of (what, speakers, how many of its corpus it lost) that have lost the fewest, and can be
    compared.
    """
    least = min((lost for _, people, lost in each if people), default=0)
    within = [(of, people) for of, people, lost in each if people and lost == least]
    return within if least == 0 or _in_common([people for _, people in within]) else []


def _in_common(people: Sequence[set[str]]) -> set[str]:
    return set.intersection(*people) if people else set()


def _each_their_own(group: list[Outcome]) -> dict[str, int]:
    """{speaker: number of their best trial}, of trials that differ in `hyper` alone."""
    choice = Choice(pooled=False)
    for of in sorted(group, key=lambda of: of.trial.number):
        for speaker, loss in of.losses.items():
            choice.offer(speaker, of.trial.number, loss)
    return choice.chosen()


def _best(group: list[Outcome], chosen: dict[str, int], people: set[str]) -> Best:
    """To each speaker their own, as the best of a sweep."""
    by_number = {of.trial.number: of for of in group}
    used = sorted(set(chosen.values()))
    experiments = [by_number[number].trial.experiment for number in used]
    grid = (joint_axis([experiment.hyper for experiment in experiments]),) if len(used) > 1 else ()
    # With a grid of other points halving would end others, also what was chosen.
    stop = dataclasses.replace(experiments[0].stop, halving=0)
    experiment = dataclasses.replace(experiments[0], grid=grid, select="speaker", stop=stop)
    losses = {speaker: by_number[number].losses[speaker] for speaker, number in chosen.items()}
    return Best(tuple(used), mean_over(losses, people), len(people), chosen, experiment)


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


def _check_same_files(run: Run, seen: dict[Any, Any]) -> None:
    for what in ("base", "corpus", "start", "space"):
        asked, fingerprint = (what, run.experiment.base, getattr(run.experiment, what)), run.config.get(what)
        if seen.setdefault(asked, fingerprint) != fingerprint:
            raise ConfigError(
                f"The {what} of '{run.folder}' is not that of the runs before, so their dev losses cannot be compared: "
                "its files have changed since. Begin the sweep anew with --overwrite."
            )
