"""Parity with Hugging Face transformers on tiny random Parakeets: CTC, RNN-T and TDT."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from specialize.base import Base, Batch, ConformerCTC, ConformerTransducer, import_base
from specialize.errors import BaseModelError

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'torch'")
if not hasattr(transformers, "ParakeetForCTC"):
    pytest.skip("needs a transformers with Parakeet", allow_module_level=True)

KINDS = [kind for kind in ("CTC", "RNNT", "TDT") if hasattr(transformers, f"ParakeetFor{kind}")]
VOCABULARY = 24
BLANK = {"RNNT": 8.0, "TDT": 1.0}
"""Advantage of the blank in the random transducers, which would write for ever otherwise."""


def definition() -> str:
    """A tokenizer of pieces with a mark for a space, as Parakeet's, whose last id is the blank."""
    pieces = ["<unk>", "\u2581", *"abcdefghijklmnopqrstu", "<blank>"]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()  # type: ignore[assignment]
    made.decoder = tokenizers.decoders.Metaspace()  # type: ignore[assignment]
    made.add_special_tokens(["<unk>", "<blank>"])
    return made.to_str()


def model_of(kind: str, layers: int = 2) -> Any:
    """A random model of transformers whose parameters all matter."""
    encoder = transformers.ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        conv_kernel_size=5,
        subsampling_conv_channels=8,
        num_mel_bins=80,
    )
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": VOCABULARY - 1}
    if kind != "CTC":
        sizes |= {"blank_token_id": VOCABULARY - 1, "pad_token_id": 0}
        sizes |= {"decoder_hidden_size": 20, "num_decoder_layers": 2, "decoder_start_token_id": VOCABULARY - 1}
    config = getattr(transformers, f"Parakeet{kind}Config")(encoder_config=encoder.to_dict(), **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"ParakeetFor{kind}")(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
        for name, value in model.state_dict().items():
            # Otherwise the texts would say nothing about the audio.
            if "subsampling" in name or "feed_forward" in name or name == "decoder.embedding.weight":
                value.mul_(3.0)
            elif name in ("ctc_head.weight", "joint.head.weight"):
                value.mul_(10.0)
        # What is the same in all frames is taken away.
        theirs = heard(speech())
        encoded = model.encoder(theirs.input_features, theirs.attention_mask).last_hidden_state.mean((0, 1))
        if kind == "CTC":
            model.ctc_head.bias.copy_(-model.ctc_head.weight[:, :, 0] @ encoded)
        else:
            model.encoder_projector.weight.mul_(3.0)
            model.encoder_projector.bias.copy_(-model.encoder_projector.weight @ encoded)
            model.joint.head.bias.zero_()
            model.joint.head.bias[VOCABULARY - 1] = BLANK[kind]
    return model


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> tuple[Any, Base]:
    """A random model, and the base imported from it."""
    model = model_of(request.param)
    folder = tmp_path_factory.mktemp("parakeet") / "hf"
    model.save_pretrained(folder)
    transformers.ParakeetFeatureExtractor().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(definition())
    return model, import_base(folder, folder.parent / "base")


@pytest.fixture(scope="module")
def spoken() -> tuple[np.ndarray, np.ndarray]:
    return speech()


def speech() -> tuple[np.ndarray, np.ndarray]:
    """Noise that swells and fades, and its lengths."""
    rng = np.random.default_rng(0)
    samples = np.array([32_000, 20_001, 25_119], np.int32)
    audio = rng.standard_normal((3, 32_000)) * np.sin(np.outer([1, 2, 3], 1e-4 * np.arange(32_000)))
    return np.where(np.arange(32_000) < samples[:, None], audio, 0.0).astype(np.float32), samples


def heard(spoken: tuple[np.ndarray, np.ndarray]) -> Any:
    """Features and mask of transformers."""
    clips = [row[:n] for row, n in zip(*spoken, strict=True)]
    extractor = transformers.ParakeetFeatureExtractor()
    return extractor(clips, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)


def test_features(pair, spoken):
    _, base = pair
    theirs = heard(spoken)
    ours, frames = jax.jit(base.architecture.features)(*spoken)
    np.testing.assert_array_equal(frames, theirs.attention_mask.sum(1).numpy())
    for row, n in enumerate(np.asarray(frames)):
        np.testing.assert_allclose(ours[row, :n], theirs.input_features[row, :n].numpy(), atol=2e-4)


def test_encoder_with_padding(pair, spoken):
    model, base = pair
    theirs = heard(spoken)
    with torch.no_grad():
        output = model.encoder(input_features=theirs.input_features, attention_mask=theirs.attention_mask)
        encoded = output.last_hidden_state
        if isinstance(base.architecture, ConformerTransducer):
            encoded = model.encoder_projector(encoded)
    ours = np.asarray(jax.jit(base.architecture.encode)(base.params, *spoken))
    frames = np.asarray(base.architecture.frames(jnp.asarray(spoken[1])))
    assert len(set(frames.tolist())) == 3
    assert encoded.std() > 0.1
    for row, n in enumerate(frames):
        np.testing.assert_allclose(ours[row, :n], encoded[row, :n].numpy(), atol=1e-4)


def test_logits_and_loss(pair, spoken):
    model, base = pair
    texts = [base.tokenizer.encode(text) for text in ("a bed dab", "bee", "ink in fog")]
    assert [base.tokenizer.decode(ids) for ids in texts] == ["a bed dab", "bee", "ink in fog"]
    lengths = np.array([len(ids) for ids in texts], np.int32)
    labels = np.full((3, lengths.max()), base.tokenizer.end, np.int32)
    for row, ids in enumerate(texts):
        labels[row, : len(ids)] = ids
    theirs, frames = heard(spoken), np.asarray(base.architecture.frames(jnp.asarray(spoken[1])))
    inputs = {"input_features": theirs.input_features, "attention_mask": theirs.attention_mask}
    losses = jax.jit(base.architecture.losses)(base.params, Batch(spoken[0], spoken[1], labels, lengths))
    np.testing.assert_array_equal(losses.count, lengths)
    if isinstance(base.architecture, ConformerCTC):
        with torch.no_grad():
            logits = model(**inputs).logits
        ours = np.asarray(jax.jit(base.architecture.logits)(base.params, *spoken))
        log_probs = torch.log_softmax(logits, -1).transpose(0, 1)
        criterion = torch.nn.CTCLoss(blank=base.tokenizer.end, reduction="none")
        targets = (torch.tensor(array) for array in (labels, frames, lengths))
        expected = criterion(log_probs, *targets)
        np.testing.assert_allclose(losses.total, expected.numpy(), rtol=1e-4)
    else:
        begun = np.pad(labels, ((0, 0), (1, 0)), constant_values=base.tokenizer.end)
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=torch.tensor(begun).long()).logits
        ours = np.asarray(jax.jit(base.architecture.logits)(base.params, *spoken, labels))
    for row, (n, u) in enumerate(zip(frames, lengths, strict=True)):
        where = (row, slice(n)) if ours.ndim == 3 else (row, slice(n), slice(u + 1))
        np.testing.assert_allclose(ours[where], logits[where].numpy(), atol=1e-4)


