"""Several processes that train one run: which this one is, how they meet, and how the end of one is told to all."""

from typing import TYPE_CHECKING

from specialize.lazy import lazy

if TYPE_CHECKING:
    from specialize.processes.identity import Identity, ProcessConfig, identify
    from specialize.processes.peers import ALONE, Alone, Peers, Together, here, joined

# Launchers ask for what is in `identity`, on machines that may have no JAX to wait for.
__getattr__ = lazy(
    __name__,
    {
        "specialize.processes.identity": ("Identity", "ProcessConfig", "identify"),
        "specialize.processes.peers": ("ALONE", "Alone", "Peers", "Together", "here", "joined"),
    },
)

__all__ = ["ALONE", "Alone", "Identity", "Peers", "ProcessConfig", "Together", "here", "identify", "joined"]
