"""Whisper's encoder and decoder as plain Linen modules, named as in Hugging Face checkpoints.

Every named module returns one array and is called through `__call__`, so that a Submodel can be inserted at any of
them. The decoder's keys and values live in the `cache` collection.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of a Whisper, by the names of Hugging Face's `config.json`."""

    vocab_size: int
    d_model: int
    num_mel_bins: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_source_positions: int = 1500
    max_target_positions: int = 448


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, name=name)


class Attention(nn.Module):
    """Multi-head attention with softmax in float32 (Radford et al. 2022; no bias on the keys)."""

    heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q D"],
        source: Float[Array, "B K D"] | None,
        mask: Bool[Array, "#B #Q L"],
        *,
        cached: int | None = None,
        at: Int[Array, ""] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attends from `x` to `source`.

        Args:
            x: queries.
            source: keys and values are made from it. None reads those that an earlier call left in the cache.
            mask: which of the L keys each query may see.
            cached: length of the cache; None keeps none.
            at: position in the cache of the first key of `source`; None stands for position 0.
        """
        d = x.shape[-1]
        q = nn.Dense(d, name="q_proj")(x)
        if source is not None:
            k = nn.Dense(d, use_bias=False, name="k_proj")(source)
            v = nn.Dense(d, name="v_proj")(source)
        else:
            k = v = None
        if cached is not None:
            k, v = self._through_cache(x, k, v, cached, at)
        assert k is not None
        assert v is not None
        q, k, v = (t.reshape(*t.shape[:2], self.heads, d // self.heads) for t in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * (d // self.heads) ** -0.5, k).astype(jnp.float32)
        # A row without keys (an empty utterance) attends evenly to nothing of worth instead of becoming NaN.
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.Dense(d, name="out_proj")(y.reshape(*x.shape[:2], d))

    def _through_cache(self, x: Any, k: Any, v: Any, length: int, at: Any) -> tuple[Any, Any]:
        shape = (x.shape[0], length, x.shape[-1])
        keys = self.variable("cache", "keys", jnp.zeros, shape, x.dtype)
        values = self.variable("cache", "values", jnp.zeros, shape, x.dtype)
        if k is not None:
            start = (0, jnp.int32(0) if at is None else at, 0)
            keys.value = jax.lax.dynamic_update_slice(keys.value, k, start)
            values.value = jax.lax.dynamic_update_slice(values.value, v, start)
        return keys.value, values.value


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    heads: int
    ffn: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 T"]) -> Float[Array, "B T D"]:
        h = _norm("self_attn_layer_norm")(x)
        x = x + Attention(self.heads, name="self_attn")(h, h, mask)
        h = nn.Dense(self.ffn, name="fc1")(_norm("final_layer_norm")(x))
        return x + nn.Dense(x.shape[-1], name="fc2")(jax.nn.gelu(h, approximate=False))


class Encoder(nn.Module):
    """Two convolutions, positions, and a stack of layers: log-mel frames to vectors at half their rate."""

    config: WhisperConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B T2 M"], frames: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """Encodes rows of which `frames` mel frames are valid; each comes out as if it had been cut to them."""
        c = self.config
        # Zeros after the end of a row are what an exactly cut row would be padded with, before each convolution.
        inside = (jnp.arange(mel.shape[1])[None, :] < frames[:, None])[:, :, None]
        x = jnp.where(inside, mel, 0.0)
        x = jax.nn.gelu(nn.Conv(c.d_model, (3,), padding=1, name="conv1")(x), approximate=False)
        x = jnp.where(inside, x, 0.0)
        x = jax.nn.gelu(nn.Conv(c.d_model, (3,), strides=2, padding=1, name="conv2")(x), approximate=False)
        positions = self.param(
            "embed_positions", nn.initializers.normal(0.02), (c.max_source_positions, c.d_model), jnp.float32
        )
        x = x + positions[None, : x.shape[1]].astype(x.dtype)
        mask = jnp.arange(x.shape[1])[None, None, :] < ((frames + 1) // 2)[:, None, None]
        for i in range(c.encoder_layers):
            x = EncoderLayer(c.encoder_attention_heads, c.encoder_ffn_dim, name=f"layers_{i}")(x, mask)
        return _norm("layer_norm")(x)


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer with attention to the encoder."""

    heads: int
    ffn: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B U D"],
        encoded: Float[Array, "B T D"] | None,
        self_mask: Bool[Array, "1 U L"],
        cross_mask: Bool[Array, "B 1 T"],
        cached: int | None = None,
        at: Int[Array, ""] | None = None,
    ) -> Float[Array, "B U D"]:
        h = _norm("self_attn_layer_norm")(x)
        x = x + Attention(self.heads, name="self_attn")(h, h, self_mask, cached=cached, at=at)
        h = _norm("encoder_attn_layer_norm")(x)
        frames = None if cached is None else cross_mask.shape[-1]
        x = x + Attention(self.heads, name="encoder_attn")(h, encoded, cross_mask, cached=frames)
        h = nn.Dense(self.ffn, name="fc1")(_norm("final_layer_norm")(x))
        return x + nn.Dense(x.shape[-1], name="fc2")(jax.nn.gelu(h, approximate=False))


