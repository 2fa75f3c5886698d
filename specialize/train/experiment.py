"""An experiment: everything that a run is, in frozen dataclasses that the command line can override."""

import dataclasses
import math
import re
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from specialize.corpus import CorpusConfig
from specialize.errors import ConfigError
from specialize.space.generators import GENERATORS, generator_from_json, generator_to_json
from specialize.submodel.kinds import AnyKind, ResidualAdapter, spec_from_json, spec_to_json
from specialize.train.jobs import HyperParameters
from specialize.train.schedule import Stopping
from specialize.train.trainee import Fit
from specialize.train.values import check_finite


@dataclass(frozen=True)
class CohortConfig:
    """How many jobs share the compiled step, and on how much data each steps."""

    slots: int | Literal["auto"] = 16
    """S, jobs trained at the same time; a multiple of the number of devices. More jobs than slots queue. `auto` takes
    as many as fit into memory."""
    batch: int = 4
    """B, utterances of each speaker in a step."""
    rows: int = 2
    """Utterances of each speaker that are computed together; divides the batch. A batch is cut into parts of so many
    rows, from short to long, each padded to a length of its own; their gradients add up."""
    refill: Literal["continuous", "waves"] = "continuous"
    """Whether a free slot takes the next job at once or waits until all are free."""
    shapes: int = 8
    """Sizes that training batches are padded to, at most. More leave less padding, and each takes a compilation."""
    chunk: int | Literal["auto"] = "auto"
    """Slots of a device that are computed together, or the next smaller number that divides them; 0 is all. `auto`
    measures the first time, and keeps what is faster on this machine. Results are the same to float tolerance, not bit
    for bit."""
    dispatch: int = 1
    """Steps that all slots make in one call of the devices, which saves the host's work where steps are short. Needs
    rows = batch. Best a number that divides `stop.every` and `stop.max_steps`: what is left over before a look is made
    step by step, by a program of its own."""
    resident: Literal["auto", "on", "off"] = "auto"
    """Keep the audio of all training utterances on every device, so that batches bring only labels. `auto` does where
    that is at most 1/16 of a device's memory, but not on a CPU, where it would be a second copy in the same memory.
    Results are the same, bit for bit."""

    def __post_init__(self):
        least_of = {"slots": 1, "batch": 1, "rows": 1, "shapes": 1, "chunk": 0, "dispatch": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value != "auto" and value < least:
                raise ConfigError(f"cohort.{name}={value}, but it must be at least {least}.")
        if self.batch % self.rows:
            raise ConfigError(f"cohort.rows={self.rows}, but it must divide cohort.batch={self.batch}.")
        if self.dispatch > 1 and self.rows != self.batch:
            raise ConfigError(
                f"cohort.dispatch={self.dispatch} needs steps of one part, but cohort.rows={self.rows} cuts a batch of "
                f"{self.batch} into {self.batch // self.rows}. Give --cohort.rows {self.batch}, or --cohort.dispatch 1."
            )


@dataclass(frozen=True)
class Experiment:
    """A cohort of Submodels to train. The fields are what `specialize train FILE --help` lists."""

    name: str
    """Name of the run; its folder is `<runs>/<name>`."""
    base: Path
    """Base folder, as `specialize import-base` writes it."""
    corpus: CorpusConfig
    """Whose speech to train on."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = field(default_factory=ResidualAdapter)
    """What kind of Submodel, where it goes and how large."""
    hyper: HyperParameters = field(default_factory=HyperParameters)
    """Hyper-parameters of every job."""
    stop: Stopping = field(default_factory=Stopping)
    """When a job ends."""
    cohort: CohortConfig = field(default_factory=CohortConfig)
    """Slots and batch."""
    grid: tuple[str, ...] = ()
    """Train each speaker at every point of a grid: `lr=3e-4,1e-3 dropout=0,0.1`. Names are those of `hyper`, or numbers
    of the spec, `submodel.bottleneck=16,48`, of which each makes a program of its own, run one after another.
    Names that are joined go together: `lr:dropout=3e-4:0,1e-3:0.1` is two points."""
    select: Literal["speaker", "pooled"] = "speaker"
    """Which point of the grid is kept, by dev loss: each speaker's own best, or the one that is best on average."""
    start: Path | None = None
    """A stored Submodel of the same kind and sizes that every job starts from; None starts at no effect."""
    space: Path | None = None
    """Folder of a run that trained a space, or of a space: each job is a new speaker's point of it, from the middle of
    those that it was trained on. Kind, places and sizes of the Submodels are then the space's."""
    fit: Fit | None = None
    """With a space, what is trained: the speaker's embedding; the Submodel itself, from what the space generates in its
    middle; or the embedding for the first `hyper.embedding_steps` steps, and then the Submodel from there, which None
    is."""
    context: Literal["needed", "full"] = "needed"
    """Length that a Whisper encoder sees in training: what the batch needs, or always 30 s."""
    save_seconds: float = 60.0
    """Seconds between two saved states, from which a run that was killed goes on."""
    runs: Path = Path("runs")
    """Folder of runs."""
    tensorboard: bool = False
    """Write TensorBoard event files too (extra `tensorboard`)."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well (extra `wandb`)."""

    def __post_init__(self):
        check_runs(self.runs)
        check_finite("save_seconds", self.save_seconds)
        if self.space is None and self.fit is not None:
            raise ConfigError(f"fit={self.fit} is of new speakers in a space. Give the --space, or --fit None.")

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.runs / self.name

    @property
    def fitted(self) -> Fit:
        """What is trained of a point of the space."""
        return self.fit or "embedding-then-unfreeze"


def check_runs(runs: Path) -> None:
    """Raises ConfigError where runs are to be in a bucket, whose name a path has lost a stroke of."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(runs)):
        raise ConfigError(
            f"runs='{runs}' is a bucket, but runs need a folder that can be locked and renamed in. Mount the bucket or "
            "a share, and give the path of a folder under it."
        )


def to_json(value: Any) -> Any:
    """A configuration as JSON data; a number that is infinite, which JSON lacks, is the text `inf`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "where"):
            return spec_to_json(value)
        if type(value) in GENERATORS.values():
            return generator_to_json(value)
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(cls: Any, data: Any) -> Any:
    """Reads `to_json`'s data back as an object of `cls`.

    Raises:
        ConfigError: a field that `cls` does not have.
    """
    origin = get_origin(cls)
    if isinstance(data, dict) and "kind" in data:
        return generator_from_json(data) if data["kind"] in GENERATORS else spec_from_json(data)
    if isinstance(data, dict) and isinstance(cls, type) and dataclasses.is_dataclass(cls):
        hints = get_type_hints(cls)
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"{getattr(cls, '__name__', cls)} has no field {', '.join(unknown)}.")
        return cls(**{name: from_json(hints[name], value) for name, value in data.items()})
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(cls) if option is not type(None)]
        return None if data is None else from_json(options[0], data)
    if origin is tuple:
        return tuple(from_json(get_args(cls)[0], value) for value in data)
    if cls in (Path, float) and isinstance(data, str):
        return cls(data)
    return data
