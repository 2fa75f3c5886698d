"""What a run of several processes begins with: all are there, and have the same code, files and devices."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
from rich.console import Console

from specialize.errors import ConfigError
from specialize.processes import Peers
from specialize.train.experiment import to_json
from specialize.train.progress import Progress
from specialize.train.run import RunFolder, differences


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


def facts_of(run: RunFolder, experiment: Any, **more: Any) -> dict[str, Any]:
    """What must be the same in all processes of a run, for `check_alike`.

    Args:
        run: its folder.
        experiment: what runs.
        more: JSON data by name.
    """
    return {
        "experiment": to_json(experiment),
        "run folder": run.config["sitting"],
        **more,
        "packages": {name: version(name) for name in ("jax", "jaxlib", "orbax-checkpoint")},
        "devices": jax.local_device_count(),
    }


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