class Decoder(nn.Module):
    """Tokens and encoded speech to logits of the next token; the output embedding is the input's."""

    config: WhisperConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B U"],
        encoded: Float[Array, "B T D"] | None,
        cross_mask: Bool[Array, "B 1 T"],
        cached: int | None = None,
        at: Int[Array, ""] | None = None,
    ) -> Float[Array, "B U V"]:
        """Logits in float32.

        Args:
            tokens: at positions `at`, `at + 1`, ….
            encoded: the encoder's result; None where the cache holds what was made from it.
            cross_mask: valid encoder frames.
            cached: length of the key-value cache; None keeps none, and `tokens` begin at position 0.
            at: position of the first token.
        """
        c = self.config
        embed = nn.Embed(c.vocab_size, c.d_model, name="embed_tokens")
        positions = self.param(
            "embed_positions", nn.initializers.normal(0.02), (c.max_target_positions, c.d_model), jnp.float32
        )
        start = jnp.int32(0) if at is None else at
        u = tokens.shape[1]
        length = u if cached is None else cached
        x = embed(tokens)
        x = x + jax.lax.dynamic_slice(positions, (start, 0), (u, c.d_model))[None].astype(x.dtype)
        self_mask = (jnp.arange(length)[None, :] <= start + jnp.arange(u)[:, None])[None]
        for i in range(c.decoder_layers):
            layer = DecoderLayer(c.decoder_attention_heads, c.decoder_ffn_dim, name=f"layers_{i}")
            x = layer(x, encoded, self_mask, cross_mask, cached, start)
        return embed.attend(_norm("layer_norm")(x)).astype(jnp.float32)


class WhisperModel(nn.Module):
    """Encoder and decoder of one Whisper."""

    config: WhisperConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, mel: Float[Array, "B T2 M"], frames: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """See `Encoder`."""
        return self.encoder(mel, frames)

    def decode(
        self, tokens: Any, encoded: Any, cross_mask: Any, cached: int | None = None, at: Any = None
    ) -> Float[Array, "B U V"]:
        """See `Decoder`."""
        return self.decoder(tokens, encoded, cross_mask, cached, at)

    def __call__(self, mel: Any, frames: Any, tokens: Any) -> Float[Array, "B U V"]:
        """Logits by teacher forcing, [B, U, V]."""
        encoded = self.encode(mel, frames)
        cross_mask = jnp.arange(encoded.shape[1])[None, None, :] < ((frames + 1) // 2)[:, None, None]
        return self.decode(tokens, encoded, cross_mask)
