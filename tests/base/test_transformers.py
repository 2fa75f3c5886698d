"""Parity with Hugging Face transformers on tiny random Whispers, English-only and multilingual, 80 and 128 mels."""

from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import Batch, import_base
from tests.bases import END, QUIET, START, byte_tokenizer, whisper_of

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'torch'")


@pytest.fixture(scope="module", params=[(80, False), (128, True)], ids=["english", "multilingual"])
def pair(request, tmp_path_factory):
    """A random model of transformers, and the base imported from it."""
    mels, multilingual = request.param
    definition, ids = byte_tokenizer()
    config = transformers.WhisperConfig(
        vocab_size=264,
        num_mel_bins=mels,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=64,
        decoder_start_token_id=ids[START],
        bos_token_id=ids[END],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
        dropout=0.0,
        init_std=0.1,
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        # Otherwise the tied embedding repeats the last token for ever, whatever was heard.
        model.model.decoder.embed_positions.weight.mul_(20.0)
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(10.0)
    settings: dict[str, Any] = {
        "bos_token_id": ids[END],
        "pad_token_id": ids[END],
        "decoder_start_token_id": ids[START],
        "eos_token_id": ids[END],
        "suppress_tokens": [5, 6, *range(259, 264)],
        "begin_suppress_tokens": [7],
        "no_timestamps_token_id": ids[QUIET],
        "is_multilingual": multilingual,
    }
    if multilingual:
        settings |= {"lang_to_id": {"<|en|>": 11, "<|de|>": 12}, "task_to_id": {"transcribe": 13, "translate": 14}}
    model.generation_config = transformers.GenerationConfig(**settings)
    folder = tmp_path_factory.mktemp("whisper") / "hf"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(definition)
    base = import_base(folder, folder.parent / "base").with_context("full")
    assert len(whisper_of(base).prompt) == (4 if multilingual else 2)
    return model, base


@pytest.fixture(scope="module")
def spoken():
    rng = np.random.default_rng(0)
    samples = np.array([32_000, 20_001], np.int32)
    audio = 0.1 * rng.standard_normal((2, 32_000)).astype(np.float32)
    audio[1] = 0.3 * np.sin(0.2 * np.arange(32_000))
    audio[1, 20_001:] = 0.0
    return audio, samples


def features(model, spoken):
    audio, samples = spoken
    extractor = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    clips = [row[:n] for row, n in zip(audio, samples, strict=True)]
    return extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features


def test_features(pair, spoken):
    model, base = pair
    ours, _ = jax.jit(base.architecture.features)(*spoken)
    np.testing.assert_allclose(ours, features(model, spoken).numpy().transpose(0, 2, 1), atol=1e-4)


def test_encoder(pair, spoken):
    model, base = pair
    with torch.no_grad():
        theirs = model.model.encoder(features(model, spoken)).last_hidden_state.numpy()
    np.testing.assert_allclose(jax.jit(base.architecture.encode)(base.params, *spoken), theirs, atol=1e-4)


def test_logits_and_loss(pair, spoken):
    model, base = pair
    prompt = list(base.architecture.prompt)
    texts = [base.tokenizer.encode("one two"), base.tokenizer.encode("three")]
    width = max(map(len, texts))
    labels = np.array([text + [0] * (width - len(text)) for text in texts], np.int32)
    lengths = np.array([len(text) for text in texts], np.int32)
    tokens = np.array([prompt + text for text in labels.tolist()], np.int32)
    with torch.no_grad():
        output = model(input_features=features(model, spoken), decoder_input_ids=torch.tensor(tokens).long())
    ours = jax.jit(base.architecture.logits)(base.params, *spoken, tokens)
    np.testing.assert_allclose(ours, output.logits.numpy(), atol=1e-4)

    log_probabilities = torch.log_softmax(output.logits, -1).numpy()
    losses = jax.jit(base.architecture.losses)(base.params, Batch(spoken[0], spoken[1], labels, lengths))
    for row, text in enumerate(texts):
        at = len(prompt) - 1 + np.arange(len(text))
        assert losses.count[row] == len(text)
        np.testing.assert_allclose(losses.total[row], -log_probabilities[row, at, text].sum(), rtol=1e-4)


def test_greedy_ids(pair, spoken):
    model, base = pair
    architecture = whisper_of(base)
    prompt = list(architecture.prompt)
    decode = jax.jit(lambda p, a, n: architecture.decode(p, a, n, max_tokens=12).ids)
    ours = np.asarray(decode(base.params, *spoken))
    spoken_in = {"language": "en", "task": "transcribe"} if len(prompt) == 4 else {}
    with torch.no_grad():
        generated = model.generate(features(model, spoken), max_new_tokens=12, return_timestamps=False, **spoken_in)
    assert ours[0].tolist() != ours[1].tolist(), "texts that say nothing about the audio"
    assert len(set(ours.flat)) > 4, "texts that say nothing about the decoder"
    for row, theirs in zip(ours.tolist(), generated.tolist(), strict=True):
        # Whether the prompt is part of what comes back differs between versions of transformers.
        theirs = theirs[len(prompt) :] if theirs[: len(prompt)] == prompt else theirs
        assert theirs == row[: len(theirs)]
        assert set(row[len(theirs) :]) <= {architecture.end}
