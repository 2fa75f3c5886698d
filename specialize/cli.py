"""`specialize …`: the commands, each a dataclass whose fields are its flags."""

import dataclasses
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from specialize import __version__
from specialize.caches import keep_compiled_programs
from specialize.errors import EXIT_PREEMPTED, ConfigError, PeerEnded, Preempted, SpecializeError
from specialize.files import exposed, run_file
from specialize.printable import printable
from specialize.words import budgeted, choose_kind, spelt_out

Positional = tyro.conf.Positional
KindName = Literal["residual-adapter", "lora", "bias-only", "layer-norm-only", "full-weights"]
"""The names in `submodel.KINDS`, which takes long to import."""
_GO_ON = ("train", "pretrain", "sweep")
"""Commands that go on where they were stopped."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.

    Exits 0 on success, 1 on an error that is explained in one sentence, 2 on wrong usage, 75 (EX_TEMPFAIL) when SIGTERM
    stopped a run that the same command goes on with, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"specialize {__version__}")
        sys.exit(0)
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"specialize: there is no command '{name}'.\n\n{_overview()}", file=sys.stderr)
        sys.exit(2)
    keep_compiled_programs()
    # Orbax logs whole tracebacks of what is told here in one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        if name in _GO_ON:
            signal.signal(signal.SIGTERM, _stop_at_once)
        COMMANDS[name](rest)
        sys.stdout.flush()
    except PeerEnded as error:
        _fail(name, None if error.told else str(error), error.code)
    except Preempted as error:
        _fail(name, str(error) if not _together() or _peers().first else None, EXIT_PREEMPTED)
    except SpecializeError as error:
        _fail(name, str(error), 1)
    except BrokenPipeError:
        # Who read the output wants no more of it. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(name, _os_error(error), 1)
    except KeyboardInterrupt:
        again = "; the same command goes on from the last state that was saved" if name in _GO_ON else ""
        _fail(name, f"interrupted{again}", 130)
    except Exception:
        if not _together():
            raise
        traceback.print_exc()
        _fail(name, None, 1)


def _fail(command: str, message: str | None, code: int) -> NoReturn:
    """Says why a command ends, without what a terminal would obey: messages quote manifests."""
    for line in f"specialize {command}: {message}".split("\n") if message is not None else ():
        print(printable(line), file=sys.stderr)
    if _together() and code != EXIT_PREEMPTED:
        # JAX would wait for the other processes, which may be gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _together() -> bool:
    """Whether this is one of several processes of a run."""
    return "specialize.processes.peers" in sys.modules and _peers().count > 1


def _peers() -> Any:
    from specialize.processes import here

    return here()


def _os_error(error: OSError) -> str:
    """What the system refused, as a sentence with the path."""
    paths = " -> ".join(f"'{path}'" for path in (error.filename, error.filename2) if path is not None)
    reason = error.strerror or str(error) or type(error).__name__
    return f"The system refused {paths}: {reason}. Mend that, or name another path." if paths else f"{reason}."


def _stop_at_once(*_: object) -> None:
    """What SIGTERM does before a run can save a state; the run then turns it into a question of its own."""
    raise Preempted("asked to stop before the run had begun. The same command begins it.")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "specialize: one frozen speech recogniser, and a small Submodel for each person.",
            "",
            "usage: specialize COMMAND …        (`specialize COMMAND --help` explains every flag)",
            "",
            *lines,
        ]
    )


def load_experiment(file: Path, *kinds: Any) -> Any:
    """The `experiment` that a Python file exposes.

    Args:
        file: the Python file.
        kinds: what it may be; none named is an Experiment, of Submodels.

    Raises:
        ConfigError: there is no such file, it cannot be run, or it has no experiment of these kinds.
    """
    from specialize.train import Experiment

    return exposed(file, run_file(file), "experiment", *(kinds or (Experiment,)))


def experiment_of(command: str, words: list[str], example: Any, *kinds: type) -> tuple[Path, list[str], Any]:
    """The file that the words begin with, the words after it, and its experiment.

    Args:
        command: that the words are of.
        words: where they only ask for help, it is that of the `example`.
        example: an experiment of the same kind, with every default.
        kinds: other kinds that the command takes.
    """
    if words and not words[0].startswith("-"):
        file = Path(words[0])
        return file, words[1:], load_experiment(file, type(example), *kinds)
    if {"-h", "--help"} & set(words):
        print("The defaults below are those of an experiment that says nothing; a FILE.py has its own.\n")
        return Path("FILE.py"), words, example
    print(
        f"usage: specialize {command} FILE.py [--field value …]\n\nThe file exposes `experiment`, a "
        f"specialize.{type(example).__name__}; `specialize {command} --help` explains its fields.",
        file=sys.stderr,
    )
    sys.exit(2)


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
        if isinstance(experiment, SpaceTraining) and peers.count > 1:
            raise ConfigError("A space is trained by one process, on all devices of its machine. Start one.")
        run = _train_space(command) if isinstance(experiment, SpaceTraining) else _train_cohort(command, peers)
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


def _train_space(command: Any) -> Any:
    """Trains a space; returns the run."""
    from specialize.train import train_space

    run = train_space(command.experiment, overwrite=command.overwrite)
    summary = run.read("summary.json")
    print(
        f"a {summary['generator']} space of {summary['submodels']} speakers in {summary['seconds']:.0f} s: mean dev "
        f"loss {summary['base_dev_loss']:.4f} with the base, {summary['start_dev_loss']:.4f} at the start, "
        f"{summary['dev_loss']:.4f} at step {summary['best_step']} of {summary['steps']}: {run.folder}"
    )
    return run


def compact(words: list[str]) -> None:
    """Write one file that has the Submodels of all speakers of a space, however many."""
    from specialize.space import write_compact
    from specialize.train import linear_space_of

    @dataclass(frozen=True)
    class Compact:
        """Write one file that has the Submodels of all speakers of a space: its mean, its basis, and a row for each."""

        run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a run, or of its `space`."""
        out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
        """File to make, NAME.safetensors."""
        dim: int | None = None
        """Take the principal components of the run's Submodels, so many of them: needed where the run has no linear
        space. Exact for one less than there are speakers."""
        dtype: Literal["float32", "float16"] = "float16"
        """Of basis and coefficients. The error that rounding makes is measured and told."""

    command = tyro.cli(Compact, args=words, prog="specialize compact")
    written = write_compact(linear_space_of(command.run, command.dim), command.out, dtype=command.dtype)
    print(
        f"{written.path}: {written.speakers} speakers in {written.bytes / 1e6:.1f} MB. Parameters differ from the "
        f"space's by at most {written.largest_error:.2g}: {written.relative_error:.2g} of what it adds to its mean."
    )


