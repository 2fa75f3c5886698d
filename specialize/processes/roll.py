"""The roll of a run's processes: where they meet, and where it is noticed that one of them has died or stands still.

Process 0 has a `Hub`, to which every process, also process 0, is connected by a `Member`. What they say are lines of
JSON. It carries what hosts have to agree on, a few bytes a look; arrays go by JAX. A connection that closes tells of a
death at once, and silence tells of a process or a machine that stands still.
"""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specialize.errors import ConfigError, PeerEnded
from specialize.processes.identity import TOKEN

SILENT = 30.0
"""Seconds after which a process that is not heard of counts as gone."""
_BEAT = 1.0
_LINE = 1 << 28
"""Most bytes of a message."""
_HELLO, _HELLO_SECONDS = 1 << 12, 10.0
"""Most bytes of the first message of a connection, and how long it may take."""
_PATIENT = 20
"""How many times as long as others those are waited for that may take long."""
_LEAVING = "leaving"
"""The last meeting of all, to which processes come as they leave."""


@dataclass
class _Seat:
    name: str
    writer: asyncio.StreamWriter
    heard: float
    left: bool = False
    code: int = 0
    """That it has left with."""


@dataclass
class _Meeting:
    opened: float
    patient: bool
    """Whether some of those that wait know that it may take long."""
    said: dict[int, Any] = field(default_factory=dict)


