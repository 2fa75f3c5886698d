"""`specialize launch sky`: a task file for SkyPilot, which finds machines with the accelerator on any cloud.

A managed job (`sky jobs launch`) is started again elsewhere when its machines are taken away, and when the run ends
with code 75, which means that it has saved; it goes on if its folder of runs is in a bucket.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.accelerators import Accelerator, find
from launch.names import dns_label, environment, port_of
from launch.words import Launch, Launcher, parse
from launch.yaml_text import yaml_text
from specialize.errors import EXIT_PREEMPTED, ConfigError
from specialize.printable import printable
from specialize.processes.identity import COORDINATOR, PROCESS, PROCESSES

_STORES = re.compile(r"(gs|s3|r2|https)://[^=\s]+")
_PYTHON = "$HOME/.specialize"
"""Where packages are: the image's own Python is older than `specialize` needs."""


@dataclass(frozen=True)
class Sky(Launcher):
    """Write a SkyPilot task file that trains an experiment on GPUs or a TPU slice of any cloud."""

    accelerator: str
    """h100-8, h100-16 (two machines), a100-80gb-8, v5e-16, v6e-256, v5p-128."""
    name: str | None = None
    """Name of the task; default that of the run, or else of the file."""
    infra: str | None = None
    """Where, as SkyPilot writes it: gcp/us-central1, aws, k8s/CONTEXT; default wherever it is cheapest."""
    spot: bool = False
    """Use spot machines."""
    runs: str | None = None
    """Folder of runs for --command, a path under a --mount. It has to outlive the
    machines."""
    mount: tuple[str, ...] = ()
    """gs://BUCKET=/PATH or s3://BUCKET=/PATH; may be given several times."""
    env: tuple[str, ...] = ()
    """NAME=VALUE for every process; may be given several times."""
    workdir: Path = Path()
    """Checkout that is copied to the machines, with the experiments."""
    python: str = "3.12"
    """Python version that uv installs."""
    restarts: int = 3
    """How many failures a managed job survives. Preemptions do not count."""
    port: int = 8476
    """Port at which the first process is met; the next one is used too."""
    out: Path | None = None
    """Write the task to this file instead of to the terminal."""


def sky(words: list[str]) -> None:
    """Writes the task file of an experiment.

    Raises:
        ConfigError: the flags contradict each other, or what SkyPilot has.
    """
    job = parse(Sky, words, "specialize launch sky")
    task = task_of(job)
    text = f"# {printable(f'specialize launch sky {shlex.join(words)}')}\n" + yaml_text(task)
    if job.options.out is None:
        sys.stdout.write(text)
        return
    job.options.out.write_text(text)
    file = shlex.quote(str(job.options.out))
    print(f"{job.options.out}: next: sky jobs launch {file} (managed, restarts), or sky launch {file}")


def task_of(job: Launch[Sky]) -> dict[str, Any]:
    """The task as SkyPilot is given it.

    Raises:
        ConfigError: see `sky`.
    """
    options, accelerator = job.options, find(job.options.accelerator)
    if options.restarts < 0:
        raise ConfigError(f"--restarts {options.restarts}: it must be 0 or more.")
    port_of("--port", options.port)
    recovery = {"max_restarts_on_errors": options.restarts, "recover_on_exit_codes": [EXIT_PREEMPTED]}
    resources: dict[str, Any] = {"infra": options.infra} if options.infra else {}
    if accelerator.kind == "tpu":
        if options.infra is not None and options.infra.split("/")[0] != "gcp":
            raise ConfigError(f"--infra {options.infra}: TPUs are Google's. Leave it out, or write gcp/REGION.")
        resources.setdefault("infra", "gcp")
        resources["accelerators"] = f"tpu-{accelerator.cloud_type}"
        resources["accelerator_args"] = {"runtime_version": accelerator.family.runtime}
    else:
        resources["accelerators"] = f"{accelerator.family.sky}:{accelerator.chips_per_host}"
    resources |= {"use_spot": options.spot, "job_recovery": recovery}
    task: dict[str, Any] = {
        "name": dns_label(options.name or job.run_name),
        "workdir": str(options.workdir),
        "resources": resources,
        # The hosts of a TPU slice are one node to SkyPilot, and it runs the task on each of them.
        "num_nodes": 1 if accelerator.kind == "tpu" else accelerator.hosts,
    }
    env = {"PYTHONUNBUFFERED": "1"} | environment(options.env)
    return task | {
        "envs": env,
        **({"file_mounts": _mounts(options.mount)} if options.mount else {}),
        "setup": _setup(accelerator, options.python),
        "run": _run(job, accelerator),
    }


def _mounts(words: tuple[str, ...]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for word in words:
        source, _, path = word.rpartition("=")
        if not _STORES.fullmatch(source) or not path.startswith("/"):
            raise ConfigError(f"--mount {word}: write gs://BUCKET=/PATH or s3://BUCKET=/PATH.")
        if path in made:
            raise ConfigError(f"--mount {word}: {path} is mounted twice. Choose another path.")
        made[path] = {"source": source, "mode": "MOUNT"}
    return made


def _setup(accelerator: Accelerator, python: str) -> str:
    """What installs this checkout, once on every machine."""
    extras = "tpu,bucket" if accelerator.kind == "tpu" else "gpu,bucket"
    return f"""\
set -e
python3 -m pip install --quiet --user uv
[ -x "{_PYTHON}/bin/python" ] || python3 -m uv venv --python {shlex.quote(python)} "{_PYTHON}"
python3 -m uv pip install --quiet --python "{_PYTHON}/bin/python" --editable '.[{extras}]'
"""


def _run(job: Launch[Sky], accelerator: Accelerator) -> str:
    """What every machine runs."""
    words = job.words(job.options.runs)
    lines = []
    if accelerator.hosts > 1 and accelerator.kind == "tpu":
        lines = [f"export {PROCESSES}=auto"]
    elif accelerator.hosts > 1:
        lines = [
            f'export {COORDINATOR}="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{job.options.port}"',
            f'export {PROCESSES}="$SKYPILOT_NUM_NODES"',
            f'export {PROCESS}="$SKYPILOT_NODE_RANK"',
        ]
    return "\n".join([*lines, f'exec "{_PYTHON}/bin/specialize" {shlex.join(words)}', ""])
