"""Training of a base: all of its parameters, on the pooled speech of many people, over all devices at once.

The devices may be of several processes. Each reads the rows of its own, and all have the same state.
"""

import dataclasses
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from specialize.base import (
    Augment,
    Base,
    Batch,
    ConformerConfig,
    Tokenizer,
    TransducerConfig,
    character_tokenizer,
    conformer,
    load_base,
)
from specialize.base import save_base as write_base
from specialize.base.architecture import Architecture
from specialize.corpus import CorpusConfig, Epochs, Faults, JoinedCorpus, Shapes, need, open_corpus
from specialize.errors import ConfigError
from specialize.processes import ALONE, Peers
from specialize.submodel import size
from specialize.submodel.bank import lay_out, lay_out_own, own_slots
from specialize.train.experiment import check_runs
from specialize.train.metrics import MetricsLog, TensorBoardLog, Unwritten
from specialize.train.progress import Progress
from specialize.train.run import STATE, RunFolder, write_json
from specialize.train.state import StateFolder, save_or_tell
from specialize.train.together import (
    Collective,
    SaveClock,
    begin_together,
    check_alike,
    check_count,
    faults_of_all,
    has_ended,
    progress_of,
    taken,
    told_by_first,
)
from specialize.train.values import check_finite
from specialize.train.writer import store_writer, written

_DATA = "data"
"""The mesh axis over which the rows of a batch are laid out."""
_MAX_SKIPPED = 20
"""Steps in a row that could not be taken, after which something is wrong."""


@dataclass(frozen=True)
class Pretraining:
    """A base to train. The fields are what `specialize pretrain FILE --help` lists."""

    name: str
    """Name of the run; its folder is `<runs>/<name>`, the base `<runs>/<name>/base`."""
    corpora: tuple[CorpusConfig, ...]
    """Whose speech to train on; all of it is pooled."""
    model: ConformerConfig = field(default_factory=ConformerConfig)
    """Sizes of the encoder."""
    head: Literal["ctc", "transducer"] = "ctc"
    """What is put on the encoder."""
    transducer: TransducerConfig = field(default_factory=lambda: TransducerConfig(144, 1))
    """Sizes of that, where it is a transducer."""
    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz"
    """Characters that texts are made of; a text with another is left out."""
    start: Path | None = None
    """A base folder to go on from, with its architecture and its tokenizer; None begins with random parameters."""
    steps: int = 10_000
    """Steps."""
    seconds: float = 160.0
    """Padded audio of a step, on all devices; at least one utterance for each."""
    sizes: int = 4
    """Lengths that batches are padded to, at most. Each takes a compilation."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 500
    """Steps over which the learning rate rises from zero; half a cosine takes it back to zero."""
    weight_decay: float = 1e-2
    """Decoupled decay of matrices and kernels."""
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. `inf` is no clipping."""
    average: float = 0.999
    """Decay of the running mean of parameters that becomes the base; 0 takes the parameters as they are."""
    spec_augment: float = 0.5
    """Strength of SpecAugment."""
    every: int = 500
    """Steps between two looks at the dev set."""
    seed: int = 0
    """Of parameters, orders and SpecAugment."""
    save_seconds: float = 120.0
    """Seconds between two saved states, from which a run that was killed goes on."""
    runs: Path = Path("runs")
    """Folder of runs."""
    tensorboard: bool = False
    """Write TensorBoard event files too (extra `tensorboard`)."""

    def __post_init__(self):
        check_runs(self.runs)
        if not self.corpora:
            raise ConfigError(f"'{self.name}' names no corpora.")
        for name, least in (
            ("steps", 1),
            ("sizes", 1),
            ("every", 1),
            ("warmup", 0),
            ("average", 0),
            ("weight_decay", 0),
            ("spec_augment", 0),
            ("save_seconds", 0),
        ):
            check_finite(name, getattr(self, name), least)
        for name in ("seconds", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}, but it must be positive, and finite.")
        if not self.clip > 0:
            raise ConfigError(f"clip={self.clip}, but it must be positive; use inf for no clipping.")
        if not self.average < 1:
            raise ConfigError(f"average={self.average}, but it must be less than 1.")

    @property
    def recipe(self) -> "Recipe":
        """What of it is compiled."""
        return Recipe(**{name: getattr(self, name) for name in Recipe._fields})

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.runs / self.name


