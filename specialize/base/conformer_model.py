"""FastConformer (Rekesh et al. 2023, arXiv 2305.05084) as plain Linen modules, named as in Hugging Face checkpoints.

Every named module returns one array and is called through `__call__`, so that a Submodel can be inserted at any of
them. Depthwise convolutions are sums of shifted products, which a CPU computes many times faster than a grouped
convolution, forwards and backwards, and which `vmap` leaves as they are.
"""

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from specialize.errors import BaseModelError

_EPSILON = 1e-5


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of an encoder, by the names of Hugging Face's `ParakeetEncoderConfig`."""

    hidden_size: int = 144
    """D; even, and a multiple of the heads."""
    num_hidden_layers: int = 4
    """Layers."""
    num_attention_heads: int = 4
    """Heads of each layer."""
    intermediate_size: int = 576
    """Width inside the feed-forwards."""
    conv_kernel_size: int = 9
    """Frames that a depthwise convolution sees; odd."""
    num_mel_bins: int = 80
    """M."""
    subsampling_factor: int = 8
    """Frames of features to one of the encoder; a power of the stride."""
    subsampling_conv_channels: int = 64
    """Channels while subsampling."""
    subsampling_conv_kernel_size: int = 3
    """Width of the subsampling convolutions; odd."""
    subsampling_conv_stride: int = 2
    """Of each subsampling convolution."""
    attention_bias: bool = True
    """Whether attention and feed-forwards have biases."""
    convolution_bias: bool = True
    """Whether the convolution modules have biases."""
    max_position_embeddings: int = 5000
    """Frames that the encoder takes at most."""
    scale_input: bool = False
    """Whether what comes from the subsampling is multiplied by sqrt(D)."""
    conv_norm: Literal["batch", "layer"] = "layer"
    """Norm inside the convolution modules: a batch norm whose statistics are frozen parameters, as imported models have
    it, or a layer norm, which does not depend on the company of a row in training either."""

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise BaseModelError(
                f"hidden_size={self.hidden_size} must be even and a multiple of num_attention_heads="
                f"{self.num_attention_heads}."
            )
        for name in ("conv_kernel_size", "subsampling_conv_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise BaseModelError(f"{name}={getattr(self, name)} must be odd.")
        if self.subsampling_conv_stride**self.stages != self.subsampling_factor:
            raise BaseModelError(
                f"subsampling_factor={self.subsampling_factor} must be a power of {self.subsampling_conv_stride}."
            )

    @property
    def stages(self) -> int:
        """Subsampling convolutions with a stride."""
        return round(math.log(self.subsampling_factor, self.subsampling_conv_stride))

    def frames(self, frames: Int[Array, "B"]) -> Int[Array, "B"]:
        """How many frames of the encoder so many frames of features make."""
        return self._subsampled(frames, self.stages)

    def _subsampled(self, frames: Int[Array, "B"], stages: int) -> Int[Array, "B"]:
        for _ in range(stages):
            reach = self.subsampling_conv_kernel_size // 2 * 2 - self.subsampling_conv_kernel_size
            frames = jnp.where(frames > 0, (frames + reach) // self.subsampling_conv_stride + 1, 0)
        return frames


class ConvStem(nn.Module):
    """A convolution over time and frequency with one input channel, as a product of patches and a matrix."""

    channels: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"]) -> Float[Array, "B T2 F2 C"]:
        """Pads with zeros so that T2 = ceil(T / stride), and F2 likewise."""
        k = self.width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k * k, self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        patches = jnp.stack(_shifts(x[..., None], k, self.stride), axis=-1)
        return patches[..., 0, :] @ kernel + _wide(bias, 4)


class DepthwiseConv2d(nn.Module):
    """A convolution over time and frequency of each channel by itself."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T2 F2 C"]:
        """Pads with zeros so that T2 = ceil(T / stride), and F2 likewise."""
        k, channels = self.width, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0 / k), (k * k, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        products = (part * _wide(kernel[i], 4) for i, part in enumerate(_shifts(x, k, self.stride)))
        return sum(products, _wide(bias, 4))


class DepthwiseConv1d(nn.Module):
    """A convolution over time of each channel by itself, of the same length."""

    width: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What lies before the first frame and after the last is zero."""
        half, time = self.width // 2, x.shape[1]
        kernel = self.param("kernel", nn.initializers.normal(self.width**-0.5), (self.width, x.shape[-1]))
        padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
        first = padded[:, :time] * _wide(kernel[0], 3)
        y = sum((padded[:, i : i + time] * _wide(kernel[i], 3) for i in range(1, self.width)), first)
        if not self.use_bias:
            return y
        return y + _wide(self.param("bias", nn.initializers.zeros, (x.shape[-1],)), 3)


def _shifts(x: Float[Array, "B T F C"], width: int, stride: int) -> list[Float[Array, "B T2 F2 C"]]:
    """What each tap of a square kernel sees, row by row."""
    half = width // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    time, mels = (-(-n // stride) for n in x.shape[1:3])

    def tap(i: int, j: int) -> Float[Array, "B T2 F2 C"]:
        return padded[:, i : i + (time - 1) * stride + 1 : stride, j : j + (mels - 1) * stride + 1 : stride]

    return [tap(i, j) for i in range(width) for j in range(width)]


def _wide(vector: Float[Array, "C"] | Float[np.ndarray, "C"], axes: int) -> Float[Array, "..."]:
    """A vector along the last of so many axes."""
    return jnp.asarray(vector).reshape((1,) * (axes - 1) + vector.shape)


class FrozenBatchNorm(nn.Module):
    """A batch norm in inference: neither batches nor training change its mean and variance, which are parameters."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        d = x.shape[-1]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        mean, var = self.param("mean", zeros, (d,)), self.param("var", ones, (d,))
        scale, bias = self.param("scale", ones, (d,)), self.param("bias", zeros, (d,))
        mean, var = jax.lax.stop_gradient((mean, var))  # a step of Adam could make a small variance negative
        gain = scale * jax.lax.rsqrt(var + _EPSILON)
        return (x - _wide(mean, 3)) * _wide(gain, 3) + _wide(bias, 3)


class Subsampling(nn.Module):
    """Depthwise-separable convolutions with a stride, from features to D."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"], frames: Int[Array, "B"]) -> Float[Array, "B T2 D"]:
        """Zeros after each row's own frames at every stage, so that padding reaches no frame of the row."""
        c = self.config
        width, stride = c.subsampling_conv_kernel_size, c.subsampling_conv_stride
        x = _own_frames(mel[..., None], frames)[..., 0]
        x = ConvStem(c.subsampling_conv_channels, width, stride, name="layers_0")(x)
        x = nn.relu(_own_frames(x, c._subsampled(frames, 1)))
        for stage in range(1, c.stages):
            # Numbered as in the checkpoints, where the activations count too.
            kept = c._subsampled(frames, stage + 1)
            x = _own_frames(DepthwiseConv2d(width, stride, name=f"layers_{3 * stage - 1}")(x), kept)
            x = nn.Dense(c.subsampling_conv_channels, name=f"layers_{3 * stage}")(x)
            x = nn.relu(_own_frames(x, kept))
        x = jnp.swapaxes(x, 2, 3)
        return nn.Dense(c.hidden_size, name="linear")(x.reshape(*x.shape[:2], -1))