def pretrain(words: list[str]) -> None:
    """Train a base, from scratch or on from another: `specialize pretrain experiments/FILE.py [--field value …]`."""
    from specialize.corpus import CorpusConfig
    from specialize.processes import ProcessConfig, identify
    from specialize.train import Pretraining
    from specialize.train import pretrain as run_pretraining

    example = Pretraining("NAME", (CorpusConfig(Path("MANIFEST")),))
    file, rest, experiment = experiment_of("pretrain", words, example)

    @dataclass(frozen=True)
    class Pretrain:
        experiment: Annotated[Pretraining, tyro.conf.arg(name="")]
        overwrite: bool = False
        """Replace the run of this name, if there is one."""

    command = tyro.cli(
        Pretrain,
        args=spelt_out(rest, "--strict", *(f"--corpora.{i}.strict" for i in range(len(experiment.corpora)))),
        default=Pretrain(experiment),
        prog=f"specialize pretrain {file}",
        description="Train a base on the pooled speech of many people, over all devices at once.",
    )
    alone = identify(ProcessConfig())
    if alone is None or alone.count > 1:
        raise ConfigError("A base is trained by one process, on all devices of its machine. Start one.")
    run = run_pretraining(command.experiment, overwrite=command.overwrite)
    summary = run.read("summary.json")
    print(
        f"{summary['parameters']:,} parameters, dev loss {summary['dev_loss']:.4f} at step {summary['best_step']}, "
        f"{summary['epochs']} epochs of {summary['hours']} h in {summary['seconds']:.0f} s: {run.base_folder}"
    )
    print(f"next: specialize evaluate {run.folder}")


def evaluate(words: list[str]) -> None:
    """Score runs: WER of base and Submodels per speaker, with intervals; report.html."""
    from specialize.score.evaluate import Scoring
    from specialize.score.evaluate import evaluate as score_runs

    @dataclass(frozen=True)
    class Evaluate:
        """Score runs: word error rates of the base and of each Submodel, with intervals over speakers.

        Of a run of `specialize pretrain`, its base is scored.
        """

        runs: Positional[tuple[Path, ...]]
        """Folders of runs, runs/<name>. The base is decoded once for all of them."""
        scoring: Annotated[Scoring, tyro.conf.arg(name="")] = field(default_factory=Scoring)

    command = tyro.cli(Evaluate, args=words, prog="specialize evaluate")
    if not command.runs:
        raise ConfigError("Name at least one run.")
    score_runs(command.runs, command.scoring)


