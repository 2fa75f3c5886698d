"""What the processes of a run have to agree on, and how they meet for it. A run of one process agrees with itself."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from specialize.errors import EXIT_PREEMPTED, PeerEnded, Preempted, SpecializeError
from specialize.printable import printable
from specialize.processes.identity import Identity, ProcessConfig, identify
from specialize.processes.roll import Hub, Member

Made = TypeVar("Made")
_GRACE = 5.0
"""Seconds that a process has to end by itself when another has. It may wait for that one inside JAX."""


@runtime_checkable
class Peers(Protocol):
    """The processes of a run, of which this is one. All make the same calls in the same order."""

    index: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what has one writer."""
        ...

    def exchange(self, value: Any) -> list[Any]:
        """What each process gives here, in their order. JSON data; waits for all.

        Raises:
            PeerEnded: the run is over because of one of the others.
        """
        ...

    def any_of(self, wishes: Mapping[str, bool]) -> dict[str, bool]:
        """Which of some wishes any process has had. It costs no waiting: of several processes it is what they wished
        the last time that they were asked, and all are told the same."""
        ...

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """What `make` gives here, after process 0 has made it, and before any of them goes on."""
        ...

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives to process 0, JSON data; the others do not call it."""
        ...

    def leave(self, reason: str | None, code: int) -> None:
        """Says that this process is done; see `Member.leave`."""
        ...


class Alone:
    """A run of one process."""

    index, count, first = 0, 1, True

    def exchange(self, value: Any) -> list[Any]:
        return [value]

    def any_of(self, wishes: Mapping[str, bool]) -> dict[str, bool]:
        return dict(wishes)

    def in_turn(self, make: Callable[[], Made]) -> Made:
        return make()

    def of_first(self, make: Callable[[], Any]) -> Any:
        return make()

    def leave(self, reason: str | None, code: int) -> None:
        del reason, code


ALONE = Alone()


class Together:
    """A process of several, which meet at a hub.

    Args:
        member: at the hub.
    """

    def __init__(self, member: Member):
        self._member = member
        self.index, self.count = member.index, member.count
        self._asked: int | None = None

    @property
    def first(self) -> bool:
        return self.index == 0

    def exchange(self, value: Any) -> list[Any]:
        return self._member.said(self._member.post(value))

    def any_of(self, wishes: Mapping[str, bool]) -> dict[str, bool]:
        before, self._asked = self._asked, self._member.post(dict(wishes))
        said = [] if before is None else self._member.said(before)
        return {name: any(of.get(name, False) for of in said) for name in wishes}

    def in_turn(self, make: Callable[[], Made]) -> Made:
        made = [make()] if self.first else []
        self._meet(None)
        if not self.first:
            made = [make()]
        self._meet(None)
        return made[0]

    def of_first(self, make: Callable[[], Any]) -> Any:
        return self._meet(make() if self.first else None)[0]

    def _meet(self, value: Any) -> list[Any]:
        """As `exchange`, where others may take long for what they do before."""
        return self._member.said(self._member.post(value, patient=True))

    def leave(self, reason: str | None, code: int) -> None:
        self._member.leave(reason, code)

    def ended(self, seconds: float) -> PeerEnded | None:
        """Why the run is over because of another process, if that is known within some seconds."""
        return self._member.end_within(seconds)


_here: Peers = ALONE


def here() -> Peers:
    """The processes that this one has joined; itself alone, if none."""
    return _here


@contextlib.contextmanager
def joined(config: ProcessConfig) -> Iterator[Peers]:
    """The processes of the run, and JAX set up with them, before any use of its devices. All end together.

    Args:
        config: of this process.

    Raises:
        ConfigError: what is said of the processes contradicts itself.
        PeerEnded: some did not come, or one has died, stands still, or ended with an error.
    """
    global _here
    peers = _here = _join(config)
    try:
        yield peers
    except (PeerEnded, KeyboardInterrupt):
        raise
    except Preempted:
        peers.leave(None, EXIT_PREEMPTED)
        raise
    except BaseException as error:
        if not isinstance(error, SpecializeError) and isinstance(peers, Together):
            # JAX tells of a connection that broke before it is known which process has died.
            ended = peers.ended(_GRACE)
            if ended is not None:
                raise ended from error
        peers.leave(str(error) if isinstance(error, SpecializeError) else f"{type(error).__name__}: {error}", 1)
        raise
    else:
        peers.leave(None, 0)


def _join(config: ProcessConfig) -> Peers:
    identity = identify(config)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is asked after by the run (`stop_signal`)
    if identity is None:  # JAX finds the hosts of a TPU slice by itself
        jax.distributed.initialize()
        count, index = jax.process_count(), jax.process_index()
        return ALONE if count == 1 else _meet_by_jax(index, count, config.patience)
    if identity.count == 1:
        return ALONE
    if identity.index == 0:
        Hub(identity.count, port=identity.port, patience=config.patience)
    peers = Together(_member(identity, [(identity.host, identity.port)], config.patience))
    # JAX's own service is met at the next port, where that is free.
    port = peers.of_first(lambda: _free_port(identity.port + 1))
    jax.distributed.initialize(f"{identity.host}:{port}", identity.count, identity.index)
    jax.devices()  # all of them look for their devices together, before one goes on alone
    return peers


def _meet_by_jax(index: int, count: int, patience: float) -> Peers:
    """The peers, where only JAX knows how to reach the others: process 0 tells its addresses through it."""
    hub = Hub(count, patience=patience) if index == 0 else None
    told = np.zeros(256, np.uint8)
    if hub is not None:
        text = f"{_own_address()} {socket.getfqdn()} {hub.port}".encode()[:256]
        told[: len(text)] = np.frombuffer(text, np.uint8)
    *hosts, port = bytes(np.asarray(multihost_utils.broadcast_one_to_all(told))).rstrip(b"\0").decode().split(" ")
    identity = Identity(count, index, hosts[0], int(port))
    return Together(_member(identity, [(host, int(port)) for host in hosts], patience))


def _member(identity: Identity, addresses: list[tuple[str, int]], patience: float) -> Member:
    name = f"host {socket.gethostname()}, pid {os.getpid()}"
    return Member(identity.index, identity.count, name, addresses, _end_with, patience=patience)


def _end_with(ended: PeerEnded) -> None:
    """Says why the run is over, at once, and sees to it that this process ends, whatever it waits for."""
    ended.told = True
    with contextlib.suppress(OSError, ValueError):
        print(printable(f"specialize: {ended}"), file=sys.stderr, flush=True)

    def end() -> None:
        time.sleep(_GRACE)
        os._exit(ended.code)

    threading.Thread(target=end, name="end", daemon=True).start()


def _own_address() -> str:
    """The address by which other hosts reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of the block for documentation: nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _free_port(wanted: int) -> int:
    """A port that nobody listens at: the one that is wanted, if it is so."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server(("", port)) as server:
            return server.getsockname()[1]
    return wanted
