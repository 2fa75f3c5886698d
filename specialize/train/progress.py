"""How a cohort run goes, shown while it goes: a live table on a terminal, plain lines anywhere else."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from specialize.printable import printable

DETAILED_SLOTS = 12
"""Up to so many slots have a line each; more are shown as small cells."""
CELLS = 128
"""At most so many cells are shown."""
REDRAWS = 4
"""Redraws a second, at most; a thread of its own makes them."""

_BARS = "▁▂▃▄▅▆▇█"


@dataclass
class _Slot:
    speaker: str | None = None
    step: int = 0
    max_steps: int = 0
    train_loss: float | None = None
    dev_loss: float | None = None
    best: float | None = None
    looks: deque[float] = field(default_factory=lambda: deque(maxlen=12))
    total: int = 0
    """Steps of all jobs that this slot has had."""


class Progress:
    """Shows a cohort run. Every method but `close` only notes what it is told, or prints one line.

    Args:
        console: where to; None is stderr.
        clock: seconds, from any start; monotonic.
        every: seconds between two plain lines, where the console is not a terminal.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic, every: float = 10.0
    ):
        self.console = console or Console(stderr=True)
        self._clock, self._every = clock, every
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._slots: list[_Slot] = []
        self._jobs = self._before = self._finished = self._failed = self._finished_steps = 0
        self._title = ""
        self._began = self._last_line = clock()
        self._closed = True

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, jobs: int, slots: int, title: str, ended: int = 0) -> None:
        """Begins to show a run of so many jobs in so many slots; `ended` did so before. Its time counts from here."""
        self.close()
        with self._lock:
            self._jobs, self._before, self._title = jobs, ended, printable(title)
            self._finished = self._failed = self._finished_steps = 0
            self._slots = [_Slot() for _ in range(slots)]
            self._began = self._last_line = self._clock()
            self._closed = False
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=REDRAWS)
            self._live.start()
        else:
            self._print(f"{self._title}: {jobs} jobs in {slots} slots")

    def slot(
        self,
        index: int,
        speaker: str | None,
        step: int,
        max_steps: int,
        train_loss: float | None,
        dev_loss: float | None,
        best: float | None,
    ) -> None:
        """Notes how far a slot is: its speaker (None where it is free), steps, losses, and the best dev loss so far."""
        name = None if speaker is None else printable(speaker)
        with self._lock:
            slot = self._slots[index]
            same = name is not None and name == slot.speaker and step >= slot.step
            slot.total += step - slot.step if same else step
            if not same:
                slot.looks.clear()
            slot.speaker = name
            slot.step, slot.max_steps = step, max_steps
            slot.train_loss, slot.dev_loss, slot.best = train_loss, dev_loss, best
            if dev_loss is not None and math.isfinite(dev_loss):
                slot.looks.append(dev_loss)
        if self._live is None and not self._closed and self._clock() - self._last_line >= self._every:
            self._print(self.line())

    def done(self, speaker: str, summary: str, failed: bool = False) -> None:
        """Counts a job that ended. Its slot is noted as free, or as the next job's, by `slot`."""
        with self._lock:
            self._finished += 1
            self._failed += failed
            name = printable(speaker)
            self._finished_steps += next((slot.step for slot in self._slots if slot.speaker == name), 0)
        self.note(f"{'failed' if failed else 'done'} {self._before + self._finished}/{self._jobs} {speaker}: {summary}")

    def note(self, text: str) -> None:
        """Prints a line, above the table where there is one."""
        self._print(printable(text))

    def close(self) -> None:
        """Stops showing, and prints what was done; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._live is not None:
            self._live.stop()
            self._live = None
        seconds = self._clock() - self._began
        self._print(
            f"{self._title}: {self._before + self._finished} of {self._jobs} jobs ended, {self._failed} failed, "
            f"in {_duration(seconds)}"
        )

    def seconds_left(self) -> float | None:
        """Estimated seconds until the last job ends; None before the first step.

        Slots go step by step together, so a step's time is the time so far over the steps of the slot that made most.
        A job is expected to make as many steps as those that ended did on average, or all of its own before one
        has ended. What is left is the longest running job, or the mean work of a slot if that is more.
        """
        with self._lock:
            made = max((slot.total for slot in self._slots), default=0)
            if made == 0:
                return None
            running = [slot for slot in self._slots if slot.speaker is not None]
            if self._finished:
                expected = self._finished_steps / self._finished
            else:
                expected = max((slot.max_steps for slot in running), default=0)
            left = [max(min(expected, slot.max_steps) - slot.step, 0.0) for slot in running]
            work = (sum(left) + self._queued() * expected) / len(self._slots)
            return (self._clock() - self._began) / made * max([work, *left])

    def submodels_per_hour(self) -> float | None:
        """Jobs that ended without failing, an hour of the time since `start`; None before the first."""
        with self._lock:
            seconds = self._clock() - self._began
            good = self._finished - self._failed
            return good / seconds * 3600 if good and seconds > 0 else None

    def line(self) -> str:
        """The state of the run in one line."""
        with self._lock:
            done = self._before + self._finished
            counts = f"{done}/{self._jobs} done, {self._running()} running, {self._queued()} queued"
            if self._failed:
                counts += f", {self._failed} failed"
            parts = [counts, f"{sum(slot.total for slot in self._slots)} slot steps"]
            running = [slot for slot in self._slots if slot.speaker is not None]
            for name, losses in (
                ("train loss", [slot.train_loss for slot in running]),
                ("dev loss", [slot.dev_loss for slot in running]),
            ):
                known = [loss for loss in losses if loss is not None]
                if known:
                    parts.append(f"{name} {sum(known) / len(known):.3f}")
            rate, left = self.submodels_per_hour(), self.seconds_left()
            if rate is not None:
                parts.append(f"{rate:.0f} Submodels an hour")
            parts.append(f"{_duration(self._clock() - self._began)} gone")
            parts.append("time left not known yet" if left is None else f"about {_duration(left)} left")
            return "; ".join(parts)

    def render(self) -> RenderableType:
        """What a terminal shows now."""
        with self._lock:
            bar = ProgressBar(total=max(self._jobs, 1), completed=self._before + self._finished, width=40)
            head = Table.grid(padding=(0, 1))
            head.add_row(Text(self._title, style="bold"), bar)
            body = self._lines() if len(self._slots) <= DETAILED_SLOTS else self._cells()
            return Group(head, Text(self.line()), body)

    def _lines(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for name in ("slot", "speaker", "step", "train loss", "dev loss", "best", "dev loss over time"):
            table.add_column(name, justify="left" if name in ("speaker", "dev loss over time") else "right")
        for index, slot in enumerate(self._slots):
            if slot.speaker is None:
                table.add_row(str(index), Text("free", style="dim"))
                continue
            steps = f"{slot.step}/{slot.max_steps}"
            losses = [_number(loss) for loss in (slot.train_loss, slot.dev_loss, slot.best)]
            table.add_row(str(index), Text(_short(slot.speaker, 24)), steps, *losses, self._sparkline(slot.looks))
        return table

    def _cells(self) -> RenderableType:
        cells = []
        for slot in self._slots[:CELLS]:
            if slot.speaker is None:
                cells.append(Text("free", style="dim"))
            else:
                cells.append(Text(f"{_short(slot.speaker, 10)} {slot.step}/{slot.max_steps} {_number(slot.dev_loss)}"))
        columns = Columns(cells, padding=(0, 2), equal=True)
        more = len(self._slots) - CELLS
        return Group(columns, Text(f"and {more} more slots", style="dim")) if more > 0 else columns

    def _sparkline(self, values: deque[float]) -> str:
        if not values or not self.console.encoding.startswith("utf"):
            return ""
        low, high = min(values), max(values)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((value - low) * scale)] for value in values)

    def _running(self) -> int:
        return sum(slot.speaker is not None for slot in self._slots)

    def _queued(self) -> int:
        return max(self._jobs - self._before - self._finished - self._running(), 0)

    def _print(self, text: str) -> None:
        self._last_line = self._clock()
        self.console.print(Text(text), soft_wrap=True)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _number(value: float | None) -> str:
    return "-" if value is None or value == math.inf else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
