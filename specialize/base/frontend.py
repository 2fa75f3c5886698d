"""Log-mel features as Whisper's, in JAX, computed for each row from its own samples alone."""

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
