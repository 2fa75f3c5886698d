"""Audio files of any format that libsndfile reads, as mono samples at a wanted rate."""

from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from specialize.errors import CorpusError


def read_audio(path: Path | str, sample_rate: int) -> Float[np.ndarray, "N"]:
    """Reads a file, averages its channels and resamples it.

    Args:
        path: any format that libsndfile knows.
        sample_rate: wanted, in Hz.

    Returns:
        float32 [N]; nominally in [-1, 1].

    Raises:
        CorpusError: the file cannot be read, has no samples, or has samples that are not finite.
    """
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError) as error:
        raise CorpusError(f"'{path}' cannot be read as audio: {error}") from error
    if samples.shape[0] == 0:
        raise CorpusError(f"'{path}' has no samples.")
    if not np.isfinite(samples).all():
        raise CorpusError(f"'{path}' has samples that are not finite.")
    mono = samples.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
        if mono.size == 0:
            raise CorpusError(f"'{path}' is shorter than one sample at {sample_rate} Hz.")
    return np.ascontiguousarray(mono, np.float32)
