"""Which process of a run this is, and where the first one is to be met: told by flags, or by what started it."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specialize.errors import ConfigError
from specialize.processes.kubernetes import Pod, pod_of

COORDINATOR, PROCESSES, PROCESS = "SPECIALIZE_COORDINATOR", "SPECIALIZE_PROCESSES", "SPECIALIZE_PROCESS"
"""Environment variables that say what the flags do. `SPECIALIZE_PROCESSES=auto` leaves it to JAX."""
TOKEN = "SPECIALIZE_TOKEN"
"""Environment variable with a word that all processes of a run know, and others do not. A launcher may set it."""
_PORTS = (61_000, 2_000)
"""First port, and number of pairs of ports, that SLURM's jobs choose from: above those that Linux gives away."""


@dataclass(frozen=True)
class ProcessConfig:
    """How this process finds the others of its run. None of it is needed for one process, or under a launcher."""

    count: int | None = None
    """Processes of the run. None takes what the launcher says: SPECIALIZE_PROCESSES, SLURM's step, a TPU slice, or a
    JobSet that sets NNODES."""
    index: int | None = None
    """Which of them this is, from 0."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all. The next port is used too."""
    patience: float = 600.0
    """Seconds that processes wait where they meet, at the start too, before they end the run and name who is missing.
    One that dies is noticed at once, and one that stands still within half a minute."""

    def __post_init__(self):
        if not self.patience > 0:
            raise ConfigError(f"processes.patience={self.patience}, but it must be positive, in seconds.")


@dataclass(frozen=True)
class Identity:
    """Which process this is of how many."""

    count: int
    index: int
    host: str
    """Of process 0."""
    port: int

    def __post_init__(self):
        if self.count < 1:
            raise ConfigError(f"There are {self.count} processes, but there must be at least 1.")
        if not 0 <= self.index < self.count:
            raise ConfigError(f"This is process {self.index} of {self.count}; they are numbered 0 to {self.count - 1}.")


_ALONE = Identity(1, 0, "localhost", 0)


def identify(config: ProcessConfig, environment: Mapping[str, str] = os.environ) -> Identity | None:
    """Which process this is; None where JAX is to find out, on a TPU slice of several hosts.

    The flags come first, then SPECIALIZE_… variables, which `specialize launch` sets, then SLURM's, of a step with
    several tasks, then a TPU slice's. A pod of an Indexed Job of Kubernetes, as those of a JobSet are, adds what it
    knows to what is said; that it is alone is nothing that it knows.

    Raises:
        ConfigError: only part of it is said, or it contradicts itself.
    """
    said = {
        "--processes.count": config.count if config.count is not None else environment.get(PROCESSES),
        "--processes.index": config.index if config.index is not None else environment.get(PROCESS),
        "--processes.coordinator": config.coordinator or environment.get(COORDINATOR),
    }
    if said["--processes.count"] == "auto":
        return None
    if any(value is not None for value in said.values()):
        return _explicit(said, environment)
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm(environment)
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return None
    if hosts != [""] or pod_of(environment) is None:
        return _ALONE
    return _explicit(said, environment)


def _explicit(said: Mapping[str, int | str | None], environment: Mapping[str, str]) -> Identity:
    count = _whole("--processes.count", said["--processes.count"])
    if count == 1:
        return _ALONE
    pod = pod_of(environment)
    if pod is not None:
        known = (pod.count, pod.index, pod.coordinator)
        said = {flag: of if value is None else value for (flag, value), of in zip(said.items(), known, strict=True)}
        count = _whole("--processes.count", said["--processes.count"])
        if count == 1:
            return _ALONE
    index, address = said["--processes.index"], said["--processes.coordinator"]
    missing = [flag for flag, value in said.items() if value is None]
    if count is None or index is None or address is None:
        if pod is not None:
            raise ConfigError(_of_a_pod(pod, missing))
        raise ConfigError(
            f"A run of several processes also needs {' and '.join(missing)} (or {COORDINATOR}, {PROCESSES} and "
            f"{PROCESS}). `specialize launch local` starts several on this machine and says all of it."
        )
    host, colon, port = str(address).rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65535:
        raise ConfigError(f"--processes.coordinator {address}: write it as HOST:PORT, like node1:61000.")
    number = _whole("--processes.index", index)
    assert number is not None
    return Identity(count, number, host.strip("[]"), int(port))


def _of_a_pod(pod: Pod, missing: Sequence[str]) -> str:
    needs = {
        "--processes.count": f"--processes.count (or {PROCESSES}), 1 where each pod has a run of its own",
        "--processes.index": f"--processes.index (or {PROCESS}), for it depends on the sizes of the Jobs before",
        "--processes.coordinator": f"--processes.coordinator (or {COORDINATOR}), HOST:PORT by which pod 0 is reached",
    }
    return (
        f"This is {pod.what}, which does not say enough to find the other processes of its run. Give "
        f"{'; and '.join(needs[flag] for flag in missing)}. `specialize launch gke` writes JobSets that say all of it."
    )


def _slurm(environment: Mapping[str, str]) -> Identity:
    first = first_node(environment.get("SLURM_STEP_NODELIST", ""))
    try:
        socket.getaddrinfo(first, None)
    except (OSError, UnicodeError):
        # A node may have a name of its own in SLURM. srun mostly runs on the first node, whose address it tells.
        first = environment.get("SLURM_SRUN_COMM_HOST", first)
    low, pairs = _PORTS
    port = low + 2 * (_number(environment, "SLURM_JOB_ID", 0) % pairs)
    count = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    return Identity(count, _number(environment, "SLURM_PROCID", 0), first, port)


def first_node(nodes: str) -> str:
    """The first of the nodes that SLURM lists: `gpu[03-05,9],b1` begins with `gpu03`."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
    assert found is not None  # it matches anything
    return "".join(part or "" for part in found.groups())


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    return _whole(name, environment.get(name)) if environment.get(name) else default  # pyright: ignore[reportReturnType]


def _whole(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} is '{value}', but it must be a whole number.") from None
