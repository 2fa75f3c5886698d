"""Continuous refill against waves: the same jobs, once each way, in one cohort.

    python experiments/benchmarks/refill.py --speakers 24 --slots 8 --json refill.json

Jobs stop by their own dev sets, so they differ in steps. Reports the share of slot steps that had a job while the queue
was not empty, the steps that the cohort made, and the ratio of the seconds of both processes.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from fitting import fitting
from processes import devices, specialize

from specialize.submodel import SubmodelStore
from specialize.train import Run
from specialize.train.recorder import read_jobs


@dataclass(frozen=True)
class Benchmark:
    """Slots busy, and throughput of continuous refill against waves."""

    experiment: Path | None = None
    """Experiment file; None is `speechocean_whisper.py` for a Whisper and `quickstart.py` for others."""
    manifest: Path | None = None
    """Whose speech; None is that of the experiment."""
    base: Path = Path("bases/whisper-tiny.en")
    """Base folder."""
    speakers: int = 24
    """Jobs."""
    slots: int = 8
    """S."""
    steps: int = 24
    """Most steps of a job."""
    patience: int = 1
    """Looks without a better dev loss after which a job ends."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Runs both and prints the ratio."""
    experiment, manifest = fitting(options.base, options.experiment, options.manifest)
    figures: dict[str, Any] = {"device": str(devices())}
    with tempfile.TemporaryDirectory() as folder:
        cache, runs = Path(folder) / "cache", Path(folder) / "runs"
        words = (
            *("train", experiment, "--runs", runs, "--base", options.base),
            *("--corpus.manifest", manifest, "--corpus.limit", options.speakers),
            *("--cohort.slots", options.slots, "--stop.max-steps", options.steps, "--stop.patience", options.patience),
        )
        # Both find their programs compiled: this run leaves them.
        specialize(*words, "--name", "compile", "--cohort.refill", "waves", cache=cache)
        for refill in ("waves", "continuous"):
            seconds = specialize(*words, "--name", refill, "--cohort.refill", refill, cache=cache)
            run = Run(runs / refill)
            steps = [job["steps"] for job in read_jobs(run)]
            busy = (run.read("summary.json") or {})["slots_busy"]
            figures[refill] = {"seconds": seconds, "slots_busy": busy, "steps": sorted(steps)}
            print(
                f"{refill:<10} {seconds:6.1f} s, slots busy {busy:.1%}, steps {min(steps)} to {max(steps)}", flush=True
            )
        figures["largest_difference"] = _difference(runs)
    figures["ratio"] = figures["waves"]["seconds"] / figures["continuous"]["seconds"]
    print(f"continuous is {figures['ratio']:.2f}x as fast; parameters differ by {figures['largest_difference']:.1e}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _difference(runs: Path) -> float:
    """The largest difference between the parameters of the same speakers."""
    waves, continuous = (SubmodelStore(runs / name / "submodels") for name in ("waves", "continuous"))
    worst = 0.0
    for speaker in waves.speakers():
        pairs = zip(*(jax.tree.leaves(s.load(speaker).submodel) for s in (waves, continuous)), strict=True)
        worst = max([worst, *(float(np.abs(a - b).max()) for a, b in pairs)])
    return worst


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
