"""Submodels an hour of `specialize train`, beside PyTorch and Hugging Face PEFT, which train one adapter after another.

    pip install torch transformers peft
    python experiments/benchmarks/against_peft.py --speakers 8 --steps 12 --json peft.json

The same on both sides: weights, people, utterances of every step, places and initial values of the LoRA adapters, loss,
AdamW, learning rates, steps, float32 (no TF32), no dropout, no SpecAugment; a look at the dev set before and after;
every adapter is stored. PEFT (uncompiled, fused attention and AdamW, all threads) makes the features of an utterance
once, specialize in every step.

PEFT's Whisper takes the whole 30 s window only. specialize runs in that window, where the loss of every step must be
PEFT's (`full`), and in its own context, as its users run it (`needed`). Every run is a process, timed from its start to
its end. specialize starts without compiled programs, and runs again with those that it has left. The decoded corpus is
there before, for both.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

_PACKAGES = ("torch", "transformers", "peft")
_WORKER = "train-with-peft"


@dataclass(frozen=True)
class Benchmark:
    """Submodels an hour of specialize, and their ratio to PEFT's."""

    speakers: int = 8
    """People, the first of the manifest; each gets an adapter."""
    steps: int = 12
    """Steps of each."""
    batch: int = 4
    """B, utterances of a step."""
    rank: int = 8
    """R, of LoRA at all projections of queries and values."""
    learning_rate: float = 3e-4
    """At its peak, after a warm-up of 4 steps."""
    slots: int = 16
    """S, Submodels that specialize trains at a time, at most."""
    rows: int = 2
    """Utterances of a slot that specialize computes together; divides B."""
    chunk: int = 0
    """Slots that specialize computes together in the context `needed`; 0 is all."""
    chunk_full: int = 1
    """The same in the whole window, whose activations are large."""
    full: bool = True
    """Time specialize in the whole window too. The losses of every step are compared in it anyway."""
    repeats: int = 1
    """How often each run is timed, in turns; of each the fastest counts, for what else runs here only takes time."""
    base: Path = Path("bases/whisper-tiny.en")
    """Base folder that was imported from the checkpoint."""
    checkpoint: Path = Path("../shared/models/whisper-tiny.en")
    """Hugging Face folder of a Whisper."""
    manifest: Path = Path("../shared/corpora/speechocean762/manifest.jsonl")
    """Corpus."""
    role: str | None = "personal"
    """Role of the people in the manifest; None takes all."""
    json: Path | None = None
    """Also write all figures and curves here; and the curves as a PNG beside it, where matplotlib is installed."""


