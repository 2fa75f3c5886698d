"""Submodels an hour: one job of many speakers, against a job for each.

    python experiments/benchmarks/headline.py --speakers 64 --alone 8 --json headline.json

Every job is a process, timed from its start to its end, with its compilations; compiled programs and the decoded corpus
are kept between processes, and all make the same steps. Of the jobs of one speaker the first, which compiles, counts
once, and those of a few more speakers for all others.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from fitting import fitting
from processes import devices, specialize

from specialize.corpus import CorpusConfig, open_corpus


@dataclass(frozen=True)
class Benchmark:
    """Seconds of one job of many speakers, and of a job for each."""

    experiment: Path | None = None
    """Experiment file; None is `speechocean_whisper.py` for a Whisper and `quickstart.py` for others."""
    manifest: Path | None = None
    """Whose speech; None is that of the experiment."""
    base: Path = Path("bases/whisper-tiny.en")
    """Base folder."""
    speakers: int = 64
    """Speakers of the one job, all in slots at once."""
    alone: int = 8
    """How many jobs of one speaker are measured, 2 at least."""
    steps: int = 3
    """Steps of every Submodel."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Runs the jobs and prints the ratio."""
    if options.alone < 2:
        raise SystemExit("--alone must be 2 at least: the first job compiles, and does not count for the others.")
    experiment, manifest = fitting(options.base, options.experiment, options.manifest)
    names = [s.id for s in open_corpus(CorpusConfig(manifest, role="personal")).speakers[: options.speakers]]
    there = devices()
    with tempfile.TemporaryDirectory() as folder:
        cache, runs = Path(folder) / "cache", Path(folder) / "runs"
        specialize("corpus", manifest, "--base", options.base, cache=cache)

        def train(name: str, speakers: list[str], slots: int) -> float:
            return specialize(
                *("train", experiment, "--name", name, "--runs", runs, "--base", options.base),
                *("--corpus.manifest", manifest, "--corpus.speakers", *speakers, "--cohort.slots", slots),
                *("--stop.max-steps", options.steps, "--stop.every", options.steps),
                cache=cache,
            )

        alone = []
        for name in names[: options.alone]:
            alone.append(train(name, [name], there.count))
            print(f"one speaker: {alone[-1]:.1f} s", flush=True)
        together = train("together", names, len(names))
        print(f"{len(names)} speakers: {together:.1f} s", flush=True)
    all_alone = alone[0] + statistics.mean(alone[1:]) * (len(names) - 1)
    ratio, many = all_alone / together, 3600 * len(names)
    print(f"{many / all_alone:.0f} Submodels an hour alone, {many / together:.0f} together: {ratio:.1f}x")
    if options.json is not None:
        about = {
            "device": str(there),
            "speakers": len(names),
            "steps": options.steps,
            "seconds_together": together,
            "seconds_alone": alone,
            "submodels_per_hour": {"together": many / together, "alone": many / all_alone},
            "ratio": ratio,
        }
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
