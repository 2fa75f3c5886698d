"""The accelerators that runs are launched on and planned for, in one table.

Names count as the vendors do, and `find` says what is meant:

| name | counts | example |
|---|---|---|
| v5e-N, v6e-N | chips | `v5e-256` is 256 chips; Cloud TPU calls it `v5litepod-256` |
| v4-N, v5p-N, v7x-N | TensorCores, two a chip, as in Cloud TPU's accelerator types | `v4-512` is 256 chips |
| FAMILY-TOPOLOGY | chips, and how they lie | `v5p-4x4x4` is 64 chips, the same as `v5p-128` |
| l4-N, a100-40gb-N, h100-N … | GPUs; more than a machine holds are several of the largest | `h100-16` is two machines |

`h100x8` is `h100-8`, and v5litepod and tpu7x are the names of v5e and v7x elsewhere.

Sources: TPU figures, topologies and machine types are those of Google Cloud's pages on each TPU version's architecture
(v4, v5e, v5p, v6e, TPU7x) and of "Plan TPUs in GKE", runtime versions those of "TPU software versions", all as of 2025.
Of tori, whole cubes of 4x4x4 are offered, a part of what GKE takes. Labels and machine types of GPUs are from Google
Cloud's "GPU machine types". Peak figures of GPUs are those of NVIDIA's data sheets, dense (without sparsity) and of the
SXM form where there are several; of the B200, half of what the HGX data sheet gives with sparsity, and the 180 GB that
Google Cloud offers; those of TF32 likewise. Their GB are counted as 10^9 bytes, which are there in any case. What JAX
calls devices is in JAX itself for TPUs (`jax/_src/mesh_utils.py`), and for GPUs the name that the driver gives them.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from specialize.errors import ConfigError

GIB = 1 << 30
GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Chip:
    """One chip, and its published peak figures."""

    name: str
    """As its vendor writes it."""
    hbm_bytes: int
    """Memory, bytes."""
    bf16_flops: float
    """Peak dense bfloat16 operations a second."""
    bandwidth: float
    """Peak bytes a second between memory and chip."""
    kinds: tuple[str, ...]
    """What JAX calls its devices (`device_kind`)."""
    float32_flops: float | None = None
    """Peak dense operations a second of products of float32 matrices, as JAX makes them by default: TF32 on GPUs. None
    where they are as fast as bfloat16: a TPU multiplies them as such."""
    devices: int = 1
    """Devices that JAX shows of it: two of a TPU7x, which share its figures between them."""

    @property
    def training_flops(self) -> float:
        """Peak operations a second of each device in training, which has float32 matrices."""
        return (self.float32_flops or self.bf16_flops) / self.devices

    @property
    def device_bytes(self) -> int:
        """Memory of each device."""
        return self.hbm_bytes // self.devices

    @property
    def device_bandwidth(self) -> float:
        """Peak bytes a second of each device."""
        return self.bandwidth / self.devices


@dataclass(frozen=True)
class Family:
    """A kind of accelerator, and the sizes that it comes in."""

    name: str
    chip: Chip
    label: str
    """Value of GKE's node label: gke-tpu-accelerator of a TPU, gke-accelerator of a GPU."""
    shapes: dict[str, tuple[str, int]]
    """Machine type and chips on a machine, of a topology (TPU) or of a number of GPUs on one machine."""
    aliases: tuple[str, ...] = ()
    cores: int = 1
    """TensorCores a chip where names count those, else 1."""
    cloud: str | None = None
    """Prefix of accelerator types of the Cloud TPU API; None where it does not offer them."""
    runtime: str | None = None
    """Software version of its TPU VMs, which has what JAX needs."""
    xpk: str | None = None
    """Prefix of xpk's device types; None where it has none."""
    xpk_from: int = 1
    """Fewest chips that xpk offers."""
    sky: str | None = None
    """Name of a GPU in SkyPilot, which calls TPUs as the Cloud TPU API does."""

    @property
    def kind(self) -> Literal["tpu", "gpu"]:
        """Which of the two."""
        return "tpu" if self.label.startswith("tpu") else "gpu"

    @property
    def names(self) -> list[str]:
        """Names of every size, smallest first: of a TPU as its vendor counts, of a GPU on one machine."""
        return list(dict.fromkeys(f"{self.name}-{chips_of(shape) * self.cores}" for shape in self.shapes))


