"""The learning curve: word error rates of runs that differ in how they train and on how much, over the same people."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specialize.errors import ConfigError
from specialize.score.report import NAMES, render_curve
from specialize.score.results import write_atomically, write_results
from specialize.score.statistics import LEVEL, METHOD, bootstrap, sign_flip_p_value
from specialize.train.experiment import Experiment
from specialize.train.recorder import read_jobs
from specialize.train.run import Run
from specialize.train.runs import CURVE, open_run

SHORT = {"embedding": "space", "unfreeze": "unfreeze", "embedding-then-unfreeze": "unfrozen"}
"""Names of the ways to fit a space, as keys of the curve begin. `space` is a point of it, `unfrozen` left it there."""


@dataclass(frozen=True)
class Scored:
    """Errors of the speakers of one run."""

    name: str
    file: Path
    errors: dict[str, int]
    base_errors: dict[str, int]
    words: dict[str, int]

    @classmethod
    def read(cls, file: Path) -> "Scored":
        """Of a results.json, as `specialize evaluate` writes it.

        Raises:
            ConfigError: there is none.
        """
        try:
            speakers = json.loads(file.read_text(encoding="utf-8"))["speakers"]
        except FileNotFoundError:
            run = file.parent
            raise ConfigError(f"There is no '{file}': `specialize evaluate {run}` scores a run.") from None
        except IsADirectoryError:
            raise ConfigError(f"'{file}' is a folder. Name the results file of `specialize evaluate` in it.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"'{file}' is no results.json of `specialize evaluate`: {error!r}.") from error

        def errors(which: str) -> dict[str, int]:
            kinds = ("substitutions", "deletions", "insertions")
            return {speaker: sum(row[which][kind] for kind in kinds) for speaker, row in speakers.items()}

        words = {speaker: row["words"] for speaker, row in speakers.items()}
        return cls(str(file.parent), file, errors("counts"), errors("base_counts"), words)


def way_of(experiment: Experiment) -> str:
    """How a run makes Submodels, as keys of the curve begin."""
    if experiment.space is not None:
        return SHORT[experiment.fitted]
    return "plain" if experiment.start is None else "start"


def learning_curve(
    scores: Sequence[Path], control: Path | None = None, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Pooled WER against how much there is to train on, over the speakers that all runs have.

    Args:
        scores: folders of runs that have been scored, or files in them that `evaluate` wrote. Each is a point: its way
            follows from its experiment, and its amount is its budget of
            seconds, or the median of the utterances that its jobs trained on.
        control: results file of what they are measured against beside the base: one Submodel for all.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ConfigError: a run has not been scored, two are the same point, they cannot be compared, or no speaker is in all
            of them.
    """
    if not scores:
        raise ConfigError("Name at least one run.")
    points: dict[str, dict[float, Scored]] = defaultdict(dict)
    units: dict[str, str] = {}
    bases: dict[str, str] = {}
    for path in scores:
        folder, file = (path.parent, path) if path.is_file() else (path, path / "results.json")
        run = open_run(folder)
        if not isinstance(run, Run):
            raise ConfigError(f"'{folder}' is no run of Submodels of which each was trained by itself.")
        way, (amount, unit) = way_of(run.experiment), _amount(run)
        if amount in points[way]:
            raise ConfigError(
                f"'{points[way][amount].name}' and '{folder}' are both {NAMES[way]} after {amount:g} {unit}. "
                "Leave one out."
            )
        units[unit], bases[run.base] = str(folder), str(folder)
        points[way][amount] = Scored.read(file)
    every = [scored for of in points.values() for scored in of.values()]
    pooled = None if control is None else Scored.read(control)
    every += [] if pooled is None else [pooled]
    for of, what in ((units, "budgets of the same unit"), (bases, "runs of one base")):
        if len(of) > 1:
            raise ConfigError(f"A curve is of {what}, but {' and '.join(of.values())} differ: {', '.join(of)}.")
    (unit,) = units
    names = sorted(set.intersection(*(set(scored.words) for scored in every)))
    if not names:
        raise ConfigError("No speaker is in all of the runs.")
    for scored in every:
        if odd := [name for name in names if scored.words[name] != every[0].words[name]]:
            raise ConfigError(
                f"'{scored.name}' and '{every[0].name}' scored other texts of '{odd[0]}'. Score both on one manifest."
            )
        if odd := [name for name in names if scored.base_errors[name] != every[0].base_errors[name]]:
            raise ConfigError(
                f"The base was scored in another way in '{scored.file}' than in '{every[0].file}' (of '{odd[0]}'). "
                "Score all with the same --base-context, --beam and --language."
            )
    words = np.array([every[0].words[name] for name in names])

    def counts(errors: dict[str, int]) -> np.ndarray:
        return np.array([errors[name] for name in names])

    base = counts(every[0].base_errors)
    of_control = None if pooled is None else counts(pooled.errors)

    def figures(errors: np.ndarray) -> dict[str, Any]:
        against_base = bootstrap(base, errors, words, resamples=resamples, seed=seed)
        found: dict[str, Any] = {
            "wer": float(errors.sum() / words.sum()),
            "wer_interval": against_base.rate,
            "relative_reduction": _reduction(base, errors),
            "relative_reduction_interval": against_base.relative_reduction,
        }
        if of_control is not None:
            against = bootstrap(of_control, errors, words, resamples=resamples, seed=seed)
            found["reduction_against_control"] = _reduction(of_control, errors)
            found["reduction_against_control_interval"] = against.relative_reduction
            found["p_against_control"] = sign_flip_p_value(of_control - errors, resamples=resamples, seed=seed)
        return found

    curves = {
        way: [{unit: n, "run": of[n].name} | figures(counts(of[n].errors)) for n in sorted(of)]
        for way, of in points.items()
    }
    keys = {f"{way}_at_{point[unit]:g}": point["wer"] for way, of in curves.items() for point in of}
    return {
        "unit": unit,
        "speakers": len(names),
        "words": int(words.sum()),
        "base": float(base.sum() / words.sum()),
        "pooled_control": None if of_control is None else float(of_control.sum() / words.sum()),
        **keys,
        "control": None if of_control is None else figures(of_control) | {"results": str(control)},
        "curves": curves,
        "level": LEVEL,
        "interval_method": METHOD,
    }


def write_curve(curve: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes `learning_curve.json` and `learning_curve.html`; returns their paths."""
    figures, page = folder / CURVE, folder / "learning_curve.html"
    write_results(curve, figures)
    write_atomically(page, render_curve(curve))
    return figures, page


def _amount(run: Run) -> tuple[float, str]:
    """What each speaker had to train on, and its unit."""
    if run.experiment.hyper.seconds is not None:
        return run.experiment.hyper.seconds, "seconds"
    jobs = list(read_jobs(run))
    if not jobs or any("utterances" not in job for job in jobs):
        raise ConfigError(f"'{run.folder}' does not say on how many utterances it trained. Train it anew.")
    return round(statistics.median(job["utterances"] for job in jobs)), "utterances"


def _reduction(before: np.ndarray, after: np.ndarray) -> float | None:
    """Of errors, relative; None where there was none before."""
    return float(1 - after.sum() / before.sum()) if before.sum() else None