def main(options: Benchmark) -> None:
    """Runs both sides, prints a line for each run, and what they come to."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{', '.join(missing)} not found. Run `pip install {' '.join(_PACKAGES)}`.")
    with tempfile.TemporaryDirectory(prefix="peft-") as temporary:
        folder = Path(temporary)
        needed = _experiment(options, folder / "runs_0")
        full = replace(needed, name="full", context="full", cohort=replace(needed.cohort, chunk=options.chunk_full))
        about = _prepare(options, needed, folder)
        _child(["-c", f"import {', '.join(_PACKAGES)}"], folder)  # specialize's libraries were read just now, too
        print(
            f"{about['machine']}: {about['speakers']} Submodels, {options.steps} steps of {options.batch} utterances, "
            f"LoRA of rank {options.rank} at {about['sites']} places, {about['parameters']:,} parameters each"
        )
        print(
            f"{'':<14}{'process':>10}{'CPU':>10}{'others':>8}{'an hour':>9}{'/ PEFT':>8}{'training':>11}{'/ PEFT':>8}"
        )
        timed = (needed, full) if options.full else (needed,)
        runs: dict[str, dict[str, Any]] = {}
        for number in range(options.repeats):
            took = {"peft": _with_peft(folder)}
            _print_run("peft", took, about["speakers"])
            for experiment in timed:
                for name in (experiment.name, f"{experiment.name}_again"):
                    took[name] = _with_specialize(replace(experiment, name=name, runs=folder / f"runs_{number}"))
                    _print_run(name, took, about["speakers"])
            for name, run in took.items():
                if name not in runs or run["seconds"] < runs[name]["seconds"]:
                    runs[name] = run
        curves = replace(full, name="curves", stop=replace(full.stop, every=1, patience=options.steps + 1))
        _with_specialize(curves)
        figures: dict[str, Any] = {"about": about} | _ratios(runs, about["speakers"]) | _compare(curves, folder)
        figures |= {"mean_dev_loss_of_needed_at_30_s": _dev_loss_in_window(needed), "runs": runs}
    print("process: start to end. training: without the start. others: share of the CPUs that other processes took.")
    for name in ("peft", *(experiment.name for experiment in reversed(timed))):
        before, after = runs[name]["mean_dev_loss"]
        print(f"{name:<16}mean dev loss {before:.4f} -> {after:.4f}")
    print(f"{'needed, at 30 s':<16}mean dev loss {'':6} -> {figures['mean_dev_loss_of_needed_at_30_s']:.4f}")
    print(
        f"largest difference of full to PEFT: {figures['largest_loss_difference']:.1e} in the loss of a step, "
        f"{figures['largest_dev_loss_difference']:.1e} in a dev loss"
    )
    print(
        f"Submodels an hour to PEFT's: {figures['submodels_per_hour_ratio']:.2f} with all compilations, "
        f"{figures['submodels_per_hour_ratio_again']:.2f} again, {figures['training_ratio']:.2f} without the start"
    )
    if options.full:
        print(
            f"in the 30 s window {figures['submodels_per_hour_ratio_full']:.2f}, "
            f"{figures['submodels_per_hour_ratio_full_again']:.2f}, {figures['training_ratio_full']:.2f}"
        )
    if (most := figures["others_at_most"]) > 0.1:
        print(f"Others took up to {most:.0%} of the CPUs: the ratios are not to be trusted. Run it on a quiet machine.")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        _plot(figures["curves"], options.json.with_suffix(".png"))


def _experiment(options: Benchmark, runs: Path) -> Any:
    """What specialize trains, in the context `needed`."""
    from specialize.corpus import CorpusConfig
    from specialize.submodel import LoRA
    from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping

    return Experiment(
        name="needed",
        base=options.base.resolve(),
        corpus=CorpusConfig(manifest=options.manifest.resolve(), role=options.role, limit=options.speakers),
        submodel=LoRA(rank=options.rank),
        hyper=HyperParameters(learning_rate=options.learning_rate),
        stop=Stopping(max_steps=options.steps, every=options.steps),
        cohort=CohortConfig(slots=options.slots, batch=options.batch, rows=options.rows, chunk=options.chunk),
        runs=runs,
    )


def _prepare(options: Benchmark, experiment: Any, folder: Path) -> dict[str, Any]:
    """Writes what the PEFT side trains on: audio, labels, the utterances of every step, the initial adapters.

    Returns:
        What the benchmark is about, for its report.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process alone: an accelerator is left to the runs
    from specialize.base import Whisper, load_base
    from specialize.corpus import Order, open_corpus
    from specialize.submodel import find_sites, init_submodel, size
    from specialize.train import Job

    base = load_base(experiment.base)
    if not isinstance(base.architecture, Whisper):
        raise SystemExit(f"'{options.base}' is a {type(base.architecture).__name__}, but must be a Whisper.")
    corpus = open_corpus(experiment.corpus, base)
    spec = experiment.submodel
    sites = find_sites(spec, base.architecture, base.params)
    arrays: dict[str, Any] = {}
    speakers, parameters = [], 0
    for speaker in corpus.speakers:
        job = Job(speaker, experiment.hyper, options.steps)
        order = Order(tuple(u.samples for u in job.train), options.batch, job.seed)
        submodel = init_submodel(spec, sites, jax.random.key(np.uint32(job.seed)))
        parameters = size(submodel)
        arrays |= {f"{speaker.id}/{path}": np.asarray(weights["a"]) for path, weights in submodel.items()}
        arrays |= {f"{speaker.id}/{u.id}": corpus.audio(u) for u in (*job.train, *speaker.dev)}
        dev = sorted(speaker.dev, key=lambda u: u.samples)
        speakers.append(
            {
                "id": speaker.id,
                "train": [{"id": u.id, "labels": u.labels} for u in job.train],
                "dev": [{"id": u.id, "labels": u.labels} for u in dev],
                "rows": [order.rows(step) for step in range(options.steps)],
            }
        )
    np.savez(folder / "arrays.npz", **arrays)
    task = {
        "checkpoint": str(options.checkpoint.resolve()),
        "sample_rate": base.architecture.sample_rate,
        "prompt": base.architecture.prompt,
        "end": base.architecture.end,
        "sites": [site.path for site in sites],
        "rank": spec.rank,
        "alpha": spec.alpha,
        "hyper": vars(experiment.hyper),
        "steps": options.steps,
        "batch": options.batch,
        "speakers": speakers,
    }
    (folder / "task.json").write_text(json.dumps(task))
    return {
        "speakers": len(speakers),
        "steps": options.steps,
        "batch": options.batch,
        "spec": str(spec),
        "sites": len(sites),
        "parameters": parameters,
        "hyper": str(experiment.hyper),
        "cohort": str(experiment.cohort),
        "chunk_full": options.chunk_full,
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "load_before": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in ("jax", *_PACKAGES)},
    }


