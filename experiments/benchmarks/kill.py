"""Kills a run again and again, lets it end, and compares it with one that was never killed.

    python experiments/benchmarks/kill.py --kills 25 --json kill.json

Kills come at random moments; a state is saved every half second, so that many fall into a save.
"""

import json
import random
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from processes import COMMAND, environment, specialize

from specialize.submodel import SubmodelStore


@dataclass(frozen=True)
class Benchmark:
    """Bits of a run that was killed, against those of one that was not."""

    experiment: Path = Path("experiments/speechocean_whisper.py")
    """Experiment file."""
    manifest: Path = Path("../shared/corpora/speechocean762/manifest.jsonl")
    """Whose speech."""
    base: Path = Path("bases/whisper-tiny.en")
    """Base folder."""
    speakers: int = 8
    """Jobs."""
    slots: int = 4
    """S."""
    steps: int = 24
    """Of each job."""
    kills: int = 25
    """How often the run is killed."""
    shortest: float = 5.0
    """Seconds after its start that a process is killed, at least."""
    longest: float = 30.0
    """And at most."""
    seed: int = 0
    """Of the moments."""
    json: Path | None = None
    """Also write what happened here."""


def main(options: Benchmark) -> None:
    """Runs both and compares."""
    moments = random.Random(options.seed)
    killed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache, runs = Path(folder) / "cache", Path(folder) / "runs"

        def words(name: str) -> list[str]:
            given = (
                *("train", options.experiment, "--name", name, "--runs", runs, "--base", options.base),
                *("--corpus.manifest", options.manifest, "--corpus.limit", options.speakers),
                *("--cohort.slots", options.slots, "--cohort.shapes", 2, "--save-seconds", 0.5),
                *("--stop.max-steps", options.steps, "--stop.every", 3),
            )
            return [str(word) for word in given]

        whole = specialize(*words("whole"), cache=cache)
        print(f"not killed: {whole:.1f} s", flush=True)
        while len(killed) < options.kills:
            after = moments.uniform(options.shortest, options.longest)
            process = subprocess.Popen(
                [*COMMAND, *words("killed")], env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            try:
                output, _ = process.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                states = sorted(path.name for path in (runs / "killed/state").glob("*"))
                killed.append({"seconds": round(after, 1), "states": states})
                print(f"killed {len(killed)} after {after:.1f} s; states: {' '.join(states) or 'none'}", flush=True)
            else:
                if process.returncode:
                    raise SystemExit(output.decode()[-2000:])
                print(f"it ended after {len(killed)} kills, before it could be killed again", flush=True)
                break
        if not (runs / "killed/summary.json").is_file():
            specialize(*words("killed"), cache=cache)
        same = _same(runs)
    print(f"{same} Submodels are the same, bit for bit, after {len(killed)} kills")
    if options.json is not None:
        about = {"kills": len(killed), "same_bits": same, "seconds_not_killed": whole, "killed": killed}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _same(runs: Path) -> int:
    """How many Submodels both runs have, which must be the same."""
    whole, killed = (SubmodelStore(runs / name / "submodels") for name in ("whole", "killed"))
    names = list(whole.speakers())
    assert names == list(killed.speakers()), "not the same speakers"
    for name in names:
        one, two = whole.load(name), killed.load(name)
        jax.tree.map(np.testing.assert_array_equal, one.submodel, two.submodel)
        assert one.training == two.training, f"not the same training of {name}"
    return len(names)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