def curve(words: list[str]) -> None:
    """Draw the learning curve of scored runs: WER against utterances to train on."""
    from specialize.score.curve import learning_curve, write_curve
    from specialize.score.report import NAMES
    from specialize.score.terminal import interval, percent

    @dataclass(frozen=True)
    class Curve:
        """Draw the learning curve of runs that `specialize evaluate` has scored: WER against utterances to train on."""

        runs: Positional[tuple[Path, ...]]
        """Folders of runs, or results files in them. Each is a point: with or without a start or a space, at some
        --budget."""
        control: Path | None = None
        """Scores of one Submodel for all: results.ROLE.json, as `evaluate runs/POOLED --role ROLE` writes it."""
        out: Path = Path()
        """Folder for learning_curve.json and learning_curve.html. The report of a run has a curve that is in its
        folder."""

    command = tyro.cli(Curve, args=words, prog="specialize curve")
    made = learning_curve(command.runs, command.control)
    print(f"{made['speakers']} speakers, base {percent(made['base'])}, one for all {percent(made['pooled_control'])}")
    for way, points in made["curves"].items():
        for point in points:
            rate, ends = percent(point["wer"]), interval(point["wer_interval"])
            print(f"{NAMES[way]:<42} {point[made['unit']]:>5g} {made['unit']}  {rate:>6}  ({ends})")
    for path in write_curve(made, command.out):
        print(path)


@dataclass(frozen=True)
class Transcribe:
    """Print the text of audio files, one line a file."""

    base: Positional[Path]
    """Base folder."""
    audio: Positional[tuple[Path, ...]]
    """Audio files of any format that libsndfile reads."""
    submodel: Path | None = None
    """Stored Submodel of the speaker, runs/<name>/submodels/<speaker>; without it the base transcribes."""
    context: Literal["best", "needed", "full"] = "best"
    """Length that a Whisper's encoder sees: what the audio needs, or always 30 s. `best` is what the audio needs with a
    Submodel, and 30 s without one, for the base alone repeats itself on cropped audio."""
    beam: int = 1
    """Hypotheses of the search of a base with CTC or a transducer; 1 is greedy."""
    tokens_per_second: float | None = None
    """Most tokens that a Whisper writes for a second of audio; None is what the base folder says, mostly 8. Scripts of
    which a letter takes several tokens need more."""
    gate: Literal["on", "off"] = "on"
    """Whether the base transcribes where the Submodel did not beat it on its speaker's dev utterances."""


def transcribe(words: list[str]) -> None:
    """Print the text of audio files, with or without a Submodel."""
    from specialize.base import load_base
    from specialize.serve import Recognizer
    from specialize.submodel import load_submodel

    command = tyro.cli(Transcribe, args=words, prog="specialize transcribe")
    if not command.audio:
        raise ConfigError("Name at least one audio file.")
    base = load_base(command.base).with_beam(command.beam).with_tokens_per_second(command.tokens_per_second)
    alone = None
    if command.context != "best":
        alone = base = base.with_context(command.context)
    recognizer = Recognizer(base, batch=min(8, len(command.audio)), gate=command.gate == "on", alone=alone)
    submodel = None if command.submodel is None else load_submodel(command.submodel, base=base.fingerprint)
    if submodel is not None and recognizer.gate and not submodel.helps:
        print(
            f"specialize transcribe: the Submodel of '{printable(submodel.speaker)}' did not beat the base on dev, so "
            "the base transcribes; --gate off uses it all the same.",
            file=sys.stderr,
        )
    for text in recognizer.transcribe_batch(command.audio, [submodel] * len(command.audio)):
        print(printable(text))


@dataclass(frozen=True)
class ImportBase:
    """Make a base folder from a Hugging Face checkpoint."""

    source: Positional[str]
    """Checkpoint folder, or a name on the Hugging Face hub."""
    out: Positional[Path]
    """Base folder to make."""
    language: str | None = None
    """Language that a multilingual checkpoint is prompted for, as a code (`de`); by default what its own
    generation_config forces, or else English."""
    task: Literal["transcribe", "translate"] | None = None
    """Task that it is prompted for; by default likewise, or else transcribing."""


def import_base(words: list[str]) -> None:
    """Make a base folder from a Hugging Face checkpoint."""
    from specialize.base import import_base as convert
    from specialize.submodel import size

    command = tyro.cli(ImportBase, args=words, prog="specialize import-base")
    base = convert(command.source, command.out, language=command.language, task=command.task)
    print(f"{command.out}: {size(base.params):,} parameters, fingerprint {base.fingerprint}")


