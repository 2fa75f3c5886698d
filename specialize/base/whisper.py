"""Whisper (Radford et al. 2022, arXiv 2212.04356) as an architecture: losses and greedy decoding from audio."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from specialize.base.architecture import Augment, Decoded, Losses
from specialize.base.batch import Batch
from specialize.base.frontend import LogMel
from specialize.base.probability import log_prob_of_best
from specialize.base.spec_augment import spec_augment
from specialize.base.whisper_model import WhisperConfig, WhisperModel

_WINDOW_SECONDS = 30
_STRIDE = 320


@dataclass(frozen=True)
class Whisper:
    """A Whisper of any size. Hashable; holds no parameters.

    In the context `needed`, a row sees as much as its own audio and `tail` need, so that short utterances cost what
    they are, and comes out the same whatever it is batched with. In `full`, every row is padded with silence to 30 s
    and attends to all of it, as the reference does.
    """

    config: WhisperConfig
    prompt: tuple[int, ...]
    """Token ids that every transcript begins with: start, language and task where there are any, no timestamps."""
    end: int
    """Token id of the end of a transcript."""
    suppress: tuple[int, ...] = ()
    """Token ids that are never decoded."""
    begin_suppress: tuple[int, ...] = ()
    """Token ids that are not decoded first."""
    context: Literal["needed", "full"] = "needed"
    tail: float = 0.0
    """Seconds of silence that a row keeps after its end in the context `needed`."""
    tokens_per_second: float = 8.0
    """Decoding of a row ends after so many tokens a second of its audio (and 8), for a decoder that repeats itself."""
    no_speech: int | None = None
    """Token id whose probability after the start is that of no speech; None where the checkpoint has none."""

    sample_rate = 16_000

    @property
    def max_samples(self) -> int:
        """30 s of samples, or what the encoder's positions allow."""
        return min(self.config.max_source_positions * _STRIDE, _WINDOW_SECONDS * self.sample_rate)

    @property
    def max_labels(self) -> int:
        """Positions of the decoder that the prompt leaves."""
        return self.config.max_target_positions - len(self.prompt)

    @cached_property
    def model(self) -> WhisperModel:
        """The Linen module."""
        return WhisperModel(self.config)

    @cached_property
    def front_end(self) -> LogMel:
        """Log-mel features."""
        return LogMel(mels=self.config.num_mel_bins)

    def init(self, key: Any) -> Any:
        """Random parameters."""
        mel = jnp.zeros((1, 2, self.config.num_mel_bins))
        return self.model.init(key, mel, jnp.array([2]), jnp.zeros((1, 1), jnp.int32))["params"]

    def features(
        self, audio: Float[Array, "B N"], samples: Int[Array, "B"]
    ) -> tuple[Float[Array, "B T2 M"], Int[Array, "B"]]:
        """Log-mel features and how many of their frames each row sees.

        Raises:
            ValueError: N is more than `max_samples`.
        """
        n = audio.shape[1]
        if n > self.max_samples:
            raise ValueError(f"{n} samples, but this base hears at most {self.max_samples}.")
        audio = jnp.where(jnp.arange(n)[None, :] < samples[:, None], audio, 0.0)
        if self.context == "full":
            audio = jnp.pad(audio, ((0, 0), (0, self.max_samples - n)))
            seen = jnp.full_like(samples, self.max_samples)
            return self.front_end(audio, seen, window_is_full=True), self.front_end.frames(seen)
        tail = int(self.tail * self.sample_rate)
        length = min(-(-(n + tail) // _STRIDE) * _STRIDE, self.max_samples)
        audio = jnp.pad(audio, ((0, 0), (0, length - n)))
        seen = jnp.where(samples > 0, jnp.minimum(samples + tail, length), 0)
        return self.front_end(audio, seen), self.front_end.frames(seen)

    def encode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """The encoder's result at 50 frames a second; frames after a row's own are without meaning."""
        return self._apply(params, *self.features(audio, samples), method="encode")

    def logits(
        self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"], tokens: Int[Array, "B U"]
    ) -> Float[Array, "B U V"]:
        """Logits of the token after each of `tokens`, prompt included, by teacher forcing."""
        return self._apply(params, *self.features(audio, samples), tokens)

    def min_samples(self, labels: Sequence[int]) -> int:
        """One: the decoder writes as much as it likes."""
        return 1

    def losses(self, params: Any, batch: Batch, *, augment: Augment | None = None) -> Losses:
        """Cross-entropy of the labels (text and end) after the prompt, by teacher forcing.

        Args:
            params: of `model`.
            batch: labels are text ids with the end, as the tokenizer makes them.
            augment: SpecAugment in training; each row has randomness of its own.
        """
        mel, frames = self.features(batch.audio, batch.samples)
        if augment is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(augment.key, jnp.arange(mel.shape[0]))
            mel = jax.vmap(spec_augment, (0, 0, 0, None))(keys, mel, frames, augment.strength)
        rows, u = batch.labels.shape
        prompt = jnp.broadcast_to(jnp.array(self.prompt, jnp.int32)[None], (rows, len(self.prompt)))
        valid = (jnp.arange(u)[None, :] < batch.label_lengths[:, None]) & (batch.samples > 0)[:, None]
        labels = jnp.where(valid, batch.labels, self.end)
        logits = self._apply(params, mel, frames, jnp.concatenate([prompt, labels[:, :-1]], axis=1))
        each = optax.softmax_cross_entropy_with_integer_labels(logits[:, len(self.prompt) - 1 :], labels)
        total = jnp.sum(jnp.where(valid, each, 0.0), axis=1)
        return Losses(total, jnp.sum(valid, axis=1).astype(jnp.float32))

    def decode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"], *, max_tokens: int) -> Decoded:
        """Greedy text ids, `end` after the end. One loop for all rows; it stops when the last row has ended.

        Keys and values of the encoder are made once. A row ends at `end`, or when it has had as many tokens as its
        length allows (`tokens_per_second`). Rows without audio end at once.

        The log probability is that of the tokens and of the end, where the row came to it, among the tokens that are
        not suppressed, as in the reference.

        Raises:
            ValueError: `max_tokens` is more than `max_labels`.
        """
        if max_tokens > self.max_labels:
            raise ValueError(f"max_tokens={max_tokens}, but this base decodes at most {self.max_labels}.")
        mel, frames = self.features(audio, samples)
        encoded = self._apply(params, mel, frames, method="encode")
        cross_mask = jnp.arange(encoded.shape[1])[None, None, :] < ((frames + 1) // 2)[:, None, None]
        rows, start = audio.shape[0], len(self.prompt)
        # No row can have more than the longest possible one, so the cache need not be longer either.
        steps = min(max_tokens, math.ceil(self.tokens_per_second * audio.shape[1] / self.sample_rate) + 8)
        length = start + steps
        # The margin keeps whole numbers whole, however the compiler rounds: a text depends on no batch's shape.
        most = samples.astype(jnp.float32) * (self.tokens_per_second / self.sample_rate)
        limit = jnp.minimum(steps, jnp.ceil(most - 1e-3).astype(jnp.int32) + 8)
        limit = jnp.where(samples > 0, limit, 0)

        def advance(variables, tokens, at, encoded):
            logits, changed = self.model.apply(
                variables, tokens, encoded, cross_mask, length, at, method="decode", mutable=["cache"]
            )
            return logits, {"params": params, "cache": changed["cache"]}

        prompt = jnp.broadcast_to(jnp.array(self.prompt, jnp.int32)[None], (rows, start))
        logits, variables = advance({"params": params}, prompt, jnp.int32(0), encoded)
        silent = None if self.no_speech is None else jax.nn.softmax(logits[:, 0], axis=-1)[:, self.no_speech]
        picked = self._pick(logits[:, -1], self.suppress + self.begin_suppress)
        ids = jnp.full((rows, steps), self.end, jnp.int32)

        def running(carry):
            _, _, _, done, at, _ = carry
            return jnp.any(~done) & (at < steps)

        def step(carry):
            ids, (token, log_prob), total, done, at, cache = carry
            forced = done | (at >= limit)
            token, total = jnp.where(forced, self.end, token), jnp.where(forced, total, total + log_prob)
            done = token == self.end
            ids = jax.lax.dynamic_update_slice(ids, token[:, None], (0, at))
            logits, variables = advance({"params": params, "cache": cache}, token[:, None], start + at, None)
            return ids, self._pick(logits[:, -1], self.suppress), total, done, at + 1, variables["cache"]

        carry = (ids, picked, jnp.zeros((rows,)), jnp.zeros((rows,), bool), jnp.int32(0), variables["cache"])
        ids, _, total, *_ = jax.lax.while_loop(running, step, carry)
        return Decoded(jnp.pad(ids, ((0, 0), (0, max_tokens - steps)), constant_values=self.end), total, silent)

    def _apply(self, params: Any, *arguments: Any, method: str | None = None) -> Any:
        return self.model.apply({"params": params}, *arguments, method=method)

    def _pick(
        self, logits: Float[Array, "B V"], suppressed: tuple[int, ...]
    ) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
        """The most probable of the tokens that are not suppressed, and its log probability among them."""
        allowed: Bool[np.ndarray, "V"] = np.ones((self.config.vocab_size,), bool)
        allowed[list(suppressed)] = False
        logits = jnp.where(allowed[None], logits, -jnp.inf)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), log_prob_of_best(logits)
