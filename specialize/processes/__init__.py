"""Several processes that train one run: which this one is, how they meet, and how the end of one is told to all."""

from specialize.processes.identity import Identity, ProcessConfig, identify
from specialize.processes.peers import ALONE, Alone, Peers, Together, here, joined

__all__ = ["ALONE", "Alone", "Identity", "Peers", "ProcessConfig", "Together", "here", "identify", "joined"]
