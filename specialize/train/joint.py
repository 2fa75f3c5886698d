"""Joint training of a space: what it is asked to be, its run, and the way from the one to the other."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from specialize.corpus import CorpusConfig
from specialize.errors import ConfigError
from specialize.processes import ALONE, Peers
from specialize.space import AnyGenerator, Linear, OneHot, Space, load_space
from specialize.submodel import Kind, StoredSubmodel, Submodel, find_sites, init_submodel
from specialize.submodel.kinds import AnyKind, ResidualAdapter
from specialize.train.estimate import Layout
from specialize.train.experiment import CohortConfig, Experiment, check_runs
from specialize.train.jobs import HyperParameters, Jobs
from specialize.train.joint_step import JointStep
from specialize.train.planning import Plan, Program, plan
from specialize.train.run import SpeakersRun
from specialize.train.schedule import Stopping
from specialize.train.turns import Turns
from specialize.train.values import check_finite

_EMBEDDING_RATE = 0.1


@dataclass(frozen=True)
class SpaceTraining:
    """A space to train over the speakers of a corpus. The fields are what `specialize train FILE --help` lists."""

    name: str
    """Name of the run; its folder is `<runs>/<name>`."""
    base: Path
    """Base folder, as `specialize import-base` writes it."""
    corpus: CorpusConfig
    """Whose speech to train on."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(default_factory=ResidualAdapter)
    """What kind of Submodel is generated, where it goes and how large."""
    space: tyro.conf.AvoidSubcommands[AnyGenerator] = field(default_factory=Linear)
    """What generates it from a speaker's embedding."""
    hyper: HyperParameters = field(default_factory=lambda: HyperParameters(learning_rate=1e-3, warmup=20))
    """Of the generator. Weight decay pulls it towards where it started; the clip is of each slot's own gradient."""
    embedding_rate: float | None = None
    """Peak learning rate of embeddings; it rises and falls with the generator's. None is 0.1, fast enough to leave the
    random places of variance one where they begin; of one-hot, whose embeddings are parameters, the generator's own."""
    embedding_decay: float = 0.0
    """Decoupled decay of embeddings towards zero, which a Gaussian prior on speakers comes to."""
    sampling: float = 0.0
    """A speaker is drawn with a probability proportional to (its utterances)^sampling among those of its slot: 0 draws
    all alike, 1 in proportion to their data. Where there is a slot for every speaker, all train at every step."""
    stop: Stopping = field(default_factory=lambda: Stopping(max_steps=600, every=60, patience=5))
    """When the space has had enough, by the mean over speakers of the dev loss, each with its own embedding."""
    cohort: CohortConfig = field(default_factory=CohortConfig)
    """Slots and batch. More speakers than slots take turns."""
    start: Path | None = None
    """A stored Submodel of the same kind and sizes that all speakers start at; None starts at no effect."""
    store: bool = True
    """Store a plain Submodel for each speaker too; without, `space/` alone has them."""
    context: Literal["needed", "full"] = "needed"
    """Length that a Whisper encoder sees in training: what the batch needs, or always 30 s."""
    save_seconds: float = 60.0
    """Seconds between two saved states, from which a run that was killed goes on."""
    runs: Path = Path("runs")
    """Folder of runs."""
    tensorboard: bool = False
    """Write TensorBoard event files too (extra `tensorboard`)."""

    def __post_init__(self):
        check_runs(self.runs)
        for name in ("embedding_rate", "embedding_decay", "sampling", "save_seconds"):
            if getattr(self, name) is not None:
                check_finite(name, getattr(self, name))
        defaults = HyperParameters()
        for name in ("embedding_rate", "embedding_decay", "embedding_steps"):
            if getattr(self.hyper, name) != getattr(defaults, name):
                raise ConfigError(
                    f"hyper.{name} is of new speakers that are fitted to a space. While it is trained, give "
                    "--embedding-rate and --embedding-decay."
                )
        if self.stop.halving:
            raise ConfigError("stop.halving compares the points of a grid, and a space has none. Leave it out.")
        if self.cohort.refill != "continuous":
            raise ConfigError("cohort.refill is of jobs that leave their slots; the speakers of a space do not.")

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.runs / self.name

    @property
    def rate_of_embeddings(self) -> float:
        """Their peak learning rate."""
        if self.embedding_rate is not None:
            return self.embedding_rate
        return self.hyper.learning_rate if isinstance(self.space, OneHot) else _EMBEDDING_RATE

    def as_experiment(self) -> Experiment:
        """The cohort that its speakers would be, each by itself: what is checked, measured and batched is the same."""
        names = ("name", "base", "corpus", "submodel", "hyper", "stop", "cohort", "start", "context", "runs")
        return Experiment(**{name: getattr(self, name) for name in names})


class SpaceRun(SpeakersRun):
    """The folder of a run that trains a space.

    As of a `Run`, with `space/`, the generator with all embeddings; `submodels/` only where they are stored too.
    """

    _OF = SpaceTraining
    experiment: SpaceTraining

    @property
    def space_folder(self) -> Path:
        """Where the space is, when the run has ended."""
        return self.folder / "space"

    def space(self) -> Space:
        """The space that was trained.

        Raises:
            StoreError: the run has not ended.
        """
        return load_space(self.space_folder, base=self.base)

    def speakers(self) -> Iterator[str]:
        return super().speakers() if self.experiment.store else self._loaded().speakers()

    def submodel(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        if self.experiment.store:
            return super().submodel(speaker, base=base)
        return self._loaded().submodel(speaker, base=base)

    def helps(self, speaker: str) -> bool:
        return super().helps(speaker) if self.experiment.store else self._loaded().submodel(speaker).helps

    def _loaded(self) -> Space:
        if not hasattr(self, "_space"):
            self._space = self.space()
        return self._space


@dataclass(frozen=True)
class SpacePlan:
    """A space that has been checked and not yet begun."""

    experiment: SpaceTraining
    plan: Plan
    """Of the cohort."""

    @property
    def program(self) -> Program:
        """The speakers, as jobs."""
        return self.plan.programs[0]

    @property
    def jobs(self) -> Jobs:
        """The speakers, in the order of the queue."""
        return self.program.jobs

    @property
    def spec(self) -> Kind:
        """Of the Submodels."""
        return self.experiment.submodel

    def template(self) -> Submodel:
        """What everything starts at."""
        if self.plan.start is not None:
            return self.plan.start
        sites = find_sites(self.spec, self.plan.base.architecture, self.plan.base.params)
        return init_submodel(self.spec, sites, jax.random.key(self.experiment.hyper.seed))

    def turns(self, slots: int, without: Any = ()) -> Turns:
        """Whose turn it is in so many slots."""
        of = self.experiment
        return Turns([len(job.train) for job in self.jobs], slots, of.sampling, of.hyper.seed, without)

    def step(self, layout: Layout) -> JointStep:
        """The compiled functions; nothing is compiled yet."""
        of = self.experiment
        return JointStep(
            self.plan.cohort(self.program, layout),
            of.space,
            self.turns(layout.slots).rows,
            of.hyper,
            embedding_rate=of.rate_of_embeddings,
            embedding_decay=of.embedding_decay,
            steps=of.stop.max_steps,
            peers=self.plan.peers,
        )


def plan_space(experiment: SpaceTraining, peers: Peers = ALONE) -> SpacePlan:
    """Checks a space against its base and its corpus.

    Args:
        experiment: what to train.
        peers: the processes that will train it.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used.
    """
    return SpacePlan(experiment, plan(experiment.as_experiment(), peers))
