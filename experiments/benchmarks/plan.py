"""What `specialize plan` foresees of runs here, against the runs: a few sizes, each planned and then trained.

    python experiments/benchmarks/plan.py --json plan.json

Each size is planned in a process of its own, and then trained in another with `specialize train`, both with empty
caches of compiled programs. Reports foreseen over measured: seconds of the run without its start (`summary.json`),
steps, padded share and bytes of the store. The runs' own steps are given to the plan (`--like`) a second time, so that
jobs that stop early do not count as an error of the model.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from fitting import fitting
from processes import devices, specialize

from specialize.submodel.checkpoint import absolute
from specialize.train import Run
from specialize.train.recorder import read_jobs


@dataclass(frozen=True)
class Benchmark:
    """Foreseen over measured."""

    experiment: Path | None = None
    """Experiment file; None is `speechocean_whisper.py` for a Whisper and `quickstart.py` for others."""
    manifest: Path | None = None
    """Whose speech; None is that of the experiment."""
    base: Path = Path("specialize/embedded/base")
    """Base folder."""
    sizes: tuple[tuple[int, int, int], ...] = ((6, 3, 12), (12, 6, 24), (30, 15, 48))
    """Runs: speakers, slots and steps of each."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Plans and trains each size, and prints a line of ratios for each."""
    experiment, manifest = fitting(options.base, options.experiment, options.manifest)
    rows: list[dict[str, Any]] = []
    print(f"{'speakers':>8} {'slots':>5} {'steps':>5} {'foreseen':>9} {'took':>7} {'ratio':>6} {'with its steps':>15}")
    with tempfile.TemporaryDirectory() as folder:
        for speakers, slots, steps in options.sizes:
            runs, name = Path(folder) / "runs", f"{speakers}-{slots}-{steps}"
            words = (
                *(experiment, "--runs", runs, "--name", name, "--base", options.base, "--corpus.manifest", manifest),
                *("--corpus.limit", speakers, "--cohort.slots", slots, "--stop.max-steps", steps),
            )
            caches = [Path(folder) / f"{name}.{what}" for what in ("planned", "trained", "like")]
            said = Path(folder) / f"{name}.json"
            specialize("plan", *words, "--json", said, cache=caches[0])
            foreseen = json.loads(said.read_text())
            specialize("train", *words, cache=caches[1])
            run = Run(runs / name)
            specialize("plan", *words, "--like", run.folder, "--json", said, cache=caches[2])
            rows.append(_compare(foreseen, json.loads(said.read_text()), run) | {"slots": slots, "max_steps": steps})
            row = rows[-1]
            print(
                f"{speakers:>8} {slots:>5} {steps:>5} {row['foreseen_seconds']:>8.1f}s {row['seconds']:>6.1f}s "
                f"{row['ratio']:>6.2f} {row['ratio_with_its_steps']:>15.2f}",
                flush=True,
            )
    if options.json is not None:
        about = {"device": str(devices()), "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _compare(foreseen: dict[str, Any], like: dict[str, Any], run: Run) -> dict[str, Any]:
    """What was foreseen beside what came."""
    summary, jobs = run.read("summary.json") or {}, read_jobs(run)
    counts = like["programs"][0]["counts"]
    stored = sum(path.stat().st_size for path in Path(str(absolute(run.store.folder))).rglob("*") if path.is_file())
    return {
        "speakers": len(jobs),
        "foreseen_seconds": foreseen["seconds"],
        "foreseen_with_its_steps": like["seconds"],
        "seconds": summary["seconds"],
        "ratio": foreseen["seconds"] / summary["seconds"],
        "ratio_with_its_steps": like["seconds"] / summary["seconds"],
        "parts_of_it": {
            name: like["programs"][0]["seconds"][name] for name in ("compiling", "steps", "looks", "starts")
        },
        "steps": [counts["job_steps"], sum(job["steps"] for job in jobs)],
        "padded_share": [round(counts["padded_share"], 4), summary["padded_share"]],
        "stored_bytes": [like["stored_bytes"], stored],
    }


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
