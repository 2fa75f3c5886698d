"""Whether a space of the synthetic people found what distinguishes them: a linear probe from the embeddings.

    specialize train experiments/synthetic_space.py
    python experiments/probe.py runs/synthetic_space --json probe.json        # or the folder of a space

What distorts each person is known (`specialize/embedded/people.json`). Each quantity is predicted from a person's
embedding by ridge regression that was fitted to all others (leave-one-out), and what is told is the correlation of
prediction and truth, beside the largest that chance gives: the 95 % quantile over permutations of the people.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from specialize.embedded import MANIFEST
from specialize.space import load_space
from specialize.train.planning import space_folder

SEVERITIES = ("mild", "moderate", "severe")


@dataclass(frozen=True)
class Options:
    """Predict what distorts people from their embeddings."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A space over synthetic people of the package: the run that trained it, or the folder that `specialize components`
    wrote."""
    ridge: float = 1.0
    """Strength of the regression's penalty, on embeddings and quantities of variance one."""
    permutations: int = 1000
    """Of the people, for what chance gives."""
    json: Path | None = None
    """File to write the figures to."""


def quantities() -> dict[str, dict[str, float]]:
    """{quantity: {speaker: value}} of all synthetic people."""
    people = json.loads((MANIFEST.parent / "people.json").read_text(encoding="utf-8"))
    told: dict[str, dict[str, float]] = {}
    for person in people:
        distortion = person["distortion"]
        values = {name: float(distortion[name]) for name in ("rate", "formants", "tremor", "breath_db", "cutoff_hz")}
        values["severity"] = float(SEVERITIES.index(distortion["severity"]))
        values["processes"] = float(len(distortion["processes"]))
        values["vowels centralised"] = float(len(distortion["centralised"]))
        for name, value in values.items():
            told.setdefault(name, {})[person["speaker"]] = value
    return told


def left_out(points: np.ndarray, values: np.ndarray, ridge: float) -> np.ndarray:
    """Predictions of each value from its point by a regression that was fitted to the others.

    Args:
        points: float [N, K].
        values: float [N, Q].
        ridge: penalty.
    """
    found = np.empty_like(values)
    for i in range(len(points)):
        others = np.arange(len(points)) != i
        x, y = points[others], values[others]
        middle, spread, mean = x.mean(0), x.std(0) + 1e-9, y.mean(0)
        x = (x - middle) / spread
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (y - mean))
        found[i] = (points[i] - middle) / spread @ weights + mean
    return found


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the columns of two arrays [N, Q]; 0 where one is constant."""
    one, other = one - one.mean(0), other - other.mean(0)
    return (one * other).sum(0) / np.maximum(np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0), 1e-12)


def main(options: Options) -> None:
    space = load_space(space_folder(options.run))
    names, told = list(space.embeddings), quantities()
    points = np.stack([space.embeddings[name] for name in names]).astype(np.float64)
    if points.shape[1] > len(names):  # one-hot: as many directions as tell the people apart
        centred = points - points.mean(0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        points = (u * s)[:, :8]
    values = np.array([[told[quantity][name] for quantity in told] for name in names])
    found = correlation(left_out(points, values, options.ridge), values)
    rng, chance = np.random.default_rng(0), []
    for _ in range(options.permutations):
        mixed = values[rng.permutation(len(names))]
        chance.append(correlation(left_out(points, mixed, options.ridge), mixed))
    by_chance = np.quantile(np.array(chance), 0.95, axis=0)
    print(f"{options.run}: {len(names)} people, {space.generator}")
    for quantity, r, least in zip(told, found, by_chance, strict=True):
        print(f"  {quantity:<20} r = {r:5.2f}   (chance: {least:.2f})")
    if options.json is not None:
        figures = {
            quantity: {"r": float(r), "chance_95": float(least)}
            for quantity, r, least in zip(told, found, by_chance, strict=True)
        }
        data = {"run": str(options.run), "people": len(names), "space": str(space.generator), "quantities": figures}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
