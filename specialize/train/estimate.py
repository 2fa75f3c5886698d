"""Before a run: how many slots are computed together, what fits into memory, and how long a part takes."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specialize.base import Batch
from specialize.caches import cache_root
from specialize.corpus import Size
from specialize.errors import ConfigError
from specialize.submodel import size
from specialize.train.jobs import stack_hyper
from specialize.train.step import Cohort, Frozen

_CHUNKS: Mapping[str, tuple[int, ...]] = {"cpu": (2, 3)}
"""Slots that are computed together and may be faster than all at once, by platform: on a CPU, what its cache holds."""
_ELSEWHERE = (32,)
FEW_SLOTS = 4
"""Up to so many slots of a device are always computed together."""
USABLE = 0.9
"""Share of a device's memory that a run may plan with."""
_ROUNDS = 2
_SECONDS = 4
"""Of audio that chunks are compared with."""


@dataclass(frozen=True)
class Workload:
    """What the largest compiled program works on."""

    batch: int
    """B, utterances of a slot in a step."""
    rows: int
    """Utterances of a slot in a part."""
    longest: Size
    """What the longest part is padded to."""
    together: int = 1
    """Steps of a full dispatch."""
    resident: int = 0
    """Bytes of audio that each device keeps."""
    dev: int = 0
    """Samples of the dev batches of a slot, which lie on its device from one look to the next."""


@dataclass(frozen=True)
class Layout:
    """How the slots of a program are computed."""

    slots: int
    """S, on all devices."""
    chunk: int
    """Slots of a device that are computed together; 0 is all."""
    needed: int | None = None
    """Bytes of memory that a device needs; None where it was not asked."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a device needs in training, by what they are for."""

    base: int
    """Parameters of the base, and what the trainee shares."""
    slots: int
    """What is trained, its two moments, the best of each slot, a copy of these while a state is saved, gradients."""
    audio: int
    """Batches of the dispatches under way."""
    resident: int
    """Audio that lives on the device."""
    dev: int
    """Audio of the dev batches of all slots, which is there from one look to the next."""
    working: int
    """What the compiler plans for activations, of all parts that are computed at a time."""

    @property
    def total(self) -> int:
        """Their sum."""
        return self.base + self.slots + self.audio + self.resident + self.dev + self.working


def choose_layout(make: Callable[[int, int], Cohort], params: Any, work: Workload, slots: int, chunk: Any) -> Layout:
    """Measures how many slots of a device to compute together, and what memory that needs.

    The chunk is measured once, with a few slots and seconds, and kept for this machine, base and spec: another
    choice gives results that are the same to float tolerance only.

    Args:
        make: makes a cohort of so many slots of a device and a chunk.
        params: of the base.
        work: the largest part.
        slots: of a device.
        chunk: what to use, or "auto".
    """
    cohort = make(slots, 0)
    device = cohort.mesh.devices.flat[0]
    candidates = chunks_of(slots, _CHUNKS.get(device.platform, _ELSEWHERE))
    if chunk != "auto":
        chunk = even_chunk(slots, chunk)
    else:
        chunk = 0
        if slots > FEW_SLOTS and candidates:
            few = 4 * max(candidates)
            short = Size(min(work.longest.samples, _SECONDS * cohort.architecture.sample_rate), work.longest.labels)

            def measure() -> dict[str, float]:
                cohorts = {n: make(few, n) for n in (0, *candidates)}
                times = _time(cohorts, params, dataclasses.replace(work, longest=short))
                return {str(n): seconds for n, seconds in times.items()}

            times = _kept(measure, "seconds of chunks", cohort, work.rows, few, candidates)
            chunk = int(min(times, key=lambda n: times[n]))
    chosen = make(slots, chunk)
    needed = _kept(lambda: {"bytes": needed_bytes(chosen, params, work)}, "device bytes", chosen, work, slots, chunk)
    return Layout(cohort.slots, chunk, int(needed["bytes"]))


def chunks_of(slots: int, known: Sequence[int]) -> list[int]:
    """The chunks to compare with all slots at once: those known to be fast that divide them, or the next divisor."""
    even = [n for n in known if n < slots and slots % n == 0]
    return even or [n for n in range(max(known) + 1, slots) if slots % n == 0][:1]