def _own_frames(x: Float[Array, "B T F C"], frames: Int[Array, "B"]) -> Float[Array, "B T F C"]:
    """Zeros after each row's own frames."""
    inside = jnp.arange(x.shape[1])[None, :] < frames[:, None]
    return jnp.where(inside[:, :, None, None], x, 0.0)


class FeedForward(nn.Module):
    """Two dense layers with SiLU between."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        x = nn.silu(nn.Dense(c.intermediate_size, use_bias=c.attention_bias, name="linear1")(x))
        return nn.Dense(c.hidden_size, use_bias=c.attention_bias, name="linear2")(x)


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Dai et al. 2019, arXiv 1901.02860, section 3.3)."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Attends to the frames in `mask`."""
        c = self.config
        batch, time, d = x.shape
        heads, size = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        q, k, v = (
            nn.Dense(d, use_bias=c.attention_bias, name=f"{name}_proj")(x).reshape(batch, time, heads, size)
            for name in "qkv"
        )
        normal = nn.initializers.normal(0.02)
        content = self.param("bias_u", normal, (heads, size))
        position = self.param("bias_v", normal, (heads, size))
        # One for all rows, unless something that is put here makes one for each.
        relative = nn.Dense(d, use_bias=False, name="relative_k_proj")(jnp.asarray(_positions(time, d))[None])
        relative = relative.reshape(relative.shape[0], -1, heads, size)
        by_content = jnp.einsum("bqhk,bthk->bhqt", q + content[None, None], k)
        if relative.shape[0] == 1:
            by_position = jnp.einsum("bqhk,phk->bhqp", q + position[None, None], relative[0])
        else:
            by_position = jnp.einsum("bqhk,bphk->bhqp", q + position[None, None], relative)
        scores = (by_content + _shift(by_position)) * size**-0.5
        # A row without frames (an empty utterance) attends evenly to nothing of worth instead of becoming NaN.
        weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -1e30), axis=-1)
        y = jnp.einsum("bhqt,bthk->bqhk", weights, v).reshape(batch, time, d)
        return nn.Dense(d, use_bias=c.attention_bias, name="o_proj")(y)


