"""What a pod of an Indexed Job of Kubernetes knows of its process: its index, and the rest where it was told.

Kubernetes gives each such pod JOB_COMPLETION_INDEX, and the hostname `<job>-<index>`
(https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode). A JobSet makes such Jobs, and calls
them `<jobset>-<replicated job>-<job index>`, below a subdomain that is the JobSet's name unless it says another
(https://jobset.sigs.k8s.io/docs/concepts). How many pods there are is not told to any; many manifests set NNODES.
"""

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specialize.errors import ConfigError

_PORT = 61_000
"""Of process 0 where nothing else is said: above those that Linux gives away."""


@dataclass(frozen=True)
class Pod:
    """What is known of a pod. None is what is not."""

    what: str
    """For messages."""
    index: int | None
    """Of its process. None where a JobSet has several Jobs, of which only the first begins at 0."""
    count: int | None
    coordinator: str | None
    """HOST:PORT of the pod with index 0."""


def pod_of(environment: Mapping[str, str], own_name: Callable[[], str] = socket.getfqdn) -> Pod | None:
    """What is known of the pod that this process is in; None where it is in none of an Indexed Job.

    Args:
        environment: of the process. JOB_COMPLETION_INDEX is set by Kubernetes. JOBSET_NAME, REPLICATED_JOB_NAME and
            JOB_INDEX are there where a manifest asks for these annotations of JobSet; NNODES, JAX_COORDINATOR_ADDRESS
            and JAX_COORDINATOR_PORT where it sets them, as that of xpk does.
        own_name: full name of this host.

    Raises:
        ConfigError: a number is none.
    """
    index = _number(environment, "JOB_COMPLETION_INDEX")
    if index is None:
        return None
    jobset, job = (environment.get(name, "") for name in ("JOBSET_NAME", "REPLICATED_JOB_NAME"))
    what = f"pod {index} of an Indexed Job of Kubernetes"
    job_index = _number(environment, "JOB_INDEX")
    if jobset:
        what += f", in the JobSet '{jobset}'" + ("" if job_index is None else f" and its job {job_index}")
    return Pod(
        what,
        None if jobset and job_index else index,
        _number(environment, "NNODES"),
        _coordinator(environment, index, jobset, job, own_name),
    )


def _coordinator(
    environment: Mapping[str, str], index: int, jobset: str, job: str, own_name: Callable[[], str]
) -> str | None:
    if host := environment.get("JAX_COORDINATOR_ADDRESS"):
        if ":" in host:
            return host
    elif jobset and job:
        host = f"{jobset}-{job}-0-0.{jobset}"
    else:
        # Only below a headless service are pods found by their names.
        name = re.fullmatch(rf"([^.]+)-{index}(\..+)", own_name())
        if name is None:
            return None
        host = f"{name[1]}-0{name[2]}"
    return f"{host}:{environment.get('JAX_COORDINATOR_PORT') or _PORT}"


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name} is '{text}', but it must be a whole number.")
    return int(text)
