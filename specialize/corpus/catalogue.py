"""Data sets of the TFDS catalogue as corpora: audio, text and a speaker, whatever they are called there.

Reading them needs TensorFlow (extra `tf`); once they are in the cache, nothing does.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import tensorflow_datasets as tfds

from specialize.corpus.manifest import Row
from specialize.errors import CorpusError

_PREFIX = "tfds:"
_AUDIO = ("audio", "speech", "voice")
_TEXT = ("text", "transcription", "transcript", "sentence", "normalized_text", "text_normalized", "text_original")
_SPEAKER = ("speaker_id", "speaker", "client_id", "speaker_name", "speaker_code")
_UTTERANCE = ("id", "utterance_id", "audio/filename", "path", "file_name", "filename")
_SPEAKER_IN = {"spoken_digit": ("audio/filename", re.compile(r"\d+_(.+)_\d+\.wav"))}
"""Data sets that have the speaker in another field only: the field, and what finds the speaker in it."""
_TEXT_IN = {"spoken_digit": "label"}
"""Data sets whose labels are what is said. Elsewhere a label is an emotion, an accent or an illness."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def catalogue_name(manifest: Path | str) -> str | None:
    """`spoken_digit` of `tfds:spoken_digit`; None for a file."""
    text = str(manifest)
    return text.removeprefix(_PREFIX) if text.startswith(_PREFIX) else None


def catalogue_examples(name: str, sample_rate: int) -> Iterator[tuple[Row, Any]]:
    """The utterances of a data set of the catalogue, in the order of its splits.

    spoken_digit has its speakers in the names of its files, and labels for text, which are written as words.
    Splits whose names begin with train, dev, valid or test are named so; the only split of a data set is not named, so
    that each of its speakers is split by itself. What else is a number or a text in an example is an attribute.

    Args:
        name: as `tfds.builder` takes it: `librispeech`, `spoken_digit`, `vctk`.
        sample_rate: wanted, in Hz.

    Raises:
        CorpusError: TensorFlow is missing, there is no such data set, it cannot be had, or it lacks audio, text or a
            speaker.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise CorpusError(
            f"'{_PREFIX}{name}' is read with TensorFlow, which is not installed. Run `pip install 'specialize[tf]'`."
        )
    try:
        builder: Any = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:  # unknown names, no network and no space have no common type
        raise CorpusError(f"The catalogue does not give '{name}': {type(error).__name__}: {error}") from error
    features = builder.info.features
    audio = _field(name, features, _AUDIO)
    text = _TEXT_IN.get(builder.name) or _field(name, features, _TEXT)
    speaker, pattern = _SPEAKER_IN.get(builder.name) or (_field(name, features, _SPEAKER), None)
    utterance = next((field for field in _UTTERANCE if field in features), None)
    rate = features[audio].sample_rate
    if not rate:
        raise CorpusError(f"'{name}' does not say at which rate its audio was sampled.")
    line = 0
    for split in builder.info.splits:
        role = _split(split) if len(builder.info.splits) > 1 else None
        for number, example in enumerate(tfds.as_numpy(builder.as_dataset(split=split))):
            line += 1
            written = _text(features[text], example[text])
            spelled = _DIGITS[int(written)] if re.fullmatch(r"\d", written) else written
            id_ = _text(features[utterance], example[utterance]) if utterance is not None else f"{split}-{number:06d}"
            who = _text(features[speaker], example[speaker])
            if pattern is not None:
                who = found.group(1) if (found := pattern.fullmatch(who)) else ""
            row = Row(
                line=line,
                utterance=id_,
                speaker=who,
                audio=Path(f"{_PREFIX}{name}") / split / id_,
                text=spelled,
                split=role,
                role=None,
                attributes={
                    field: value
                    for field in features
                    if field not in (audio, text, speaker, utterance) and (value := _scalar(features, field, example))
                },
            )
            if not who or not spelled.strip():
                yield row, "It has no text." if who else "It has no speaker."
            else:
                yield row, _samples(example[audio], rate, sample_rate)


def _field(name: str, features: Any, names: tuple[str, ...]) -> str:
    for field in names:
        if field in features:
            return field
    raise CorpusError(
        f"'{name}' is no corpus of speech with speakers: it has none of {', '.join(names)}. It has: "
        f"{', '.join(features)}."
    )


def _split(name: str) -> str | None:
    for start, split in (("train", "train"), ("dev", "dev"), ("valid", "dev"), ("test", "test")):
        if name.startswith(start):
            return split
    return None


def _text(feature: Any, value: Any) -> str:
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _scalar(features: Any, field: str, example: Any) -> Any:
    value = example[field]
    if hasattr(features[field], "int2str"):
        return features[field].int2str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if np.ndim(value) == 0 and not isinstance(value, dict) else None


def _samples(audio: np.ndarray, rate: int, wanted: int) -> Any:
    """float32 [N], or why not."""
    if audio.size == 0:
        return "It has no samples."
    samples = audio.astype(np.float32)
    if np.issubdtype(audio.dtype, np.integer):  # of 16 bits, whatever the type
        if np.abs(audio.astype(np.int64)).max() > 32768:
            return "Its samples are of more than 16 bits."
        samples /= 32768.0
    if samples.ndim > 1:
        samples = samples.mean(axis=-1)
    if not np.isfinite(samples).all():
        return "It has samples that are not finite."
    return soxr.resample(samples, rate, wanted) if rate != wanted else samples
