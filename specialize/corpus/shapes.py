"""The few sizes that batches are padded to, chosen from the lengths that will come, so that few programs compile."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_STRIDE = 320
_LABEL_STEP = 4
_MOST_EDGES = 256
_COMPILING = {"cpu": 120.0}
"""Seconds of audio that are trained on in the time of a compilation, which is done once for several runs, by platform.
Two CPU cores train on 240 s (Whisper tiny.en)."""
_COMPILING_ELSEWHERE = 100_000.0
"""The same of accelerators. An H200 trains 32 slots of the embedded Conformer on 65,000 s of audio a second, and needs
several for a compilation."""


class Size(NamedTuple):
    """What the rows of a batch need at most, or what they are padded to."""

    samples: int
    """N, or the longest row's samples."""
    labels: int
    """U, or the longest row's labels."""


@dataclass(frozen=True)
class Shapes:
    """Sizes to pad to, ascending in both samples and labels; the last one holds everything.

    Every size is a program of its own, and a compilation on a CPU takes as long as several steps.
    """

    sizes: tuple[Size, ...]

    @classmethod
    def choose(cls, batches: Iterable[Size], count: int, largest: Size, program: float = 0.0) -> "Shapes":
        """The sizes with the least padding for batches that are known or foreseen.

        Dynamic programming over the lengths of the batches: each batch pays for the samples of the size it falls into.

        Args:
            batches: what each batch needs.
            count: how many sizes there may be; fewer are used where more would not help.
            largest: what the largest possible batch needs.
            program: what a size costs by itself, for compiling its program, in samples of the batches' lengths.
        """
        needed = [*batches, largest]
        lengths = np.array([_up(size.samples, _STRIDE) for size in needed])
        edges, weights = np.unique(lengths, return_counts=True)
        weights = weights.astype(np.float64)
        weights[-1] -= 1.0  # `largest` must fit, but need not occur
        while len(edges) > _MOST_EDGES:
            # Every second edge joins the next one above it; the largest stays.
            keep = np.zeros(len(edges), bool)
            keep[-1::-2] = True
            weights = np.add.reduceat(weights, np.concatenate([[0], np.flatnonzero(keep)[:-1] + 1]))
            edges = edges[keep]
        chosen = [int(edges[i]) for i in _partition(edges, weights, count, program)]
        sizes, width = [], 0
        for edge in chosen:
            inside = [size.labels for size, n in zip(needed[:-1], lengths[:-1], strict=True) if n <= edge]
            width = max([width, *inside])
            sizes.append(Size(edge, _up(max(width, 1), _LABEL_STEP)))
        sizes[-1] = Size(sizes[-1].samples, _up(max(width, largest.labels, 1), _LABEL_STEP))
        return cls(tuple(sizes))

    def fit(self, need: Size) -> Size:
        """The smallest size that holds `need`.

        Raises:
            ValueError: none does.
        """
        for size in self.sizes:
            if need.samples <= size.samples and need.labels <= size.labels:
                return size
        raise ValueError(f"A batch needs {need}, more than the largest size, {self.sizes[-1]}.")


def program_cost(platform: str, sample_rate: int) -> float:
    """What a size costs by itself for its compilation, in samples: the `program` of `Shapes.choose`.

    Args:
        platform: of the devices, as JAX calls it.
        sample_rate: of the samples.
    """
    return _COMPILING.get(platform, _COMPILING_ELSEWHERE) * sample_rate


def largest(sizes: Iterable[Size]) -> Size:
    """The least size that holds all of `sizes`."""
    samples, labels = 0, 0
    for size in sizes:
        samples, labels = max(samples, size.samples), max(labels, size.labels)
    return Size(samples, labels)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _partition(edges: np.ndarray, weights: np.ndarray, count: int, each: float) -> Sequence[int]:
    """Indices of at most `count` edges, the last one among them, that cost the least when all round up to them."""
    n = len(edges)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    best = np.where(np.arange(n + 1) == 0, 0.0, np.inf)
    trail: list[np.ndarray] = []
    costs: list[float] = []
    for _ in range(min(count, n)):
        # best[j]: least cost of the first j edges with the groups so far; the last group is (i, j].
        cost = best[:, None] + (total[None, :] - total[:, None]) * np.concatenate([[0], edges])[None, :]
        cost = np.where(np.arange(n + 1)[:, None] < np.arange(n + 1)[None, :], cost, np.inf)
        trail.append(np.argmin(cost, axis=0))
        best = np.min(cost, axis=0)
        costs.append(float(best[n]) + each * len(trail))
    groups = int(np.argmin(costs)) + 1
    chosen, at = [], n
    for step in reversed(range(groups)):
        chosen.append(at - 1)
        at = int(trail[step][at])
    return chosen[::-1]
