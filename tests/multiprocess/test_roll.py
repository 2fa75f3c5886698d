"""Processes that meet: all hear what each says, and the end of one is told to all, by name and without a long wait."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from specialize.errors import EXIT_PEER, ConfigError, PeerEnded
from specialize.processes import Together, roll
from specialize.processes.roll import Hub, Member

QUICK: dict[str, Any] = {"patience": 20.0, "silent": 20.0}


class Ends:
    """What members are told of the end of the run."""

    def __init__(self):
        self.told: list[tuple[int, PeerEnded]] = []

    def of(self, index: int) -> Callable[[PeerEnded], None]:
        return lambda ended: self.told.append((index, ended))


met_here: list[Member] = []


def met(count: int, ends: Ends, **times: Any) -> list[Member]:
    """So many members of a hub of their own."""
    times = QUICK | times
    hub = Hub(count, "localhost", **times)

    def one(index: int) -> Member:
        return Member(index, count, f"host {index}", [("localhost", hub.port)], ends.of(index), **times)

    with ThreadPoolExecutor(count) as pool:
        met_here.extend(pool.map(one, range(count)))
    return met_here[-count:]


@pytest.fixture(autouse=True)
def all_end():
    """No test leaves threads or connections to the next."""
    before = set(threading.enumerate())
    yield
    for member in met_here:
        with contextlib.suppress(OSError):
            die(member)
    met_here.clear()
    until = time.monotonic() + 10
    while left := [t for t in threading.enumerate() if t.name == "roll" and t not in before]:
        assert time.monotonic() < until, f"{len(left)} threads of the roll go on"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def quick_beats(all_end, monkeypatch):
    """No test waits for a beat of a second."""
    monkeypatch.setattr(roll, "_BEAT", 0.05)


def die(member: Member) -> None:
    """As the system closes the connections of a process that was killed."""
    member._socket.shutdown(socket.SHUT_RDWR)


def test_each_hears_what_all_say_in_the_order_of_the_processes():
    members = met(4, Ends())
    peers = [Together(member) for member in members]
    with ThreadPoolExecutor(4) as pool:
        for turn in range(50):
            said = list(pool.map(lambda p, turn=turn: p.exchange([p.index, turn, "ü" * p.index]), peers))
            assert said == [[[i, turn, "ü" * i] for i in range(4)]] * 4
        assert list(pool.map(lambda p: p.of_first(lambda: p.index + 7), peers)) == [7] * 4
        list(pool.map(lambda p: p.leave(None, 0), peers))


def test_the_first_makes_before_the_others_and_none_goes_on_before_all_have():
    peers = [Together(member) for member in met(3, Ends())]
    order: list[str] = []

    def make(index: int) -> str:
        time.sleep(0.05)
        order.append(f"made {index}")
        return f"of {index}"

    def turn(peer: Together) -> str:
        made = peer.in_turn(lambda: make(peer.index))
        order.append("went on")
        return made

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(turn, peers)) == ["of 0", "of 1", "of 2"]
    assert order[0] == "made 0"
    assert set(order[1:3]) == {"made 1", "made 2"}


def test_a_wish_of_one_reaches_all_at_the_same_call():
    peers = [Together(member) for member in met(3, Ends())]
    wishes = [[False, False, False, False], [False, True, False, False], [False, False, False, False]]

    def asked(peer: Together) -> list[bool]:
        return [peer.any_of({"stop": wish})["stop"] for wish in wishes[peer.index]]

    with ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(asked, peers))
    assert heard == [[False, False, True, False]] * 3


@pytest.mark.parametrize("dead", [0, 2])
def test_a_death_is_told_to_all_others_by_name_at_once(dead, monkeypatch):
    ends = Ends()
    members = met(3, ends)
    waiting = [member for member in members if member.index != dead]
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(Together(member).exchange, 1) for member in waiting]
        began = time.monotonic()
        if dead == 0:
            # Process 0 has the hub, which goes with it, and says nothing more.
            monkeypatch.setattr(Hub, "_end", lambda *_: None)
            for member in waiting:
                die(member)
        else:
            die(members[dead])
        for future in futures:
            with pytest.raises(PeerEnded, match=rf"process {dead} of 3 \(host {dead}\) has died"):
                future.result(10)
    assert time.monotonic() - began < 5
    assert {index for index, _ in ends.told} >= {member.index for member in waiting}
    assert all(ended.code == EXIT_PEER for _, ended in ends.told)


def test_an_error_of_one_ends_all_with_its_code_and_its_words():
    ends = Ends()
    members = met(3, ends)
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(Together(members[0]).exchange, 1)
        members[1].leave("The base 'b' is not there.", 1)
        with pytest.raises(PeerEnded, match=r"process 1 of 3 \(host 1\) ended: The base 'b' is not there"):
            waiting.result(10)
    # Who waits for nothing is told a moment later.
    until = time.monotonic() + 10
    while len(ends.told) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert {(index, ended.code) for index, ended in ends.told} == {(0, 1), (2, 1)}


def test_one_that_stands_still_is_named_though_its_connection_stays(monkeypatch):
    members = met(3, Ends(), silent=1.5)
    monkeypatch.setattr(members[2], "_say", lambda _: None)
    with pytest.raises(PeerEnded, match=r"process 2 of 3 \(host 2\) has not been heard of for 2 s"):
        Together(members[0]).exchange(1)


def test_one_that_lives_but_does_not_come_is_named_when_patience_ends():
    members = met(3, Ends(), patience=0.5)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(Together(members[i]).exchange, 1) for i in (0, 2)]
        for future in futures:
            with pytest.raises(PeerEnded, match=r"process 1 of 3 \(host 1\) has not come to where others have waited"):
                future.result(20)


def test_where_the_first_may_take_long_it_is_not_missed():
    peers = [Together(member) for member in met(2, Ends(), patience=0.1)]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda p: p.of_first(lambda: time.sleep(0.5) or "late"), peers))
    assert made == ["late", "late"]


def test_one_that_ends_too_early_is_named():
    members = met(2, Ends())
    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(members[1].leave, None, 75)
        with pytest.raises(PeerEnded, match=r"process 1 of 2 .* has ended before the others") as raised:
            Together(members[0]).exchange(1)
        with pytest.raises(PeerEnded, match=r"process 1 of 2 .* has ended before the others"):
            left.result(15)
    assert raised.value.code == 75


def test_one_that_never_comes_is_named(monkeypatch):
    hub = Hub(3, "localhost", patience=1.5, silent=20)
    begin = Member._wait

    def kept(self, until):  # it is closed after the test, though it was never made
        met_here.append(self)
        begin(self, until)

    monkeypatch.setattr(Member, "_wait", kept)

    def come(index: int) -> None:
        Member(index, 3, f"host {index}", [("localhost", hub.port)], lambda _: None, **QUICK)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(come, index) for index in (0, 2)]:
            with pytest.raises(PeerEnded, match="process 1 of 3 has not begun within 2 s"):
                future.result(20)


def test_a_second_process_of_the_same_number_is_refused_and_the_others_go_on():
    members = met(2, Ends())
    hub_port = members[0]._socket.getpeername()[1]
    with pytest.raises(PeerEnded, match="says that it is process 1 of 2, but there is one already"):
        Member(1, 2, "host x", [("localhost", hub_port)], lambda _: None, **QUICK)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda m: Together(m).exchange(m.index), members)) == [[0, 1], [0, 1]]


def test_what_is_no_process_does_no_harm():
    members = met(2, Ends())
    hub_port = members[0]._socket.getpeername()[1]
    stranger = b'{"process": %s, "of": 2, "name": "x", "token": ""}\n{"leaves": "x", "code": 0}\n'
    of_nobody = [stranger % index for index in (b"7", b"-1", b"true", b'"1"', b"0.5", b"null")]
    unknown = b'{"process": 1, "of": 2, "name": "x", "token": "guessed"}\n{"leaves": "x", "code": 0}\n'
    broken = [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b'{"process": 1}\n', b"[]\n", b"", b"x" * 10_000 + b"\n"]
    for nonsense in (*broken, *of_nobody, unknown):
        with socket.create_connection(("localhost", hub_port)) as stranger:
            stranger.sendall(nonsense)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda m: Together(m).exchange(m.index), members)) == [[0, 1], [0, 1]]


def test_a_hub_that_is_nowhere_is_said_to_be():
    with contextlib.closing(socket.create_server(("localhost", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(PeerEnded, match=f"process 0 cannot be reached at localhost:{port}"):
        Member(1, 2, "host 1", [("localhost", port)], lambda _: None, patience=0.1)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen at port {port}.*--processes\.coordinator"):
            Hub(2, port=port)


def test_after_orderly_ends_nothing_goes_on():
    members = met(2, Ends())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda m: m.leave(None, 0), members))
    until = time.monotonic() + 10
    while any(thread.name == "roll" and thread.is_alive() for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_one_that_leaves_with_0_before_the_others_is_no_success():
    members = met(2, Ends())
    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(members[1].leave, None, 0)
        with pytest.raises(PeerEnded, match="has ended before the others") as raised:
            Together(members[0]).exchange(1)
        with pytest.raises(PeerEnded, match="has ended before the others"):
            left.result(15)
    assert raised.value.code == EXIT_PEER


def test_those_that_have_left_wait_for_one_that_still_works():
    members = met(3, Ends(), silent=0.5)
    order: list[str] = []

    def leave(index: int, after: float) -> None:
        time.sleep(after)
        order.append(f"{index} leaves")
        members[index].leave(None, 0)
        order.append(f"{index} is done")

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(leave, index, after) for index, after in ((0, 1.0), (1, 0.0), (2, 0.0))]:
            future.result(20)
    assert order[2] == "0 leaves"


def test_one_that_does_not_come_to_the_end_is_named_when_patience_ends():
    members = met(3, Ends(), patience=0.05)
    with ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as last:
        for member in members:
            last.callback(die, member)  # so that none waits for ever
        for future in [pool.submit(members[index].leave, None, 0) for index in (0, 2)]:
            with pytest.raises(PeerEnded, match=r"process 1 of 3 \(host 1\) has not come to where others have waited"):
                future.result(20)


def test_one_that_has_left_and_dies_is_not_missed_unless_others_need_it():
    members = met(3, Ends())
    with ThreadPoolExecutor(3) as pool:
        early = pool.submit(members[2].leave, None, 0)
        time.sleep(0.2)
        die(members[2])
        with pytest.raises(PeerEnded, match="process 0 of 3"):  # it has lost the hub
            early.result(20)
        for future in [pool.submit(members[index].leave, None, 0) for index in (0, 1)]:
            future.result(20)


def test_processes_of_one_machine_are_counted():
    hub = Hub(3, "localhost", **QUICK)
    names = ["host a, pid 1", "host b, pid 1", "host a, pid 2"]

    def come(index: int) -> Member:
        return Member(index, 3, names[index], [("localhost", hub.port)], lambda _: None, **QUICK)

    with ThreadPoolExecutor(3) as pool:
        members = list(pool.map(come, range(3)))
    met_here.extend(members)
    assert [Together(member).on_host for member in members] == [2, 1, 2]
