"""States that several processes save: who cannot says so before the others begin, and never leaves them waiting."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specialize.errors import Preempted, SaveBroken, StoreError
from specialize.processes import Together
from specialize.train.state import StateFolder, save_or_tell
from specialize.train.together import SaveClock, told_by_first
from specialize.train.writer import WriterKilled, store_writer, written
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


def by_all(of: Sequence[Any], ask: Callable[[Any], Any]) -> list[Any]:
    """What each of several processes says, asked at the same time."""
    with ThreadPoolExecutor(len(of)) as pool:
        return list(pool.map(ask, of))


def test_all_save_when_it_is_time_for_the_first_and_stop_when_any_was_asked():
    peers, asked = [Together(member) for member in met(2, Ends())], threading.Event()
    never = [SaveClock(of, asked.is_set if of.index == 1 else lambda: False, 1000.0) for of in peers]
    always = [SaveClock(of, lambda: False, 0.0 if of.first else 1000.0) for of in peers]
    assert [by_all(always, SaveClock.saves)[0] for _ in range(3)] == [False, True, True]  # the answer comes one later
    assert by_all(always, SaveClock.stops) == [False, False]
    for clocks, due in ((never, False), (always, True)):
        assert by_all(clocks, SaveClock.saves) == [due, due]
    asked.set()
    said = [by_all(never, SaveClock.stops) for _ in range(3)]
    assert said[-1] == [True, True]
    assert all(one == two for one, two in said)


def test_a_save_that_is_due_is_not_lost_to_a_question_between():
    peers = [Together(member) for member in met(2, Ends())]
    clocks = [SaveClock(of, lambda: False, 0.0) for of in peers]
    assert by_all(clocks, SaveClock.saves) == [False, False]
    clocks[0]._seconds = 1000.0
    assert by_all(clocks, SaveClock.stops) == [False, False]  # hears what was asked before
    assert by_all(clocks, SaveClock.saves) == [True, True]
    assert by_all(clocks, SaveClock.saves) == [False, False]


@pytest.mark.parametrize("error", [StoreError("no space"), OSError(28, "no space")])
def test_what_the_first_cannot_make_is_told_to_all(error):
    peers = [Together(member) for member in met(2, Ends())]

    def fails() -> dict[str, Any]:
        raise error

    def told(of: Together) -> str:
        with pytest.raises(StoreError) as raised:
            told_by_first(of, fails)
        return str(raised.value)

    assert all("no space" in reason for reason in by_all(peers, told))
    assert by_all(peers, lambda of: told_by_first(of, lambda: {"size": 7 + of.index})) == [{"size": 7}] * 2


def test_a_state_is_not_said_to_be_saved_before_it_is(states, tmp_path, monkeypatch):
    """Asked to stop between two questions: what is told follows one answer."""
    answers, said = iter([False, True]), []

    def fails() -> None:
        raise StoreError("the disk is full")

    tell = {"tell": said.append, "run": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr(states[0], "wait", fails)
        save_or_tell(states[0], lambda: None, stopped=lambda: next(answers), **tell)
        assert said == []
        with pytest.raises(Preempted, match="could not be saved"):
            save_or_tell(states[0], lambda: None, stopped=lambda: next(answers), **tell)
    assert "the disk is full" in said[0]


def test_a_writer_that_was_killed_is_told_as_that():
    with store_writer(Together(met(2, Ends())[0])) as pool:
        written(pool.submit(os.getpid))
        with pytest.raises(WriterKilled, match="most often for memory"):
            written(pool.submit(os._exit, 9))
