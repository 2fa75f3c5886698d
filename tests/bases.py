"""Tiny bases with random parameters, and batches of noise, for tests."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tokenizers

from specialize.base import (
    Base,
    Batch,
    ConformerConfig,
    Tokenizer,
    TransducerConfig,
    Whisper,
    WhisperConfig,
    character_tokenizer,
    conformer,
)

START, END, QUIET = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"


def byte_tokenizer() -> tuple[str, dict[str, int]]:
    """A tokenizer with a token for each byte and three of markup: its definition, and the ids of the markup."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([START, END, QUIET])
    data = json.loads(made.to_str())
    return made.to_str(), {token["content"]: token["id"] for token in data["added_tokens"]}


@functools.cache
def tiny_whisper(width: int = 16, layers: int = 1, seed: int = 0) -> Base:
    """A Whisper of `layers` encoder and decoder layers that hears up to 5 s."""
    definition, ids = byte_tokenizer()
    config = WhisperConfig(
        vocab_size=264,
        d_model=width,
        num_mel_bins=20,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_source_positions=250,
        max_target_positions=64,
    )
    architecture = Whisper(config, prompt=(ids[START], ids[QUIET]), end=ids[END], suppress=(5, 6, *range(259, 264)))
    params = jax.tree.map(np.asarray, architecture.init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    # Biases start at zero and scales at one; noise on everything makes every parameter matter.
    params = jax.tree.map(lambda p: (p + 0.05 * rng.standard_normal(p.shape)).astype(np.float32), params)
    return Base.make(architecture, params, Tokenizer(definition, ids[END]))


@functools.cache
def talking_whisper(seed: int = 9) -> Base:
    """A tiny Whisper whose texts differ with the audio and from token to token, and end at different places.

    A random one says the same whatever it hears. The tokens that this one suppresses would often win.
    """
    base = tiny_whisper(seed=seed)
    architecture = dataclasses.replace(whisper_of(base), begin_suppress=tuple(range(10, 40)))
    params = jax.tree.map(np.copy, base.params)
    decoder = params["decoder"]
    rng = np.random.default_rng(seed)
    decoder["embed_positions"] = rng.standard_normal(decoder["embed_positions"].shape).astype(np.float32)
    for layer in (decoder[name] for name in decoder if name.startswith("layers_")):
        layer["encoder_attn"]["q_proj"]["kernel"] *= 10.0
        layer["encoder_attn"]["out_proj"]["kernel"] *= 5.0
    decoder["layer_norm"]["bias"][:] = 0.0
    embedding = decoder["embed_tokens"]["embedding"]
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    embedding[list(architecture.suppress)] *= 4.0
    embedding[base.tokenizer.end] *= 4.0
    return Base.make(architecture, params, base.tokenizer)


ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"


def tiny_conformer_ctc(width: int = 16, layers: int = 1, seed: int = 0) -> Base:
    """A Conformer of `layers` layers with CTC over letters that hears up to 5 s."""
    return _tiny_conformer("ctc", width, layers, seed)


def tiny_conformer_transducer(width: int = 16, layers: int = 1, seed: int = 0) -> Base:
    """The same with a transducer."""
    return _tiny_conformer("transducer", width, layers, seed)


def tiny_parakeet_tdt(width: int = 16, layers: int = 1, seed: int = 0) -> Base:
    """A Conformer in the form of the imported ones: batch norms, and a transducer with durations."""
    return _tiny_conformer("transducer", width, layers, seed, "batch", (0, 1, 2))


@functools.cache
def _tiny_conformer(
    head: Literal["ctc", "transducer"],
    width: int,
    layers: int,
    seed: int,
    conv_norm: Literal["batch", "layer"] = "layer",
    durations: tuple[int, ...] = (),
) -> Base:
    config = ConformerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        conv_kernel_size=5,
        num_mel_bins=16,
        subsampling_factor=4,
        subsampling_conv_channels=4,
        conv_norm=conv_norm,
    )
    tokenizer = character_tokenizer(ALPHABET)
    transducer = TransducerConfig(width, 1, durations=durations)
    architecture = conformer(config, tokenizer, head=head, transducer=transducer)
    architecture = dataclasses.replace(architecture, max_seconds=5.0)
    params = jax.tree.map(np.asarray, architecture.init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: (p + 0.05 * rng.standard_normal(p.shape)).astype(np.float32), params)
    return Base.make(architecture, params, tokenizer)


