"""From transcripts to results: pooled, for each speaker, and for each group of speakers."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from specialize.errors import ConfigError
from specialize.score.counts import Counts, count_characters, count_words, normalizer
from specialize.score.groups import grouped, text_of
from specialize.score.statistics import LEVEL, METHOD, bootstrap, sign_flip_p_value
from specialize.score.transcript import Transcript

SYSTEMS: tuple[str, ...] = ("base", "personalised", "submodel")
"""The base alone; what serves the speaker; and the Submodel, whether or not it serves."""

_NO_WORDS = "no reference has a word after normalisation"


class _Tally:
    """Counts of some utterances, by system."""

    def __init__(self):
        self.words = dict.fromkeys(SYSTEMS, Counts())
        self.characters = dict.fromkeys(SYSTEMS, Counts())
        self.utterances = self.empty = 0
        self.empty_insertions = dict.fromkeys(SYSTEMS, 0)
        self.seconds = 0.0

    def __add__(self, other: "_Tally") -> "_Tally":
        result = _Tally()
        for name in SYSTEMS:
            result.words[name] = self.words[name] + other.words[name]
            result.characters[name] = self.characters[name] + other.characters[name]
            result.empty_insertions[name] = self.empty_insertions[name] + other.empty_insertions[name]
        result.utterances, result.empty = self.utterances + other.utterances, self.empty + other.empty
        result.seconds = self.seconds + other.seconds
        return result


def score(
    transcripts: Sequence[Transcript],
    *,
    language: str = "en",
    groups: tuple[str, ...] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Word and character error rates of the base and of the personalised recogniser.

    Rates are fractions: errors of all utterances over words (characters) of all references, after normalisation.
    They may pass 1. References that normalisation leaves empty are in no rate; they are counted apart, with the words
    that were inserted into them. `wer` is what speakers get: the base serves those whose `used` says so;
    `submodel_wer` is with every speaker's Submodel. A figure that does not exist is None, and `reasons` says why.

    Args:
        transcripts: one of each utterance.
        language: picks the normaliser.
        groups: attributes to group by; None means all that vary (see `groups.grouped`).
        resamples: of the bootstrap and of the permutation test.
        seed: of both.

    Returns:
        JSON data: `pooled`; `speakers`, {id: figures}; `groups`, {attribute: {value: figures}};
        `groups_left_out`, {attribute: why}; `language`, `splits`, `resamples`, `seed`.

    Raises:
        ConfigError: no transcripts, an unknown group, no resamples, or a speaker whose `used` is not always the same.
    """
    if not transcripts:
        raise ConfigError("There is no transcript to score. Choose a split that has utterances.")
    if resamples < 1:
        raise ConfigError(f"resamples={resamples}, but the intervals need at least 1; 10000 is usual.")
    used = _used(transcripts)
    normalize = normalizer(language)
    tallies = {id(transcript): _tally(transcript, normalize) for transcript in transcripts}
    by_attribute, left_out = grouped(transcripts, groups)

    def figures(part: Iterable[Transcript], stream: str) -> dict[str, Any]:
        return _figures(_by_speaker(part, tallies), resamples, seed, stream)

    by_speaker, attributes = _by_speaker(transcripts, tallies), _constant_attributes(transcripts)
    pooled = figures(transcripts, "")
    pooled["served_by_base"] = sum(who == "base" for who in used.values())
    pooled["interval_method"] = METHOD
    return {
        "language": language,
        "splits": sorted({transcript.split for transcript in transcripts}),
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
        "pooled": pooled,
        "speakers": {
            speaker: _rates(tally) | {"used": used[speaker], "attributes": attributes[speaker]}
            for speaker, tally in by_speaker.items()
        },
        "groups": {
            name: {value: figures(part, f"{name}\0{value}") for value, part in values.items()}
            for name, values in by_attribute.items()
        },
        "groups_left_out": left_out,
    }


def write_results(results: dict[str, Any], path: Path) -> None:
    """Writes results as JSON, whole or not at all.

    Raises:
        ValueError: a number in them is not finite, which JSON cannot hold.
    """
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text so that a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(beside).chmod(0o666 & ~umask)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _used(transcripts: Sequence[Transcript]) -> dict[str, str]:
    used: dict[str, str] = {}
    for transcript in transcripts:
        if used.setdefault(transcript.speaker, transcript.used) != transcript.used:
            raise ConfigError(
                f"Speaker '{transcript.speaker}' is served by the base in some utterances and by the Submodel in "
                f"others ('{transcript.utterance}'). Give all transcripts of a speaker the same `used`."
            )
    return used