def even_chunk(slots: int, chunk: int) -> int:
    """The largest chunk of so many slots at most that divides them; 0 is all.

    The slots of a smaller last chunk would be computed by another program, and so come out with other bits.
    """
    return next((n for n in range(min(chunk, slots), 0, -1) if slots % n == 0), 0)


def _kept(measure: Callable[[], dict[str, float]], what: str, cohort: Cohort, *about: Any) -> dict[str, float]:
    """What was measured on this machine before, or is now."""
    device = cohort.mesh.devices.flat[0]
    machine = (platform.node(), device.platform, device.device_kind, os.cpu_count(), jax.__version__)
    machine = (*machine, cohort.mesh.devices.size)
    identity = repr((what, *machine, cohort.architecture, cohort.spec, cohort.trainee.name, cohort.random, *about))
    path = cache_root() / "layouts" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return json.loads(path.read_text())["measured"]
    measured = measure()
    with contextlib.suppress(OSError):  # what cannot be kept is measured again
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({"measured": measured, "of": identity}, indent=1) + "\n")
        beside.replace(path)
    return measured


def _time(cohorts: dict[int, Cohort], params: Any, work: Workload) -> dict[int, float]:
    """Median seconds of a part by chunk, taken in turns."""
    runs = {chunk: _part(cohort, params, work) for chunk, cohort in cohorts.items()}
    times: dict[int, list[float]] = {chunk: [] for chunk in runs}
    for turn in range(_ROUNDS + 1):
        for chunk, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:  # the first compiles
                times[chunk].append(time.perf_counter() - began)
    return {chunk: statistics.median(of) for chunk, of in times.items()}


def seconds_of_part(cohort: Cohort, params: Any, work: Workload) -> float:
    """Median seconds of the gradient of a part, once it is compiled."""
    return _time({0: cohort}, params, work)[0]


def _part(cohort: Cohort, params: Any, work: Workload) -> Callable[[], Any]:
    trained, hyper, step, batch = _arguments(cohort, work)
    frozen = cohort.place_frozen(params)
    return lambda: cohort.gradient(frozen, trained, hyper, step, np.uint32(0), batch)


def _arguments(cohort: Cohort, work: Workload) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    shape = (cohort.slots, work.rows)
    batch = Batch(
        audio=(0.05 * rng.standard_normal((*shape, work.longest.samples))).astype(np.float32),
        samples=np.full(shape, work.longest.samples, np.int32),
        labels=np.ones((*shape, work.longest.labels), np.int32),
        label_lengths=np.full(shape, work.longest.labels, np.int32),
    )
    state = cohort.empty_state()
    return cohort.place((state.trained, stack_hyper([None] * cohort.slots), state.step, batch))


def needed_bytes(cohort: Cohort, params: Any, work: Workload) -> int:
    """Bytes that a device needs in training: what the compiler plans for a part or a dispatch, and what is kept."""
    return needed_memory(cohort, params, work, lowered(cohort, params, work).compile()).total


def lowered(cohort: Cohort, params: Any, work: Workload) -> Any:
    """What `traced` gives, lowered."""
    return traced(cohort, params, work).lower()


def traced(cohort: Cohort, params: Any, work: Workload) -> Any:
    """The gradient of a part, or the steps of a dispatch of several, traced for the size of `work`. Makes no array."""

    def abstract(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=sharding), tree)

    sharding = cohort.sharding
    shape = (cohort.slots, work.rows) if work.together == 1 else (cohort.slots, work.together, work.rows)
    batch = abstract_batch(shape, work.longest, sharding)
    frozen = abstract(Frozen(params, cohort.trainee.shared), cohort.replicated)
    of_slots = abstract(jax.eval_shape(cohort.empty_state), sharding)
    hyper = abstract(stack_hyper([None] * cohort.slots), sharding)
    if work.together == 1:
        part = jax.ShapeDtypeStruct((), np.uint32, sharding=cohort.replicated)
        return cohort.gradient.trace(frozen, of_slots.trained, hyper, of_slots.step, part, batch)
    active = jax.ShapeDtypeStruct((cohort.slots,), np.bool_, sharding=sharding)
    anchor = abstract(jax.eval_shape(cohort.anchor), cohort.replicated)
    return cohort.steps.trace(frozen, of_slots, hyper, active, anchor, batch)


