"""What the processes of a run do together: they begin alike, meet before they wait for each other inside a collective,
and save at the same steps."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import jax
from rich.console import Console

from specialize.corpus import Faults
from specialize.errors import ConfigError, StoreError
from specialize.processes import Peers
from specialize.train.experiment import to_json
from specialize.train.progress import Progress
from specialize.train.run import RunFolder, differences, stop_signal
from specialize.train.step import Cohort

Run = TypeVar("Run", bound=RunFolder)


def check_count(peers: Peers) -> None:
    """Sees to it that JAX has the same processes.

    Raises:
        ConfigError: it has not.
    """
    if jax.process_count() != peers.count:
        raise ConfigError(
            f"JAX has {jax.process_count()} processes here, but this run is of {peers.count}. Start it with "
            "`specialize launch`, or with SPECIALIZE_PROCESSES=auto in the environment, on all of them."
        )


def begin_together(
    kind: type[Run],
    experiment: Any,
    peers: Peers,
    *,
    overwrite: bool,
    alike: Mapping[str, Any],
    **identity: str | None,
) -> Run:
    """The folder of a run, which process 0 opens or makes and all are to see.

    Args:
        kind: of run.
        experiment: what is to run.
        peers: the processes.
        overwrite, identity: as of `RunFolder.begin`; `identity` has the base at least.
        alike: what else must be the same in all processes, beside their code and files: JSON data by name.

    Raises:
        ConfigError: see `RunFolder.begin` and `check_alike`.
    """

    def begin() -> Run:
        if not peers.first:
            return kind(experiment.folder)
        return kind.begin(experiment, overwrite=overwrite, **identity)

    run = peers.in_turn(begin)
    facts = {
        "experiment": to_json(experiment),
        "run folder": run.config["sitting"],
        "base": identity["base"],
        **alike,
        "packages": {name: version(name) for name in ("jax", "jaxlib", "orbax-checkpoint")},
        "devices": jax.local_device_count(),
    }
    check_alike(peers, facts)
    return run


@contextlib.contextmanager
def taken(run: RunFolder, shown: Progress, peers: Peers) -> Iterator[Callable[[], bool]]:
    """While a run goes on: process 0 holds its folder, it is shown, and SIGTERM is a question (`stop_signal`)."""
    with run.held() if peers.first else contextlib.nullcontext(), shown, stop_signal() as stopped:
        yield stopped


def check_alike(peers: Peers, facts: Mapping[str, Any]) -> None:
    """Sees to it that all processes are to do the same.

    Args:
        peers: the processes.
        facts: what each has: JSON data by name.

    Raises:
        ConfigError: one has another than process 0.
    """
    everyone = peers.exchange(dict(facts), patient=True)
    for index, of_one in enumerate(everyone):
        for name, theirs, own in differences(everyone[0], of_one):
            raise ConfigError(
                f"{name} is {own!r} for process {index}, but {theirs!r} for process 0. All processes must have the "
                "same code and see the same files, under the same paths."
            )


def progress_of(peers: Peers) -> Progress:
    """Shows a run on stderr, in the process that tells of it."""
    return Progress(None if peers.first else Console(quiet=True, force_terminal=False))


def has_ended(run: RunFolder, shown: Progress, peers: Peers) -> bool:
    """Whether a run has ended, for process 0 and so for all; if so, that is said, and what a kill had left is removed.

    Args:
        run: its folder.
        shown: where to say it; opened and closed here.
        peers: the processes.
    """
    if not peers.of_first(lambda: run.ended):
        return False
    if peers.first:
        with shown:
            run.leave_ended(shown.note)
    return True


class Collective:
    """Calls compiled functions in which the processes wait for each other.

    It does so once all have compiled them and made what they are called with: one that compiles or reads for long would
    else keep the others waiting inside, where they may give up and nobody is named.

    Args:
        peers: the processes.
    """

    def __init__(self, peers: Peers):
        self._peers = peers
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, function: Any, *arguments: Any) -> Any:
        """What a function of `jax.jit` gives."""
        if self._peers.count == 1:
            return function(*arguments)
        leaves, tree = jax.tree.flatten(arguments)
        key = (function, tree, *((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves))
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments).compile()
        self._peers.exchange(None)
        return self._compiled[key](*arguments)


def fetch_together(tree: Any, cohort: Cohort, peers: Peers) -> Any:
    """Brings arrays to the hosts of all processes, once all have computed theirs; see `Collective`."""
    if peers.count > 1:
        jax.block_until_ready(tree)
        peers.exchange(None)
    return cohort.fetch(tree)


def faults_of_all(faults: Faults, peers: Peers) -> list[str]:
    """Why utterances could not be read since this was asked, by any process; `faults` knows all of them from now on."""
    told = []
    for news in peers.exchange(faults.news()):
        reasons = {int(index): reason for index, reason in news.items()}  # JSON has no numbers for keys
        faults.put(reasons)
        told += reasons.values()
    return told


class SaveClock:
    """When a run saves its state: at the same steps in all processes.

    Args:
        peers: the processes.
        asked: whether this one was asked to stop.
        seconds: between two saves, by the clock of process 0.
    """

    def __init__(self, peers: Peers, asked: Callable[[], bool], seconds: float):
        self._peers, self._asked, self._seconds = peers, asked, seconds
        self._last, self._due, self._stop = time.monotonic(), False, False

    def saves(self) -> bool:
        """Whether it is time, or the run is to stop. Asked after every dispatch."""
        due = self._peers.first and time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()  # asked for; of several processes it comes at the next question
        self._ask(due)
        due, self._due = self._due, False
        return self._stop or due

    def stops(self) -> bool:
        """Whether the run is to stop: any process was asked to, until now or, of several, until the last question."""
        self._ask(False)
        return self._stop

    def stops_now(self) -> bool:
        """As `stops`, also of several processes until now: all wait for the answer."""
        self._stop = self._stop or any(self._peers.exchange(self._asked()))
        return self._stop

    def saved(self) -> None:
        """A save has begun."""
        self._last = time.monotonic()

    def _ask(self, due: bool) -> None:
        agreed = self._peers.any_of({"stop": self._asked(), "due": due})
        self._due, self._stop = self._due or agreed["due"], self._stop or agreed["stop"]


def told_by_first(peers: Peers, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What process 0 makes, JSON data, in all processes.

    Raises:
        StoreError: in all processes, where it fails to with that or with an OSError.
    """

    def told() -> tuple[dict[str, Any], str | None]:
        try:
            return make(), None
        except (StoreError, OSError) as error:
            return {}, str(error)

    made, failure = peers.of_first(told)
    if failure is not None:
        raise StoreError(failure)
    return made
