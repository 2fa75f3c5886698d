"""The real Whisper tiny.en gives what the reference implementation gave on real recordings."""

import json

import jax
import numpy as np
import pytest

from specialize.base import Batch, sentence_case
from specialize.corpus import read_audio


@pytest.fixture(scope="module")
def reference(shared) -> list[dict]:
    return json.loads((shared / "models/whisper-tiny.en/parity.json").read_text())["utterances"]


@pytest.fixture(scope="module")
def spoken(shared, reference) -> tuple[np.ndarray, np.ndarray]:
    """Audio [B, N] and its lengths."""
    clips = [read_audio(shared / "corpora/speechocean762" / u["audio"], 16_000) for u in reference]
    samples = np.array([len(clip) for clip in clips], np.int32)
    audio = np.zeros((len(clips), samples.max()), np.float32)
    for row, clip in enumerate(clips):
        audio[row, : len(clip)] = clip
    return audio, samples


@pytest.fixture(scope="module")
def architecture(whisper):
    return whisper.with_context("full").architecture


def test_features(architecture, reference, spoken):
    mel, frames = jax.jit(architecture.features)(*spoken)
    assert (np.asarray(frames) == 3000).all()
    for row, u in enumerate(reference):
        np.testing.assert_allclose(mel[row][np.array([0, 100]), :4], u["log_mel_frames_0_100"], atol=1e-4)


def test_encoder(whisper, architecture, reference, spoken):
    encoded = jax.jit(architecture.encode)(whisper.params, *spoken)
    for row, u in enumerate(reference):
        np.testing.assert_allclose(encoded[row][np.array([0, 50]), :8], u["encoder_frames_0_50_first_8"], atol=1e-4)


def test_greedy_texts(whisper, architecture, reference, spoken):
    decode = jax.jit(lambda p, a, n: architecture.decode(p, a, n, max_tokens=48))
    found = decode(whisper.params, *spoken)
    assert ((np.asarray(found.no_speech) > 0) & (np.asarray(found.no_speech) < 0.5)).all()
    for ids, u in zip(np.asarray(found.ids).tolist(), reference, strict=True):
        assert whisper.tokenizer.decode(ids) == u["greedy_text"]
        expected = [token for token in u["greedy_ids"] if token not in (*architecture.prompt, architecture.end)]
        assert ids[: len(expected)] == expected
        assert ids[len(expected)] == architecture.end


def test_labels_and_cross_entropy(whisper, architecture, reference, spoken):
    encoded = [whisper.tokenizer.encode(sentence_case(u["reference"])) for u in reference]
    for labels, u in zip(encoded, reference, strict=True):
        assert [*architecture.prompt, *labels] == u["labels"]
    lengths = np.array([len(labels) for labels in encoded], np.int32)
    padded = np.zeros((len(encoded), lengths.max()), np.int32)
    for row, labels in enumerate(encoded):
        padded[row, : len(labels)] = labels
    losses = jax.jit(architecture.losses)(whisper.params, Batch(spoken[0], spoken[1], padded, lengths))
    expected = [u["cross_entropy_after_prompt"] for u in reference]
    np.testing.assert_allclose(losses.total / losses.count, expected, rtol=1e-4)
