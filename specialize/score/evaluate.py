"""From runs to scores: every utterance of a split through the base and through its speaker's Submodel."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from specialize.base import Base, load_base
from specialize.corpus import Corpus, CorpusConfig, Speaker, Utterance, open_corpus
from specialize.errors import ConfigError, FingerprintMismatch
from specialize.printable import printable
from specialize.score.counts import Counts, count_words, normalizer
from specialize.score.decode import decode_split, unheard
from specialize.score.groups import grouped
from specialize.score.plots import Curve
from specialize.score.pretrained import evaluate_pretrained
from specialize.score.report import write_report
from specialize.score.results import score, write_atomically, write_results
from specialize.score.scoring import Context, Files, Scoring, say_left_out
from specialize.score.spaces import SpaceView, view_space
from specialize.score.terminal import by_gain, percent, said_and_heard, tables
from specialize.score.transcript import Transcript
from specialize.serve import Recognizer
from specialize.submodel.store import speaker_folder
from specialize.train import PretrainRun, Run, SpaceRun, open_run
from specialize.train.metrics import read_metrics
from specialize.train.recorder import job_name, read_jobs
from specialize.train.run import SpeakersRun
from specialize.train.runs import CURVE, fitted_space

BaseTexts = dict[Any, dict[int, str]]
"""What bases have transcribed by themselves, by base, corpus and context."""


def evaluate(
    folders: Sequence[Path], scoring: Scoring, console: Console | None = None, decoded: BaseTexts | None = None
) -> list[dict[str, Any]]:
    """Scores runs, prints tables, and writes `results.json`, `transcripts.jsonl` and `report.html` of each.

    They lie in the run, or in `scoring.out`. In the run, every scoring but the plain one (its own corpus, test, gate,
    best context, greedy) has a name that says how it differs: `results.personal.dev.json`, `results.gate-off.json`.
    The base is decoded once for runs that share it and the corpus. Of a pretraining, its base is
    scored on the corpora that it was trained on (`evaluate_pretrained`).

    Args:
        folders: of the runs.
        scoring: what to score.
        console: where tables go; None is stdout. Progress goes to stderr.
        decoded: what bases have transcribed before, which is not done again, and to which is added.

    Returns:
        The results of each run: those of `score`, with what was scored and what was left out.

    Raises:
        ConfigError: a folder is no run, none of its speakers has a Submodel and utterances of the split, or a group is
            none.
        FingerprintMismatch: the base is not the one that the run was trained on.
    """
    console = console or Console()
    decoded = {} if decoded is None else decoded
    outs = _outs(folders, scoring.out)
    results = []
    for run, out in zip([open_run(folder) for folder in folders], outs, strict=True):
        one = dataclasses.replace(scoring, out=out)
        if isinstance(run, PretrainRun):
            results.append(evaluate_pretrained(run, one, console))
        else:
            assert isinstance(run, SpeakersRun)
            results.append(_evaluate_run(run, one, console, decoded))
    return results


def _outs(folders: Sequence[Path], out: Path | None) -> list[Path | None]:
    """Where the scores of each run go, if not into it."""
    if out is None or len(folders) == 1:
        return [out] * len(folders)
    names = [Path(folder).resolve().name for folder in folders]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two runs are called '{twice[0]}', and --out has a folder of that name for one only.")
    return [out / name for name in names]


def _evaluate_run(run: SpeakersRun, scoring: Scoring, console: Console, decoded: BaseTexts) -> dict[str, Any]:
    base = scoring.of(load_base(scoring.base or run.experiment.base))
    if base.fingerprint != run.base:
        raise FingerprintMismatch(
            f"The run '{run.folder}' was trained on the base {run.base}, but "
            f"'{scoring.base or run.experiment.base}' is {base.fingerprint}. Name the right one with --base."
        )
    config = scoring.corpus(run.experiment.corpus)
    corpus = open_corpus(config, base, needs=(scoring.split,))
    served = _served(run, corpus, scoring)
    if not served.submodels:  # with a gate, the base serves those whose jobs are in quarantine
        raise ConfigError(
            f"No speaker of '{config.manifest}' has both a Submodel in '{run.folder}' and {scoring.split} utterances."
        )
    transcripts = unheard(corpus, served.speakers, scoring.split)
    grouped(list(transcripts.values()), scoring.groups)  # so that what is no group is known before anything is decoded
    differs = scoring.differs(base, {run.experiment.corpus.role}, _same_corpus(run, config, corpus))
    files = Files.of(run.folder, scoring.out, differs)
    speakers = served.speakers
    utterances = [u for speaker in speakers for u in speaker.split(scoring.split)]
    base_texts, contexts = _base_texts(base, corpus, speakers, utterances, scoring, decoded)
    with_submodel = [speaker for speaker in speakers if served.submodels[speaker.id] is not None]
    submodel_texts = base_texts | decode_split(
        Recognizer(base.with_context(run.experiment.context), batch=scoring.batch, gate=False),
        corpus,
        with_submodel,
        scoring.split,
        lambda speaker: run.submodel(served.submodels[speaker.id] or "", base=base.fingerprint),
        "with Submodels",
    )
    heard = [
        dataclasses.replace(
            transcript,
            base=base_texts[index],
            submodel=submodel_texts[index],
            used="base" if transcript.speaker in served.by_base else "submodel",
        )
        for index, transcript in transcripts.items()
    ]
    language = scoring.language_of(base)
    results = score(heard, language=language, groups=scoring.groups, resamples=scoring.resamples)
    results |= {
        "base_contexts": contexts,
        "speakers_without_submodel": served.without,
        "speakers_without_utterances": [problem.speaker for problem in corpus.problems if not problem.line],
        "gate": scoring.gate,
        "beam": scoring.beam,
        "manifest": str(config.manifest),
        "differs": differs,
        "left_out": len(corpus.problems),
        "problems": [vars(problem) for problem in corpus.problems],
    }
    _write(run, scoring, files, results, heard)
    _print(console, scoring, results, heard)
    say_left_out(console, corpus.problems, scoring.split, files.results)
    for name, path in (("figures", files.results), ("report", files.report)):
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True, markup=False)
    _say_next(console, run, scoring, results, served, corpus)
    return results


def _same_corpus(run: SpeakersRun, config: CorpusConfig, corpus: Corpus) -> bool:
    """Whether what is scored is the manifest of the run, or has its very content elsewhere."""
    same_path = Path(config.manifest).resolve() == Path(run.experiment.corpus.manifest).resolve()
    return same_path or corpus.built.folder.name == run.config["corpus"]


@dataclass(frozen=True)
class _Served:
    """Who is scored, and what serves each."""

    speakers: list[Speaker]
    submodels: dict[str, str | None]
    """{speaker: the name of the Submodel in the store}; None for a job that ended in quarantine."""
    by_base: set[str]
    without: list[str]
    """Speakers of the corpus that are not scored, because they have no Submodel."""


def _served(run: SpeakersRun, corpus: Corpus, scoring: Scoring) -> _Served:
    pooled, spoken = run.experiment.corpus.pool, corpus.speakers
    stored = set(run.speakers())
    submodels: dict[str, str | None] = {}
    for speaker in spoken:
        name = speaker.id if pooled is None else pooled
        if name in stored:
            submodels[speaker.id] = name
    if scoring.gate == "on":
        troubled = {job["speaker"] for job in read_jobs(run) if job["quarantined"]}
        submodels |= {s.id: None for s in spoken if s.id not in submodels and s.id in troubled}
    useless = {name for name in set(submodels.values()) if name is not None and not run.helps(name)}
    by_base = {speaker for speaker, name in submodels.items() if name is None or name in useless}
    return _Served(
        [speaker for speaker in spoken if speaker.id in submodels],
        submodels,
        by_base if scoring.gate == "on" else set(),
        [speaker.id for speaker in spoken if speaker.id not in submodels],
    )


def _base_texts(
    base: Base,
    corpus: Corpus,
    speakers: Sequence[Speaker],
    utterances: Sequence[Utterance],
    scoring: Scoring,
    decoded: BaseTexts,
) -> tuple[dict[int, str], dict[str, Any]]:
    """Texts of the base alone in the context to score it at, and its pooled WER in each context that was tried."""
    has_window = hasattr(base.architecture, "context")
    contexts: tuple[Context, ...] = ("needed",)
    if has_window:
        contexts = ("full", "needed") if scoring.base_context == "best" else (scoring.base_context,)
    normalize = normalizer(scoring.language_of(base))
    tried: dict[Context, float] = {}
    texts: dict[Context, dict[int, str]] = {}
    for context in contexts:
        key = (base.fingerprint, str(corpus.built.folder), context)
        known = decoded.setdefault(key, {})
        missing = {u.index for u in utterances} - known.keys()
        lacking = [s for s in speakers if any(u.index in missing for u in s.split(scoring.split))]
        if lacking:
            alone = base.with_context(context)
            recognizer = Recognizer(alone, batch=scoring.batch, alone=alone)
            known |= decode_split(
                recognizer, corpus, lacking, scoring.split, lambda _: None, f"base, {context} context"
            )
        texts[context] = known
        counts = sum((count_words(normalize(u.text), normalize(known[u.index])) for u in utterances), Counts())
        tried[context] = float("inf") if counts.rate is None else counts.rate
    best = min(tried, key=lambda context: tried[context])
    shown = {context: rate if rate != float("inf") else None for context, rate in tried.items()}
    return texts[best], {"scored_at": best, "wer": shown}


def _write(
    run: SpeakersRun, scoring: Scoring, files: Files, results: dict[str, Any], transcripts: Sequence[Transcript]
) -> None:
    write_results(results, files.results)
    lines = [json.dumps(dataclasses.asdict(t), ensure_ascii=False) for t in transcripts]
    write_atomically(files.transcripts, "\n".join(lines) + "\n")
    space = _space(run, transcripts, scoring)
    write_report(files.report, results, transcripts, _curves(run), _about(run, results), space, run.read(CURVE))


def _space(run: SpeakersRun, transcripts: Sequence[Transcript], scoring: Scoring) -> SpaceView | None:
    """The space that the run trained, or that it fitted its speakers to."""
    if isinstance(run, SpaceRun):
        return view_space(run.space(), transcripts, scoring.groups)
    assert isinstance(run, Run)
    fitted = fitted_space(run)
    if fitted is None:
        return None
    new = {transcript.speaker for transcript in transcripts}
    known = {speaker: "fitted" if speaker in new else "of the space" for speaker in fitted.embeddings}
    return view_space(fitted, transcripts, scoring.groups, {"speakers": known})


def _curves(run: SpeakersRun) -> dict[str, Curve]:
    path = run.folder / "metrics.jsonl"
    curves: dict[str, list[tuple[int, float | None, float | None]]] = {}
    for record in read_metrics(path) if path.is_file() else []:
        if "speaker" not in record:  # means over the speakers of a space
            continue
        point = (record["step"], _finite(record["train_loss"]), _finite(record["dev_loss"]))
        name = job_name(record["speaker"], record.get("point", 0), bool(run.grid))
        curves.setdefault(name, []).append(point)
    return dict(curves)


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def _about(run: SpeakersRun, results: dict[str, Any]) -> dict[str, Any]:
    experiment, summary = run.experiment, run.read("summary.json") or {}
    contexts = results["base_contexts"]
    return {
        "name": experiment.name,
        "command": run.config.get("command"),
        "base": f"{experiment.base} ({run.base})",
        "submodel": str(experiment.submodel),
        "parameters_of_a_Submodel": summary.get("parameters_each"),
        "parameters_of_the_base": summary.get("base_parameters"),
        "space": None if getattr(experiment, "space", None) is None else str(experiment.space),
        "fit": experiment.fitted if isinstance(run, Run) and experiment.space is not None else None,
        "parameters_of_the_space": summary.get("shared_parameters"),
        "start": None if experiment.start is None else str(experiment.start),
        "context_in_training": experiment.context,
        "base_scored_at_context": contexts["scored_at"],
        "base_WER_by_context": ", ".join(f"{name} {percent(rate)}" for name, rate in contexts["wer"].items()),
        "corpus": str(experiment.corpus.manifest),
        "scored_corpus": results["manifest"] if results["manifest"] != str(experiment.corpus.manifest) else None,
        "scored_with": ", ".join(results["differs"]) or None,
        "devices": summary.get("devices"),
        "slots": summary.get("slots"),
        "seconds_of_training": summary.get("seconds"),
        "submodels_per_hour": summary.get("submodels_per_hour"),
        "padded_share": summary.get("padded_share"),
        "slots_busy": summary.get("slots_busy"),
        "versions": ", ".join(f"{name} {text}" for name, text in run.config["versions"].items()),
        "problems": run.read("problems.json"),
        "quarantined": list(summary.get("quarantined", {})),
    }


def _print(console: Console, scoring: Scoring, results: dict[str, Any], transcripts: Sequence[Transcript]) -> None:
    if scoring.text:
        for t in transcripts:
            heard = {"base": t.base, "personalised": t.personalised}
            said_and_heard(console, t.speaker, t.utterance, t.reference, heard, results["language"])
    for table in tables(results):
        console.print(table)
    contexts = results["base_contexts"]
    tried = ", ".join(f"{name} {percent(rate)}" for name, rate in contexts["wer"].items())
    console.print(f"Base WER by context: {tried}; scored at '{contexts['scored_at']}'.", highlight=False)
    if results["speakers_without_submodel"]:
        names = ", ".join(printable(name) for name in results["speakers_without_submodel"][:10])
        count = len(results["speakers_without_submodel"])
        console.print(f"{count} speakers have no Submodel here: {names}.", markup=False, highlight=False)


def _say_next(
    console: Console, run: SpeakersRun, scoring: Scoring, results: dict[str, Any], served: _Served, corpus: Corpus
) -> None:
    """How to use what was made, with the speaker who gained most."""
    gained = [name for name, row in by_gain(results["speakers"]) if row["used"] == "submodel"]
    if not gained:
        return
    speaker = next(s for s in served.speakers if s.id == gained[0])
    audio = Path(corpus.built.rows[speaker.split(scoring.split)[0].index].audio)
    submodel = run.folder / "submodels" / speaker_folder(served.submodels[speaker.id] or "")
    if not submodel.is_dir():  # a space alone was kept
        return
    base, clip = str(scoring.base or run.experiment.base), str(audio) if audio.is_file() else "CLIP.wav"
    words = ("specialize", "transcribe", base, clip, "--submodel", str(submodel))
    serve = ("specialize", "serve", "--base", base, "--submodels", str(submodel.parent))
    load = f"sp.Recognizer(sp.load_base({base!r})).transcribe({clip!r}, {str(submodel)!r})"
    for line in (
        f"next: {printable(shlex.join(words))}",
        f"      everybody over HTTP (extra `serve`): {printable(shlex.join(serve))}",
        f"      from a program: import specialize as sp; {printable(load)}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
