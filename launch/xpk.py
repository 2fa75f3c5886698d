"""The command of xpk, Google's tool for GKE clusters of accelerators, that makes a workload like the JobSet."""

import shlex
from collections.abc import Mapping, Sequence

from launch.accelerators import Accelerator
from specialize.errors import ConfigError


def xpk_command(
    accelerator: Accelerator,
    *,
    slices: int,
    name: str,
    cluster: str,
    image: str,
    command: Sequence[str],
    env: Mapping[str, str],
    restarts: int,
    grace: int,
    spot: bool,
    reservation: str | None,
    zone: str | None,
    project: str | None,
) -> str:
    """`xpk workload create …`, quoted for a shell.

    xpk counts restarts after a preemption like others.

    Args:
        accelerator: of each slice.
        slices: how many.
        name: of the workload, at most 40 characters.
        cluster: that xpk made.
        image: container image.
        command: that every process runs.
        env: variables of every process.
        restarts: of the whole workload.
        grace: seconds between SIGTERM and SIGKILL.
        spot: use spot machines, where xpk provisions them.
        reservation: use that reservation, where xpk provisions them.
        zone: of the cluster.
        project: of the cluster.

    Raises:
        ConfigError: xpk has no such device, or processes could not find each other.
    """
    if accelerator.kind == "gpu" and accelerator.hosts * slices > 1:
        raise ConfigError(
            "xpk tells GPU processes in its own way where to find each other. Use the JobSet for several GPU machines."
        )
    words = ["xpk", "workload", "create", f"--cluster={cluster}", f"--workload={name}", _device(accelerator)]
    if accelerator.kind == "tpu":
        words.append(f"--num-slices={slices}")
    words += [f"--docker-image={image}", f"--max-restarts={restarts}", "--restart-on-user-code-failure"]
    words.append(f"--termination-grace-period-seconds={grace}")
    words += [f"--env={key}={value}" for key, value in env.items()]
    words += ["--spot"] if spot else []
    words += [f"--{flag}={value}" for flag, value in _said(reservation=reservation, zone=zone, project=project)]
    return shlex.join([*words, f"--command={shlex.join(command)}"])


def _device(accelerator: Accelerator) -> str:
    family = accelerator.family
    if family.xpk is None or accelerator.chips < family.xpk_from:
        raise ConfigError(f"xpk has no {accelerator.name}. Use the JobSet, or choose another accelerator.")
    if accelerator.kind == "gpu":
        return f"--device-type={family.xpk}-{accelerator.chips_per_host}"
    size = accelerator.name.removeprefix(f"{family.name}-")
    return f"--tpu-type={family.xpk}-{size}"


def _said(**flags: str | None) -> list[tuple[str, str]]:
    return [(name, value) for name, value in flags.items() if value is not None]