def _positions(time: int, width: int) -> np.ndarray:
    """Sines and cosines of the distances T - 1 down to 1 - T, float32 [2T - 1, D], in turns."""
    distance = np.arange(time - 1, -time, -1, dtype=np.float32)[:, None]
    angles = distance * (1.0 / 10_000.0 ** (np.arange(0, width, 2, dtype=np.float32) / width))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(2 * time - 1, width).astype(np.float32)


def _shift(scores: Float[Array, "B H T P"]) -> Float[Array, "B H T T"]:
    """From scores by distance, P = 2T - 1, to scores by frame: entry (q, t) is that of the distance q - t."""
    batch, heads, time, distances = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(batch, heads, distances + 1, time)
    return padded[:, :, 1:].reshape(batch, heads, time, distances)[..., :time]


class Convolution(nn.Module):
    """A gated pointwise convolution, a depthwise one, a norm, SiLU and a pointwise one."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Frames outside `mask` count as zeros."""
        c = self.config
        x = nn.glu(nn.Dense(2 * c.hidden_size, use_bias=c.convolution_bias, name="pointwise_conv1")(x))
        x = jnp.where(mask[:, :, None], x, 0.0)
        x = DepthwiseConv1d(c.conv_kernel_size, c.convolution_bias, name="depthwise_conv")(x)
        x = FrozenBatchNorm(name="norm")(x) if c.conv_norm == "batch" else _norm("norm")(x)
        return nn.Dense(c.hidden_size, use_bias=c.convolution_bias, name="pointwise_conv2")(nn.silu(x))


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=_EPSILON, name=name)


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Frames outside `mask` are padding."""
        c = self.config
        x = x + 0.5 * FeedForward(c, name="feed_forward1")(_norm("norm_feed_forward1")(x))
        x = x + RelativeAttention(c, name="self_attn")(_norm("norm_self_att")(x), mask)
        x = x + Convolution(c, name="conv")(_norm("norm_conv")(x), mask)
        x = x + 0.5 * FeedForward(c, name="feed_forward2")(_norm("norm_feed_forward2")(x))
        return _norm("norm_out")(x)


class ConformerEncoder(nn.Module):
    """Subsampling and layers."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"], frames: Int[Array, "B"]) -> Float[Array, "B T2 D"]:
        """The encoder's result; frames after a row's own are without meaning."""
        c = self.config
        x = Subsampling(c, name="subsampling")(mel, frames)
        if c.scale_input:
            x = x * math.sqrt(c.hidden_size)
        mask = jnp.arange(x.shape[1])[None, :] < c.frames(frames)[:, None]
        for layer in range(c.num_hidden_layers):
            x = ConformerLayer(c, name=f"layers_{layer}")(x, mask)
        return x


class CTCModel(nn.Module):
    """An encoder with one dense layer to the logits of tokens and blank."""

    config: ConformerConfig
    vocab_size: int
    """With the blank."""

    def setup(self):
        self.encoder = ConformerEncoder(self.config)
        self.ctc_head = nn.Dense(self.vocab_size)

    def encode(self, mel: Float[Array, "B T M"], frames: Int[Array, "B"]) -> Float[Array, "B T2 D"]:
        """See `ConformerEncoder`."""
        return self.encoder(mel, frames)

    def __call__(self, mel: Float[Array, "B T M"], frames: Int[Array, "B"]) -> Float[Array, "B T2 V"]:
        """Logits of each frame of the encoder."""
        return self.ctc_head(self.encoder(mel, frames))