class Hub:
    """Where the processes of a run meet. Runs in a thread of its own until all have left.

    Args:
        count: how many there are.
        host: address to listen at; "" is all.
        port: 0 takes a free one.
        patience: seconds that the others wait for one.
        silent: seconds after which a process that is not heard of is gone.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, count: int, host: str = "", port: int = 0, *, patience: float = 600.0, silent: float = SILENT):
        self._count, self._patience, self._silent = count, patience, silent
        self._seats: dict[int, _Seat] = {}
        self._meetings: dict[int | str, _Meeting] = {}
        """That some have come to and not all, by number."""
        self._ended: dict[str, Any] | None = None
        self._began = time.monotonic()
        self._over = asyncio.Event()
        self._hearing: set[asyncio.Task[None]] = set()
        everywhere = host == "" and socket.has_dualstack_ipv6()
        kind: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True} if everywhere else {}
        try:
            self._socket = socket.create_server((host, port), backlog=max(count, 128), **kind)
        except OSError as error:
            raise ConfigError(
                f"Process 0 cannot listen at port {port}: {error.strerror}. Give another --processes.coordinator."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        """Where it listens."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="roll", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Waits until all have left."""
        self._thread.join(seconds)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._hear, sock=self._socket, limit=_LINE)
        watch = asyncio.create_task(self._watch())
        await self._over.wait()
        watch.cancel()
        server.close()
        if self._hearing:
            await asyncio.wait(self._hearing, timeout=_BEAT)  # they close when they have read that all is over

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One process, from when it comes to when it goes."""
        index = None
        task = asyncio.current_task()
        assert task is not None
        self._hearing.add(task)
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                line = await reader.readline()
            index = self._seat(json.loads(line), writer) if len(line) <= _HELLO else None
            if index is None:
                return
            while line := await reader.readline():
                self._take(index, json.loads(line))
        except (OSError, ValueError, TypeError, KeyError):  # a connection that broke, or is none of ours
            pass
        finally:
            if index is not None and not self._seats[index].left:
                self._end(index, "has died", None)
            writer.close()
            self._hearing.discard(task)
            if self._ended is not None and not self._hearing:
                self._over.set()

    def _seat(self, hello: Any, writer: asyncio.StreamWriter) -> int | None:
        """Takes a process in; None where it is none of this run."""
        index, count = hello["process"], hello["of"]
        if hello["token"] != os.environ.get(TOKEN, ""):
            return None
        if count != self._count or index in self._seats:
            why = f"says that it is process {index} of {count}"
            why += f", but there are {self._count}" if count != self._count else ", but there is one already"
            refusal = f"a process ({hello['name']}) {why}: give each its own --processes.index"
            _send(writer, json.dumps({"ended": refusal, "code": 1}).encode() + b"\n")
            return None
        if type(index) is not int or not 0 <= index < count:
            return None
        self._seats[index] = _Seat(hello["name"], writer, time.monotonic())
        if self._ended is not None:
            _send(writer, json.dumps(self._ended).encode() + b"\n")
        if len(self._seats) == self._count:
            self._tell({"all": [self._seats[i].name for i in range(self._count)]})
        return index

    def _take(self, index: int, message: Any) -> None:
        seat = self._seats[index]
        seat.heard = time.monotonic()
        if "meeting" in message:
            meeting = self._meetings.setdefault(message["meeting"], _Meeting(seat.heard, False))
            meeting.said[index] = message["says"]
            meeting.patient = meeting.patient or message["patient"]
            if len(meeting.said) == self._count:
                del self._meetings[message["meeting"]]
                self._tell({"meeting": message["meeting"], "said": [meeting.said[i] for i in range(self._count)]})
        elif "leaves" in message:
            seat.left, seat.code = True, message["code"]
            if message["leaves"] is not None:
                self._end(index, f"ended: {message['leaves']}", message["code"])
            # One of them may have to finish what it does alone.
            self._meetings.setdefault(_LEAVING, _Meeting(seat.heard, True)).said[index] = None
            if len(self._seats) == self._count and all(seat.left for seat in self._seats.values()):
                self._tell({"over": True})
                self._over.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            now = time.monotonic()
            self._tell({"beat": True})
            for index, seat in self._seats.items():
                if not seat.left and now - seat.heard > self._silent:
                    self._end(index, f"has not been heard of for {self._silent:.0f} s", None)
            for meeting in self._meetings.values():
                missing = [i for i in range(self._count) if i not in meeting.said]
                gone = [i for i in missing if i in self._seats and self._seats[i].left]
                if gone and now - meeting.opened > _BEAT:
                    self._end(gone[0], "has ended before the others", self._seats[gone[0]].code)
                elif (waited := now - meeting.opened) > self._patience * (_PATIENT if meeting.patient else 1):
                    self._end(missing[0], f"has not come to where others have waited for {waited:.0f} s", None)
            if len(self._seats) < self._count and now - self._began > self._patience:
                missing = next(i for i in range(self._count) if i not in self._seats)
                self._end(missing, f"has not begun within {self._patience:.0f} s", None)

    def _end(self, index: int, why: str, code: int | None) -> None:
        """Tells all that the run ends, and because of whom; the first reason stays."""
        if self._ended is None:
            name = f" ({self._seats[index].name})" if index in self._seats else ""
            self._ended = {"ended": f"process {index} of {self._count}{name} {why}", "process": index, "code": code}
            self._tell(self._ended, last=index)

    def _tell(self, message: dict[str, Any], last: int | None = None) -> None:
        """Sends to all; to `last` at the end, for it may go when it has heard."""
        line = json.dumps(message).encode() + b"\n"
        for index in sorted(self._seats, key=lambda i: i == last):
            _send(self._seats[index].writer, line)


def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    if not writer.is_closing():
        writer.write(line)


class Member:
    """A process at the hub.

    Args:
        index: which process.
        count: of how many.
        name: of it, for messages: host and process id.
        addresses: (host, port) where the hub may be; the first that answers is taken.
        ended: is called once, from another thread, with what `PeerEnded` says, when the run is over for all because of
            one.
        patience: seconds to wait for the hub, and then for the other processes.
        silent: seconds without a word after which the hub's process is gone.

    Raises:
        PeerEnded: the hub cannot be reached, or some process did not come.
    """

    def __init__(
        self,
        index: int,
        count: int,
        name: str,
        addresses: Sequence[tuple[str, int]],
        ended: Callable[[PeerEnded], None],
        *,
        patience: float = 600.0,
        silent: float = SILENT,
    ):
        self.index, self.count = index, count
        self.names: list[str] = []
        """Of all processes."""
        self._on_end, self._silent = ended, silent
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._results: dict[int, list[Any]] = {}
        self._meetings = 0
        self._over = False
        self._ended: PeerEnded | None = None
        self._socket = _connected(addresses, patience)
        self._socket.settimeout(silent)
        self._say({"process": index, "of": count, "name": name, "token": os.environ.get(TOKEN, "")})
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name="roll", daemon=True).start()
        self._wait(lambda: bool(self.names))

    def post(self, value: Any, *, patient: bool = False) -> int:
        """Says something to a meeting that all processes come to, without waiting for it.

        Args:
            value: JSON data.
            patient: others may come much later, and are not missed while they are heard of.

        Returns:
            The number of the meeting, for `said`. Every process posts in the same order.
        """
        number, self._meetings = self._meetings, self._meetings + 1
        self._say({"meeting": number, "says": value, "patient": patient})
        return number

    def said(self, meeting: int) -> list[Any]:
        """What each process has said to a meeting, in their order; waits for all. Can be asked once.

        Raises:
            PeerEnded: the run is over because of one.
        """
        self._wait(lambda: meeting in self._results)
        return self._results.pop(meeting)

    def leave(self, reason: str | None, code: int, seconds: float = 10.0) -> None:
        """Says that this process is done.

        Args:
            reason: why the run cannot go on, which ends all others with `code`; None where all end alike, and then
                all are waited for.
            code: exit code.
            seconds: how long to wait until the hub has heard a reason.

        Raises:
            PeerEnded: without a reason: another has not left in order, or waited for this one.
        """
        self._say({"leaves": reason, "code": code})
        if reason is None:
            self._wait(lambda: self._over)
        else:
            self.end_within(seconds)

    def end_within(self, seconds: float) -> PeerEnded | None:
        """Why the run is over, if that is known within some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended is not None, seconds)
            return self._ended

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: until() or self._ended is not None)
            if self._ended is not None and not until():
                raise self._ended

    def _say(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:  # which `_listen` sees too, and tells
            pass

    def _beat(self) -> None:
        while not self._over and self._ended is None:
            self._say({"beat": True})
            time.sleep(_BEAT)

    def _listen(self) -> None:
        try:
            with self._socket, self._socket.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
                    if self._over:
                        return
            why = "has died"
        except TimeoutError:
            why = f"has not been heard of for {self._silent:.0f} s"
        except (OSError, ValueError):
            why = "has died"
        name = f" ({self.names[0]})" if self.names else ""
        self._take({"ended": f"process 0 of {self.count}{name} {why}", "process": 0, "code": None})

    def _take(self, message: Any) -> None:
        told = None
        with self._changed:
            if "all" in message:
                self.names = message["all"]
            elif "meeting" in message:
                self._results[message["meeting"]] = message["said"]
            elif "over" in message:
                self._over = True
            elif "ended" in message and self._ended is None:
                self._ended = PeerEnded(message["ended"], message["code"])
                told = self._ended if message.get("process") != self.index else None
            self._changed.notify_all()
        if told is not None:
            self._on_end(told)


def _connected(addresses: Sequence[tuple[str, int]], patience: float) -> socket.socket:
    """A connection to the first address that answers, tried again until it does."""
    until = time.monotonic() + patience
    while True:
        failures = []
        for address in addresses:
            try:
                made = socket.create_connection(address, timeout=5)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return made
            except OSError as error:
                failures.append(f"{address[0]}:{address[1]} ({error.strerror or error})")
        if time.monotonic() > until:
            raise PeerEnded(f"process 0 cannot be reached at {', '.join(failures)} for {patience:.0f} s", None)
        time.sleep(0.2)