@dataclass(frozen=True)
class Accelerator:
    """So many chips of a family: a TPU slice, or GPU machines."""

    name: str
    """The name that `find` gives it, whichever it was asked by."""
    family: Family
    chips: int
    """In all."""
    machine: str
    """Google Cloud's machine type of each host."""
    chips_per_host: int
    topology: str | None
    """How the chips of a TPU slice lie, `4x4x4`; None of GPUs."""

    @property
    def kind(self) -> Literal["tpu", "gpu"]:
        """`tpu` or `gpu`."""
        return self.family.kind

    @property
    def chip(self) -> Chip:
        """One of its chips."""
        return self.family.chip

    @property
    def devices(self) -> int:
        """What JAX shows of them, in all."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Machines, and so processes."""
        return self.chips // self.chips_per_host

    @property
    def resource(self) -> str:
        """Kubernetes resource that chips are asked for by."""
        return "google.com/tpu" if self.kind == "tpu" else "nvidia.com/gpu"

    @property
    def node_selector(self) -> dict[str, str]:
        """GKE node labels of the machines that have it."""
        if self.topology is None:
            return {
                "cloud.google.com/gke-accelerator": self.family.label,
                "node.kubernetes.io/instance-type": self.machine,
            }
        return {
            "cloud.google.com/gke-tpu-accelerator": self.family.label,
            "cloud.google.com/gke-tpu-topology": self.topology,
        }

    @property
    def cloud_type(self) -> str:
        """Accelerator type of the Cloud TPU API, `v5litepod-256`.

        Raises:
            ConfigError: the API does not offer it.
        """
        if self.family.cloud is None:
            offered = ", ".join(family.name for family in FAMILIES if family.cloud)
            raise ConfigError(
                f"There are no TPU VMs of {self.name}: the Cloud TPU API offers {offered}. Choose one of these, or use "
                "`specialize launch gke`."
            )
        return f"{self.family.cloud}-{self.chips * self.family.cores}"


def chips_of(topology: str) -> int:
    """Chips of a topology `4x4x8`, or of a number `8`."""
    return math.prod(int(edge) for edge in topology.split("x"))


def find(name: str, topology: str | None = None) -> Accelerator:
    """The accelerator of a name.

    Args:
        name: `v5e-256`, `v5p-4x4x4`, `h100-8`, `h100x8`; see the module for how names count.
        topology: of a TPU slice, where a number of chips comes in several; by default the first in the table, the most
            like a cube.

    Raises:
        ConfigError: there is no such family, size or topology, or the topology has another number of chips. The
            message has the choices.
    """
    family, size = _parted(name)
    if family.kind == "gpu":
        if topology is not None:
            raise ConfigError(f"--topology {topology}: GPUs have none. Leave it out, or choose a TPU.")
        return _gpus(family, size)
    if "x" in size:
        if topology not in (None, size):
            raise ConfigError(f"{name} and --topology {topology} say two different topologies. Leave one out.")
        topology, wanted = size, chips_of(size)
    else:
        wanted = int(size) // family.cores
        if wanted * family.cores != int(size):
            raise _no_size(family, size)
    same = [shape for shape in family.shapes if chips_of(shape) == wanted]
    if topology is None:
        if not same:
            raise _no_size(family, size)
        topology = same[0]
    if topology not in family.shapes:
        near = same or list(family.shapes)
        raise ConfigError(f"{family.name} has no topology {topology}. Choose from {', '.join(near)}.")
    if topology not in same:
        choices = f"Choose from {', '.join(same)}." if same else str(_no_size(family, size))
        raise ConfigError(
            f"{name} is {wanted} chips, and the topology {topology} has {chips_of(topology)}, which is "
            f"{family.name}-{chips_of(topology) * family.cores}. {choices}"
        )
    machine, on_host = family.shapes[topology]
    chosen = f"{family.name}-{wanted * family.cores}" if topology == same[0] else f"{family.name}-{topology}"
    return Accelerator(chosen, family, wanted, machine, on_host, topology)


def every_name() -> list[str]:
    """Names of everything that is offered, a topology each where a number of chips comes in several."""
    names: list[str] = []
    for family in FAMILIES:
        if family.kind == "gpu":
            largest = max(map(int, family.shapes))
            names += [*family.names, f"{family.name}-{2 * largest}"]
        else:
            names += [find(f"{family.name}-{shape}").name for shape in family.shapes]
    return names