def test_greedy_texts(pair, spoken):
    model, base = pair
    decode = jax.jit(lambda p, a, n: base.architecture.decode(p, a, n, max_tokens=300).ids)
    ours = np.asarray(decode(base.params, *spoken)).tolist()
    assert len({tuple(row) for row in ours}) == 3, "texts that say nothing about the audio"
    markup = (base.tokenizer.end, model.config.pad_token_id)
    for row, (audio, n) in enumerate(zip(*spoken, strict=True)):
        # One at a time: in a batch, a transducer of transformers goes on writing when its row is at its end.
        theirs = heard((audio[None, :n], spoken[1][row : row + 1]))
        with torch.no_grad():
            most = {} if isinstance(base.architecture, ConformerCTC) else {"max_new_tokens": 300}
            generated = model.generate(theirs.input_features, attention_mask=theirs.attention_mask, **most)
        expected = getattr(generated, "sequences", generated)[0].tolist()
        if isinstance(base.architecture, ConformerCTC):
            expected = [token for at, token in enumerate(expected) if at == 0 or token != expected[at - 1]]
        expected = [token for token in expected if token not in markup]
        assert len(expected) > 2
        assert [token for token in ours[row] if token not in markup] == expected


def test_a_front_end_or_an_activation_that_is_not_implemented_is_refused(pair, tmp_path):
    model, _ = pair
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(definition())
    transformers.ParakeetFeatureExtractor(hop_length=200).save_pretrained(folder)
    with pytest.raises(BaseModelError, match="hop_length=200"):
        import_base(folder, tmp_path / "base")
    transformers.ParakeetFeatureExtractor().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["encoder_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="gelu"):
        import_base(folder, tmp_path / "base")