@functools.cache
def talking_conformer_ctc(seed: int = 11) -> Base:
    """A tiny Conformer whose texts differ with the audio and from frame to frame."""
    base = tiny_conformer_ctc(seed=seed)
    params = jax.tree.map(np.copy, base.params)
    rng = np.random.default_rng(seed)
    _shout(params, rng)
    head = params["ctc_head"]
    head["kernel"][:] = rng.standard_normal(head["kernel"].shape)
    head["bias"][:] = 0.0
    return Base.make(base.architecture, params, base.tokenizer)


@functools.cache
def talking_conformer_transducer(seed: int = 13) -> Base:
    """The same with a transducer, whose texts depend on what it has written too."""
    base = tiny_conformer_transducer(seed=seed)
    params = jax.tree.map(np.copy, base.params)
    rng = np.random.default_rng(seed)
    _shout(params, rng)
    params["decoder"]["embedding"]["embedding"] *= 5.0
    params["decoder"]["decoder_projector"]["kernel"] *= 5.0
    head = params["joint"]["head"]
    head["kernel"][:] = rng.standard_normal(head["kernel"].shape)
    head["bias"][:] = 0.0
    head["bias"][base.tokenizer.end] = 9.0
    return Base.make(base.architecture, params, base.tokenizer)


def _shout(params: Any, rng: np.random.Generator) -> None:
    """Makes an encoder's result differ much from frame to frame."""
    for name in ("layers_0", "layers_2", "layers_3", "linear"):
        kernel = params["encoder"]["subsampling"][name]["kernel"]
        kernel[:] = rng.standard_normal(kernel.shape)
    layer = params["encoder"]["layers_0"]
    for name, strength in (("linear1", 1.0), ("linear2", 3.0)):
        for half in ("feed_forward1", "feed_forward2"):
            kernel = layer[half][name]["kernel"]
            kernel[:] = strength * rng.standard_normal(kernel.shape)


def whisper_of(base: Base) -> Whisper:
    """The architecture of a base that is a Whisper."""
    assert isinstance(base.architecture, Whisper)
    return base.architecture


BASES: dict[str, Callable[..., Base]] = {
    "whisper": tiny_whisper,
    "conformer-ctc": tiny_conformer_ctc,
    "conformer-transducer": tiny_conformer_transducer,
}
"""Every architecture, for tests of what all must do."""


TALKING: dict[str, Callable[[], Base]] = {
    "whisper": talking_whisper,
    "conformer-ctc": talking_conformer_ctc,
    "conformer-transducer": talking_conformer_transducer,
}
"""Every architecture, with parameters that make decoding worth a test."""


def random_batch(base: Base, rows: int = 3, seconds: float = 1.0, labels: int = 8, seed: int = 0) -> Batch:
    """Noise of different lengths, the first row the longest, with random texts."""
    rng = np.random.default_rng(seed)
    n = int(seconds * base.architecture.sample_rate)
    samples = np.array([n - row * n // (2 * rows) for row in range(rows)], np.int32)
    lengths = np.array([labels - row * labels // (2 * rows) for row in range(rows)], np.int32)
    audio = 0.1 * rng.standard_normal((rows, n)).astype(np.float32)
    plain = base.tokenizer.style == "plain"
    texts = rng.integers(0 if plain else 10, base.tokenizer.end if plain else 200, (rows, labels)).astype(np.int32)
    batch = Batch(audio, samples, texts, lengths)
    for row in range(rows):
        audio[row, samples[row] :] = 0.0
        if not plain:
            texts[row, lengths[row] - 1] = base.tokenizer.end
        texts[row, lengths[row] :] = 0
    return batch


def random_speech(base: Base, rows: int = 4, seconds: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise that swells and fades at another pace in each row, [B, N], and the samples of each row."""
    batch = random_batch(base, rows, seconds, seed=seed)
    pace = 1e-4 * np.arange(1, rows + 1)[:, None]
    audio = batch.audio * np.sin(pace * np.arange(batch.audio.shape[1])).astype(np.float32)
    return audio, batch.samples
