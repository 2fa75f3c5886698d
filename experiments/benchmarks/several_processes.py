"""The same run by 1, 2 and 4 processes: the same Submodels, and how many an hour.

    python experiments/benchmarks/several_processes.py --json several_processes.json

The devices are as many in all, and shared among the processes of this machine. On a CPU the processes also share its
cores, so that more of them cannot be faster here: the figure shows what their meeting costs. Compiled programs are kept
from a run before, which is not measured.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from processes import environment

from specialize.train import Run


@dataclass(frozen=True)
class Benchmark:
    """Submodels an hour of one run, by the number of its processes."""

    experiment: Path = Path(__file__).parents[1] / "quickstart.py"
    """Experiment file."""
    processes: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes, which divide the devices."""
    devices: int = 4
    """In all."""
    speakers: int = 8
    """Jobs."""
    slots: int = 4
    """S."""
    steps: int = 24
    """Of a job."""
    json: Path | None = None
    """Also write the figures here."""


def train(options: Benchmark, processes: int, name: str, folder: Path) -> Run:
    """A run by so many processes."""
    command = (
        *(sys.executable, "-m", "specialize.cli", "launch", "local", "--processes", processes),
        *("--devices", options.devices // processes, options.experiment, "--name", name, "--runs", folder / "runs"),
        *("--corpus.limit", options.speakers, "--cohort.slots", options.slots, "--stop.max-steps", options.steps),
        *("--stop.every", options.steps // 4, "--stop.patience", 99),
    )
    done = subprocess.run([*map(str, command)], env=environment(folder / "cache"), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{processes} processes ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Run(folder / "runs" / name)


def same(one: Run, two: Run) -> bool:
    """Whether two runs have the same Submodels, bit for bit."""
    leaves = [[jax.tree.leaves(run.submodel(s).submodel) for s in run.speakers()] for run in (one, two)]
    return list(one.speakers()) == list(two.speakers()) and all(
        np.array_equal(a, b) for x, y in zip(*leaves, strict=True) for a, b in zip(x, y, strict=True)
    )


def main(options: Benchmark) -> None:
    """Trains with each number of processes, compares, and prints the ratios."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first: Run | None = None
        for count in options.processes:
            train(options, count, f"compiles{count}", folder)
            run = train(options, count, f"by{count}", folder)
            first = run if first is None else first
            rate = run.read("summary.json")["submodels_per_hour"]
            rows.append({"processes": count, "submodels_per_hour": rate, "same": same(first, run)})
            rows[-1] |= {"ratio": rate / rows[0]["submodels_per_hour"]}
            rows[-1] |= {"ratio_per_process": rows[-1]["ratio"] / count}
            identical = "the same Submodels" if rows[-1]["same"] else "OTHER Submodels"
            print(f"{count} processes: {rows[-1]['ratio']:.2f} of one, {identical}", flush=True)
    if options.json is not None:
        about = {"devices": options.devices, "speakers": options.speakers, "slots": options.slots}
        options.json.write_text(json.dumps(about | {"steps": options.steps, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
