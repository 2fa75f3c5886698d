"""What the processes of a run have to agree on, and how they meet for it. A run of one process agrees with itself."""

import contextlib
import os
import signal
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

    @property
    def on_host(self) -> int:
        """How many of them are on this machine, and share its memory."""
        ...

    def exchange(self, value: Any, *, patient: bool = False) -> list[Any]:
        """What each process gives here, in their order. JSON data; waits for all.

        Args:
            value: of this process.
            patient: some may come much later than others, and are not missed for long.

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
        """Says that this process is done; see `Member.leave`, which may raise."""
        ...


class Alone:
    """A run of one process."""

    index, count, first, on_host = 0, 1, True, 1

    def exchange(self, value: Any, *, patient: bool = False) -> list[Any]:
        del patient
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
        hub: of process 0, which goes last.
    """

    def __init__(self, member: Member, hub: Hub | None = None):
        self._member, self._hub = member, hub
        self.index, self.count = member.index, member.count
        self._asked: int | None = None

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def on_host(self) -> int:
        hosts = [host_of(name) for name in self._member.names]
        return hosts.count(hosts[self.index])

    def exchange(self, value: Any, *, patient: bool = False) -> list[Any]:
        return self._member.said(self._member.post(value, patient=patient))

    def any_of(self, wishes: Mapping[str, bool]) -> dict[str, bool]:
        before, self._asked = self._asked, self._member.post(dict(wishes))
        said = [] if before is None else self._member.said(before)
        return {name: any(of.get(name, False) for of in said) for name in wishes}

    def in_turn(self, make: Callable[[], Made]) -> Made:
        made = [make()] if self.first else []
        self.exchange(None, patient=True)
        if not self.first:
            made = [make()]
        self.exchange(None, patient=True)
        return made[0]

    def of_first(self, make: Callable[[], Any]) -> Any:
        return self.exchange(make() if self.first else None, patient=True)[0]

    def leave(self, reason: str | None, code: int) -> None:
        try:
            self._member.leave(reason, code)
        finally:
            if self._hub is not None:
                self._hub.close(2.0)  # that all others have heard it

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
    try:
        yield _join(config)
    except (PeerEnded, KeyboardInterrupt):
        raise
    except Preempted:
        _end_in_order(EXIT_PREEMPTED)
        raise
    except BaseException as error:
        ours = isinstance(error, SpecializeError)
        if isinstance(_here, Together) and not (ours and error.__cause__ is None):
            # JAX and Orbax tell of a connection that broke before it is known which process has died.
            ended = _here.ended(_GRACE)
            if ended is not None:
                raise ended from error
        _here.leave(str(error) if ours else f"{type(error).__name__}: {error}", 1)
        raise
    else:
        _end_in_order(0)


def _end_in_order(code: int) -> None:
    """Leaves, where all do, and JAX's service with them."""
    if _here.count > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to save
    _here.leave(None, code)
    if _here.count > 1:
        jax.distributed.shutdown()


def _join(config: ProcessConfig) -> Peers:
    global _here
    _here = ALONE
    identity = identify(config)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is asked after by the run (`stop_signal`)
    if identity is None:  # JAX finds the hosts of a TPU slice by itself
        jax.distributed.initialize(initialization_timeout=int(config.patience))
        count, index = jax.process_count(), jax.process_index()
        if count > 1:
            _here = _meet_by_jax(index, count, config.patience)
        return _here
    if identity.count == 1:
        return _here
    hub = None
    if identity.index == 0:
        local = identity.host in ("localhost", "127.0.0.1", "::1")
        hub = Hub(identity.count, "localhost" if local else "", identity.port, patience=config.patience)
    peers = _here = Together(_member(identity, [(identity.host, identity.port)], config.patience), hub)
    # JAX's own service is met at the next port, where that is free.
    port = peers.of_first(lambda: _free_port(identity.port + 1))
    host = f"[{identity.host}]" if ":" in identity.host else identity.host
    jax.distributed.initialize(
        f"{host}:{port}",
        identity.count,
        identity.index,
        # It would take one device of each process on SLURM, and ask for Kubernetes in a pod.
        cluster_detection_method="deactivate",
        initialization_timeout=int(config.patience),
    )
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
    return Together(_member(identity, [(host, int(port)) for host in hosts], patience), hub)


def _member(identity: Identity, addresses: list[tuple[str, int]], patience: float) -> Member:
    name = f"host {socket.gethostname()}, pid {os.getpid()}"
    return Member(identity.index, identity.count, name, addresses, _end_with, patience=patience)


def host_of(name: str) -> str:
    """The host in what a process is called."""
    return name.removeprefix("host ").rpartition(", pid ")[0]


def _end_with(ended: PeerEnded) -> None:
    """Says why the run is over, at once, and sees to it that this process ends, whatever it waits for."""
    ended.told = True

    def end() -> None:
        time.sleep(_GRACE)
        os._exit(ended.code)

    threading.Thread(target=end, name="end", daemon=True).start()
    with contextlib.suppress(OSError, ValueError):
        print(printable(f"specialize: {ended}"), file=sys.stderr, flush=True)  # may wait for who reads it


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
