"""Who writes Submodels to the store while the run goes on, and a base at the end.

One process does it in a thread. Of several, each has a process beside it that knows nothing of JAX's others: Orbax lets
the processes of a JAX job save only together, all of them to the same path, and they have their Submodels ready at
different times.
"""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from specialize.errors import StoreError
from specialize.processes import Peers
from specialize.submodel import StoredSubmodel, SubmodelStore


class WriterKilled(StoreError):
    """What a run cannot go on from: nothing more can be written."""


def store_writer(peers: Peers) -> Executor:
    """What runs `write_submodel`, and whatever else saves with Orbax for this process alone, one after another.

    Args:
        peers: the processes of the run.
    """
    if peers.count == 1:
        return ThreadPoolExecutor(1, thread_name_prefix="store")
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, initializer=_beside, initargs=(os.getpid(),))
    # A scheduler sends SIGTERM to all processes of a job. The one that trains saves, and then ends this one, which
    # inherits what is blocked while it is begun.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def write_submodel(folder: str, stored: StoredSubmodel) -> None:
    """Writes a Submodel into the store in a folder.

    A run that goes on after a kill writes some again, with the same bits.

    Raises:
        StoreError: it could not be written.
    """
    store = SubmodelStore(folder)
    store.save(stored, overwrite=stored.speaker in store)


def written(save: Future[Any]) -> None:
    """Waits for something that was given to a `store_writer`.

    Raises:
        WriterKilled: the process that writes was killed.
        StoreError: it could not be written.
    """
    try:
        save.result()
    except BrokenProcessPool as error:
        raise WriterKilled("The process that stores Submodels was killed, most often for memory.") from error


def _beside(parent: int) -> None:
    """Begins a process that writes for another, and ends with it."""
    jax.config.update("jax_platforms", "cpu")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
