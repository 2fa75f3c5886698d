"""Kills a run again and again, lets it end, and compares it with one that was never killed.

    python experiments/benchmarks/kill.py --kills 25 --json kill.json

Kills come at random moments: one in five while a process starts, the others after it has gone on and saved a state of
its own. A state is saved every half second, so that many fall into a save. Jobs end at different steps, and batches
have several sizes.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from fitting import fitting
from processes import COMMAND, environment, specialize

from specialize.submodel import SubmodelStore


@dataclass(frozen=True)
class Benchmark:
    """Bits of a run that was killed, against those of one that was not."""

    experiment: Path | None = None
    """Experiment file; None is `speechocean_whisper.py` for a Whisper and `quickstart.py` for others."""
    manifest: Path | None = None
    """Whose speech; None is that of the experiment."""
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
    patience: int = 1
    """Looks without a better dev loss after which a job ends."""
    shapes: int = 8
    """Sizes that batches are padded to, at most."""
    longest: float = 10.0
    """Seconds that a process is left after its first state, or after its start, at most."""
    seed: int = 0
    """Of the moments."""
    json: Path | None = None
    """Also write what happened here."""


def main(options: Benchmark) -> None:
    """Runs both and compares."""
    experiment, manifest = fitting(options.base, options.experiment, options.manifest)
    moments = random.Random(options.seed)
    killed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache, runs = Path(folder) / "cache", Path(folder) / "runs"

        def words(name: str) -> list[str]:
            given = (
                *("train", experiment, "--name", name, "--runs", runs, "--base", options.base),
                *("--corpus.manifest", manifest, "--corpus.limit", options.speakers),
                *("--cohort.slots", options.slots, "--cohort.shapes", options.shapes),
                *("--stop.max-steps", options.steps, "--stop.every", 3, "--stop.patience", options.patience),
                *("--save-seconds", 0.5),
            )
            return [str(word) for word in given]

        whole = specialize(*words("whole"), cache=cache)
        print(f"not killed: {whole:.1f} s", flush=True)
        while len(killed) < options.kills:
            after, early = moments.uniform(0, options.longest), moments.random() < 0.2
            before = _states(runs)
            with (Path(folder) / "said").open("w+b") as said:
                process = subprocess.Popen(
                    [*COMMAND, *words("killed")], env=environment(cache), stdout=said, stderr=said
                )
                while not early and process.poll() is None and _states(runs) in ([], before):
                    time.sleep(0.02)
                try:
                    process.wait(timeout=after)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    states = _states(runs)
                    killed.append({"early": early, "seconds": round(after, 1), "states": states})
                    when = "start" if early else "first state"
                    print(f"killed {len(killed)} {after:.1f} s after its {when}; states: {' '.join(states) or 'none'}")
                else:
                    if process.returncode:
                        said.seek(0)
                        raise SystemExit(said.read().decode()[-2000:])
                    print(f"it ended after {len(killed)} kills, before it could be killed again", flush=True)
                    break
        if not (runs / "killed/summary.json").is_file():
            specialize(*words("killed"), cache=cache)
        same = _same(runs)
    print(f"{same} Submodels are the same, bit for bit, after {len(killed)} kills")
    if options.json is not None:
        about = {
            "command": sys.argv,
            "kills": len(killed),
            "same_bits": same,
            "seconds_not_killed": whole,
            "killed": killed,
        }
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _states(runs: Path) -> list[str]:
    """Names of the saved states, those that are not whole too."""
    return sorted(path.name for path in (runs / "killed/state").glob("*"))


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
