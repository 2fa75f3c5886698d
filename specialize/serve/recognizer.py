"""From audio to text, each utterance with the Submodel of its speaker."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specialize.base import Base
from specialize.corpus.audio import read_audio
from specialize.errors import CorpusError, FingerprintMismatch
from specialize.submodel import Kind, StoredSubmodel, Submodel, inserted, load_submodel, stack

_GRID_SECONDS = 1.0


class Recognizer:
    """Transcribes utterances with a base, alone or with a Submodel for each row.

    Rows of one batch may belong to different speakers: the base's matrices are shared, and each row brings its own
    Submodel. Lengths are rounded up to whole seconds so that few programs are compiled.

    Args:
        base: the base.
        batch: rows of one compiled call. Fewer rows are padded with empty ones.
        max_tokens: most tokens of an utterance; None is what the base allows.
        gate: use the base where a Submodel did not beat it on its speaker's dev utterances.
        alone: what transcribes rows without a Submodel; None is `base.alone()`, a Whisper with its whole window.
    """

    def __init__(
        self,
        base: Base,
        *,
        batch: int = 8,
        max_tokens: int | None = None,
        gate: bool = True,
        alone: Base | None = None,
    ):
        self.base, self.batch, self.gate = base, batch, gate
        alone = base.alone() if alone is None else alone
        self.max_tokens = max_tokens or base.architecture.max_labels
        self._plain = jax.jit(functools.partial(_decode_plain, alone.architecture, self.max_tokens))
        self._with: dict[Kind, Any] = {}

    def transcribe(self, audio: Any, submodel: StoredSubmodel | str | Path | None = None) -> str:
        """The text of one utterance.

        Args:
            audio: float [N] samples at the base's sample rate, in [-1, 1], or the path of an audio file.
            submodel: a loaded Submodel or the path of a stored one; None is the base alone.

        Raises:
            FingerprintMismatch: the Submodel belongs to another base.
            CorpusError: the audio is empty, cannot be read, or is longer than the base takes.
        """
        return self.transcribe_batch([audio], [submodel])[0]

    def transcribe_batch(
        self, audio: Sequence[Any], submodels: Sequence[StoredSubmodel | str | Path | None] | None = None
    ) -> list[str]:
        """The texts of utterances, in order; `submodels` names one for each, or None for the base.

        Raises:
            ValueError: there are not as many Submodels as utterances.
            FingerprintMismatch, CorpusError: as `transcribe`.
        """
        texts = [""] * len(audio)
        for row, text in self.stream(audio, submodels):
            texts[row] = text
        return texts

    def stream(
        self,
        audio: Sequence[Any],
        submodels: Sequence[StoredSubmodel | str | Path | None] | None = None,
        lengths: Sequence[int] = (),
    ) -> Iterator[tuple[int, str]]:
        """As `transcribe_batch`, giving (row, text) as soon as there is one.

        Rows are sorted by length and computed `batch` at a time, rows of one spec together.

        Args:
            audio, submodels: as for `transcribe_batch`.
            lengths: samples to pad to, where the lengths to come are known; whole seconds where none of them is enough.
        """
        clips = [self._clip(a) for a in audio]
        loaded = [self._load(s) for s in (submodels if submodels is not None else [None] * len(clips))]
        if len(loaded) != len(clips):
            raise ValueError(f"{len(clips)} utterances, but {len(loaded)} Submodels.")
        groups: dict[Kind | None, list[int]] = {}
        for row, stored in enumerate(loaded):
            groups.setdefault(None if stored is None else stored.spec, []).append(row)
        for spec, rows in groups.items():
            rows.sort(key=lambda row: len(clips[row]))
            for at in range(0, len(rows), self.batch):
                part = rows[at : at + self.batch]
                bank = None if spec is None else [loaded[row].submodel for row in part]  # pyright: ignore[reportOptionalMemberAccess]
                ids = self._decode(spec, bank, [clips[row] for row in part], lengths)
                for row, tokens in zip(part, ids, strict=True):
                    yield row, self.base.tokenizer.decode(tokens.tolist())

    def _decode(
        self, spec: Kind | None, submodels: list[Submodel] | None, clips: list[np.ndarray], lengths: Sequence[int]
    ) -> np.ndarray:
        grid = int(_GRID_SECONDS * self.base.architecture.sample_rate)
        longest = max(len(clip) for clip in clips)
        padded = min((n for n in lengths if n >= longest), default=-(-longest // grid) * grid)
        padded = min(padded, max(self.base.architecture.max_samples, longest))
        audio = np.zeros((self.batch, padded), np.float32)
        samples = np.zeros((self.batch,), np.int32)
        for row, clip in enumerate(clips):
            audio[row, : len(clip)] = clip
            samples[row] = len(clip)
        if spec is None or submodels is None:
            ids = self._plain(self.base.params, audio, samples)
        else:
            if spec not in self._with:
                decode = functools.partial(_decode_with, self.base.architecture, self.max_tokens, spec)
                self._with[spec] = jax.jit(decode)
            bank = stack(submodels + [submodels[0]] * (self.batch - len(submodels)))
            ids = self._with[spec](self.base.params, bank, audio, samples)
        return np.asarray(ids)[: len(clips)]

    def _clip(self, audio: Any) -> np.ndarray:
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

    def _load(self, submodel: StoredSubmodel | str | Path | None) -> StoredSubmodel | None:
        if submodel is None:
            return None
        if not isinstance(submodel, StoredSubmodel):
            submodel = load_submodel(submodel, base=self.base.fingerprint)
        if submodel.base != self.base.fingerprint:
            raise FingerprintMismatch(
                f"The Submodel of '{submodel.speaker}' was trained for the base {submodel.base}, but this base is "
                f"{self.base.fingerprint}."
            )
        return submodel if submodel.helps or not self.gate else None


def _decode_plain(architecture: Any, max_tokens: int, params: Any, audio: Any, samples: Any) -> Any:
    return architecture.decode(params, audio, samples, max_tokens=max_tokens)


def _decode_with(
    architecture: Any, max_tokens: int, spec: Kind, params: Any, bank: Submodel, audio: Any, samples: Any
) -> Any:
    def row(submodel, clip, length):
        with inserted(spec, submodel, params) as changed:
            return architecture.decode(changed, clip[None], length[None], max_tokens=max_tokens)[0]

    return jax.vmap(row)(bank, jnp.asarray(audio), jnp.asarray(samples))
