"""Flags of the commands of `specialize launch tpu-vm`."""

from dataclasses import dataclass
from pathlib import Path

from launch.gcloud import Gcloud
from launch.names import dns_label
from launch.words import Launcher
from specialize.errors import ConfigError


@dataclass(frozen=True)
class Vm:
    """Which TPU VM."""

    name: str
    """Name of the TPU VM, and of its place in the queue."""
    zone: str
    """Zone, us-west4-a."""
    project: str | None = None
    """Project; default gcloud's own."""
    dry_run: bool = False
    """Print the calls of gcloud, quoted for a shell, and make none."""

    def gcloud(self) -> Gcloud:
        """How gcloud is called for it.

        Raises:
            ConfigError: a TPU VM cannot have that name, or gcloud is missing.
        """
        if dns_label(self.name) != self.name:
            raise ConfigError(
                f"--name {self.name}: names of TPU VMs have small letters, digits and hyphens, and begin with a "
                f"letter. '{dns_label(self.name)}' will do."
            )
        return Gcloud(self.zone, self.project, self.dry_run)


@dataclass(frozen=True)
class WithLog(Vm):
    """Which TPU VM, and where to keep what its workers say."""

    log: Path | None = None
    """File that the workers' output is added to; default NAME.log."""


@dataclass(frozen=True)
class Installation(WithLog):
    """Copy this checkout to all workers, and install it there."""

    source: Path = Path()
    """Checkout to copy, with the experiments; without runs/, .venv/ and what is version control's."""
    extras: str = "tpu,bucket"
    """Extras of the package."""
    python: str = "3.12"
    """Python version that uv installs on the workers."""


@dataclass(frozen=True, kw_only=True)
class Create(Installation):
    """Ask for a TPU slice in the queue, wait until it is there, and install this checkout on it.

    Where the queue has it already, it goes on with waiting.
    """

    accelerator: str
    """v5e-16, v6e-256, v5p-128, v4-512: v4 and v5p count TensorCores, two a chip."""
    runtime: str | None = None
    """Software version of the VMs; default the one for JAX on that accelerator."""
    spot: bool = False
    """Spot capacity, which may be taken away."""
    reserved: bool = False
    """Capacity that is reserved for the project."""
    network: str | None = None
    """VPC network."""
    subnetwork: str | None = None
    """Its subnetwork."""
    internal_ips: bool = False
    """No addresses outside of the network."""
    service_account: str | None = None
    """Service account of the VMs, of which buckets are asked."""
    valid_until: str | None = None
    """How long the request waits in the queue before it lapses, 12h."""
    hours: float = 24.0
    """How long this command waits."""
    poll: float = 30.0
    """Seconds between two looks at the queue."""
    install: bool = True
    """Whether to install this checkout when the slice is there."""


@dataclass(frozen=True)
class Run(WithLog, Launcher):
    """Train an experiment on all workers. A run goes on when the connection ends: the same command shows it again, and
    resumes one that has ended."""

    runs: str | None = None
    """Folder of runs for --command, which all workers reach: their disks are not shared, and end with them."""
    env: tuple[str, ...] = ()
    """NAME=VALUE for every process; may be given several times."""
    copy: bool = True
    """Whether to copy the experiment file to the workers first, so that changes of it count without `install`."""


@dataclass(frozen=True)
class Status(WithLog):
    """Say what there is of a TPU VM, and what its workers do."""


@dataclass(frozen=True)
class Stop(WithLog):
    """Ask the run to save and stop; `run` goes on with it."""


@dataclass(frozen=True)
class Delete(Vm):
    """Delete a TPU VM and its place in the queue, with everything on its disks."""
