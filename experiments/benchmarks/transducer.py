"""The RNN-T loss from the joint's inputs, forward and backward, next to torchaudio's on the same arrays.

    python experiments/benchmarks/transducer.py --peer-python /path/to/python/with/torchaudio --json transducer.json

Both compute `logits = tanh(encoded + predicted) @ output + bias`, the loss summed over rows, and its gradient for all
four arrays. Each has a process of its own, so that peaks of memory are told apart; they take turns. The peer keeps
all logits, as its function wants; `specialize` makes them again, `--chunk` frames at a time.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# jax, torch and tyro are imported where they are needed: no process has more than its own.


@dataclass(frozen=True)
class Size:
    """One problem."""

    batch: int = 4
    """Utterances B."""
    frames: int = 100
    """Encoder frames T."""
    labels: int = 30
    """Labels U."""
    width: int = 320
    """Width D of the joint."""
    vocabulary: int = 256
    """Tokens V, with blank."""
    chunk: int = 1
    """Frames whose logits exist together (`specialize` only)."""


@dataclass(frozen=True)
class Benchmark:
    """Median seconds of a forward and backward pass, their ratio, and how far memory rises."""

    size: Size = Size()
    """The problem, but for its vocabulary."""
    vocabularies: tuple[int, ...] = (256, 1024)
    """Numbers of tokens V."""
    repeats: int = 15
    """How often each is timed, in turns."""
    peer_python: Path = Path(sys.executable)
    """The interpreter that has torch and torchaudio."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Times each vocabulary and prints a line for each."""
    probe = [str(options.peer_python), "-c", "import torchaudio.functional as f; f.rnnt_loss"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False)
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1]
        sys.exit(
            f"'{options.peer_python}' has no torchaudio.functional.rnnt_loss ({reason}). Install it there with "
            "`pip install torch==2.11.0 torchaudio==2.11.0`, or name another interpreter with --peer-python."
        )
    print(f"B={options.size.batch} T={options.size.frames} U={options.size.labels} D={options.size.width}")
    print(f"{'V':>6} {'specialize':>12} {'torchaudio':>12} {'time ratio':>11} {'memory':>9} {'memory':>9} {'ratio':>6}")
    rows = []
    for vocabulary in options.vocabularies:
        row = _compare(options, replace(options.size, vocabulary=vocabulary))
        rows.append(row)
        print(
            f"{vocabulary:>6} {row['seconds'] * 1e3:>9.1f} ms {row['peer_seconds'] * 1e3:>9.1f} ms "
            f"{row['time_ratio']:>11.2f} {row['mebibytes']:>5.0f} MiB {row['peer_mebibytes']:>5.0f} MiB "
            f"{row['memory_ratio']:>6.2f}",
            flush=True,
        )
    if options.json is not None:
        about = {"size": asdict(options.size), "peer": "torchaudio.functional.rnnt_loss", "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _compare(options: Benchmark, size: Size) -> dict[str, Any]:
    """Both sides of one problem; their losses must agree."""
    sides = [_Worker(sys.executable, "specialize", size), _Worker(str(options.peer_python), "torchaudio", size)]
    times: list[list[float]] = [[], []]
    try:
        for round_ in range(options.repeats + 2):
            for side, of_side in zip(sides, times, strict=True):
                seconds = side.ask("step")
                if round_ > 1:  # the first compile and warm up
                    of_side.append(seconds)
                elif round_:
                    side.ask("reset")
        loss, peer_loss = (side.ask("loss") for side in sides)
        memory, peer_memory = (side.ask("memory") for side in sides)
    finally:
        for side in sides:
            side.close()
    if abs(loss - peer_loss) > 1e-4 * abs(peer_loss):
        sys.exit(f"The losses differ: {loss} here, {peer_loss} there. Nothing was compared.")
    mine, theirs = (statistics.median(of_side) for of_side in times)
    return {
        "vocabulary": size.vocabulary,
        "seconds": mine,
        "peer_seconds": theirs,
        "time_ratio": mine / theirs,
        "mebibytes": memory,
        "peer_mebibytes": peer_memory,
        "memory_ratio": memory / peer_memory,
        "loss": loss,
        "peer_loss": peer_loss,
    }


class _Worker:
    """A process that answers one number for each word it is asked."""

    def __init__(self, python: str, side: str, size: Size):
        command = [python, __file__, "--as-worker", side, json.dumps(asdict(size))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, word: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(word, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"A worker ended at '{word}'; its own message is above.")
        return float(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _work(side: str, size: Size) -> None:
    """Answers `step` with seconds, `loss`, and `memory` with the MiB that a step needs above what its imports do."""
    step = {"specialize": _specialize, "torchaudio": _torchaudio}[side](size)
    before, loss = _status("VmRSS"), 0.0
    for word in sys.stdin:
        answer = 0.0
        if word.strip() == "step":
            began = time.perf_counter()
            loss = step()
            answer = time.perf_counter() - began
        elif word.strip() == "reset":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        elif word.strip() == "loss":
            answer = loss
        else:
            answer = (_status("VmHWM") - before) / 1024
        print(answer, flush=True)


def _status(name: str) -> float:
    """KiB, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


def _arrays(size: Size) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Encoded, predicted, output and bias; labels; frames; label lengths. Blank is 0."""
    rng = np.random.default_rng(0)
    shapes = [
        (size.batch, size.frames, size.width),
        (size.batch, size.labels + 1, size.width),
        (size.width, size.vocabulary),
        (size.vocabulary,),
    ]
    floats = [rng.normal(size=shape, scale=scale) for shape, scale in zip(shapes, (1, 1, 0.1, 0.1), strict=True)]
    labels = rng.integers(1, size.vocabulary, (size.batch, size.labels))
    frames = size.frames - 10 * (np.arange(size.batch) % 3)
    lengths = size.labels - 5 * (np.arange(size.batch) % 3)
    labels, frames, lengths = (x.astype(np.int32) for x in (labels, frames, lengths))
    return [x.astype(np.float32) for x in floats], labels, frames, lengths


def _specialize(size: Size) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    from specialize.base.lattice import transducer_log_probs, transducer_loss

    floats, labels, frames, lengths = jax.tree.map(jnp.asarray, _arrays(size))

    @jax.jit
    def both(encoded, predicted, output, bias):
        def loss(encoded, predicted, output, bias):
            def joint(frame, predicted):
                return jnp.tanh(frame[:, None] + predicted) @ output + bias[None, None]

            two = transducer_log_probs(joint, encoded, predicted, labels, 0, chunk=size.chunk)
            return transducer_loss(*two, frames, lengths).sum()

        return jax.value_and_grad(loss, (0, 1, 2, 3))(encoded, predicted, output, bias)

    return lambda: float(jax.block_until_ready(both(*floats))[0])


def _torchaudio(size: Size) -> Callable[[], float]:
    import warnings

    import torch  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")  # torchaudio announces its retirement at every call
    import torchaudio.functional  # pyright: ignore[reportMissingImports]

    arrays, labels, frames, lengths = _arrays(size)
    floats = [torch.from_numpy(x).requires_grad_() for x in arrays]
    targets = [torch.from_numpy(x) for x in (labels, frames, lengths)]

    def step() -> float:
        for x in floats:
            x.grad = None
        encoded, predicted, output, bias = floats
        logits = torch.tanh(encoded[:, :, None] + predicted[:, None]) @ output + bias
        loss = torchaudio.functional.rnnt_loss(logits, *targets, blank=0, reduction="sum")
        loss.backward()
        return loss.item()

    return step


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-worker"]:
        _work(sys.argv[2], Size(**json.loads(sys.argv[3])))
    else:
        import tyro

        main(tyro.cli(Benchmark, description=__doc__))