def corpus(words: list[str]) -> None:
    """Read a manifest, build its data set, and list what is in it and what is wrong with it."""
    from specialize.base import load_base
    from specialize.corpus import CorpusConfig, open_corpus

    @dataclass(frozen=True)
    class CorpusCommand:
        """Read a manifest, build its data set, and list what is in it and what is wrong with it."""

        manifest: Positional[Path]
        """JSONL or CSV: audio, text, speaker; optional utterance, split, role and attributes."""
        base: Path | None = None
        """Also check texts and lengths against this base."""
        role: str | None = None
        """Only utterances whose `role` in the manifest is this; a manifest that names no roles is used whole."""
        speakers: tuple[str, ...] = ()
        """Only these speakers; none named means all."""
        limit: int | None = None
        """Only the first so many speakers, in the order of the manifest."""
        text: Literal["base", "verbatim"] = "base"
        """Training targets as the base writes, or exactly as in the manifest."""
        cache: Path | None = None
        """Where decoded corpora are kept; default $SPECIALIZE_CACHE/corpora, or ~/.cache/specialize/corpora."""
        strict: bool = False
        """Stop with an error if anything is wrong."""
        problems: int = 20
        """How many problems to list."""

    command = tyro.cli(CorpusCommand, args=words, prog="specialize corpus")
    names = {f.name for f in dataclasses.fields(CorpusConfig)}
    config = CorpusConfig(**{name: value for name, value in vars(command).items() if name in names})
    opened = open_corpus(config, None if command.base is None else load_base(command.base))
    summary = opened.summary()
    print(f"{summary['speakers']} speakers")
    for name, split in summary["splits"].items():
        print(f"  {name:<5} {split['utterances']:>7} utterances, {split['hours']:.2f} h")
    print(f"left out: {summary['left_out']}")
    for problem in opened.problems[: command.problems]:
        print(f"  {problem}")
    if len(opened.problems) > command.problems:
        print(f"  … and {len(opened.problems) - command.problems} more; --problems lists more of them")


@dataclass(frozen=True)
class Inspect:
    """Say what a base folder, a run, a space or a stored Submodel is."""

    path: Positional[Path]
    """The folder."""
    kind: KindName | None = None
    """With a base: show where a Submodel of this kind would go, and its size."""
    where: tuple[str, ...] | None = None
    """With --kind: patterns of module paths instead of the kind's default."""


def inspect(words: list[str]) -> None:
    """Say what a base, a run, a space or a Submodel is, and where a spec would insert."""
    from specialize.describe import describe

    command = tyro.cli(Inspect, args=words, prog="specialize inspect")
    for line in describe(command.path, kind=command.kind, where=command.where):
        print(printable(line))


def sweep(words: list[str]) -> None:
    """Try many settings of an experiment, those that can in one program: `specialize sweep FILE.py lr=1e-4,1e-3 …`."""
    from specialize.sweep.command import sweep as run

    run(words)


def serve(words: list[str]) -> None:
    """Serve transcriptions of any speaker over HTTP, as OpenAI's API does."""
    from specialize.serve.command import serve as run

    run(words)


def forget(words: list[str]) -> None:
    """Delete a speaker's Submodel from a store and a running server, and prove it."""
    from specialize.serve.command import forget as run

    run(words)


def keys(words: list[str]) -> None:
    """Make, list and revoke the API keys of a server: `specialize keys add NAME --speakers …`."""
    from specialize.serve.keys_command import keys as run_keys

    run_keys(words)


def export(words: list[str]) -> None:
    """Write Submodels for other programs: safetensors, PEFT, merged Hugging Face folders, or a program of JAX."""
    from specialize.exchange import Export, run_export

    for line in run_export(tyro.cli(Export, args=words, prog="specialize export")):
        print(printable(line), flush=True)


def plan(words: list[str]) -> None:
    """Say what a run would take, here or on accelerators elsewhere: `specialize plan FILE --accelerator v5e-256`."""
    from launch.plan.command import plan as run

    run(words)


def import_submodel(words: list[str]) -> None:
    """Make a stored Submodel of a folder of PEFT, or of an exported safetensors file."""
    from specialize.exchange import ImportSubmodel, run_import

    command = tyro.cli(ImportSubmodel, args=words, prog="specialize import-submodel")
    stored = run_import(command)
    print(printable(f"{command.out}: the Submodel of '{stored.speaker}', {stored.spec}"))


def launch(words: list[str]) -> None:
    """Run an experiment on this machine, SLURM, GKE or TPU VMs: `specialize launch WHERE … experiments/FILE.py`."""
    from launch.command import launch as run_launcher

    run_launcher(words)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "pretrain": pretrain,
    "sweep": sweep,
    "launch": launch,
    "evaluate": evaluate,
    "curve": curve,
    "transcribe": transcribe,
    "import-base": import_base,
    "corpus": corpus,
    "inspect": inspect,
    "plan": plan,
    "compact": compact,
    "serve": serve,
    "keys": keys,
    "forget": forget,
    "export": export,
    "import-submodel": import_submodel,
}

if __name__ == "__main__":
    main()
