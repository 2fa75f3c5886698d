"""How far the training of a space has come: what is saved beside its arrays."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specialize.train.loop import finite_or_none
from specialize.train.totals import Totals


@dataclass
class Standing:
    """Steps, looks, and losses of every speaker in the order of the queue."""

    step: int = 0
    looked: int = -1
    """The step of the last look; -1 before the first."""
    best_step: int = 0
    since_best: int = 0
    """Looks since the best one."""
    base: list[float] = field(default_factory=list)
    """Mean dev loss per token of each speaker with the base alone, in the order of the queue."""
    start: list[float] = field(default_factory=list)
    """At the start."""
    best: list[float] = field(default_factory=list)
    """At the best look."""
    left_out: dict[int, str] = field(default_factory=dict)
    """{place: why it is not trained any more}."""
    totals: Totals = field(default_factory=Totals)

    def mean(self, losses: Sequence[float]) -> float:
        """The mean over the speakers that are not left out."""
        return float(np.mean([loss for place, loss in enumerate(losses) if place not in self.left_out]))

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        lists = {name: [finite_or_none(x) for x in getattr(self, name)] for name in ("base", "start", "best")}
        left_out = {str(place): reason for place, reason in self.left_out.items()}
        return vars(self) | lists | {"left_out": left_out, "totals": dataclasses.asdict(self.totals)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Standing":
        """What `to_json` wrote."""
        lists = {name: [math.nan if x is None else x for x in data[name]] for name in ("base", "start", "best")}
        left_out = {int(place): reason for place, reason in data["left_out"].items()}
        changed: dict[str, Any] = {**lists, "left_out": left_out, "totals": Totals(**data["totals"])}
        return cls(**(data | changed))
