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
from specialize.score.report import render_curve
from specialize.score.results import write_atomically, write_results
from specialize.score.statistics import LEVEL, METHOD, bootstrap, sign_flip_p_value
from specialize.train.experiment import Experiment
from specialize.train.recorder import read_jobs
from specialize.train.run import Run

SHORT = {"embedding": "embedding", "unfreeze": "unfreeze", "embedding-then-unfreeze": "space"}
"""Names of the ways to fit a space, as keys of the curve begin."""
NAMES = {
    "plain": "a Submodel from no effect",
    "start": "a Submodel from the pooled start",
    "embedding": "the embedding alone",
    "unfreeze": "a Submodel from the middle of the space",
    "space": "embedding, then the Submodel",
}


@dataclass(frozen=True)
class Scored:
    """Errors of the speakers of one run."""

    name: str
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
            raise ConfigError(f"'{run}' has not been scored: `specialize evaluate {run}` does it.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"'{file}' is no results.json of `specialize evaluate`: {error!r}.") from error

        def errors(which: str) -> dict[str, int]:
            kinds = ("substitutions", "deletions", "insertions")
            return {speaker: sum(row[which][kind] for kind in kinds) for speaker, row in speakers.items()}

        words = {speaker: row["words"] for speaker, row in speakers.items()}
        return cls(str(file.parent), errors("counts"), errors("base_counts"), words)


def way_of(experiment: Experiment) -> str:
    """How a run makes Submodels, as keys of the curve begin."""
    if experiment.space is not None:
        return SHORT[experiment.fit]
    return "plain" if experiment.start is None else "start"


def learning_curve(
    scores: Sequence[Path], control: Path | None = None, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Pooled WER against how much there is to train on, over the speakers that all runs have.

    Args:
        scores: folders of runs that have been scored, or files in them that `evaluate` wrote. Each is a point: its way
            follows from its experiment, and its amount is the median of the utterances that its jobs trained on.
        control: results.json of what they are measured against beside the base: one Submodel for all.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ConfigError: a run has not been scored, two are the same point, or no speaker is in all of them.
    """
    points: dict[str, dict[int, Scored]] = defaultdict(dict)
    for path in scores:
        folder, file = (path.parent, path) if path.is_file() else (path, path / "results.json")
        run = Run(folder)
        way, amount = way_of(run.experiment), _utterances(run)
        if amount in points[way]:
            raise ConfigError(
                f"'{points[way][amount].name}' and '{folder}' are both {NAMES[way]} after {amount} utterances. "
                "Leave one out."
            )
        points[way][amount] = Scored.read(file)
    every = [scored for of in points.values() for scored in of.values()]
    pooled = None if control is None else Scored.read(control)
    every += [] if pooled is None else [pooled]
    if not every:
        raise ConfigError("Name at least one run.")
    names = sorted(set.intersection(*(set(scored.words) for scored in every)))
    if not names:
        raise ConfigError("No speaker is in all of the runs.")
    for scored in every:
        if odd := [name for name in names if scored.words[name] != every[0].words[name]]:
            raise ConfigError(
                f"'{scored.name}' and '{every[0].name}' scored other texts of '{odd[0]}'. Score both on one manifest."
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
            "relative_reduction": float(1 - errors.sum() / base.sum()),
            "relative_reduction_interval": against_base.relative_reduction,
        }
        if of_control is not None:
            against = bootstrap(of_control, errors, words, resamples=resamples, seed=seed)
            found["reduction_against_control"] = float(1 - errors.sum() / of_control.sum())
            found["reduction_against_control_interval"] = against.relative_reduction
            found["p_against_control"] = sign_flip_p_value(of_control - errors, resamples=resamples, seed=seed)
        return found

    curves = {
        way: [{"utterances": n, "run": of[n].name} | figures(counts(of[n].errors)) for n in sorted(of)]
        for way, of in points.items()
    }
    keys = {f"{way}_at_{point['utterances']}": point["wer"] for way, of in curves.items() for point in of}
    return {
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
    figures, page = folder / "learning_curve.json", folder / "learning_curve.html"
    write_results(curve, figures)
    write_atomically(page, render_curve(curve, NAMES))
    return figures, page


def _utterances(run: Run) -> int:
    jobs = list(read_jobs(run))
    if not jobs or any("utterances" not in job for job in jobs):
        raise ConfigError(f"'{run.folder}' does not say on how many utterances it trained. Train it anew.")
    return round(statistics.median(job["utterances"] for job in jobs))
