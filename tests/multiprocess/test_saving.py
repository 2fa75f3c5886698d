"""States that several processes save: who cannot says so before the others begin, and never leaves them waiting."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specialize.errors import SaveBroken, StoreError
from specialize.processes import Together
from specialize.train.state import StateFolder, save_or_tell
from tests.multiprocess.test_roll import Ends, all_end, met

__all__ = ["all_end"]  # a fixture for all tests here


@pytest.fixture
def states(tmp_path, monkeypatch) -> Iterator[list[StateFolder]]:
    """Of two processes that share nothing but the roll; as JAX has one here, each has a folder of its own."""
    opens, one_at_a_time = StateFolder._open, threading.Lock()

    def opened(self: StateFolder) -> Any:
        checkpointer = opens(self)
        save = checkpointer.save_async

        def begin(*arguments: Any, **more: Any) -> Any:
            with one_at_a_time:  # Orbax cannot do more in a process
                begun = save(*arguments, **more)
                begun.result()
            return begun

        checkpointer.save_async = begin
        return checkpointer

    monkeypatch.setattr(StateFolder, "_open", opened)
    made = [StateFolder(tmp_path / str(member.index), Together(member)) for member in met(2, Ends())]
    yield made
    for of in made:
        of.close()


def saved(states: list[StateFolder]) -> list[Any]:
    """What comes of a save in each: None, or the error."""

    def save(of: StateFolder) -> Exception | None:
        try:
            of.save({"x": np.arange(4.0)}, {"at": 1})
            of.wait()
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(len(states)) as pool:
        return list(pool.map(save, states))


def test_a_folder_that_one_cannot_write_is_told_to_all_and_the_next_save_is_whole(states):
    assert saved(states) == [None, None]
    aside = states[1].folder.rename(states[1].folder.with_name("aside"))
    states[1].folder.write_text("a file is in the way")
    for error in saved(states):
        assert isinstance(error, StoreError)
        assert str(error).startswith("process 1: ")
        assert str(states[1].folder) in str(error)
    states[1].folder.unlink()
    aside.rename(states[1].folder)
    assert saved(states) == [None, None]
    assert [of.latest().number for of in states if of.latest()] == [2, 2]
    assert sorted(path.name for path in states[1].folder.iterdir()) == ["1", "2"]


def test_one_that_fails_where_the_others_have_begun_ends(states, monkeypatch, tmp_path):
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states[1]._checkpointer, "save_async", fails)
    first, second = saved(states)
    assert first is None
    assert isinstance(second, SaveBroken)
    assert "No space left on device" in str(second)

    def breaks() -> None:
        raise second

    told: list[str] = []
    with pytest.raises(SaveBroken):  # the run of that process does not go on to the next step
        save_or_tell(states[1], breaks, stopped=lambda: False, tell=told.append, run=Path(tmp_path))
    assert told == []
