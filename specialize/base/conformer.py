"""Conformer bases: what all of them share, the one with a CTC head, and the transducer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from specialize.base.architecture import Augment, Decoded, Losses
from specialize.base.batch import Batch
from specialize.base.conformer_model import ConformerConfig, CTCModel
from specialize.base.ctc import ctc_greedy, ctc_loss_total, ctc_prefix_beam
from specialize.base.frontend import ParakeetMel
from specialize.base.lattice import tdt_log_probs, tdt_loss, transducer_log_probs, transducer_loss
from specialize.base.spec_augment import spec_augment
from specialize.base.tokenizer import Tokenizer
from specialize.base.transducer_model import State, TransducerConfig, TransducerModel, initial_state, predict_step
from specialize.base.transducer_search import tdt_greedy, transducer_beam, transducer_greedy
from specialize.errors import BaseModelError

_LOGITS = 1 << 21
"""Logits of a transducer that are computed at a time; 8 MB, more where a single frame has more."""


@dataclass(frozen=True)
class Conformer:
    """An encoder of speech, whatever is put on it: its front end, its lengths and its limits. Holds no parameters."""

    config: ConformerConfig
    vocab_size: int
    """Tokens and blank."""
    blank: int
    """Id of the blank, which also fills up what `decode` returns."""
    max_seconds: float = 40.0
    """The longest utterance that is taken."""
    beam: int = 1
    """Hypotheses that `decode` keeps; 1 is greedy."""

    sample_rate = 16_000

    @property
    def stride(self) -> int:
        """Samples to a frame of the encoder."""
        return self.front_end.hop * self.config.subsampling_factor

    @property
    def max_samples(self) -> int:
        """Samples of `max_seconds`, or what the encoder's positions allow."""
        return min(int(self.max_seconds * self.sample_rate), self.config.max_position_embeddings * self.stride)

    @cached_property
    def front_end(self) -> ParakeetMel:
        """Log-mel features."""
        return ParakeetMel(mels=self.config.num_mel_bins)

    def frames(self, samples: Int[Array, "B"]) -> Int[Array, "B"]:
        """How many frames of the encoder each row has."""
        return self.config.frames(self.front_end.frames(samples))

    def features(
        self, audio: Float[Array, "B N"], samples: Int[Array, "B"], augment: Augment | None = None
    ) -> tuple[Float[Array, "B T M"], Int[Array, "B"]]:
        """Log-mel features and how many of their frames are each row's own.

        Args:
            audio: samples in [-1, 1]. What comes after a row's `samples` is not read.
            samples: valid samples of each row.
            augment: SpecAugment in training; each row has randomness of its own.

        Raises:
            ValueError: N is more than `max_samples`.
        """
        n = audio.shape[1]
        if n > self.max_samples:
            raise ValueError(f"{n} samples, but this base hears at most {self.max_samples}.")
        # Even the shortest array must have a frame.
        audio = jnp.pad(audio, ((0, 0), (0, max(0, self.front_end.hop - n))))
        mel, frames = self.front_end(audio, samples), self.front_end.frames(samples)
        if augment is None:
            return mel, frames
        keys = jax.vmap(jax.random.fold_in, (None, 0))(augment.key, jnp.arange(mel.shape[0]))
        return jax.vmap(spec_augment, (0, 0, 0, None))(keys, mel, frames, augment.strength), frames

    def min_samples(self, labels: Sequence[int]) -> int:
        """The shortest utterance that can have these labels; `losses` counts a row with fewer samples as empty."""
        # Each frame of the encoder begins one stride after the last.
        return self.stride * (self._min_frames(labels) - 1) + self.front_end.hop

    def _min_frames(self, labels: Sequence[int]) -> int:
        raise NotImplementedError

    def _filled(self, ids: Int[Array, "B L"], max_tokens: int) -> Int[Array, "B {max_tokens}"]:
        """`ids` of a search that had room for what its frames can say, and no more, for it looks at all of its room."""
        return jnp.pad(ids, ((0, 0), (0, max_tokens - ids.shape[1])), constant_values=self.blank)

    def _apply(self, params: Any, *arguments: Any, method: str | None = None) -> Any:
        return self.model.apply({"params": params}, *arguments, method=method)

    @cached_property
    def model(self) -> Any:
        """The Linen module."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConformerCTC(Conformer):
    """A Conformer with CTC (Graves et al. 2006)."""

    @property
    def max_labels(self) -> int:
        """Frames of the encoder in the longest utterance: a frame makes one label at most."""
        return self.max_samples // self.stride

    @cached_property
    def model(self) -> CTCModel:
        """The Linen module."""
        return CTCModel(self.config, self.vocab_size)

    def init(self, key: Any) -> Any:
        """Random parameters."""
        mel = jnp.zeros((1, self.config.subsampling_factor, self.config.num_mel_bins))
        return self.model.init(key, mel, jnp.array([self.config.subsampling_factor]))["params"]

    def _min_frames(self, labels: Sequence[int]) -> int:
        # One each, and one between two that are equal.
        return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))

    def encode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """The encoder's result; frames after a row's own are without meaning."""
        return self._apply(params, *self.features(audio, samples), method="encode")

    def logits(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"]) -> Float[Array, "B T V"]:
        """Logits of each frame of the encoder; frames after a row's own are without meaning."""
        return self._apply(params, *self.features(audio, samples))

    def losses(self, params: Any, batch: Batch, *, augment: Augment | None = None) -> Losses:
        """CTC loss of the labels. A row that has too few frames for its labels counts as empty (see `min_samples`).

        Args:
            params: of `model`.
            batch: labels are text ids without blanks.
            augment: SpecAugment in training; each row has randomness of its own.
        """
        logits = self._apply(params, *self.features(batch.audio, batch.samples, augment))
        frames = self.frames(batch.samples)
        total, possible = ctc_loss_total(logits, frames, batch.labels, batch.label_lengths, self.blank)
        counted = possible & (batch.label_lengths > 0) & (frames > 0)
        return Losses(jnp.where(counted, total, 0.0), jnp.where(counted, batch.label_lengths, 0).astype(jnp.float32))

    def decode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"], *, max_tokens: int) -> Decoded:
        """The best label of each frame without repeats, or the best of a prefix beam; `blank` after the end."""
        logits, frames = self.logits(params, audio, samples), self.frames(samples)
        room = min(max_tokens, logits.shape[1])
        if self.beam == 1:
            ids, log_prob = ctc_greedy(logits, frames, self.blank, room, self.blank)
        else:
            ids, log_prob = _first(ctc_prefix_beam(logits, frames, self.blank, self.beam, room, self.blank))
        return Decoded(self._filled(ids, max_tokens), log_prob)