def _parted(name: str) -> tuple[Family, str]:
    """Family and size of a name."""
    lowered = name.strip().lower().removeprefix("tpu-")
    for family in FAMILIES:
        for known in sorted((family.name, *family.aliases), key=len, reverse=True):
            rest = re.fullmatch(rf"{re.escape(known)}[-x:]([1-9][0-9]*(?:x[1-9][0-9]*)*)", lowered)
            if rest and (family.kind == "tpu" or "x" not in rest[1]):
                return family, rest[1]
    bare = [family for family in FAMILIES if lowered.rstrip("-x:") in (family.name, *family.aliases)]
    if bare:
        raise ConfigError(f"--accelerator {name}: say how many. Choose from {', '.join(bare[0].names)}.")
    ranges = ", ".join(" … ".join(dict.fromkeys((family.names[0], family.names[-1]))) for family in FAMILIES)
    raise ConfigError(
        f"There is no accelerator '{name}'. Choose from {ranges}; a topology as in v5p-4x4x4 will do too."
    )


def _gpus(family: Family, size: str) -> Accelerator:
    """So many GPUs, on one machine if it has them, else on several of the largest."""
    count, largest = int(size), max(map(int, family.shapes))
    if size not in family.shapes and count % largest:
        raise _no_size(family, size)
    machine, on_host = family.shapes.get(size) or family.shapes[str(largest)]
    return Accelerator(f"{family.name}-{count}", family, count, machine, on_host, None)


def _no_size(family: Family, size: str) -> ConfigError:
    several = ""
    if family.kind == "gpu":
        several = f", or a multiple of {max(map(int, family.shapes))} for several machines"
    counted = f" (names of {family.name} count TensorCores, {family.cores} a chip)" if family.cores > 1 else ""
    return ConfigError(f"There is no {family.name}-{size}{counted}. Choose from {', '.join(family.names)}{several}.")


def _flat(machine: str) -> dict[str, tuple[str, int]]:
    """Shapes of v5e and v6e: up to eight chips are one host, and more are hosts of four."""
    small = {"1x1": (f"{machine}-1t", 1), "2x2": (f"{machine}-4t", 4), "2x4": (f"{machine}-8t", 8)}
    return small | dict.fromkeys(("4x4", "4x8", "8x8", "8x16", "16x16"), (f"{machine}-4t", 4))


def _cubes(machine: str, *shapes: str) -> dict[str, tuple[str, int]]:
    """Shapes of v4, v5p and TPU7x, whose hosts have four chips."""
    return dict.fromkeys(sorted(("2x2x1", "2x2x2", "2x2x4", "2x4x4", *shapes), key=chips_of), (machine, 4))


def _gpu(*machines: str) -> dict[str, tuple[str, int]]:
    """Shapes of GPUs, from `8:a3-highgpu-8g`."""
    shapes = [machine.split(":") for machine in machines]
    return {count: (machine, int(count)) for count, machine in shapes}


