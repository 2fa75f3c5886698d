"""`specialize train` and `pretrain`."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from specialize.commands.experiments import KindName, experiment_of
from specialize.words import budgeted, choose_kind, spelt_out


def train(words: list[str]) -> None:
    """Train a Submodel for each speaker, or a space: `specialize train experiments/FILE.py [--field value …]`."""
    from specialize.corpus import CorpusConfig
    from specialize.processes import ProcessConfig, joined
    from specialize.processes.identity import PROCESSES
    from specialize.space import GENERATORS
    from specialize.submodel import KINDS
    from specialize.submodel.kinds import kind_name
    from specialize.train import Experiment, SpaceTraining

    example = Experiment("NAME", Path("BASE"), CorpusConfig(Path("MANIFEST")))
    file, rest, experiment = experiment_of("train", words, example, SpaceTraining)
    rest, experiment = choose_kind(rest, experiment, "submodel", KINDS)
    rest = budgeted(spelt_out(rest, "--strict", "--corpus.strict"))
    described = (
        "Train a Submodel for each speaker of the corpus, many at a time in one compiled step. `--budget 3` or "
        "`--budget 30s` is short for --hyper.utterances or --hyper.seconds: only the first recordings of each speaker."
    )
    if isinstance(experiment, SpaceTraining):
        rest, experiment = choose_kind(rest, experiment, "space", GENERATORS)
        described = (
            "Train a space of speakers: what makes a Submodel of an embedding, and the embedding of each speaker. "
            f"`--space.kind` ({', '.join(GENERATORS)}) chooses another kind of space; its own flags follow from it."
        )
    of: Any = type(experiment)
    kind: Any = kind_name(experiment.submodel)

    @dataclass(frozen=True)
    class Train:
        experiment: Annotated[of, tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
        kind: Annotated[KindName, tyro.conf.arg(name="submodel.kind")]
        """What kind of Submodel. Its own flags, --submodel.…, follow from it: give it, and ask for --help again."""
        overwrite: bool = False
        """Replace the run of this name, if there is one."""
        dry_run: bool = False
        """Say what the run would need: memory of each device, parameters, slots that fit, time. Trains nothing."""
        evaluate: bool = False
        """Score the run when it has ended, as `specialize evaluate` does."""
        processes: ProcessConfig = field(default_factory=ProcessConfig)
        """Which of several processes this is, where no launcher says it."""

    command = tyro.cli(
        Train, args=rest, default=Train(experiment, kind), prog=f"specialize train {file}", description=described
    )
    if command.dry_run:
        _describe(command.experiment)
        return
    with joined(command.processes) as peers:
        run = (_train_space if isinstance(experiment, SpaceTraining) else _train_cohort)(command, peers)
    if not peers.first:
        return
    if not command.evaluate:
        print(f"next: specialize evaluate {run.folder}")
        return
    if peers.count > 1:
        # In this process JAX is set up for several, and holds its devices.
        sys.stdout.flush()
        os.environ[PROCESSES] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "specialize.cli", "evaluate", str(run.folder)])
    from specialize.score.evaluate import Scoring, evaluate

    evaluate([run.folder], Scoring())


def _describe(experiment: Any) -> None:
    """Says what a run would need, of the devices of this process."""
    from specialize.describe import describe_plan, describe_space_plan
    from specialize.train import SpaceTraining, plan, plan_space

    of_space = isinstance(experiment, SpaceTraining)
    for line in describe_space_plan(plan_space(experiment)) if of_space else describe_plan(plan(experiment)):
        print(line, flush=True)


def _train_cohort(command: Any, peers: Any) -> Any:
    """Trains a Submodel for each speaker; returns the run."""
    from specialize.train import train as run_training

    run = run_training(command.experiment, overwrite=command.overwrite, peers=peers)
    if not peers.first:
        return run
    summary = run.read("summary.json")
    of_jobs = f" of {summary['jobs']} that were trained" if summary["grid"] else ""
    for row in summary["grid"]:
        loss = "-" if row["mean_dev_loss"] is None else f"{row['mean_dev_loss']:.4f}"
        varies = " ".join(f"{name}={value}" for name, value in row["values"].items())
        print(f"#{row['point']} {varies}: mean dev loss {loss} of {row['speakers']}, chosen for {row['chosen_for']}")
    print(
        f"{summary['submodels']} Submodels{of_jobs} in {summary['seconds']:.0f} s "
        f"({summary['submodels_per_hour']:.0f} an hour), padding {summary['padded_share']:.1%}, "
        f"slots busy {summary['slots_busy']:.1%}: {run.folder}"
    )
    return run


def _train_space(command: Any, peers: Any) -> Any:
    """Trains a space; returns the run."""
    from specialize.train import train_space

    run = train_space(command.experiment, overwrite=command.overwrite, peers=peers)
    if not peers.first:
        return run
    summary = run.read("summary.json")
    print(
        f"a {summary['generator']} space of {summary['submodels']} speakers in {summary['seconds']:.0f} s: mean dev "
        f"loss {summary['base_dev_loss']:.4f} with the base, {summary['start_dev_loss']:.4f} at the start, "
        f"{summary['dev_loss']:.4f} at step {summary['best_step']} of {summary['steps']}: {run.folder}"
    )
    return run


def pretrain(words: list[str]) -> None:
    """Train a base, from scratch or on from another: `specialize pretrain experiments/FILE.py [--field value …]`."""
    from specialize.corpus import CorpusConfig
    from specialize.processes import ProcessConfig, joined
    from specialize.train import Pretraining
    from specialize.train import pretrain as run_pretraining

    example = Pretraining("NAME", (CorpusConfig(Path("MANIFEST")),))
    file, rest, experiment = experiment_of("pretrain", words, example)

    @dataclass(frozen=True)
    class Pretrain:
        experiment: Annotated[Pretraining, tyro.conf.arg(name="")]
        overwrite: bool = False
        """Replace the run of this name, if there is one."""
        processes: ProcessConfig = field(default_factory=ProcessConfig)
        """Which of several processes this is, where no launcher says it."""

    command = tyro.cli(
        Pretrain,
        args=spelt_out(rest, "--strict", *(f"--corpora.{i}.strict" for i in range(len(experiment.corpora)))),
        default=Pretrain(experiment),
        prog=f"specialize pretrain {file}",
        description="Train a base on the pooled speech of many people, over all devices at once.",
    )
    with joined(command.processes) as peers:
        run = run_pretraining(command.experiment, overwrite=command.overwrite, peers=peers)
    if not peers.first:
        return
    summary = run.read("summary.json")
    print(
        f"{summary['parameters']:,} parameters, dev loss {summary['dev_loss']:.4f} at step {summary['best_step']}, "
        f"{summary['epochs']} epochs of {summary['hours']} h in {summary['seconds']:.0f} s: {run.base_folder}"
    )
    print(f"next: specialize evaluate {run.folder}")
