"""Intervals and a test for error rates of speakers, who are drawn from a population; their utterances are not."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
"""Coverage of all intervals."""
METHOD = (
    "95% percentile bootstrap over speakers (Bisani & Ney 2004); a resample draws as many speakers as there are, "
    "with replacement, and serves the base and the Submodels alike. p-value: two-sided sign-flip permutation test "
    "of the difference in errors of each speaker."
)
EXACT = 13
"""Up to so many speakers with a difference, the test goes through all sign patterns."""
UNDEFINED_SHARE = 0.01
"""An interval is given up if more of its resamples than this have no relative reduction."""

_CELLS = 4_000_000


class Intervals(NamedTuple):
    """[low, high] of each figure; None with a reason where there is no interval."""

    base_rate: list[float] | None
    rate: list[float] | None
    relative_reduction: list[float] | None
    reasons: dict[str, str]


def bootstrap(
    base_errors: np.ndarray, errors: np.ndarray, lengths: np.ndarray, *, resamples: int, seed: int, stream: str = ""
) -> Intervals:
    """Paired percentile bootstrap over speakers of two pooled error rates and their relative reduction.

    Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.

    Args:
        base_errors: int [S], errors of the base on each speaker.
        errors: int [S], errors with the Submodels.
        lengths: int [S], reference words.
        resamples: how many; more than none.
        seed: of the draws.
        stream: keeps the draws of one group independent of which other groups there are.
    """
    speakers = len(lengths)
    if speakers < 2:
        reason = f"{speakers} speaker{'' if speakers == 1 else 's'}: an interval over speakers needs at least 2"
        return Intervals(None, None, None, dict.fromkeys(("base_wer", "wer", "relative_reduction"), reason))
    counts = np.stack([base_errors, errors, lengths], axis=1).astype(np.float64)
    rng = np.random.default_rng([seed, zlib.crc32(stream.encode())])
    drawn = np.concatenate([_draws(rng, n, speakers) @ counts for n in _pieces(resamples, speakers)])
    base_rate, rate = drawn[:, 0] / drawn[:, 2], drawn[:, 1] / drawn[:, 2]
    reasons = {}
    defined = drawn[:, 0] > 0
    undefined = 1.0 - float(np.mean(defined))
    reduction = None
    if undefined > UNDEFINED_SHARE:
        reasons["relative_reduction"] = f"the base makes no error in {undefined:.1%} of the resamples"
    else:
        reduction = _interval(1.0 - drawn[defined, 1] / drawn[defined, 0])
    return Intervals(_interval(base_rate), _interval(rate), reduction, reasons)


def sign_flip_p_value(differences: np.ndarray, *, resamples: int, seed: int) -> float:
    """Two-sided p-value of the hypothesis that the sign of every speaker's difference is a coin's.

    Exact for up to 13 differences that are not 0; else by Monte Carlo, where the observed signs count as one pattern.

    Args:
        differences: int [S], errors of the base less errors with the Submodel; pooled words are the same for both.
        resamples: sign patterns to draw.
        seed: of the draws.
    """
    differences = differences[differences != 0].astype(np.int64)
    if len(differences) == 0:
        return 1.0
    observed = abs(int(differences.sum()))
    if len(differences) <= EXACT:
        patterns = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ differences) >= observed))
    rng = np.random.default_rng([seed, len(differences)])
    extreme = 0
    for n in _pieces(resamples, len(differences)):
        signs = rng.integers(0, 2, size=(n, len(differences)), dtype=np.int8).astype(np.float64)
        extreme += int(np.sum(np.abs(2 * (signs @ differences) - differences.sum()) >= observed))
    return (1 + extreme) / (1 + resamples)


def _draws(rng: np.random.Generator, resamples: int, speakers: int) -> np.ndarray:
    """float64 [resamples, S]: how often each speaker is drawn in `speakers` draws."""
    drawn = rng.integers(0, speakers, size=(resamples, speakers))
    drawn += np.arange(resamples)[:, None] * speakers
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _interval(values: np.ndarray) -> list[float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _pieces(resamples: int, speakers: int) -> Iterator[int]:
    """Numbers of resamples at a time that keep the arrays within tens of megabytes."""
    at_once = max(1, _CELLS // speakers)
    for begin in range(0, resamples, at_once):
        yield min(at_once, resamples - begin)
