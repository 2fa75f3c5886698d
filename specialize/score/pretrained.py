"""Scores of a base that was pretrained: alone, or beside the base that it went on from."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specialize.base import Base, load_base
from specialize.corpus import Corpus, open_corpus
from specialize.errors import ConfigError, FingerprintMismatch
from specialize.printable import printable
from specialize.score.decode import decode_split, unheard
from specialize.score.groups import grouped
from specialize.score.plots import Curve
from specialize.score.pretrained_report import write_pretrained_report
from specialize.score.results import score, write_atomically, write_results
from specialize.score.scoring import Files, Scoring, say_left_out
from specialize.score.terminal import interval, percent, said_and_heard
from specialize.score.transcript import Transcript
from specialize.serve import Recognizer
from specialize.train import PretrainRun
from specialize.train.metrics import read_metrics

_OF_TWO = ("base", "submodel", "relative", "p_value", "helped", "harmed", "unchanged", "served", "median_speaker_base")
"""How the figures begin that compare two systems, or a base with Submodels."""


def evaluate_pretrained(run: PretrainRun, scoring: Scoring, console: Console) -> dict[str, Any]:
    """Scores the base of a pretraining on its own corpora; writes results, transcripts and a report of them.

    Args:
        run: of `specialize pretrain`, ended.
        scoring: what to score; what it says of Submodels does not count.
        console: where the table goes.

    Returns:
        `score`'s results. Where the base went on from another, that one is `base_wer` and the new one `wer`; otherwise
        figures that compare two are left out.

    Raises:
        ConfigError: the run has not ended, no corpus has such utterances, or a group is none.
    """
    if not run.base_folder.is_dir():
        raise ConfigError(f"The pretraining '{run.folder}' has not ended: it has no base. Go on with the same command.")
    if scoring.base is not None:
        raise ConfigError("--base is of runs of Submodels. The base of a pretraining is in its folder.")
    start = run.experiment.start
    scoring = dataclasses.replace(scoring, gate="on", base_context="best")
    bases = [scoring.of(load_base(folder)) for folder in (run.base_folder, start) if folder is not None]
    if start is not None and bases[1].fingerprint != run.base:
        raise FingerprintMismatch(
            f"'{run.folder}' went on from the base {run.base}, but '{start}' is {bases[1].fingerprint}. "
            "Put that one back."
        )
    of_run = run.experiment.corpora
    configs = [scoring.corpus(config) for config in (of_run if scoring.manifest is None else of_run[:1])]
    corpora = [open_corpus(config, bases[0], needs=(scoring.split,)) for config in configs]
    of_corpora = [unheard(corpus, corpus.speakers, scoring.split) for corpus in corpora]
    if not any(of_corpora):
        raise ConfigError(f"No corpus of '{run.folder}' has {scoring.split} utterances. Try --split dev.")
    for config, part in zip(configs, of_corpora, strict=True):
        for index, transcript in part.items():
            attributes = transcript.attributes | {"corpus": str(config.manifest)}
            part[index] = dataclasses.replace(transcript, attributes=attributes)
    grouped([transcript for part in of_corpora for transcript in part.values()], scoring.groups)
    own_corpus = [Path(c.manifest).resolve() for c in configs] == [Path(c.manifest).resolve() for c in of_run]
    differs = scoring.differs(bases[0], {config.role for config in of_run}, own_corpus)
    files = Files.of(run.folder, scoring.out, differs)
    transcripts = [
        transcript
        for corpus, part in zip(corpora, of_corpora, strict=True)
        for transcript in _decoded(bases, corpus, part, scoring)
    ]
    problems = [problem for corpus in corpora for problem in corpus.problems]
    language = scoring.language_of(bases[0])
    results = score(transcripts, language=language, groups=scoring.groups, resamples=scoring.resamples)
    if start is None:
        results = of_one(results)
    results |= {
        "speakers_without_utterances": [problem.speaker for problem in problems if not problem.line],
        "beam": scoring.beam,
        "manifests": [str(config.manifest) for config in configs],
        "differs": differs,
        "left_out": len(problems),
        "problems": [vars(problem) for problem in problems],
    }
    write_results(results, files.results)
    lines = [_line(transcript, alone=start is None) for transcript in transcripts]
    write_atomically(files.transcripts, "\n".join(lines) + "\n")
    if scoring.text:
        for t in transcripts:
            said_and_heard(console, t.speaker, t.utterance, t.reference, {"": t.submodel}, language)
    console.print(_table(run, results))
    say_left_out(console, problems, scoring.split, files.results)
    write_pretrained_report(files.report, results, transcripts, _curve(run), _about(run, bases[0], results))
    for name, path in (("figures", files.results), ("report", files.report)):
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True, markup=False)
    return results


def _decoded(
    bases: Sequence[Base], corpus: Corpus, transcripts: dict[int, Transcript], scoring: Scoring
) -> list[Transcript]:
    texts = [
        decode_split(
            Recognizer(base, batch=scoring.batch), corpus, corpus.speakers, scoring.split, lambda _: None, title
        )
        for base, title in zip(bases, ("the base", "the base it started from"), strict=False)
    ]
    return [
        dataclasses.replace(transcript, base=texts[-1][index], submodel=texts[0][index])
        for index, transcript in transcripts.items()
    ]


def _curve(run: PretrainRun) -> Curve:
    path = run.folder / "metrics.jsonl"
    return [(r["step"], r["train_loss"], r["dev_loss"]) for r in (read_metrics(path) if path.is_file() else [])]


def _about(run: PretrainRun, base: Base, results: dict[str, Any]) -> dict[str, Any]:
    experiment, summary = run.experiment, run.read("summary.json") or {}
    trained_on = [str(config.manifest) for config in experiment.corpora]
    return {
        "name": experiment.name,
        "command": run.config.get("command"),
        "base": f"{run.base_folder} ({base.fingerprint})",
        "architecture": type(base.architecture).__name__,
        "parameters": summary.get("parameters"),
        "start": None if experiment.start is None else f"{experiment.start} ({run.base})",
        "corpora": trained_on,
        "scored_corpora": results["manifests"] if results["manifests"] != trained_on else None,
        "scored_with": ", ".join(results["differs"]) or None,
        "hours_of_speech": summary.get("hours"),
        "epochs": summary.get("epochs"),
        "steps": summary.get("steps"),
        "best_step": summary.get("best_step"),
        "dev_loss_at_that_step": None if "dev_loss" not in summary else f"{summary['dev_loss']:.4f} a token",
        "devices": summary.get("devices"),
        "seconds_of_training": summary.get("seconds"),
        "versions": ", ".join(f"{name} {text}" for name, text in run.config["versions"].items()),
        "problems": run.read("problems.json"),
    }


def _line(transcript: Transcript, *, alone: bool) -> str:
    line = dataclasses.asdict(transcript)
    text = line.pop("submodel")
    line.pop("used")
    return json.dumps((line | {"base": text}) if alone else (line | {"pretrained": text}), ensure_ascii=False)


def of_one(results: dict[str, Any]) -> dict[str, Any]:
    """Results of `score` without the figures that compare two systems."""

    def alone(figures: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in figures.items() if not name.startswith(_OF_TWO) and name != "used"}
        return kept | {"reasons": {n: why for n, why in figures["reasons"].items() if not n.startswith(_OF_TWO)}}

    groups = {name: {of: alone(row) for of, row in values.items()} for name, values in results["groups"].items()}
    speakers = {speaker: alone(row) for speaker, row in results["speakers"].items()}
    return results | {"pooled": alone(results["pooled"]), "speakers": speakers, "groups": groups}


def _table(run: PretrainRun, results: dict[str, Any]) -> Table:
    two = "base_wer" in results["pooled"]
    table = Table(title=Text(f"{run.base_folder}"), title_justify="left")
    names = ("", "speakers", "words", *(("WER of the start",) if two else ()), "WER", "95% interval", "CER")
    for name in names:
        table.add_column(name, justify="right" if name else "left")

    def add(name: str, row: dict[str, Any]) -> None:
        before = (percent(row["base_wer"]),) if two else ()
        figures = (percent(row["wer"]), interval(row["wer_interval"]), percent(row["cer"]))
        table.add_row(Text(printable(name)), str(row["speakers"]), str(row["words"]), *before, *figures)

    add("all", results["pooled"])
    for attribute, values in results["groups"].items():
        for value, row in values.items():
            add(f"{attribute} {value}", row)
    return table