class Recipe(NamedTuple):
    """What the compiled functions of a pretraining know of it; each as in `Pretraining`."""

    steps: int
    learning_rate: float
    warmup: int
    weight_decay: float
    clip: float
    average: float
    spec_augment: float
    seed: int


class PretrainRun(RunFolder):
    """The folder of a pretraining: `config.json`, `metrics.jsonl`, `base/`, `state/` until it ends, `summary.json`."""

    _OF = Pretraining
    _COMMAND = "specialize pretrain"
    experiment: Pretraining

    @property
    def base_folder(self) -> Path:
        """Where the base is, when the run has ended."""
        return self.folder / "base"


class TrainState(NamedTuple):
    """All that is carried from step to step; replicated."""

    params: Any
    moments: Any
    average: Any
    """Running mean of the parameters."""
    best: Any
    """The running mean at the best look."""
    step: Any
    """int32."""
    skipped: Any
    """int32, steps since the last one that was taken."""
    sums: Any
    """Of what was measured in the steps taken since the last look, and how many they were."""


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.98, eps=1e-9)


class Trainer:
    """The compiled functions of a pretraining; rows are laid out over the devices, everything else is replicated.

    Args:
        architecture: of the base.
        recipe: hyper-parameters.
        devices: to use; None is all, of all processes.
    """

    def __init__(self, architecture: Architecture, recipe: Recipe, devices: Sequence[Any] | None = None):
        devices = sorted(jax.devices() if devices is None else devices, key=lambda d: d.process_index)
        self.mesh = Mesh(np.array(devices), (_DATA,), axis_types=(AxisType.Auto,))
        self._architecture, self._recipe = architecture, recipe
        self._rows, self._whole = (NamedSharding(self.mesh, PartitionSpec(*axes)) for axes in ((_DATA,), ()))
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=self._whole)
        """(state, batch) → (state, loss)."""
        self.evaluate = jax.jit(self._sharded(self._losses))
        """(params, batch) → (loss total, token count)."""
        changed = partial(jax.jit, out_shardings=self._whole)
        self.keep_best = changed(lambda state: state._replace(best=jax.tree.map(jnp.copy, state.average)))
        self.forget_sums = changed(lambda state: state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums)))

    def begin(self, params: Any) -> TrainState:
        """The state before the first step."""
        params, average, best = (jax.tree.map(jnp.array, params) for _ in range(3))
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        sums = {name: jnp.zeros(()) for name in ("train_loss", "grad_norm", "steps")}
        return self.place(TrainState(params, _ADAM.init(params), average, best, step, skipped, sums))

    def place(self, tree: Any) -> Any:
        """Puts a copy on every device."""
        return lay_out(tree, self._whole)

    def place_rows(self, batch: Batch) -> Batch:
        """Lays the rows of a batch out over the devices. Of several processes, each has its `own_rows`."""
        return lay_out_own(batch, self._rows)

    def own_rows(self, rows: int) -> range:
        """Which rows of a batch of so many are on the devices of this process."""
        return own_slots(rows, self.mesh)

    def _sharded(self, of_rows: Callable[..., Any]) -> Callable[..., Any]:
        """`of_rows(params, batch, …)` of each device's rows, summed over devices."""

        def summed(params, batch, *rest):
            return jax.lax.psum(of_rows(params, batch, *rest), _DATA)

        def call(params, batch, *rest):
            specs = (PartitionSpec(), PartitionSpec(_DATA), *(PartitionSpec() for _ in rest))
            # Gradients inside are of each device's own rows; `psum` above is the only thing that crosses devices.
            return jax.shard_map(summed, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(
                params, batch, *rest
            )

        return call

    def _losses(self, params: Any, batch: Batch) -> tuple[Any, Any]:
        losses = self._architecture.losses(params, _heard(batch))
        return losses.total.sum(), losses.count.sum()

    def _gradient(self, params: Any, batch: Batch, key: Any) -> tuple[Any, Any, Any]:
        key = jax.random.fold_in(key, jax.lax.axis_index(_DATA))

        def total(params):
            augment = Augment(key, jnp.float32(self._recipe.spec_augment))
            losses = self._architecture.losses(params, _heard(batch), augment=augment)
            return losses.total.sum(), losses.count.sum()

        (value, count), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return gradient, value, count

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        of = self._recipe
        key = jax.random.fold_in(jax.random.key(of.seed), state.step)
        gradient, total, count = self._sharded(self._gradient)(state.params, batch, key)
        count = jnp.maximum(count, 1.0)
        loss = total / count
        gradient = jax.tree.map(lambda g: g / count, gradient)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        scale = jnp.minimum(1.0, of.clip / jnp.maximum(norm, 1e-12))
        direction, moments = _ADAM.update(jax.tree.map(lambda g: g * scale, gradient), state.moments)
        rate = _rate(of, state.step)
        params = jax.tree.map(
            lambda p, d: p - rate * (d + (of.weight_decay * p if p.ndim > 1 else 0.0)), state.params, direction
        )
        # Early on the mean must not remember where it began.
        decay = jnp.minimum(of.average, (1.0 + state.step) / (10.0 + state.step)) if of.average else 0.0
        average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, state.average, params)
        zero = jnp.zeros((), jnp.int32)
        sums = jax.tree.map(jnp.add, state.sums, {"train_loss": loss, "grad_norm": norm, "steps": 1.0})
        taken = TrainState(params, moments, average, state.best, state.step + 1, zero, sums)
        left = state._replace(step=state.step + 1, skipped=state.skipped + 1)
        state = jax.tree.map(partial(jnp.where, finite), taken, left)
        return state, loss