def _child(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs Python in a process; JAX keeps its compiled programs in `folder`.

    Returns:
        Its seconds, by the clock and of the CPUs, and the share of the CPUs' time that others took; None where the
        system does not tell.

    Raises:
        SystemExit: it failed; the message ends with what it printed.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "HF_HUB_OFFLINE": "1",
    }
    # Without -P this very file would be found as the package `peft`.
    command = [sys.executable, "-P", *arguments]
    own, machine, began = _own_cpu(), _machine_cpu(), time.perf_counter()
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds, own = time.perf_counter() - began, _own_cpu() - own
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed:\n{done.stdout[-4000:]}")
    others = (_machine_cpu() - machine - own) / (seconds * (os.cpu_count() or 1))
    return {"seconds": seconds, "cpu_seconds": own, "others": None if math.isnan(others) else max(0.0, others)}


def _own_cpu() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_cpu() -> float:
    """CPU seconds of all processes since the machine started, and those that its host took; NaN but on Linux."""
    if not Path("/proc/stat").is_file():
        return math.nan
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _with_specialize(experiment: Any) -> dict[str, Any]:
    """`specialize train`, as a user calls it."""
    experiment.runs.mkdir(exist_ok=True)
    file = experiment.runs / f"{experiment.name}.py"
    file.write_text(
        "from pathlib import PosixPath\n\n"
        "from specialize.corpus import CorpusConfig\n"
        "from specialize.submodel import LoRA\n"
        "from specialize.train import CohortConfig, Experiment, HyperParameters, Stopping\n\n"
        f"experiment = {experiment!r}\n"
    )
    run = _child(["-m", "specialize.cli", "train", str(file)], experiment.runs)
    summary = json.loads((experiment.folder / "summary.json").read_text())
    looks = _looks(experiment)
    return run | {
        "training_seconds": summary["seconds"],
        "device": summary["devices"],
        "padded_share": summary["padded_share"],
        "mean_dev_loss": np.mean([(of[0]["dev_loss"], of[-1]["dev_loss"]) for of in looks.values()], axis=0).tolist(),
    }


