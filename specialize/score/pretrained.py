"""Scores of a base that was pretrained: alone, or beside the base that it went on from."""

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from specialize.base import Base, load_base
from specialize.corpus import open_corpus
from specialize.errors import ConfigError
from specialize.score.decode import decode_split
from specialize.score.results import score, write_atomically, write_results
from specialize.score.terminal import interval, percent, printable
from specialize.score.transcript import Transcript
from specialize.serve import Recognizer
from specialize.train import PretrainRun

_OF_TWO = ("base", "submodel", "relative", "p_value", "helped", "harmed", "unchanged", "served", "median_speaker_base")
"""How the figures begin that compare two systems, or a base with Submodels."""


def evaluate_pretrained(run: PretrainRun, scoring: Any, console: Console) -> dict[str, Any]:
    """Scores the base of a pretraining on its own corpora, and writes `results.json` and `transcripts.jsonl`.

    Args:
        run: of `specialize pretrain`, ended.
        scoring: a `Scoring`; what it says of Submodels does not count.
        console: where the table goes.

    Returns:
        `score`'s results. Where the base went on from another, that one is `base_wer` and the new one `wer`; otherwise
        figures that compare two are left out.

    Raises:
        ConfigError: the run has not ended, or no corpus has such utterances.
    """
    if not run.base_folder.is_dir():
        raise ConfigError(f"The pretraining '{run.folder}' has not ended: it has no base. Go on with the same command.")
    start = run.experiment.start
    bases = [load_base(folder).with_beam(scoring.beam) for folder in (run.base_folder, start) if folder is not None]
    transcripts: list[Transcript] = []
    for number, config in enumerate(run.experiment.corpora):
        if scoring.manifest is not None:
            config = dataclasses.replace(config, manifest=scoring.manifest)
        if scoring.manifest is None or number == 0:
            transcripts += _transcripts(bases, config, scoring)
    if not transcripts:
        raise ConfigError(f"No corpus of '{run.folder}' has {scoring.split} utterances. Try --split dev.")
    results = score(transcripts, language=scoring.language, groups=scoring.groups, resamples=scoring.resamples)
    if start is None:
        results = _of_one(results)
    suffix = "" if scoring.split == "test" else f".{scoring.split}"
    write_results(results, run.folder / f"results{suffix}.json")
    lines = [_line(transcript, alone=start is None) for transcript in transcripts]
    write_atomically(run.folder / f"transcripts{suffix}.jsonl", "\n".join(lines) + "\n")
    console.print(_table(run, results))
    console.print(f"figures: {run.folder / f'results{suffix}.json'}", highlight=False, soft_wrap=True)
    return results


def _transcripts(bases: list[Base], config: Any, scoring: Any) -> list[Transcript]:
    corpus = open_corpus(dataclasses.replace(config, pool=None), bases[0])
    speakers = [speaker for speaker in corpus.speakers if speaker.split(scoring.split)]
    texts = [
        decode_split(Recognizer(base, batch=scoring.batch), corpus, speakers, scoring.split, lambda _: None, title)
        for base, title in zip(bases, ("the base", "the base it started from"), strict=False)
    ]
    return [
        Transcript(
            utterance=u.id,
            speaker=speaker.id,
            reference=u.text,
            base=texts[-1][u.index],
            submodel=texts[0][u.index],
            seconds=u.samples / corpus.sample_rate,
            split=scoring.split,
            attributes=corpus.built.rows[u.index].attributes | {"corpus": str(config.manifest)},
        )
        for speaker in speakers
        for u in speaker.split(scoring.split)
    ]


def _line(transcript: Transcript, *, alone: bool) -> str:
    line = dataclasses.asdict(transcript)
    text = line.pop("submodel")
    line.pop("used")
    return json.dumps((line | {"base": text}) if alone else (line | {"pretrained": text}), ensure_ascii=False)


def _of_one(results: dict[str, Any]) -> dict[str, Any]:
    """Results without the figures that compare."""

    def alone(figures: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in figures.items() if not name.startswith(_OF_TWO) and name != "used"}
        return kept | {"reasons": {n: why for n, why in figures["reasons"].items() if not n.startswith(_OF_TWO)}}

    groups = {name: {of: alone(row) for of, row in values.items()} for name, values in results["groups"].items()}
    speakers = {speaker: alone(row) for speaker, row in results["speakers"].items()}
    return results | {"pooled": alone(results["pooled"]), "speakers": speakers, "groups": groups}


def _table(run: PretrainRun, results: dict[str, Any]) -> Table:
    two = "base_wer" in results["pooled"]
    table = Table(title=f"{run.base_folder}", title_justify="left")
    names = ("", "speakers", "words", *(("WER of the start",) if two else ()), "WER", "95% interval", "CER")
    for name in names:
        table.add_column(name, justify="right" if name else "left")

    def add(name: str, row: dict[str, Any]) -> None:
        before = (percent(row["base_wer"]),) if two else ()
        figures = (percent(row["wer"]), interval(row["wer_interval"]), percent(row["cer"]))
        table.add_row(printable(name), str(row["speakers"]), str(row["words"]), *before, *figures)

    add("all", results["pooled"])
    for attribute, values in results["groups"].items():
        for value, row in values.items():
            add(f"{attribute} {value}", row)
    return table
