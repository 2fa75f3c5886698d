"""Small corpora live on the devices: their audio is put there once, and a batch brings only where to find its own."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from specialize.base import Batch
from specialize.corpus import Faults, Recordings, Size, Utterance, audio_or_nan
from specialize.errors import ConfigError
from specialize.submodel.bank import SPEAKER
from specialize.train.step import Cohort

_SHARE = 16
"""`auto` gives audio at most one part in so many of a device's memory."""
_MOST = 2**31 - 1
"""Positions are int32."""


class ResidentAudio:
    """The audio of utterances, one after another in an array float32 [N] that every device has a copy of.

    Args:
        corpus: where audio is read from, in several threads.
        utterances: whose audio; one that is named twice is there once.
        longest: samples that a batch is padded to at most. So many follow the last utterance, for what is cut out of
            the array must lie inside it.
        cohort: whose batches need it.
        faults: is told of audio that cannot be read when a batch first asks for it. Until then it is NaN in silence.
    """

    def __init__(
        self, corpus: Recordings, utterances: Iterable[Utterance], longest: int, cohort: Cohort, faults: Faults
    ):
        self._faults, self._unread = faults, Faults()
        each = {utterance.index: utterance for utterance in utterances}
        ends = np.cumsum([utterance.samples for utterance in each.values()])
        self._starts = {u.index: int(end) - u.samples for u, end in zip(each.values(), ends, strict=True)}
        audio = np.zeros(int(ends[-1]) + longest, np.float32)

        def read(utterance: Utterance) -> None:
            start = self._starts[utterance.index]
            audio[start : start + utterance.samples] = audio_or_nan(corpus, utterance, self._unread)

        with ThreadPoolExecutor(thread_name_prefix="resident") as pool:
            list(pool.map(read, each.values()))
        self._audio = cohort.place_replicated(audio)
        self._cut_out = _cut_out(cohort.mesh)

    def position(self, utterance: Utterance) -> int:
        """Where the audio of an utterance begins. May be called from several threads."""
        self._faults.take(self._unread, utterance)
        return self._starts[utterance.index]

    def fetch(self, parts: Sequence[Batch], sizes: Sequence[Size]) -> tuple[Batch, ...]:
        """Puts audio float32 [S, …, N] into parts whose `audio` is positions int32 [S, …].

        Args:
            parts: on the devices.
            sizes: what each is padded to.
        """
        return tuple(
            part._replace(audio=self._cut_out(size.samples, self._audio, part.audio, part.samples))
            for part, size in zip(parts, sizes, strict=True)
        )


def _cut_out(mesh: Mesh) -> Any:
    """(N, audio [all], starts int32 [S, …], samples int32 [S, …]) → [S, …, N], zeros after `samples`."""

    def one(length, audio, start, samples):
        cut = jax.lax.dynamic_slice(audio, (start,), (length,))
        return jnp.where(jnp.arange(length) < samples, cut, 0.0)

    def local(length, audio, starts, samples):
        rows = jax.vmap(partial(one, length, audio))(starts.reshape(-1), samples.reshape(-1))
        return rows.reshape(*starts.shape, length)

    def sharded(length, audio, starts, samples):
        return jax.shard_map(
            partial(local, length),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(SPEAKER), PartitionSpec(SPEAKER)),
            out_specs=PartitionSpec(SPEAKER),
            check_vma=False,
        )(audio, starts, samples)

    return jax.jit(sharded, static_argnums=0)


def resident_bytes(
    resident: Literal["auto", "on", "off"], samples: int, longest: int, platform: str, memory: int | None
) -> int:
    """Bytes of audio that every device is to keep; 0 where batches are to bring it.

    `auto` keeps it where it is a small share of a device's memory. It never does on a CPU: there a batch is in the
    device's memory as soon as it is made, and a copy of what the operating system has cached saves nothing.

    Args:
        resident: what was asked for.
        samples: of all utterances that the queue trains on.
        longest: samples that a batch is padded to at most.
        platform: of the devices.
        memory: bytes of a device; None where that is not known.

    Raises:
        ConfigError: `on`, and there is too much audio for positions of 32 bits.
    """
    if resident == "off" or (resident == "auto" and (platform == "cpu" or memory is None)):
        return 0
    samples += longest
    if resident == "on" and samples > _MOST:
        raise ConfigError(
            f"cohort.resident=on, but the audio to train on has {samples:,} samples, and a device can number at most "
            f"{_MOST:,}. Use --cohort.resident off, or fewer speakers (--corpus.limit)."
        )
    small = samples <= _MOST and 4 * samples * _SHARE <= (memory or 0)
    return 4 * samples if resident == "on" or small else 0
