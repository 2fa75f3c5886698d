"""`specialize evaluate`, `curve` and `transcribe`: what runs have come to, and single recordings."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from specialize.errors import ConfigError
from specialize.printable import printable

Positional = tyro.conf.Positional


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
    """Stored Submodel of the speaker, runs/<name>/submodels/<speaker>, or with `--speaker` a folder or compact file of
    many; without it the base transcribes."""
    speaker: str | None = None
    """Whose of the Submodels in a folder, runs/<name>/submodels, or in a file that `specialize compact` wrote."""
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
    from specialize.serve.stores import open_store
    from specialize.submodel import load_submodel

    command = tyro.cli(Transcribe, args=words, prog="specialize transcribe")
    if not command.audio:
        raise ConfigError("Name at least one audio file.")
    base = load_base(command.base).with_beam(command.beam).with_tokens_per_second(command.tokens_per_second)
    alone = None
    if command.context != "best":
        alone = base = base.with_context(command.context)
    recognizer = Recognizer(base, batch=min(8, len(command.audio)), gate=command.gate == "on", alone=alone)
    if command.speaker is not None:
        if command.submodel is None:
            raise ConfigError("--speaker says whose of the Submodels in --submodel; name the folder or file.")
        submodel = open_store(command.submodel).load(command.speaker, base=base.fingerprint)
    elif command.submodel is not None and command.submodel.is_file():
        raise ConfigError(f"'{command.submodel}' is a file of many. Say whose Submodel with --speaker.")
    else:
        submodel = None if command.submodel is None else load_submodel(command.submodel, base=base.fingerprint)
    if submodel is not None and recognizer.gate and not submodel.helps:
        print(
            f"specialize transcribe: the Submodel of '{printable(submodel.speaker)}' did not beat the base on dev, so "
            "the base transcribes; --gate off uses it all the same.",
            file=sys.stderr,
        )
    for text in recognizer.transcribe_batch(command.audio, [submodel] * len(command.audio)):
        print(printable(text))
