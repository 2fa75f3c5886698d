"""Log-mel features as Whisper's and as Parakeet's, in JAX, computed for each row from its own samples alone."""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class LogMel:
    """Log-mel spectrogram of Radford et al. 2022 (arXiv 2212.04356), as `WhisperFeatureExtractor` computes it."""

    mels: int = 80
    """M, mel bands."""
    sample_rate: int = 16_000
    """Hz."""
    window: int = 400
    """Samples of a periodic Hann window, 25 ms; also the length of the FFT."""
    hop: int = 160
    """Samples between frames, 10 ms."""

    def frames(self, samples: Int[Array, "B"]) -> Int[Array, "B"]:
        """How many frames an utterance has: one for each begun hop, made even for the encoder's stride of 2."""
        return -(-samples // (2 * self.hop)) * 2

    def __call__(
        self, audio: Float[Array, "B N"], samples: Int[Array, "B"], *, window_is_full: bool = False
    ) -> Float[Array, "B T M"]:
        """Features of T = N / hop frames; those after a row's own frames are zero.

        Args:
            audio: samples in [-1, 1]; N is a multiple of 2 · hop. What comes after a row's `samples` is not read.
            samples: valid samples of each row.
            window_is_full: the array is the whole 30 s window of the reference, which mirrors the audio at its end.
                Otherwise silence follows the array.
        """
        n = audio.shape[1]
        if n % (2 * self.hop):
            raise ValueError(f"{n} samples are not a multiple of {2 * self.hop}.")
        half = self.window // 2
        valid = jnp.arange(n)[None, :] < samples[:, None]
        audio = jnp.where(valid, audio, 0.0)
        left = jnp.flip(audio[:, 1 : half + 1], axis=1)
        right = jnp.flip(audio[:, -half - 1 : -1], axis=1) if window_is_full else jnp.zeros_like(audio[:, :half])
        padded = jnp.concatenate([left, audio, right], axis=1)
        frames = n // self.hop
        starts = np.arange(frames)[:, None] * self.hop + np.arange(self.window)[None, :]
        hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / self.window)
        spectrum = jnp.fft.rfft(padded[:, starts] * hann.astype(np.float32)[None, None, :], axis=-1)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        log = jnp.log10(jnp.maximum(power @ _mel_filters(self.mels, self.window, self.sample_rate), 1e-10))
        inside = self.mask(samples, frames)[:, :, None]
        loudest = jnp.max(jnp.where(inside, log, -jnp.inf), axis=(1, 2), keepdims=True)
        loudest = jnp.where(jnp.isfinite(loudest), loudest, 0.0)
        return jnp.where(inside, (jnp.maximum(log, loudest - 8.0) + 4.0) / 4.0, 0.0)

    def mask(self, samples: Int[Array, "B"], frames: int) -> Bool[Array, "B T"]:
        """Which of `frames` frames belong to each row."""
        return jnp.arange(frames)[None, :] < self.frames(samples)[:, None]


@dataclass(frozen=True)
class ParakeetMel:
    """Log-mel spectrogram of NVIDIA's Parakeet, as `ParakeetFeatureExtractor` computes it.

    Pre-emphasis, and each mel band brought to mean 0 and deviation 1 over the utterance.
    """

    mels: int = 80
    """M, mel bands."""
    sample_rate: int = 16_000
    """Hz."""
    window: int = 400
    """Samples of a symmetric Hann window, 25 ms, in the middle of the FFT."""
    fft: int = 512
    """Length of the FFT."""
    hop: int = 160
    """Samples between frames, 10 ms."""
    preemphasis: float = 0.97
    """Share of the sample before that is taken away."""

    def frames(self, samples: Int[Array, "B"]) -> Int[Array, "B"]:
        """How many frames an utterance has: one for each whole hop."""
        return samples // self.hop

    def __call__(self, audio: Float[Array, "B N"], samples: Int[Array, "B"]) -> Float[Array, "B T M"]:
        """Features of T = N / hop frames, rounded down; those after a row's own frames are zero.

        Args:
            audio: samples in [-1, 1]. What comes after a row's `samples` is not read.
            samples: valid samples of each row.
        """
        n = audio.shape[1]
        valid = jnp.arange(n)[None, :] < samples[:, None]
        audio = jnp.where(valid, audio, 0.0)
        audio = jnp.where(valid, audio.at[:, 1:].add(-self.preemphasis * audio[:, :-1]), 0.0)
        # The window lies in the middle of an FFT that is centred on the frame; what is beside it counts as zero.
        half, frames = self.window // 2, n // self.hop
        padded = jnp.pad(audio, ((0, 0), (half, half)))
        starts = np.arange(frames)[:, None] * self.hop + np.arange(self.window)[None, :]
        hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / (self.window - 1))
        spectrum = jnp.fft.rfft(padded[:, starts] * hann.astype(np.float32)[None, None, :], n=self.fft, axis=-1)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        log = jnp.log(power @ _mel_filters(self.mels, self.fft, self.sample_rate) + 2.0**-24)
        own = self.frames(samples)
        inside = (jnp.arange(frames)[None, :] < own[:, None])[:, :, None]
        count = own[:, None, None].astype(jnp.float32)
        mean = jnp.sum(jnp.where(inside, log, 0.0), axis=1, keepdims=True) / jnp.maximum(count, 1.0)
        squares = jnp.sum(jnp.where(inside, jnp.square(log - mean), 0.0), axis=1, keepdims=True)
        deviation = jnp.sqrt(squares / jnp.maximum(count - 1.0, 1.0))
        return jnp.where(inside, (log - mean) / (deviation + 1e-5), 0.0)


@functools.cache
def _mel_filters(mels: int, window: int, sample_rate: int) -> np.ndarray:
    """Triangular filters of equal area on Slaney's mel scale, float32 [window / 2 + 1, M]."""
    linear, step = 3.0 / 200.0, np.log(6.4) / 27.0

    def to_mel(hz):
        return np.where(hz < 1000.0, hz * linear, 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) / step)

    def to_hz(mel):
        return np.where(mel < 15.0, mel / linear, 1000.0 * np.exp(step * (mel - 15.0)))

    edges = to_hz(np.linspace(to_mel(np.float64(0.0)), to_mel(np.float64(sample_rate / 2)), mels + 2))
    bins = np.linspace(0.0, sample_rate / 2, window // 2 + 1)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None, :]
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])[None, :]
    return (np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[None, :]).astype(np.float32)