def _looks(experiment: Any) -> dict[str, list[dict[str, Any]]]:
    """What a run of specialize has measured, by speaker, in the order of steps; the first at step 0."""
    looks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (experiment.folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        looks[record["speaker"]].append(record)
    return looks


def _with_peft(folder: Path) -> dict[str, Any]:
    """The PEFT side."""
    run = _child([__file__, _WORKER, str(folder)], folder)
    result = json.loads((folder / "result.json").read_text())
    phases = result["phases"]
    return run | {
        "training_seconds": sum(seconds for phase, seconds in phases.items() if phase != "start"),
        "phases": phases,
        "device": result["device"],
        "mean_dev_loss": np.mean([curve["dev_loss"] for curve in result["curves"].values()], axis=0).tolist(),
    }


def _print_run(name: str, took: dict[str, dict[str, Any]], speakers: int) -> None:
    """Prints the line of a run, beside PEFT's of the same turn."""
    run, peft = took[name], took["peft"]
    others = "?" if run["others"] is None else f"{run['others']:.0%}"
    print(
        f"{name:<14}{run['seconds']:>8.1f} s{run['cpu_seconds']:>8.1f} s{others:>8}"
        f"{3600 * speakers / run['seconds']:>9.0f}{peft['seconds'] / run['seconds']:>8.2f}"
        f"{run['training_seconds']:>9.1f} s{peft['training_seconds'] / run['training_seconds']:>8.2f}",
        flush=True,
    )


def _ratios(runs: dict[str, dict[str, Any]], speakers: int) -> dict[str, Any]:
    """How many times PEFT's Submodels an hour specialize makes, by what is counted."""
    peft = runs["peft"]
    without_looks = peft["seconds"] - peft["phases"]["looks"]
    ratios: dict[str, Any] = {}
    for name in ("needed", "full"):
        if name in runs:
            first, again = runs[name], runs[f"{name}_again"]
            of = "" if name == "needed" else f"_{name}"
            ratios[f"submodels_per_hour_ratio{of}"] = peft["seconds"] / first["seconds"]
            ratios[f"submodels_per_hour_ratio{of}_again"] = peft["seconds"] / again["seconds"]
            ratios[f"training_ratio{of}"] = peft["training_seconds"] / again["training_seconds"]
    return ratios | {
        "submodels_per_hour_ratio_to_peft_without_looks": without_looks / runs["needed"]["seconds"],
        "others_at_most": max(run["others"] or 0.0 for run in runs.values()),
        "cpu_seconds_ratio": peft["cpu_seconds"] / runs["needed"]["cpu_seconds"],
        "submodels_per_hour": {name: 3600 * speakers / run["seconds"] for name, run in runs.items()},
    }


def _compare(experiment: Any, folder: Path) -> dict[str, Any]:
    """Loss curves of both sides in the 30 s window, and their largest differences.

    Args:
        experiment: of a run that looked at every step.
        folder: where the PEFT side has left its result.
    """
    of_peft = json.loads((folder / "result.json").read_text())["curves"]
    curves = {}
    for speaker, looks in _looks(experiment).items():
        of_specialize = {
            "loss": [look["train_loss"] for look in looks[1:]],
            "dev_loss": [looks[0]["dev_loss"], looks[-1]["dev_loss"]],
        }
        curves[speaker] = {"specialize": of_specialize, "peft": of_peft[speaker]}

    def largest(name: str) -> float:
        pairs = [(curve["specialize"][name], curve["peft"][name]) for curve in curves.values()]
        return max(float(np.max(np.abs(np.subtract(*pair)))) for pair in pairs)

    return {
        "largest_loss_difference": largest("loss"),
        "largest_dev_loss_difference": largest("dev_loss"),
        "curves": curves,
    }


def _dev_loss_in_window(experiment: Any) -> float:
    """Mean dev loss, in the 30 s window as PEFT's, of the Submodels that a run stored: each speaker's better look."""
    import jax

    from specialize.base import load_base
    from specialize.corpus import Shapes, eval_batches, need, open_corpus
    from specialize.submodel import SubmodelStore, inserted

    base = load_base(experiment.base).with_context("full")
    corpus = open_corpus(experiment.corpus, base)
    dev = [speaker.dev for speaker in corpus.speakers]
    shapes = Shapes((need(utterance for of_speaker in dev for utterance in of_speaker),))
    (batch,) = eval_batches(corpus, dev, max(map(len, dev)), shapes)

    @jax.jit
    def loss(submodel, params, batch):
        with inserted(experiment.submodel, submodel, params) as changed:
            losses = base.architecture.losses(changed, batch)
        return losses.total.sum() / losses.count.sum()

    store = SubmodelStore(experiment.folder / "submodels")
    submodels = [store.load(speaker.id, base=base.fingerprint).submodel for speaker in corpus.speakers]
    rows = [type(batch)(*(array[slot] for array in batch)) for slot in range(len(dev))]
    return float(np.mean([loss(submodel, base.params, row) for submodel, row in zip(submodels, rows, strict=True)]))


def _plot(curves: dict[str, Any], file: Path) -> None:
    """Draws the curves of both sides over one another, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, (speaker, curve) in enumerate(curves.items()):
        steps, color = range(1, len(curve["peft"]["loss"]) + 1), f"C{index % 10}"
        axes.plot(steps, curve["peft"]["loss"], color=color, linewidth=4, alpha=0.35)
        axes.plot(steps, curve["specialize"]["loss"], color=color, linewidth=1, marker=".", label=speaker)
    axes.set(xlabel="step", ylabel="loss a token", title="30 s window: PEFT (broad) and specialize (thin)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(title="speaker", ncols=2, fontsize="small")
    figure.savefig(file, dpi=150)


def train_with_peft(folder: Path) -> None:
    """The PEFT side, in a process that knows nothing of specialize.

    The base and its adapter are made once. For each speaker the adapter is set back in place, with a new optimizer.

    Args:
        folder: holds `task.json` and `arrays.npz`; takes `result.json` and the adapters.
    """
    phases: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        phases[name] += time.perf_counter() - began

    with phase("start"):
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        peft: Any = importlib.import_module("peft")  # type checkers, too, would take this file for it
        task = json.loads((folder / "task.json").read_text())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(task["checkpoint"])
        whisper: Any = transformers.WhisperForConditionalGeneration.from_pretrained(task["checkpoint"])
        config = peft.LoraConfig(
            r=task["rank"], lora_alpha=task["alpha"], target_modules=["q_proj", "v_proj"], lora_dropout=0.0
        )
        model = peft.get_peft_model(whisper.float().to(device), config).train()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        adapters = {site: _adapter_of(site) for site in task["sites"]}
        if set(trained) != {f"{name}.lora_{half}.default.weight" for name in adapters.values() for half in "AB"}:
            raise SystemExit(f"PEFT adapts other places than specialize: {sorted(trained)}")

    def losses(features: Any, utterances: Sequence[dict[str, Any]], reduction: str) -> Any:
        """Cross-entropy of the labels after the prompt: the mean over their tokens, or the sum."""
        width = max(len(u["labels"]) for u in utterances)
        labels = [u["labels"] + [-100] * (width - len(u["labels"])) for u in utterances]
        inputs = [task["prompt"] + [task["end"] if i < 0 else i for i in row[:-1]] for row in labels]
        inputs, labels = torch.tensor(inputs, device=device), torch.tensor(labels, device=device)
        logits = model(input_features=features, decoder_input_ids=inputs, use_cache=False).logits
        logits = logits[:, len(task["prompt"]) - 1 :]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)

    def look(features: Any, utterances: Sequence[dict[str, Any]]) -> float:
        """Mean loss of a token."""
        with torch.inference_mode():
            parts = [slice(at, at + task["batch"]) for at in range(0, len(utterances), task["batch"])]
            total = sum(losses(features[part], utterances[part], "sum") for part in parts)
        return float(total) / sum(len(u["labels"]) for u in utterances)

    with phase("read"):
        arrays = dict(np.load(folder / "arrays.npz"))
    curves = {}
    for speaker in task["speakers"]:
        train, dev = speaker["train"], speaker["dev"]
        with phase("features"):
            audio = [arrays[f"{speaker['id']}/{utterance['id']}"] for utterance in (*train, *dev)]
            found = extractor(audio, sampling_rate=task["sample_rate"], return_tensors="pt")
            features = found["input_features"].to(device)
        with phase("reset"):
            with torch.no_grad():
                for site, name in adapters.items():
                    a = torch.from_numpy(arrays[f"{speaker['id']}/{site}"].T)  # [D, R] to [R, D]
                    trained[f"{name}.lora_A.default.weight"].copy_(a)
                    trained[f"{name}.lora_B.default.weight"].zero_()
            optimizer = torch.optim.AdamW(
                trained.values(),
                lr=task["hyper"]["learning_rate"],
                betas=(0.9, 0.98),
                eps=1e-8,
                weight_decay=task["hyper"]["weight_decay"],
                fused=True,
            )
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: _share_of_rate(step, task["steps"], **task["hyper"])
            )
        with phase("looks"):
            dev_loss = [look(features[len(train) :], dev)]
        with phase("steps"):
            taken = []
            for rows in speaker["rows"]:
                loss = losses(features[rows], [train[row] for row in rows], "mean")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained.values(), task["hyper"]["clip"])
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                taken.append(loss.detach())
            taken = torch.stack(taken).tolist()
        with phase("looks"):
            dev_loss.append(look(features[len(train) :], dev))
        with phase("store"):
            model.save_pretrained(folder / "adapters" / speaker["id"])
        curves[speaker["id"]] = {"loss": taken, "dev_loss": dev_loss}
    about = f"{device}, {torch.get_num_threads()} threads"
    (folder / "result.json").write_text(json.dumps({"device": about, "phases": phases, "curves": curves}))


def _adapter_of(site: str) -> str:
    """PEFT's name of a module: `encoder/layers_0/self_attn/q_proj` is `….encoder.layers.0.self_attn.q_proj`."""
    return "base_model.model.model." + site.replace("/", ".").replace("layers_", "layers.")


def _share_of_rate(step: int, steps: int, *, warmup: int, final: float, **_: Any) -> float:
    """specialize's schedule: a linear warm-up, then half a cosine down to `final` at the last step."""
    along = min(max((step - warmup) / max(steps - warmup, 1), 0.0), 1.0)
    return min(1.0, (step + 1) / max(warmup, 1)) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * along)))


if __name__ == "__main__":
    if sys.argv[1:2] == [_WORKER]:
        train_with_peft(Path(sys.argv[2]))
    else:
        main(tyro.cli(Benchmark, description=__doc__))