# As the programs of a cohort: another run of the same process need not trace them again.
_trainer = functools.lru_cache(maxsize=4)(Trainer)


def _heard(batch: Batch) -> Batch:
    """The batch, with rows empty that are not finite, because they could not be read: they cost no step and no look."""
    good = jnp.isfinite(batch.audio).all(axis=-1)
    return batch._replace(
        audio=jnp.where(good[:, None], batch.audio, 0.0),
        samples=jnp.where(good, batch.samples, 0),
        label_lengths=jnp.where(good, batch.label_lengths, 0),
    )


def _rate(of: Recipe, step: Any) -> Any:
    warm = jnp.minimum(1.0, (step + 1) / max(of.warmup, 1))
    along = jnp.clip((step - of.warmup) / max(of.steps - of.warmup, 1), 0.0, 1.0)
    return of.learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * along))


def pretrain(
    experiment: Pretraining, *, overwrite: bool = False, progress: Progress | None = None, peers: Peers = ALONE
) -> PretrainRun:
    """Trains a base and writes it to the run's `base` folder.

    A run of this name that has not ended goes on from its last saved state, to the same bits as if it had not stopped.
    One that has ended is told to have, and returned.

    Args:
        experiment: what to train.
        overwrite: replace a run of the same name.
        progress: where to show how it goes; None shows it on stderr.
        peers: the processes that train it together, from `specialize.processes.joined`. The run folder is one that all
            of them reach. The batches are those of one process with as many devices, and so is the base, to float
            tolerance.

    Returns:
        The finished run.

    Raises:
        SpecializeError: the start, a corpus or the settings cannot be used; before any training.
        Preempted: SIGTERM came; the state is saved.
        ConfigError: the loss has not been finite for many steps in a row.
    """
    check_count(peers)
    base = _beginning(experiment)
    configs = [dataclasses.replace(corpus, pool="everybody") for corpus in experiment.corpora]
    corpora = peers.in_turn(lambda: [open_corpus(config, base, needs=()) for config in configs])
    training, dev = JoinedCorpus(corpora, "train"), JoinedCorpus(corpora, "dev")
    if not training.utterances or not dev.utterances:
        reasons = " ".join(str(problem) for corpus in corpora for problem in corpus.problems[:3])
        what = "nothing to choose the best step by (split dev)" if training.utterances else "nothing to train on"
        raise ConfigError(f"The corpora of '{experiment.name}' have {what}. {reasons}")
    names = " ".join(corpus.built.folder.name for corpus in corpora)
    alike = {"corpora": names, "utterances": [len(training.utterances), len(dev.utterances)]}
    identity = {"base": base.fingerprint, "corpus": names}
    run = begin_together(PretrainRun, experiment, peers, overwrite=overwrite, alike=alike, **identity)
    shown = progress or progress_of(peers)
    if has_ended(run, shown, peers):
        return run
    problems = [problem for corpus in corpora for problem in corpus.problems]
    with taken(run, shown, peers) as stopped:
        if peers.first:
            write_json(run.folder / "problems.json", [vars(problem) for problem in problems])
        if problems:
            shown.note(f"left out: {len(problems)} utterances (problems.json); the first: {problems[0]}")
        _Sitting(run, base, training, dev, shown, stopped, peers).train()
    return run


