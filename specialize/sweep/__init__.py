"""Sweeps: many settings of an experiment, those that can in one program, and the best of them as an experiment."""

from typing import TYPE_CHECKING

from specialize.lazy import lazy

if TYPE_CHECKING:
    from specialize.sweep.axes import parse_axes
    from specialize.sweep.config import Sweep
    from specialize.sweep.sweeping import Swept, run_sweep

_HOMES = {
    "specialize.sweep.axes": ("parse_axes",),
    "specialize.sweep.config": ("Sweep",),
    "specialize.sweep.sweeping": ("Swept", "run_sweep"),
}

__all__ = ["Sweep", "Swept", "parse_axes", "run_sweep"]


__getattr__ = lazy(__name__, _HOMES)