def _constant_attributes(transcripts: Iterable[Transcript]) -> dict[str, dict[str, Any]]:
    """{speaker: the attributes that are the same in all of the speaker's utterances}."""
    constant: dict[str, dict[str, Any]] = {}
    for transcript in transcripts:
        if transcript.speaker not in constant:
            constant[transcript.speaker] = dict(transcript.attributes)
            continue
        mine = constant[transcript.speaker]
        for name in list(mine):
            if text_of(mine[name]) != text_of(transcript.attributes.get(name)):
                del mine[name]
    return {
        speaker: {name: value if isinstance(value, bool | int) else text_of(value) for name, value in mine.items()}
        for speaker, mine in constant.items()
    }


def _tally(transcript: Transcript, normalize: Callable[[str], str]) -> _Tally:
    tally = _Tally()
    tally.utterances, tally.seconds = 1, transcript.seconds
    reference = normalize(transcript.reference)
    tally.empty = int(not reference)
    hypotheses = {"base": normalize(transcript.base), "submodel": normalize(transcript.submodel)}
    for name, hypothesis in hypotheses.items():
        if reference:
            tally.words[name] = count_words(reference, hypothesis)
            tally.characters[name] = count_characters(reference, hypothesis)
        else:
            tally.empty_insertions[name] = len(hypothesis.split())
    tally.words["personalised"] = tally.words[transcript.used]
    tally.characters["personalised"] = tally.characters[transcript.used]
    tally.empty_insertions["personalised"] = tally.empty_insertions[transcript.used]
    return tally


def _by_speaker(transcripts: Iterable[Transcript], tallies: dict[int, _Tally]) -> dict[str, _Tally]:
    """Sums for each speaker, in the order of their ids, so that the draws do not depend on that of the transcripts."""
    sums: dict[str, _Tally] = {}
    for transcript in transcripts:
        sums[transcript.speaker] = sums.get(transcript.speaker, _Tally()) + tallies[id(transcript)]
    return dict(sorted(sums.items()))


def _figures(by_speaker: dict[str, _Tally], resamples: int, seed: int, stream: str) -> dict[str, Any]:
    """Rates of a set of speakers with intervals, and what share of the speakers gains."""
    scored = [tally for tally in by_speaker.values() if tally.words["base"].length]
    base = np.array([tally.words["base"].errors for tally in scored], np.int64)
    mine = np.array([tally.words["personalised"].errors for tally in scored], np.int64)
    lengths = np.array([tally.words["base"].length for tally in scored], np.int64)
    intervals = bootstrap(base, mine, lengths, resamples=resamples, seed=seed, stream=stream)
    figures = _rates(sum(by_speaker.values(), _Tally()))
    reasons = figures.pop("reasons")
    figures |= {
        "base_wer_interval": intervals.base_rate,
        "wer_interval": intervals.rate,
        "relative_reduction_interval": intervals.relative_reduction,
        "p_value": sign_flip_p_value(base - mine, resamples=resamples, seed=seed) if scored else None,
        "speakers": len(scored),
        "speakers_without_words": [speaker for speaker, t in by_speaker.items() if not t.words["base"].length],
        "helped": float(np.mean(mine < base)) if scored else None,
        "harmed": float(np.mean(mine > base)) if scored else None,
        "unchanged": float(np.mean(mine == base)) if scored else None,
        "median_speaker_base_wer": median((base / lengths).tolist()) if scored else None,
        "median_speaker_wer": median((mine / lengths).tolist()) if scored else None,
    }
    reasons |= {f"{name}_interval": reason for name, reason in intervals.reasons.items()}
    if not scored:
        names = ("p_value", "helped", "harmed", "unchanged", "median_speaker_base_wer", "median_speaker_wer")
        reasons |= dict.fromkeys(names, _NO_WORDS)
    return figures | {"reasons": reasons}


def _rates(tally: _Tally) -> dict[str, Any]:
    base, mine = tally.words["base"], tally.words["personalised"]
    reasons: dict[str, str] = {}
    reduction = None
    if base.rate is None:
        names = ("base_wer", "wer", "submodel_wer", "base_cer", "cer", "submodel_cer", "relative_reduction")
        reasons = dict.fromkeys(names, _NO_WORDS)
    elif base.errors == 0:
        reasons["relative_reduction"] = "the base makes no error"
    else:
        reduction = 1.0 - mine.errors / base.errors
    return {
        "base_wer": base.rate,
        "wer": mine.rate,
        "submodel_wer": tally.words["submodel"].rate,
        "relative_reduction": reduction,
        "base_cer": tally.characters["base"].rate,
        "cer": tally.characters["personalised"].rate,
        "submodel_cer": tally.characters["submodel"].rate,
        "words": base.length,
        "characters": tally.characters["base"].length,
        "base_counts": asdict(base),
        "counts": asdict(mine),
        "submodel_counts": asdict(tally.words["submodel"]),
        "utterances": tally.utterances,
        "seconds": round(tally.seconds, 3),
        "empty_references": {
            "utterances": tally.empty,
            "base_insertions": tally.empty_insertions["base"],
            "insertions": tally.empty_insertions["personalised"],
        },
        "reasons": reasons,
    }
