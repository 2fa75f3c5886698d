"""What the tests of sweeps share: an experiment, and runs that only say what a formula makes of them."""

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specialize import CorpusConfig, Experiment, HyperParameters, ResidualAdapter
from specialize.submodel import LoRA
from specialize.sweep.trials import Trial
from specialize.train.experiment import to_json
from specialize.train.jobs import parse_grid

EXPERIMENT = Experiment(
    "people", Path("base"), CorpusConfig(Path("people.jsonl")), submodel=ResidualAdapter(bottleneck=4)
)
SPEAKERS = ("ana", "bo", "cy")

Loss = Callable[[Experiment, HyperParameters, str], float | None]
"""A made-up dev loss: (experiment, hyper-parameters, speaker) -> loss, None for a job in quarantine."""


def pretended(loss: Loss, done: list[str] | None = None, stop: Callable[[str], None] = lambda name: None) -> Any:
    """In the place of `train`: writes what a run leaves that the sweep reads.

    Args:
        loss: of each job.
        done: where names of runs are noted.
        stop: called with the name before a run is written; it may raise.
    """

    def train(experiment: Experiment) -> None:
        stop(experiment.name)
        if done is not None:
            done.append(experiment.name)
        lines = []
        for point, (_, hyper) in enumerate(parse_grid(experiment.grid, experiment.hyper, experiment.submodel)):
            for speaker in SPEAKERS:
                value = loss(experiment, hyper, speaker)
                looks = [] if value is None else [[0, value + 1.0], [6, value]]
                quarantined = "broken" if value is None else None
                job = {"speaker": speaker, "point": point, "dev_loss": value, "quarantined": quarantined}
                lines.append(json.dumps(job | {"ended": None, "looks": looks}))
        folder = experiment.folder
        folder.mkdir(parents=True)
        (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
        config = {"kind": "Experiment", "experiment": to_json(experiment), "versions": {}, "base": "b", "corpus": "c"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text("{}")

    return train


def bowl(experiment: Experiment, hyper: HyperParameters, speaker: str) -> float:
    """Least at a learning rate of 1e-3, with a LoRA and no dropout; a little other for each speaker."""
    import math

    away = math.log10(max(hyper.learning_rate, 1e-9)) + 3
    kind = 0.0 if isinstance(experiment.submodel, LoRA) else 0.5
    return 1.0 + away**2 + kind + hyper.dropout + 1e-3 * (zlib.crc32(speaker.encode()) % 100)


def same_but_place(one: Experiment, two: Experiment) -> bool:
    """Whether experiments are the same but for their names, and where their runs are."""
    return dataclasses.replace(one, name=two.name, runs=two.runs) == two


def numbers(trials: tuple[Trial, ...]) -> list[int]:
    return [trial.number for trial in trials]