def _beginning(experiment: Pretraining) -> Base:
    if experiment.start is not None:
        return load_base(experiment.start)
    tokenizer: Tokenizer = character_tokenizer(experiment.alphabet)
    architecture = conformer(experiment.model, tokenizer, head=experiment.head, transducer=experiment.transducer)
    params = jax.tree.map(np.asarray, architecture.init(jax.random.key(experiment.seed)))
    return Base.make(architecture, params, tokenizer)


class _Sitting:
    """A run, from its beginning or its last state to its end or the next signal."""

    def __init__(
        self,
        run: PretrainRun,
        base: Base,
        training: JoinedCorpus,
        dev: JoinedCorpus,
        shown: Progress,
        stopped: Callable[[], bool],
        peers: Peers,
    ):
        self.run, self.base, self.shown, self.peers = run, base, shown, peers
        of = run.experiment
        self.clock, self._call = SaveClock(peers, stopped, of.save_seconds), Collective(peers)
        self.trainer = _trainer(base.architecture, of.recipe)
        rate, devices = base.architecture.sample_rate, self.trainer.mesh.devices.size
        needs = [need([u]) for u in [*training.utterances, *dev.utterances]]
        shapes = Shapes.choose(needs, of.sizes, need([*training.utterances, *dev.utterances]))
        self.faults = Faults(), Faults()  # each knows its utterances by their places in a corpus of its own
        own = self.trainer.own_rows if peers.count > 1 else None
        make = partial(Epochs, shapes=shapes, samples=int(of.seconds * rate), multiple=devices, own=own)
        self.training = make(training, training.utterances, seed=of.seed, faults=self.faults[0])
        self.dev = make(dev, dev.utterances, faults=self.faults[1])
        self.hours = sum(u.samples for u in training.utterances) / rate / 3600

    def train(self) -> None:
        of, run, shown, peers = self.run.experiment, self.run, self.shown, self.peers
        states = StateFolder(run.folder / STATE, peers)
        saved = states.latest()
        check_alike(peers, {"last state": saved and saved.number})
        state = self.trainer.begin(self.base.params)
        at: dict[str, Any] = {"step": 0, "looked": 0, "best": None, "best_step": 0, "metrics": 0, "seconds": 0.0}
        if saved is not None:
            state, at = states.load(saved, state), saved.progress
            shown.note(f"goes on with '{run.folder}' from step {at['step']}")
        metrics = MetricsLog(run.folder / "metrics.jsonl", at["metrics"]) if peers.first else Unwritten()
        curves = TensorBoardLog(run.folder / "tensorboard") if of.tensorboard and peers.first else None
        shown.start(1, 1, of.name)
        began = time.monotonic() - at["seconds"]
        try:
            while at["looked"] < of.steps:
                losses = []
                look = min((at["looked"] // of.every + 1) * of.every, of.steps)
                for batch in self.training.batches(at["step"], look - at["step"]):
                    state, loss = self._call(self.trainer.step, state, self.trainer.place_rows(batch))
                    losses.append(loss)
                    if len(losses) > 2:
                        jax.block_until_ready(losses[-3])
                    at["step"] += 1
                    if at["step"] % 10 == 0:
                        done = float(losses[-3]) if len(losses) > 2 else None
                        shown.slot(0, "base", at["step"], of.steps, done, None, at["best"])
                    if self.clock.saves():
                        self._save(states, state, at, metrics, began)
                state = self._look(state, at, metrics, curves)
                at["looked"] = look
        finally:
            metrics.close()
            states.close()
            if curves is not None:
                curves.close()
        if at["best"] is None:
            raise ConfigError(f"The dev loss of '{run.folder}' was never finite. Use a lower --learning-rate.")
        peers.exchange(None, patient=True)  # all have closed what is removed then
        if peers.first:
            self._end(state, at, time.monotonic() - began)
            run.clear()

    def _look(self, state: TrainState, at: dict[str, Any], metrics: MetricsLog | Unwritten, curves: Any) -> TrainState:
        if int(state.skipped) >= _MAX_SKIPPED:
            raise ConfigError(
                f"The loss of '{self.run.folder}' has not been finite for {int(state.skipped)} steps. "
                f"Use a lower --learning-rate. {' '.join(self._news())}"
            )
        place, batches = self.trainer.place_rows, self.dev.batches(0, self.dev.steps)
        evaluate = self.trainer.evaluate
        sums = jax.device_get([self._call(evaluate, state.average, place(batch)) for batch in batches])
        for reason in self._news():
            self.shown.note(f"cannot be read: {reason}")
        count = sum(float(n) for _, n in sums)
        dev_loss = sum(float(total) for total, _ in sums) / count if count else math.nan
        sums = {name: float(value) for name, value in state.sums.items()}
        taken = sums.pop("steps")
        values = {name: total / taken if taken else math.nan for name, total in sums.items()} | {"dev_loss": dev_loss}
        metrics.write({"step": at["step"], **values})
        for name, value in values.items():
            if curves is not None:
                curves.scalar(name, value, at["step"])
        if math.isfinite(dev_loss) and (at["best"] is None or dev_loss < at["best"]):
            at |= {"best": dev_loss, "best_step": at["step"]}
            state = self.trainer.keep_best(state)
        train_loss = values["train_loss"]
        self.shown.slot(0, "base", at["step"], self.run.experiment.steps, train_loss, dev_loss, at["best"])
        self.shown.note(f"step {at['step']}: train loss {train_loss:.4f}, dev loss {dev_loss:.4f}")
        return self.trainer.forget_sums(state)

    def _news(self) -> list[str]:
        """What could not be read since this was asked, by any process."""
        return [reason for faults in self.faults for reason in faults_of_all(faults, self.peers)]

    def _save(
        self, states: StateFolder, state: TrainState, at: dict[str, Any], metrics: MetricsLog | Unwritten, began: float
    ) -> None:
        self.clock.saved()

        def begin() -> None:
            seconds = time.monotonic() - began
            states.save(state, at | told_by_first(self.peers, lambda: {"metrics": metrics.size(), "seconds": seconds}))

        save_or_tell(states, begin, stopped=self.clock.stops, tell=self.shown.note, run=self.run.folder)

    def _end(self, state: TrainState, at: dict[str, Any], seconds: float) -> None:
        run = self.run
        made = Base.make(self.base.architecture, jax.device_get(state.best), self.base.tokenizer)
        if run.base_folder.exists():  # a sitting that was killed just here
            shutil.rmtree(run.base_folder)
        with store_writer(self.peers) as pool:  # Orbax saves nothing for one process of a JAX job alone
            written(pool.submit(write_base, made, run.base_folder))
        summary = {
            "steps": at["step"],
            "best_step": at["best_step"],
            "dev_loss": at["best"],
            "parameters": size(made.params),
            "fingerprint": made.fingerprint,
            "hours": round(self.hours, 3),
            "epochs": round(at["step"] / self.training.steps, 2),
            "devices": [f"{d.platform}:{d.device_kind}" for d in self.trainer.mesh.devices.flat],
            "seconds": round(seconds, 1),
        }
        write_json(run.folder / "summary.json", summary)
        self.shown.done("base", json.dumps({"dev_loss": at["best"], "step": at["best_step"]}))
