"""The learning curve: word error rates of new speakers against the utterances that each has to train on.

    python experiments/learning_curve.py

Trains and scores Submodels of the `personal` speakers of speechocean762, in four ways and with 1 to 12 utterances each:
from no effect, from the Submodel that was pooled over the 125 others, and as points of the space of those 125, by the
embedding alone and by the embedding and then the Submodel. Every point is a run of its own in `runs/`; what has ended
is not made again, and the figures are written after each. `specialize curve` draws the same from any runs.
"""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from specialize.caches import keep_compiled_programs
from specialize.cli import load_experiment
from specialize.errors import SpecializeError
from specialize.score.curve import learning_curve, write_curve
from specialize.score.evaluate import Scoring, evaluate
from specialize.train import Experiment, HyperParameters, SpaceTraining, Stopping, train, train_space

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """Train and score what the learning curve consists of, and draw it."""

    utterances: tuple[int, ...] = (3, 12, 1, 2, 4, 8)
    """Amounts, in the order in which they are made."""
    ways: tuple[str, ...] = ("space", "embedding", "start", "plain")
    """Of `space`, `embedding`, `start` and `plain`."""
    speakers: int | None = None
    """Only the first so many of the `personal` speakers."""
    control: Path = Path("runs/speechocean_pooled/results.personal.json")
    """Scores of the Submodel that all share: `specialize evaluate runs/speechocean_pooled --role personal`."""
    out: Path = HERE / "results"
    """Folder for learning_curve.json and learning_curve.html."""


def experiments(options: Options) -> Iterator[Experiment]:
    """One for each point of the curve."""
    from_pooled = load_experiment(HERE / "speechocean_whisper.py")
    hyper = from_pooled.hyper
    of_way = {
        "start": from_pooled,
        "plain": dataclasses.replace(
            from_pooled,
            start=None,
            hyper=HyperParameters(learning_rate=1e-3, warmup=4),
            stop=Stopping(max_steps=24, every=3, patience=4),
        ),
        "embedding": dataclasses.replace(
            from_pooled, start=None, space=Path("runs/speechocean_space"), fit="embedding"
        ),
        "space": dataclasses.replace(
            from_pooled,
            start=None,
            space=Path("runs/speechocean_space"),
            fit="embedding-then-unfreeze",
            hyper=dataclasses.replace(hyper, embedding_steps=6),
            stop=dataclasses.replace(from_pooled.stop, max_steps=18),
        ),
    }
    for amount in options.utterances:
        for way in options.ways:
            of = of_way[way]
            corpus = dataclasses.replace(of.corpus, limit=options.speakers)
            hyper = dataclasses.replace(of.hyper, utterances=amount)
            yield dataclasses.replace(of, name=f"curve_{way}_{amount}", corpus=corpus, hyper=hyper)


def main(options: Options) -> None:
    space = load_experiment(HERE / "speechocean_space.py", SpaceTraining)
    if not (space.folder / "summary.json").is_file():
        train_space(space)
    scored, decoded = [], {}
    for experiment in experiments(options):
        folder = experiment.folder
        if not (folder / "summary.json").is_file():
            train(experiment)
        results = folder / "results.base-full.json"  # at its better context, as `speechocean_whisper` shows
        if not results.is_file():
            evaluate([folder], Scoring(base_context="full"), decoded=decoded)
        scored.append(results)
        for path in write_curve(learning_curve(scored, options.control), options.out):
            print(path)


if __name__ == "__main__":
    keep_compiled_programs()
    try:
        main(tyro.cli(Options, description=__doc__))
    except SpecializeError as error:
        sys.exit(f"learning_curve: {error}")