_CUBES = ("4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
"""Whole cubes of 4x4x4, as all three-dimensional tori offer them."""

FAMILIES: tuple[Family, ...] = (
    Family(
        "v4",
        Chip("TPU v4", 32 * GIB, 275 * TERA, 1.2 * TERA, ("TPU v4",)),
        "tpu-v4-podslice",
        _cubes("ct4p-hightpu-4t", *_CUBES, "4x4x12", "4x4x16", "4x8x12", "8x8x12", "8x12x16", "12x16x16"),
        cores=2,
        cloud="v4",
        runtime="tpu-ubuntu2204-base",
        xpk="v4",
    ),
    Family(
        "v5e",
        Chip("TPU v5e", 16 * GIB, 197 * TERA, 0.819 * TERA, ("TPU v5 lite", "TPU v5e")),
        "tpu-v5-lite-podslice",
        _flat("ct5lp-hightpu"),
        aliases=("v5litepod", "v5lite"),
        cloud="v5litepod",
        runtime="v2-alpha-tpuv5-lite",
        xpk="v5litepod",
        xpk_from=8,
    ),
    Family(
        "v5p",
        Chip("TPU v5p", 95 * GIB, 459 * TERA, 2.765 * TERA, ("TPU v5", "TPU v5p")),
        "tpu-v5p-slice",
        _cubes(
            "ct5p-hightpu-4t",
            *(*_CUBES, "4x4x12", "4x8x12", "4x12x12", "8x8x12", "8x12x12", "8x12x16"),
            *("12x12x12", "12x16x16", "16x16x16", "16x16x24"),
        ),
        cores=2,
        cloud="v5p",
        runtime="v2-alpha-tpuv5",
        xpk="v5p",
    ),
    Family(
        "v6e",
        Chip("TPU v6e (Trillium)", 32 * GIB, 918 * TERA, 1.64 * TERA, ("TPU v6 lite", "TPU v6e")),
        "tpu-v6e-slice",
        _flat("ct6e-standard"),
        aliases=("trillium",),
        cloud="v6e",
        runtime="v2-alpha-tpuv6e",
        xpk="v6e",
    ),
    Family(
        "v7x",
        Chip("TPU7x (Ironwood)", 192 * GIB, 2307 * TERA, 7.38 * TERA, ("TPU7x",), devices=2),
        "tpu7x",
        _cubes(
            "tpu7x-standard-4t",
            *(*_CUBES, "4x4x12", "4x8x12", "8x8x12", "12x12x12", "12x16x16", "16x16x16", "16x16x24"),
        ),
        aliases=("tpu7x", "ironwood", "7x"),
        cores=2,
        xpk="tpu7x",
    ),
    Family(
        "l4",
        Chip("NVIDIA L4", 24 * GB, 121 * TERA, 0.3 * TERA, ("NVIDIA L4",), 60 * TERA),
        "nvidia-l4",
        _gpu("1:g2-standard-12", "2:g2-standard-24", "4:g2-standard-48", "8:g2-standard-96"),
        xpk="l4",
        sky="L4",
    ),
    Family(
        "a100-40gb",
        Chip("NVIDIA A100 40 GB", 40 * GB, 312 * TERA, 1.555 * TERA, ("NVIDIA A100-SXM4-40GB",), 156 * TERA),
        "nvidia-tesla-a100",
        _gpu("1:a2-highgpu-1g", "2:a2-highgpu-2g", "4:a2-highgpu-4g", "8:a2-highgpu-8g", "16:a2-megagpu-16g"),
        xpk="a100-40gb",
        sky="A100",
    ),
    Family(
        "a100-80gb",
        Chip("NVIDIA A100 80 GB", 80 * GB, 312 * TERA, 2.039 * TERA, ("NVIDIA A100-SXM4-80GB",), 156 * TERA),
        "nvidia-a100-80gb",
        _gpu("1:a2-ultragpu-1g", "2:a2-ultragpu-2g", "4:a2-ultragpu-4g", "8:a2-ultragpu-8g"),
        sky="A100-80GB",
    ),
    Family(
        "h100",
        Chip("NVIDIA H100 SXM", 80 * GB, 989 * TERA, 3.35 * TERA, ("NVIDIA H100 80GB HBM3",), 494 * TERA),
        "nvidia-h100-80gb",
        _gpu("1:a3-highgpu-1g", "2:a3-highgpu-2g", "4:a3-highgpu-4g", "8:a3-highgpu-8g"),
        aliases=("h100-80gb",),
        xpk="h100-80gb",
        xpk_from=8,
        sky="H100",
    ),
    Family(
        "h100-mega",
        Chip("NVIDIA H100 SXM", 80 * GB, 989 * TERA, 3.35 * TERA, ("NVIDIA H100 80GB HBM3",), 494 * TERA),
        "nvidia-h100-mega-80gb",
        _gpu("8:a3-megagpu-8g"),
        aliases=("h100-mega-80gb",),
        xpk="h100-mega-80gb",
        sky="H100-MEGA",
    ),
    Family(
        "h200",
        Chip("NVIDIA H200 SXM", 141 * GB, 989 * TERA, 4.8 * TERA, ("NVIDIA H200",), 494 * TERA),
        "nvidia-h200-141gb",
        _gpu("8:a3-ultragpu-8g"),
        aliases=("h200-141gb",),
        xpk="h200-141gb",
        sky="H200",
    ),
    Family(
        "b200",
        Chip("NVIDIA B200 SXM", 180 * GB, 2250 * TERA, 8 * TERA, ("NVIDIA B200",), 1125 * TERA),
        "nvidia-b200",
        _gpu("8:a4-highgpu-8g"),
        xpk="b200",
        sky="B200",
    ),
)
"""Everything that is offered. Of shapes with the same number of chips, the first is taken where none is asked for."""
