"""What a run needs to go on after it was killed: the arrays on its devices, and JSON data beside them."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from specialize.errors import Preempted, SaveBroken, StoreError
from specialize.processes import ALONE, Peers

FORMAT = 1
"""Version of what is saved."""
_KEPT = 2


@dataclass(frozen=True)
class Saved:
    """One state that was saved whole."""

    number: int
    progress: dict[str, Any]
    """JSON data that was saved with it."""


class StateFolder:
    """Saves a run's state now and then, in the background, and keeps the last two.

    Orbax writes beside and renames, so a save that is killed, or for which there is no space, leaves the states before
    it as they were.

    Args:
        folder: of the states.
        peers: the processes of the run. All save together, into the same folder.
    """

    def __init__(self, folder: Path, peers: Peers = ALONE):
        self.folder = Path(folder).absolute()
        self._peers = peers
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._pending: Any = None
        self._checkpointer = self._open()
        self._next = 1 + max((c.step for c in self._checkpointer.checkpoints), default=0)

    def latest(self) -> Saved | None:
        """The last state that is whole; None before the first.

        Raises:
            StoreError: it is of a later version.
        """
        checkpoint = self._checkpointer.latest
        if checkpoint is None:
            return None
        data: Any = self._checkpointer.metadata(checkpoint).custom_metadata
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise StoreError(
                f"The state in '{self.folder}' is of another version of specialize. Go on with that version, or "
                "begin anew with --overwrite."
            )
        return Saved(checkpoint.step, data["progress"])

    def load(self, saved: Saved, like: Any) -> Any:
        """The arrays of a saved state, as the tree that `like` is, and laid out so.

        Raises:
            StoreError: it cannot be read.
        """
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _plain(like))
        try:
            tree: Any = self._checkpointer.load(saved.number, shapes)
        except Exception as error:  # Orbax raises many types.
            raise StoreError(
                f"State {saved.number} in '{self.folder}' cannot be read: {error}. Remove its folder to go on from the "
                "state before, or begin anew with --overwrite."
            ) from error
        return _typed(tree, like)

    def save(self, state: Any, progress: dict[str, Any]) -> None:
        """Begins to save; the arrays are copied before this returns, and the caller may donate them.

        Args:
            state: a tree of arrays; dicts and named tuples.
            progress: JSON data.

        Raises:
            StoreError: the save before this one failed in some process, or this one cannot begin. All processes raise
                it, and may try again.
            SaveBroken: this one of several processes has failed in what the others have begun, and is to end.
        """
        # Inside Orbax they wait for each other, so who cannot save says so before.
        several = self._peers.count > 1
        everyone = self._peers.exchange(self._unready(), patient=True)
        if failed := [(i, why) for i, (why, _) in enumerate(everyone) if why is not None]:
            if any(before for _, before in everyone):
                self._reopen()  # all do, or none
            index, why = failed[0]
            raise StoreError(f"process {index}: {why}" if several else why)
        number, self._next = self._next, self._next + 1
        progress = json.loads(
            json.dumps(progress, allow_nan=False)
        )  # it is written later, when the caller's has changed
        try:
            self._pending = self._checkpointer.save_async(
                number, self._copy(_plain(state)), custom_metadata={"format": FORMAT, "progress": progress}
            )
        except Exception as error:  # Orbax raises many types.
            if several:
                raise SaveBroken(self._not_saved(error)) from error
            self._reopen()
            raise StoreError(self._not_saved(error)) from error

    def _unready(self) -> tuple[str | None, bool]:
        """Why this process cannot save, and whether that is the failure of the save before."""
        try:
            self.wait()
        except StoreError as error:
            return str(error), True
        try:
            if self._peers.count > 1:
                self.folder.mkdir(exist_ok=True)
                probe = self.folder / f"writable.{self._peers.index}"
                probe.write_bytes(b"?")
                probe.unlink()
        except OSError as error:
            return self._not_saved(error), False
        return None, False

    def _not_saved(self, error: Exception) -> str:
        return f"The state of the run could not be saved in '{self.folder}': {error}"

    def wait(self) -> None:
        """Waits for the save that is under way.

        Raises:
            StoreError: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # Orbax raises many types.
            raise StoreError(self._not_saved(error)) from error

    def close(self) -> None:
        """Waits for the save that is under way, whatever comes of it, and gives up what is held."""
        with contextlib.suppress(StoreError):  # who needs this save has waited for it
            self.wait()
        with contextlib.suppress(Exception):  # Orbax tells the same failure again
            self._checkpointer.close()

    def _open(self) -> Any:
        newest: Any = ocp.training.preservation_policies.LatestN(_KEPT)
        return ocp.training.Checkpointer(
            str(self.folder),
            preservation_policy=newest,
            cleanup_tmp_directories=True,
        )

    def _reopen(self) -> None:
        """Begins anew after a save that failed: its checkpointer would raise the same error at every later one."""
        with contextlib.suppress(Exception):  # the failure that was just reported
            self._checkpointer.close()
        try:
            self._checkpointer = self._open()
        except Exception as error:  # Orbax raises many types.
            raise (SaveBroken if self._peers.count > 1 else StoreError)(self._not_saved(error)) from error


def save_or_tell(
    states: StateFolder,
    save: Callable[[], None],
    *,
    stopped: Callable[[], bool],
    tell: Callable[[str], None],
    run: Path,
) -> None:
    """Saves a run's state; what fails is told, and the run goes on.

    Args:
        states: where.
        save: begins the save.
        stopped: whether the run was asked to stop: then the save is waited for.
        tell: what shows a line.
        run: folder of the run.

    Raises:
        Preempted: the run was asked to stop.
    """
    failure: Exception | None = None
    try:
        save()
    except (StoreError, OSError) as error:
        failure = error
    stops = stopped()
    if stops and failure is None:
        try:
            states.wait()
        except StoreError as error:
            failure = error
    if failure is not None:
        tell(f"state not saved: {failure}. The run goes on; the state before stays.")
    if stops:
        how = "its state is saved" if failure is None else "its state could not be saved, but the one before it is kept"
        raise Preempted(f"The run '{run}' was asked to stop, and {how}. The same command goes on with it.")


def _plain(tree: Any) -> Any:
    """Named tuples as dicts, whose names the file shows."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def _typed(tree: Any, like: Any) -> Any:
    """What `_plain` made, with the types of `like`."""
    if hasattr(like, "_asdict"):
        return type(like)(**{name: _typed(tree[name], value) for name, value in like._asdict().items()})
    return {name: _typed(tree[name], value) for name, value in like.items()} if isinstance(like, dict) else tree
