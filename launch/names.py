"""Names and amounts that clusters accept: made where that is harmless, refused with the reason where it is not."""

import hashlib
import re

from specialize.errors import ConfigError
from specialize.processes.identity import COORDINATOR, PROCESS, PROCESSES

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?|Ki)?")
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def dns_label(text: str, longest: int = 63) -> str:
    """A name for the cluster made of any text: small letters, digits and hyphens, a letter first.

    Texts that are fit stay as they are. One that is too long ends in a hash of itself, so that two of them differ.

    Raises:
        ConfigError: there is no letter or digit in it.
    """
    made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not made:
        raise ConfigError(f"No name can be made of '{text}': it needs a letter or digit of ASCII. Give another --name.")
    if not made[0].isalpha():
        made = f"s-{made}"
    if len(made) > longest:
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        made = f"{made[: longest - 7].rstrip('-')}-{digest}"
    assert _LABEL.fullmatch(made), made
    return made


def object_name(flag: str, value: str) -> str:
    """The value of a flag that names something in the cluster.

    Raises:
        ConfigError: nothing in a cluster can have that name.
    """
    if len(value) > 253 or not _OBJECT.fullmatch(value):
        raise ConfigError(
            f"{flag} {value}: names in a cluster have small letters, digits, hyphens and dots, and begin and end with "
            "a letter or digit."
        )
    return value


def quantity(flag: str, value: str) -> str:
    """The value of a flag that is an amount.

    Raises:
        ConfigError: it is not an amount as Kubernetes writes it.
    """
    if not _QUANTITY.fullmatch(value):
        raise ConfigError(f"{flag} {value}: write an amount as Kubernetes does: 8, 500m, 64Gi.")
    return value


def port_of(flag: str, value: int) -> int:
    """The port at which processes meet; they use the next one too.

    Raises:
        ConfigError: there is no such port, or no next one.
    """
    if not 0 < value < 65535:
        raise ConfigError(f"{flag} {value}: write a port from 1 to 65534; the next one is used too.")
    return value


def environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """Variables of `--env NAME=VALUE` flags.

    Raises:
        ConfigError: one is not of that form, comes twice, or is set by the launcher.
    """
    made: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise ConfigError(f"--env {pair}: write NAME=VALUE, with letters, digits and underscores in NAME.")
        if name in made:
            raise ConfigError(f"--env {name} is given twice. Keep one.")
        if name in (COORDINATOR, PROCESSES, PROCESS):
            raise ConfigError(f"--env {name}: the launcher sets it, for every process. Leave it out.")
        made[name] = value
    return made
