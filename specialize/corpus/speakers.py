"""The speakers of a corpus, each with training, dev and test utterances that a base can use."""

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specialize.base import Base
from specialize.corpus.builder import BuiltCorpus, build_corpus
from specialize.corpus.config import CorpusConfig
from specialize.corpus.manifest import Problem, Row
from specialize.errors import CorpusError, SpecializeError

_DEFAULT_RATE = 16_000


@dataclass(frozen=True)
class Utterance:
    """One recording."""

    id: str
    index: int
    """Its place in the data set."""
    line: int
    """Its line in the manifest."""
    text: str
    """As in the manifest: what hypotheses are scored against."""
    samples: int
    """Length."""
    labels: tuple[int, ...] = ()
    """Token ids of the training target; empty where the corpus was opened without a base."""


@dataclass(frozen=True)
class Speaker:
    """One person, with what belongs to each split."""

    id: str
    train: tuple[Utterance, ...] = ()
    dev: tuple[Utterance, ...] = ()
    test: tuple[Utterance, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Columns of the manifest that are the same in all lines of the speaker."""
    sample_rate: int = _DEFAULT_RATE
    """Hz, by which the lengths of utterances are counted."""

    def split(self, name: str) -> tuple[Utterance, ...]:
        """Utterances of `train`, `dev` or `test`."""
        return {"train": self.train, "dev": self.dev, "test": self.test}[name]


@dataclass(frozen=True)
class Corpus:
    """Speakers, and their audio."""

    speakers: tuple[Speaker, ...]
    problems: tuple[Problem, ...]
    """All that was left out of what was chosen, in the order of the manifest; whole speakers last."""
    built: BuiltCorpus

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.built.sample_rate

    def audio(self, utterance: Utterance) -> np.ndarray:
        """float32 [N] samples, in [-1, 1]. May be called from several threads."""
        return self.built.audio(utterance.index)

    def summary(self) -> dict[str, Any]:
        """Numbers of speakers, utterances and hours, and what was left out."""
        splits = {}
        for name in ("train", "dev", "test"):
            utterances = [u for s in self.speakers for u in s.split(name)]
            hours = sum(u.samples for u in utterances) / self.sample_rate / 3600
            splits[name] = {"utterances": len(utterances), "hours": round(hours, 3)}
        return {"speakers": len(self.speakers), "splits": splits, "left_out": len(self.problems)}


def open_corpus(config: CorpusConfig, base: Base | None = None, *, needs: Sequence[str] = ("train", "dev")) -> Corpus:
    """Opens a corpus, building its data set the first time.

    Utterances that cannot be used are left out and listed in `problems`; so are speakers that are left without
    utterances of a split that is needed. Lines of other roles and speakers than the chosen ones are nobody's problem.

    Args:
        config: the manifest and the part of it to use.
        base: what texts and lengths are checked against; None checks neither, and leaves `labels` empty.
        needs: splits without which a speaker is left out: those to train on and to choose by, or the one to score.

    Raises:
        CorpusError: nothing can be used, a named speaker is not there, or, with `strict`, anything was left out.
    """
    rate = _DEFAULT_RATE if base is None else base.architecture.sample_rate
    built = build_corpus(config.manifest, rate, config.cache_folder)
    roles = sorted({row.role for row in built.rows if row.role is not None})
    by_speaker, others = _chosen(config, built, roles)
    problems = [problem for problem in built.problems if _concerns(problem, config, roles, others)]
    speakers = []
    pooled: dict[str, list[Utterance]] = defaultdict(list)
    for name, places in by_speaker.items():
        rows = [built.rows[i] for i in places]
        if config.splits == "hash":
            rows = [dataclasses.replace(row, split=None) for row in rows]
        split = _splits(name, rows, problems)
        utterances: dict[str, list[Utterance]] = defaultdict(list)
        for place in places:
            row = built.rows[place]
            if row.line not in split:
                continue
            made = _utterance(row, place, built.samples[place], config.text, base)
            if isinstance(made, Problem):
                problems.append(made)
            else:
                utterances[split[row.line]].append(made)
        if config.pool is not None:
            for part, found in utterances.items():
                pooled[part] += found
        else:
            speakers.append(_speaker(name, utterances, _common([built.rows[i] for i in places]), rate))
    if config.pool is not None:
        speakers = [_speaker(config.pool, pooled, {}, rate)]
    usable = []
    for speaker in speakers:
        lacking = [part for part in needs if not speaker.split(part)]
        if lacking:
            reason = (
                f"It has no usable {' and no '.join(lacking)} utterances, and is left out. "
                "Record more, or name no splits for it, so that it is split by itself."
            )
            problems.append(Problem(0, "", speaker.id, reason, config.role or ""))
        else:
            usable.append(speaker)
    problems.sort(key=lambda problem: problem.line or math.inf)
    if config.strict and problems:
        shown = "\n  ".join(str(problem) for problem in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CorpusError(f"{len(problems)} problems in '{config.manifest}', and --strict is on:\n  {shown}{more}")
    return Corpus(tuple(usable), tuple(problems), built)


def _chosen(config: CorpusConfig, built: BuiltCorpus, roles: Sequence[str]) -> tuple[dict[str, list[int]], set[str]]:
    """Places of the chosen rows, by speaker, in the order of the manifest; and the speakers that were not chosen."""
    if config.role is not None and roles and config.role not in roles:
        raise CorpusError(
            f"No utterance of '{config.manifest}' has the role '{config.role}'. "
            f"Roles there: {', '.join(roles) or 'none'}."
        )
    chosen: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(built.rows):
        if config.role is None or not roles or row.role == config.role:
            chosen[row.speaker].append(place)
    unknown = [name for name in config.speakers if name not in chosen]
    if unknown:
        some = ", ".join(list(chosen)[:10])
        raise CorpusError(f"'{config.manifest}' has no usable utterance of {', '.join(unknown)}. It has: {some}, ….")
    wanted = [name for name in chosen if not config.speakers or name in config.speakers]
    wanted = wanted[: config.limit]
    return {name: chosen[name] for name in wanted}, chosen.keys() - set(wanted)


def _concerns(problem: Problem, config: CorpusConfig, roles: Collection[str], others: Collection[str]) -> bool:
    """Whether a problem is of the chosen role and speakers; one of a line that does not tell is.

    Args:
        problem: of the manifest.
        config: what is chosen of it.
        roles: that the manifest has.
        others: speakers that `_chosen` left aside.
    """
    if config.role is not None and roles and problem.role is not None and problem.role != config.role:
        return False
    if not problem.speaker:
        return True
    return problem.speaker not in others and (not config.speakers or problem.speaker in config.speakers)


def _splits(speaker: str, rows: list[Row], problems: list[Problem]) -> dict[int, str]:
    """The split of each line of one speaker."""
    if any(row.split is not None for row in rows):
        for row in rows:
            if row.split is None:
                reason = "It names no split, but other lines of its speaker do. Name one for each, or for none."
                problems.append(row.problem(reason))
        return {row.line: row.split for row in rows if row.split is not None}
    return split_by_hash(speaker, {row.utterance: row.line for row in rows})


def split_by_hash(speaker: str, lines: dict[str, int]) -> dict[int, str]:
    """A split that depends on nothing but the ids of one speaker: about 60 % train, 15 % dev, 25 % test.

    One utterance is for training, the second for dev, the third for test; further ones follow the shares.
    """
    ranked = sorted(
        lines, key=lambda id_: hashlib.sha256(f"{speaker}\0{id_}".encode("utf-8", "surrogatepass")).digest()
    )
    n = len(ranked)
    test = 0 if n < 3 else max(1, n // 4)
    dev = 0 if n < 2 else max(1, round(0.15 * n))
    parts = ["train"] * (n - dev - test) + ["dev"] * dev + ["test"] * test
    return {lines[id_]: part for id_, part in zip(ranked, parts, strict=True)}


def _utterance(row: Row, place: int, samples: int, style: str, base: Base | None) -> Utterance | Problem:
    utterance = Utterance(row.utterance, place, row.line, row.text, samples)
    if base is None:
        return utterance
    architecture = base.architecture
    if samples > architecture.max_samples:
        seconds, most = samples / architecture.sample_rate, architecture.max_samples / architecture.sample_rate
        return row.problem(f"It is {seconds:.1f} s long; this base takes at most {most:.1f} s. Cut it.")
    try:
        labels = base.tokenizer.encode(base.adapt(row.text) if style == "base" else row.text)
    except SpecializeError as error:
        return row.problem(str(error))
    if len(labels) > architecture.max_labels:
        return row.problem(f"Its text has {len(labels)} tokens; this base takes at most {architecture.max_labels}.")
    if samples < (least := architecture.min_samples(labels)):
        seconds, needed = samples / architecture.sample_rate, least / architecture.sample_rate
        return row.problem(f"It is {seconds:.2f} s long; for its text this base needs {needed:.2f} s.")
    return dataclasses.replace(utterance, labels=tuple(labels))


def _speaker(
    name: str, utterances: dict[str, list[Utterance]], attributes: dict[str, Any], sample_rate: int
) -> Speaker:
    train, dev, test = (tuple(utterances.get(part, ())) for part in ("train", "dev", "test"))
    return Speaker(name, train, dev, test, attributes, sample_rate)


def _common(rows: Iterable[Row]) -> dict[str, Any]:
    rows = list(rows)
    first = rows[0].attributes
    return {k: v for k, v in first.items() if all(row.attributes.get(k) == v for row in rows)}