def abstract_batch(shape: tuple[int, ...], size: Size, sharding: Any) -> Batch:
    """The shapes of a batch whose rows are laid out so, each padded to `size`."""
    return Batch(
        audio=jax.ShapeDtypeStruct((*shape, size.samples), np.float32, sharding=sharding),
        samples=jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding),
        labels=jax.ShapeDtypeStruct((*shape, size.labels), np.int32, sharding=sharding),
        label_lengths=jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding),
    )


def needed_memory(cohort: Cohort, params: Any, work: Workload, compiled: Any, platform: str | None = None) -> Memory:
    """What a device needs in training.

    The cohort keeps what is trained, two moments and the best of each slot, a copy of these while a state is saved, a
    gradient for each part, the batches of the dispatches under way, audio that lives on the device, and that of the dev
    sets of the jobs in its slots.

    Args:
        cohort: whose program it is.
        params: of the base.
        work: the largest part.
        compiled: what `lowered` gave, compiled.
        platform: that the run is to be on; None is that of the cohort's devices.
    """
    devices = cohort.mesh.devices.size
    platform = platform or cohort.mesh.devices.flat[0].platform
    parts = work.batch // work.rows
    # The parts of a step wait for nothing but the step before, and a CPU computes them at the same time.
    at_once = parts if platform == "cpu" else 1
    trained = 4 * size(jax.eval_shape(cohort.empty_state).trained) // devices
    audio = 4 * cohort.slots * work.together * work.rows * work.longest.samples // devices
    return Memory(
        base=sum(leaf.nbytes for leaf in jax.tree.leaves((params, cohort.trainee.shared))),
        slots=trained * (8 + parts),
        audio=audio * parts * 3,
        resident=work.resident,
        dev=4 * cohort.slots * work.dev // devices,
        working=at_once * int(compiled.memory_analysis().temp_size_in_bytes),
    )


def slots_that_fit(make: Callable[[int, int], Cohort], params: Any, work: Workload, memory: int, chunk: int) -> int:
    """How many slots of a device fit, from what two small cohorts need.

    Args:
        make: makes a cohort of so many slots of a device and a chunk.
        params: of the base.
        work: the largest part.
        memory: bytes of a device.
        chunk: slots that are computed together; 0 is all.

    Raises:
        ConfigError: not even one slot fits.
    """
    few = max(1, 2 * chunk)
    small, large = (needed_bytes(make(n, chunk), params, work) for n in (few, 2 * few))
    each = max((large - small) / few, 1.0)
    fitting = few + int((USABLE * memory - small) // each)
    if fitting < 1:
        raise ConfigError(
            f"Not even one slot fits: a device needs {gigabytes(small - (few - 1) * each)} for it and has "
            f"{gigabytes(memory)}. Use a smaller base, --cohort.rows 1, or shorter utterances."
        )
    return fitting


def device_memory(device: Any) -> int | None:
    """Bytes of memory that a device has for a run; None where it does not say.

    For a CPU, what the machine has, or what the control group of the process may use where that is less.
    """
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.is_file() else "max"
        total = min(pages, int(text)) if text.isdigit() else pages
        return total // max(1, len([d for d in jax.local_devices() if d.platform == "cpu"]))
    return (device.memory_stats() or {}).get("bytes_limit")


@contextmanager
def told_of_memory(slots: int) -> Iterator[None]:
    """Turns a device that runs out of memory into a sentence.

    Raises:
        ConfigError: it did.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"The devices have too little memory for {slots} slots. Use fewer (--cohort.slots), smaller parts "
            "(--cohort.rows 1) or a smaller --cohort.chunk; --dry-run says how many slots fit."
        ) from error


def fits(needed: int | None, memory: int | None) -> bool:
    """Whether a device has what a run needs; what is not known is taken to be enough."""
    return memory is None or needed is None or needed <= USABLE * memory


def gigabytes(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