@dataclass(frozen=True)
class ConformerTransducer(Conformer):
    """A Conformer with a prediction network and a joint: an RNN-T (Graves 2012), or a TDT (Xu et al. 2023)."""

    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    """Sizes of what is put on the encoder."""
    max_symbols: int = 10
    """Labels that `decode` writes in one frame at most."""

    @property
    def max_labels(self) -> int:
        """What `max_symbols` allows in the longest utterance."""
        return self.max_symbols * (self.max_samples // self.stride)

    @cached_property
    def model(self) -> TransducerModel:
        """The Linen module."""
        return TransducerModel(self.config, self.transducer, self.vocab_size)

    def init(self, key: Any) -> Any:
        """Random parameters."""
        mel = jnp.zeros((1, self.config.subsampling_factor, self.config.num_mel_bins))
        frames = jnp.array([self.config.subsampling_factor])
        return self.model.init(key, mel, frames, jnp.zeros((1, 1), jnp.int32))["params"]

    def _min_frames(self, labels: Sequence[int]) -> int:
        # An alignment ends with a blank, which needs a frame; a label lasts at least the shortest duration.
        shortest = min(self.transducer.durations, default=0)
        return max(shortest * len(labels), (len(labels) - 1) // self.max_symbols) + 1

    def encode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"]) -> Float[Array, "B T E"]:
        """The encoder's result, projected for the joint; frames after a row's own are without meaning."""
        return self._apply(params, *self.features(audio, samples), method="encode")

    def logits(
        self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"], labels: Int[Array, "B U"]
    ) -> Float[Array, "B T U1 V"]:
        """Logits of every node, first of tokens, then of durations. They are large; `losses` never makes them all."""
        return self._apply(params, *self.features(audio, samples), self._begun(labels))

    def losses(self, params: Any, batch: Batch, *, augment: Augment | None = None) -> Losses:
        """Transducer loss of the labels, with O(T U) memory for its gradients.

        A row that has too few frames for its labels counts as empty (see `min_samples`).

        Args:
            params: of `model`.
            batch: labels are text ids without blanks.
            augment: SpecAugment in training; each row has randomness of its own.
        """
        durations, frames, lengths = self.transducer.durations, self.frames(batch.samples), batch.label_lengths
        inside = jnp.arange(batch.labels.shape[1])[None, :] < lengths[:, None]
        labels = jnp.where(inside, batch.labels, 0)
        encoded = self._apply(params, *self.features(batch.audio, batch.samples, augment), method="encode")
        predicted = self._apply(params, self._begun(labels), method="predict")

        def joint(frame: Any, predicted: Any) -> Any:
            return self._apply(params, frame, predicted, method="join")

        size = encoded.shape[0] * predicted.shape[1] * (self.vocab_size + len(durations))
        chunk = max(1, min(encoded.shape[1], _LOGITS // size))
        limits = {"frames": frames, "label_lengths": lengths, "chunk": chunk}
        if durations:
            parts = tdt_log_probs(joint, encoded, predicted, labels, self.blank, len(durations), **limits)
            total = tdt_loss(*parts, frames, lengths, durations)
        else:
            parts = transducer_log_probs(joint, encoded, predicted, labels, self.blank, **limits)
            total = transducer_loss(*parts, frames, lengths)
        shortest = min(durations, default=0)
        counted = (lengths > 0) & (frames > jnp.maximum(shortest * lengths, (lengths - 1) // self.max_symbols))
        return Losses(jnp.where(counted, total, 0.0), jnp.where(counted, lengths, 0).astype(jnp.float32))

    def decode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"], *, max_tokens: int) -> Decoded:
        """The labels of the most probable arcs, or the best of a beam; `blank` after the end.

        Raises:
            BaseModelError: a beam for a TDT.
        """
        durations, frames = self.transducer.durations, self.frames(samples)
        encoded = self.encode(params, audio, samples)

        def joint(frame: Any, predicted: Any) -> Any:
            return self._apply(params, frame, predicted, method="join")

        def step(token: Any, state: State) -> tuple[Any, State]:
            return predict_step(self.model, params, token, state)

        state = initial_state(self.transducer, audio.shape[0])
        room = min(max_tokens, self.max_symbols * encoded.shape[1])
        limits = {"blank_id": self.blank, "max_tokens": room, "pad": self.blank, "max_symbols": self.max_symbols}
        if durations:
            if self.beam > 1:
                raise BaseModelError("There is no beam search for token-and-duration transducers. Use a beam of 1.")
            ids, log_prob = tdt_greedy(joint, step, encoded, frames, state, durations=durations, **limits)
        elif self.beam == 1:
            ids, log_prob = transducer_greedy(joint, step, encoded, frames, state, **limits)
        else:
            ids, log_prob = _first(transducer_beam(joint, step, encoded, frames, state, beam=self.beam, **limits))
        return Decoded(self._filled(ids, max_tokens), log_prob)

    def _begun(self, labels: Int[Array, "B U"]) -> Int[Array, "B U1"]:
        """Labels after the start, which is the blank."""
        return jnp.pad(labels, ((0, 0), (1, 0)), constant_values=self.blank)


def _first(hypotheses: tuple[Any, Any]) -> tuple[Any, Any]:
    """The best hypothesis of a beam, and its log probability."""
    ids, scores = hypotheses
    return ids[:, 0], scores[:, 0]


def conformer(
    config: ConformerConfig,
    tokenizer: Tokenizer,
    *,
    head: Literal["ctc", "transducer"] = "ctc",
    transducer: TransducerConfig | None = None,
) -> ConformerCTC | ConformerTransducer:
    """An architecture for a tokenizer whose last id is the blank.

    Args:
        config: of the encoder.
        tokenizer: of the base.
        head: what is put on the encoder.
        transducer: its sizes, where it is one.
    """
    if head == "ctc":
        return ConformerCTC(config, tokenizer.end + 1, tokenizer.end)
    sizes = TransducerConfig() if transducer is None else transducer
    return ConformerTransducer(config, tokenizer.end + 1, tokenizer.end, transducer=sizes)
