"""`specialize launch`: which launcher, and what each is for."""

import importlib
import sys

from launch.words import parse
from specialize.errors import ConfigError

LAUNCHERS: dict[str, tuple[str, str, str]] = {
    "local": ("launch.command", "local", "Processes on this machine."),
    "slurm": ("launch.slurm", "slurm", "An sbatch script for a SLURM cluster."),
    "gke": ("launch.gke", "gke", "A JobSet for GKE, of TPU slices or GPU machines; also as an xpk command."),
    "tpu-vm": ("launch.tpu_vm", "tpu_vm", "Cloud TPU VMs: queue, install, run, resume, delete, by gcloud."),
    "sky": ("launch.sky", "sky", "A SkyPilot task file, for GPUs and TPUs of any cloud."),
}
"""Module, function and what it is for, of each. They are imported when they are asked for."""


def launch(words: list[str]) -> None:
    """Runs a launcher.

    Args:
        words: its name, then its own words. Flags of a launcher come before the experiment file; what comes after the
            file is for `specialize train`, or --command.

    Raises:
        ConfigError: there is no such launcher.
    """
    if not words or words[0] in ("-h", "--help"):
        print(overview(), file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    name, rest = words[0], words[1:]
    if name not in LAUNCHERS:
        raise ConfigError(f"There is no launcher '{name}'. Choose from {', '.join(LAUNCHERS)}.")
    module, function, _ = LAUNCHERS[name]
    getattr(importlib.import_module(module), function)(rest)


def local(words: list[str]) -> None:
    """`specialize launch local`, which ends with the exit code of the run.

    Raises:
        ConfigError: the flags contradict each other, or name no experiment.
    """
    from launch.local import Local, run_local

    job = parse(Local, words, "specialize launch local", again=False)
    sys.exit(run_local(job.options, job.words()))


def overview() -> str:
    """What `specialize launch --help` prints."""
    width = max(map(len, LAUNCHERS))
    return "\n".join(
        [
            "Run an experiment where the accelerators are. The experiment stays as it is.",
            "",
            "usage: specialize launch WHERE [its flags] EXPERIMENT.py [flags of specialize train, or --command]",
            "",
            *(f"  {name:<{width}}  {purpose}" for name, (_, _, purpose) in LAUNCHERS.items()),
            "",
            "`specialize launch WHERE --help` explains the flags, which come before the experiment file.",
        ]
    )
