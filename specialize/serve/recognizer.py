"""From audio to text, each utterance with the Submodel of its speaker."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from specialize.base import Base, Decoded
from specialize.corpus.audio import read_audio
from specialize.errors import ConfigError, CorpusError, FingerprintMismatch, NoSubmodel, SpecError, StoreError
from specialize.serve.cache import Store, SubmodelCache
from specialize.serve.slots import Resident, Slots
from specialize.serve.stores import open_store
from specialize.submodel import Kind, StoredSubmodel, load_submodel
from specialize.submodel.layout import Layout
from specialize.submodel.rows import decode_rows

_GRID_SECONDS = 1.0


@dataclass(frozen=True)
class Hypothesis:
    """What was decoded of one utterance."""

    text: str
    tokens: tuple[int, ...]
    """Ids of the text, without the end."""
    avg_logprob: float
    """Natural logarithm of the probability of what the search decided on (`Decoded.log_prob`), divided by the number of
    tokens and one more for the end, as OpenAI's Whisper has it."""
    no_speech_prob: float | None
    """Probability that nothing was said; None of a base that cannot say."""


class Recognizer:
    """Transcribes utterances with a base, alone or with a Submodel for each row. Safe for threads.

    Rows of one batch may belong to different speakers: the base's matrices are shared, and each row brings its own
    Submodel out of a slot on the device. Rows without one are computed by the program of the base alone, so that they
    are what the base says bit for bit. Lengths and numbers of rows are rounded up, so that few programs are compiled.

    Args:
        base: the base.
        submodels: where speakers' Submodels are, a folder, a compact file or a store; None for a recogniser that is
            given loaded ones.
        batch: rows of one compiled call, or several such numbers; the smallest that is enough is filled up.
        slots: Submodels of a spec that are on the device at a time; None is as many as the rows of a batch.
        banks: specs whose slots are on the device at a time. The bank of the least recently used one is freed for
            another, unless a speaker in it is pinned; its programs stay compiled.
        max_tokens: most tokens of an utterance; None is what the base allows.
        gate: use the base where a Submodel did not beat it on its speaker's dev utterances.
        alone: what transcribes rows without a Submodel; None is `base.alone()`, a Whisper with its whole window.
        missing: what a speaker gets whose Submodel is not there, is damaged or belongs to another base: the error, or
            the base's text.
        cache_bytes: of Submodels that are kept in the memory of the host.
        refresh: see `SubmodelCache`.

    Raises:
        ConfigError: there are fewer slots than rows in a batch, or no banks.
        StoreError, FingerprintMismatch: the compact file cannot be read, or is of another base.
    """

    def __init__(
        self,
        base: Base,
        submodels: Store | str | Path | None = None,
        *,
        batch: int | Sequence[int] = 8,
        slots: int | None = None,
        banks: int = 8,
        max_tokens: int | None = None,
        gate: bool = True,
        alone: Base | None = None,
        missing: Literal["error", "base"] = "error",
        cache_bytes: int = 1 << 30,
        refresh: float = 0.0,
    ):
        self.base, self.gate, self.missing = base, gate, missing
        self.rows = tuple(sorted({batch} if isinstance(batch, int) else set(batch)))
        self.slots = self.rows[-1] if slots is None else slots
        if self.slots < self.rows[-1]:
            raise ConfigError(
                f"{self.slots} slots, but a batch may have {self.batch} rows, each with its own Submodel. Use at least "
                f"{self.batch} slots, or smaller batches."
            )
        if banks < 1:
            raise ConfigError(f"{banks} banks, but Submodels need at least 1 to be in.")
        self.banks = banks
        alone = base.alone() if alone is None else alone
        self.max_tokens = max_tokens or base.architecture.max_labels
        store = open_store(submodels, base.fingerprint) if isinstance(submodels, (str, Path)) else submodels
        self.cache = SubmodelCache(
            _Nothing() if store is None else store, base, bytes=cache_bytes, dropped=self._drop, refresh=refresh
        )
        self._params = jax.device_put(base.params)
        self._plain = jax.jit(functools.partial(_decode_plain, alone.architecture, self.max_tokens))
        self._with: OrderedDict[Kind, tuple[Slots, Any]] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    @property
    def batch(self) -> int:
        """Most rows of one compiled call."""
        return self.rows[-1]

    def transcribe(
        self, audio: Any, submodel: StoredSubmodel | str | Path | None = None, *, speaker: str | None = None
    ) -> str:
        """The text of one utterance.

        Args:
            audio: float [N] samples at the base's sample rate, in [-1, 1], or the path of an audio file.
            submodel: a loaded Submodel or the path of a stored one.
            speaker: instead, whose Submodel in `submodels`. Without either, the base alone transcribes.

        Raises:
            FingerprintMismatch: the Submodel belongs to another base.
            StoreError: there is none, or it is damaged.
            CorpusError: the audio is empty, cannot be read, or is longer than the base takes.
        """
        return self.transcribe_batch([audio], [submodel if speaker is None else self.fetch(speaker)])[0]

    def transcribe_batch(
        self, audio: Sequence[Any], submodels: Sequence[StoredSubmodel | Resident | str | Path | None] | None = None
    ) -> list[str]:
        """The texts of utterances, in order; `submodels` names one for each, or None for the base.

        Raises:
            ValueError: there are not as many Submodels as utterances.
            FingerprintMismatch, NoSubmodel, StoreError, CorpusError: as `transcribe`.
        """
        texts = [""] * len(audio)
        for row, text in self.stream(audio, submodels):
            texts[row] = text
        return texts

    def stream(
        self,
        audio: Sequence[Any],
        submodels: Sequence[StoredSubmodel | Resident | str | Path | None] | None = None,
        lengths: Sequence[int] = (),
    ) -> Iterator[tuple[int, str]]:
        """As `transcribe_batch`, giving (row, text) as soon as there is one.

        Rows are sorted by length and computed `batch` at a time, rows of one spec together.

        Args:
            audio, submodels: as for `transcribe_batch`; or what `fetch` gave.
            lengths: samples to pad to, where the lengths to come are known; whole seconds where none of them is enough.
        """
        clips = [self.clip(a) for a in audio]
        residents = self._residents(submodels if submodels is not None else [None] * len(clips))
        if len(residents) != len(clips):
            raise ValueError(f"{len(clips)} utterances, but {len(residents)} Submodels.")
        groups: dict[Kind | None, list[int]] = {}
        for row, resident in enumerate(residents):
            groups.setdefault(None if resident is None else resident.spec, []).append(row)
        for rows in groups.values():
            rows.sort(key=lambda row: len(clips[row]))
            for at in range(0, len(rows), self.batch):
                part = rows[at : at + self.batch]
                padded = self.padded(max(len(clips[row]) for row in part), lengths)
                found = self.decode([residents[row] for row in part], [clips[row] for row in part], padded)
                yield from zip(part, (hypothesis.text for hypothesis in found), strict=True)

    def fetch(self, speaker: str) -> Resident | None:
        """The newest version of a speaker's Submodel; None where the base is to transcribe.

        Raises:
            StoreError, FingerprintMismatch: as `transcribe`, unless `missing` is "base".
        """
        try:
            resident = self.cache.fetch(speaker)
        except (StoreError, FingerprintMismatch, SpecError):
            if self.missing == "base":
                return None
            raise
        return resident if resident.helps or not self.gate else None

    def padded(self, samples: int, lengths: Sequence[int] = ()) -> int:
        """The length that so many samples are computed with."""
        grid = int(_GRID_SECONDS * self.base.architecture.sample_rate)
        padded = min((n for n in lengths if n >= samples), default=-(-samples // grid) * grid)
        return min(padded, max(self.base.architecture.max_samples, samples))

    def decode(
        self, residents: Sequence[Resident | None], clips: Sequence[np.ndarray], padded: int
    ) -> list[Hypothesis]:
        """What is decoded of the clips in one compiled call.

        Args:
            residents: of one spec, or None for all; at most `batch`.
            clips: as many, from `clip`.
            padded: from `padded`, of the longest.

        Raises:
            ValueError: not all are of one spec.
            Forgotten: the speaker of one was deleted.
        """
        if len({None if resident is None else resident.spec for resident in residents}) != 1:
            raise ValueError("Rows of one compiled call are all of one spec, or all without a Submodel.")
        rows = min(n for n in self.rows if n >= len(clips))
        audio = np.zeros((rows, padded), np.float32)
        samples = np.zeros((rows,), np.int32)
        for row, clip in enumerate(clips):
            audio[row, : len(clip)] = clip
            samples[row] = len(clip)
        with_submodels = [resident for resident in residents if resident is not None]
        if not with_submodels:
            decoded = self._plain(self._params, audio, samples)
        else:
            slots, program = self._program(with_submodels[0].spec)
            self._make_room()
            vectors = slots.rows(with_submodels, rows)
            self._make_room()  # other threads may have made banks meanwhile
            decoded = program(self._params, vectors, audio, samples)
        return self._hypotheses(jax.device_get(decoded), len(clips))

    def warm(self, specs: Sequence[Kind], lengths: Sequence[int], *, alone: bool = True) -> Iterator[str]:
        """Compiles what batches of these specs, and of the base alone, need at these lengths; tells what it is at.

        Args:
            specs: of the Submodels to come.
            lengths: samples that `decode` will be called with.
            alone: whether the base alone is to come too.

        Raises:
            SpecError: a spec does not fit the base.
        """
        for spec in specs:
            slots, _ = self._program(spec)
            self._make_room()
            slots.warm(self.rows)
        for padded in lengths:
            for rows in self.rows:
                audio, samples = np.zeros((rows, padded), np.float32), np.full((rows,), 1, np.int32)
                yield f"{rows} x {padded / self.base.architecture.sample_rate:g} s"
                if alone:
                    jax.block_until_ready(self._plain(self._params, audio, samples))
                for spec in specs:
                    slots, program = self._program(spec)
                    vectors = np.zeros((rows, slots.size), np.float32)
                    jax.block_until_ready(program(self._params, jax.device_put(vectors), audio, samples))

    def forget(self, speaker: str) -> int:
        """Drops a speaker's Submodel from memory and slots at once, and refuses it to requests that are under way.

        Returns:
            How many copies were dropped, of all versions.
        """
        return self.cache.forget(speaker)

    def held(self) -> dict[Kind, int]:
        """How many slots of each spec are taken."""
        with self._lock:
            return {spec: len(slots.held()) for spec, (slots, _) in self._with.items()}

    def clip(self, audio: Any) -> np.ndarray:
        """Audio, checked: float32 [N] samples at the base's rate.

        Raises:
            CorpusError: as `transcribe`.
        """
        architecture, name = self.base.architecture, "Audio"
        if isinstance(audio, (str, Path)):
            name = f"'{audio}'"
            audio = read_audio(Path(audio), architecture.sample_rate)
        clip = np.asarray(audio, np.float32)
        if clip.ndim != 1 or clip.size == 0:
            raise CorpusError(f"Audio must be a vector of samples; this has shape {clip.shape}.")
        if not np.isfinite(clip).all():
            raise CorpusError("Audio has samples that are not finite.")
        if clip.size > architecture.max_samples:
            seconds, most = clip.size / architecture.sample_rate, architecture.max_samples / architecture.sample_rate
            raise CorpusError(
                f"{name} of {seconds:.1f} s is longer than this base takes ({most:.1f} s). Cut it at pauses."
            )
        return clip

    def _hypotheses(self, decoded: Decoded, count: int) -> list[Hypothesis]:
        end, found = self.base.tokenizer.end, []
        for row in range(count):
            ids = decoded.ids[row].tolist()
            tokens = tuple(ids[: ids.index(end)] if end in ids else ids)
            average = float(decoded.log_prob[row]) / (len(tokens) + 1)
            silent = None if decoded.no_speech is None else float(decoded.no_speech[row])
            found.append(Hypothesis(self.base.tokenizer.decode(tokens), tokens, average, silent))
        return found

    def _residents(self, submodels: Sequence[StoredSubmodel | Resident | str | Path | None]) -> list[Resident | None]:
        """What each row needs in a slot; rows with the same Submodel share one."""
        known: dict[Any, Resident | None] = {}
        for submodel in submodels:
            key = id(submodel) if isinstance(submodel, (StoredSubmodel, Resident)) else submodel
            if key not in known:
                known[key] = self._resident(submodel)
        return [known[id(s) if isinstance(s, (StoredSubmodel, Resident)) else s] for s in submodels]

    def _resident(self, submodel: StoredSubmodel | Resident | str | Path | None) -> Resident | None:
        if submodel is None or isinstance(submodel, Resident):
            return submodel
        if not isinstance(submodel, StoredSubmodel):
            submodel = load_submodel(submodel, base=self.base.fingerprint)
        if submodel.base != self.base.fingerprint:
            raise FingerprintMismatch(
                f"The Submodel of '{submodel.speaker}' was trained for the base {submodel.base}, but this base is "
                f"{self.base.fingerprint}."
            )
        return self.cache.resident(submodel) if submodel.helps or not self.gate else None

    def _drop(self, resident: Resident) -> bool:
        with self._lock:
            slots = self._with.get(resident.spec)
        return slots is not None and slots[0].drop(resident)

    def _program(self, spec: Kind) -> tuple[Slots, Any]:
        """Slots and program of a spec."""
        layout = self.cache.layout(spec)
        with self._lock:
            if spec not in self._with:
                decode = functools.partial(_decode_with, self.base.architecture, self.max_tokens, spec, layout)
                self._with[spec] = Slots(self.slots, layout.size), jax.jit(decode)
            self._with.move_to_end(spec)
            return self._with[spec]

    def _make_room(self) -> None:
        """Frees the banks that were not used for longest, so that with the last used one there are not too many.

        Requests under way have copies of their rows (`Slots.rows`), or make their bank anew.
        """
        with self._lock:
            *others, _ = [slots for slots, _ in self._with.values()]
            others = [slots for slots in others if slots.on_device]
            surplus = len(others) + 1 - self.banks
            for slots in others:
                if surplus <= 0:
                    break
                surplus -= slots.free()


class _Nothing:
    """The store of a recogniser that has none."""

    def version(self, speaker: str) -> str | None:
        return None

    def load(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        raise NoSubmodel(f"There is no Submodel of '{speaker}': this recogniser was given no store.")


def _decode_plain(architecture: Any, max_tokens: int, params: Any, audio: Any, samples: Any) -> Decoded:
    return architecture.decode(params, audio, samples, max_tokens=max_tokens)


def _decode_with(
    architecture: Any, max_tokens: int, spec: Kind, layout: Layout, params: Any, vectors: Any, audio: Any, samples: Any
) -> Decoded:
    bank = layout.unpack(vectors)
    return decode_rows(architecture, spec, params, bank, audio, samples, max_tokens=max_tokens)
