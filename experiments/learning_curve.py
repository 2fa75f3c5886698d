"""The learning curve: word error rates of new speakers against the utterances that each has to train on.

    python experiments/learning_curve.py                       # real people: speechocean762, Whisper tiny.en
    python experiments/learning_curve.py --study synthetic     # synthetic people of the package, nothing to download

Trains and scores Submodels of people whom neither space nor pooled Submodel has seen, in four ways: from no effect,
from the pooled Submodel, and as points of the space of the others, by the embedding alone and by the embedding and then
the Submodel. Every point is a run of its own in `runs/`; what has ended is not made again, and the figures are written
after each. `specialize curve` draws the same from any runs.
"""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from specialize.caches import keep_compiled_programs
from specialize.commands import load_experiment
from specialize.errors import ConfigError, SpecializeError
from specialize.score.curve import learning_curve, write_curve
from specialize.score.evaluate import Scoring, evaluate
from specialize.space import save_space
from specialize.train import (
    CohortConfig,
    Experiment,
    HyperParameters,
    Stopping,
    linear_space_of,
    open_run,
    train,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Components:
    """A space that needs no joint training: the principal components of Submodels, around their mean."""

    name: str
    of: Experiment
    """What trains the Submodels."""
    dim: int

    @property
    def folder(self) -> Path:
        """Where the space is."""
        return self.of.runs / self.name


@dataclass(frozen=True)
class Study:
    """What a learning curve is made of."""

    name: str
    space: Components
    start_of_all: Path
    """The pooled Submodel."""
    control: Path
    """Its scores."""
    pooled: Experiment | None
    """What makes it, where it is not kept."""
    plain: Experiment
    """From no effect; `start` from the pooled Submodel."""
    start: Experiment
    embedding: Experiment
    unfrozen: Experiment
    scoring: Scoring
    results: str
    """File in a run that the scoring writes."""

    def point(self, way: str, amount: int) -> Experiment:
        """A run of the curve."""
        of = {"plain": self.plain, "start": self.start, "space": self.embedding, "unfrozen": self.unfrozen}[way]
        if way == "start":
            of = dataclasses.replace(of, start=self.start_of_all)
        hyper = dataclasses.replace(of.hyper, utterances=amount)
        name = self.space.name if way in ("space", "unfrozen") else self.name
        return dataclasses.replace(of, name=f"{name}_{way}_{amount}", hyper=hyper)


def speechocean(speakers: int | None) -> Study:
    """The 125 `base` speakers are known, the `personal` ones are new."""
    start = load_experiment(HERE / "speechocean_whisper.py")
    # Eight steps beyond the start for each: what is common to all adds up in the mean, what is one person's does not.
    known = dataclasses.replace(
        start,
        name="base_people",
        corpus=dataclasses.replace(start.corpus, role="base"),
        stop=Stopping(max_steps=8, every=8, patience=1),
        cohort=dataclasses.replace(start.cohort, slots=25),
    )
    space = Components("base_people_space", known, 16)
    start = dataclasses.replace(start, corpus=dataclasses.replace(start.corpus, limit=speakers))
    in_space = dataclasses.replace(start, start=None, space=space.folder)
    assert start.start is not None
    return Study(
        "speechocean",
        space,
        start.start,
        HERE / "results/speechocean_pooled.personal.json",
        None,
        dataclasses.replace(
            start,
            start=None,
            hyper=HyperParameters(learning_rate=1e-3, warmup=4),
            stop=Stopping(max_steps=24, every=3, patience=4),
        ),
        start,
        dataclasses.replace(in_space, fit="embedding"),
        dataclasses.replace(
            in_space,
            fit="embedding-then-unfreeze",
            hyper=dataclasses.replace(start.hyper, embedding_steps=6),
            stop=dataclasses.replace(start.stop, max_steps=18),
        ),
        Scoring(base_context="full"),  # its better one, as `speechocean_whisper` shows
        "results.base-full.json",
    )


def synthetic(speakers: int | None) -> Study:
    """Seven people of each severity are known, three are new."""
    plain = load_experiment(HERE / "quickstart.py")

    def chosen(numbers: range) -> Any:
        names = tuple(f"synth-{severity}-{n:02}" for severity in ("mild", "moderate", "severe") for n in numbers)
        return dataclasses.replace(plain.corpus, speakers=names)

    known = chosen(range(1, 8))
    plain = dataclasses.replace(
        plain,
        corpus=dataclasses.replace(chosen(range(8, 11)), limit=speakers),
        cohort=CohortConfig(slots=9, batch=4, rows=4, shapes=2, chunk=0),
    )
    gentle = dataclasses.replace(plain.hyper, learning_rate=2e-3)
    pooled = dataclasses.replace(
        plain,
        name="synthetic_pooled",
        corpus=dataclasses.replace(known, pool="pooled"),
        hyper=gentle,
        stop=Stopping(max_steps=480, every=48, patience=4),
        cohort=CohortConfig(slots=1, batch=16, rows=16, shapes=2, chunk=0),
    )
    start = dataclasses.replace(plain, hyper=gentle)
    shared = pooled.folder / "submodels/pooled"
    # Joint training, from no effect or from what was pooled, finds less (results/README.md).
    each = dataclasses.replace(
        start,
        name="synthetic_people",
        corpus=known,
        start=shared,
        cohort=dataclasses.replace(start.cohort, slots=21),
    )
    space = Components("synthetic_people_space", each, 8)  # 4 and the embedding rate 0.3 are no better on dev
    in_space = dataclasses.replace(plain, space=space.folder)
    return Study(
        "synthetic",
        space,
        shared,
        pooled.folder / "results.personal.json",
        pooled,
        plain,
        start,
        dataclasses.replace(in_space, fit="embedding", hyper=gentle),
        dataclasses.replace(
            in_space,
            fit="embedding-then-unfreeze",
            hyper=dataclasses.replace(gentle, embedding_steps=36),
            stop=dataclasses.replace(plain.stop, max_steps=108),
        ),
        Scoring(),
        "results.json",
    )


@dataclass(frozen=True)
class Options:
    """Train and score what the learning curve consists of, and draw it."""

    study: Literal["speechocean", "synthetic"] = "speechocean"
    """Whose."""
    utterances: tuple[int, ...] = (3, 12, 1, 2, 4, 8)
    """Amounts, in the order in which they are made."""
    ways: tuple[Literal["space", "unfrozen", "start", "plain"], ...] = ("space", "unfrozen", "start", "plain")
    """Of making Submodels, likewise."""
    speakers: int | None = None
    """Only the first so many of the new speakers."""
    out: Path | None = None
    """Folder for learning_curve.json and learning_curve.html; None is experiments/results, or synthetic in it."""


def points(options: Options, study: Study) -> Iterator[Experiment]:
    for amount in options.utterances:
        for way in options.ways:
            yield study.point(way, amount)


def made(experiment: Experiment) -> None:
    """Trains a run, unless it is there.

    Raises:
        ConfigError: it is there, and is of another experiment.
    """
    if not (experiment.folder / "summary.json").is_file():
        train(experiment)
        return
    there = open_run(experiment.folder).experiment
    if there.space is not None:  # whose Submodels are of the space's kind
        there = dataclasses.replace(there, submodel=experiment.submodel)
    if there != experiment:
        raise ConfigError(f"'{experiment.folder}' is a run of another experiment. Delete it, and it is made anew.")


def main(options: Options) -> None:
    study = {"speechocean": speechocean, "synthetic": synthetic}[options.study](options.speakers)
    out = options.out or HERE / "results" / ("" if options.study == "speechocean" else options.study)
    if study.pooled is not None:
        made(study.pooled)
        if not study.control.is_file():
            evaluate([study.pooled.folder], dataclasses.replace(study.scoring, role="personal"))
    made(study.space.of)
    if not study.space.folder.exists():
        save_space(study.space.folder, linear_space_of(study.space.of.folder, study.space.dim))
    scored, decoded = [], {}
    for experiment in points(options, study):
        folder = experiment.folder
        made(experiment)
        if not (folder / study.results).is_file():
            evaluate([folder], study.scoring, decoded=decoded)
        scored.append(folder / study.results)
        for path in write_curve(learning_curve(scored, study.control), out):
            print(path)


if __name__ == "__main__":
    keep_compiled_programs()
    try:
        main(tyro.cli(Options, description=__doc__))
    except SpecializeError as error:
        sys.exit(f"learning_curve: {error}")
