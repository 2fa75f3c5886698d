"""A sweep in one program, against a run for each value and speaker.

    python experiments/benchmarks/sweep.py --speakers 8 --rates 3e-3 7e-3 2e-2 --json sweep.json

Both ways train every speaker at every learning rate, and make the same steps. What the sweep chose, and wrote into
`best.py`, is compared with the rate of the least dev loss among the separate runs of each speaker. Every run is a
process, timed from its start to its end, with its compilations; compiled programs and the decoded corpus are kept
between processes, which helps the separate ones most.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from fitting import fitting
from processes import devices, specialize

from specialize.corpus import CorpusConfig, open_corpus
from specialize.embedded import BASE
from specialize.files import exposed, run_file
from specialize.sweep import Sweep
from specialize.sweep.outcomes import choose, outcomes
from specialize.sweep.sweeping import open_sweep
from specialize.train import Experiment, Run
from specialize.train.jobs import parse_grid
from specialize.train.recorder import read_jobs


@dataclass(frozen=True)
class Benchmark:
    """Seconds of a sweep in one program, and of separate runs."""

    experiment: Path | None = None
    """Experiment file; None is `speechocean_whisper.py` for a Whisper and `quickstart.py` for others."""
    manifest: Path | None = None
    """Whose speech; None is that of the experiment."""
    base: Path = BASE
    """Base folder."""
    speakers: int = 8
    """How many people, all in slots at once with every rate."""
    rates: tuple[float, ...] = (3e-3, 7e-3, 2e-2)
    """Learning rates to try."""
    steps: int = 36
    """Steps of every Submodel."""
    every: int = 12
    """Steps between two looks at the dev sets."""
    json: Path | None = None
    """Also write the figures here."""


@dataclass(frozen=True)
class Came:
    """What came of all jobs in one of the ways."""

    losses: dict[str, dict[float, float]]
    """{speaker: {learning rate: dev loss}}."""
    steps: dict[str, dict[float, int]]
    """{speaker: {learning rate: steps that were made}}."""


def main(options: Benchmark) -> None:
    """Trains in both ways, compares what is chosen, and prints the ratio.

    Raises:
        SystemExit: the two ways made other steps, or the sweep chose others than the best of the separate runs.
    """
    experiment, manifest = fitting(options.base, options.experiment, options.manifest)
    names = [s.id for s in open_corpus(CorpusConfig(manifest, role="personal")).speakers[: options.speakers]]
    there = devices()
    with tempfile.TemporaryDirectory() as folder:
        cache, runs, sweeps = (Path(folder) / name for name in ("cache", "runs", "sweeps"))
        specialize("corpus", manifest, "--base", options.base, cache=cache)
        fixed = {
            "base": options.base,
            "corpus.manifest": manifest,
            "stop.max_steps": options.steps,
            "stop.every": min(options.every, options.steps),
        }
        slots = len(names) * len(options.rates)
        axes = [f"lr={','.join(map(str, options.rates))}", *(f"{name}={value}" for name, value in fixed.items())]
        axes += [f"corpus.speakers={'+'.join(names)}", f"cohort.slots={slots}"]
        words = ("sweep", experiment, *axes, "--name", "together", "--select", "speaker", "--sweeps", sweeps)
        together = specialize(*words, cache=cache)
        print(f"{slots} jobs in one program: {together:.1f} s", flush=True)
        swept = Sweep(experiment, tuple(axes), name="together", select="speaker", sweeps=sweeps)
        found, chosen = _of_sweep(swept)

        flags = [word for name, value in fixed.items() for word in (f"--{name.replace('_', '-')}", value)]
        separate, alone = [], Came({name: {} for name in names}, {name: {} for name in names})
        for speaker in names:
            for rate in options.rates:
                run = f"{speaker}-{rate}"
                words = ("train", experiment, "--name", run, "--runs", runs, *flags, "--corpus.speakers", speaker)
                words += ("--cohort.slots", there.count, "--hyper.learning-rate", rate)
                separate.append(specialize(*words, cache=cache))
                (job,) = read_jobs(Run(runs / run))
                alone.losses[speaker][rate], alone.steps[speaker][rate] = job["dev_loss"], job["steps"]
                print(f"{speaker} at {rate:g}: {separate[-1]:.1f} s", flush=True)
    expected = {name: min(of, key=lambda rate: of[rate]) for name, of in alone.losses.items()}
    away = max(abs(found.losses[name][rate] - alone.losses[name][rate]) for name in names for rate in options.rates)
    ratio = sum(separate) / together
    print(
        f"one program {together:.1f} s, {len(separate)} runs {sum(separate):.1f} s: {ratio:.1f}x. Dev losses differ by "
        f"at most {away:.1e}; the rate is the same for {sum(chosen[n] == expected[n] for n in names)} of {len(names)}."
    )
    if options.json is not None:
        about = {
            "device": str(there),
            "speakers": len(names),
            "rates": options.rates,
            "steps": options.steps,
            "seconds_together": together,
            "seconds_separate": separate,
            "ratio": ratio,
            "largest_difference": away,
            "chosen_together": chosen,
            "chosen_separately": expected,
        }
        options.json.write_text(json.dumps(about, indent=1) + "\n")
    if found.steps != alone.steps:
        raise SystemExit("The two ways made other steps, so their times do not compare.")
    if chosen != expected:
        raise SystemExit("The sweep chose other rates than the best of the separate runs.")


def _of_sweep(sweep: Sweep) -> tuple[Came, dict[str, float]]:
    """What came of a sweep, and the rate that it chose for each speaker.

    Raises:
        SystemExit: `best.py` has other rates than those that were chosen.
    """
    (run,) = open_sweep(sweep).runs()
    came = Came({}, {})
    rates = [trial.experiment.hyper.learning_rate for trial in run.trials]
    for job in read_jobs(Run(run.folder)):
        speaker, rate = job["speaker"], rates[job["point"]]
        came.losses.setdefault(speaker, {})[rate] = job["dev_loss"]
        came.steps.setdefault(speaker, {})[rate] = job["steps"]
    best = choose(outcomes([run]), sweep.select)
    assert best is not None
    chosen = {speaker: rates[number] for speaker, number in best.chosen.items()}
    file = sweep.folder / "best.py"
    written = exposed(file, run_file(file), "experiment", Experiment)
    if {hyper.learning_rate for _, hyper in parse_grid(written.grid, written.hyper, written.submodel)} != set(
        chosen.values()
    ):
        raise SystemExit(f"'{file}' has other rates than those that the sweep chose.")
    return came, chosen


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
