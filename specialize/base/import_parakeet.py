"""Import of Parakeet checkpoints: FastConformers with CTC, RNN-T or TDT."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specialize.base.checkpoint import fill, read_json, read_tensors
from specialize.base.conformer import ConformerCTC, ConformerTransducer
from specialize.base.conformer_model import ConformerConfig
from specialize.base.folder import Base
from specialize.base.frontend import ParakeetMel
from specialize.base.tokenizer import Tokenizer, read_definition
from specialize.base.transducer_model import TransducerConfig
from specialize.errors import BaseModelError

PARAKEETS = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")
"""Values of `model_type`."""
_FRONT_END = {
    "sampling_rate": "sample_rate",
    "hop_length": "hop",
    "n_fft": "fft",
    "win_length": "window",
    "preemphasis": "preemphasis",
    "feature_size": "mels",
}
"""Fields of `preprocessor_config.json`, and what `ParakeetMel` calls them."""


def import_parakeet(folder: Path, config: dict[str, Any]) -> Base:
    """The base in a checkpoint folder of one of `PARAKEETS`; see `import_base`."""
    encoder = config.get("encoder_config") or {}
    for name, expected, found in (
        ("hidden_act", "silu", encoder.get("hidden_act", "silu")),
        ("hidden_act of the joint", "relu", config.get("hidden_act", "relu")),
    ):
        if found != expected:
            raise BaseModelError(f"'{folder}' uses {name}={found!r}; only {expected} is implemented.")
    # What a config.json leaves out has the default of transformers, which is not always ours.
    sizes = _DEFAULTS | {name: encoder[name] for name in ConformerConfig.__dataclass_fields__ if name in encoder}
    conformer = ConformerConfig(**sizes, conv_norm="batch")
    _check_front_end(folder, conformer)
    vocabulary = config["vocab_size"]
    if config["model_type"] == "parakeet_ctc":
        blank = config.get("pad_token_id", 1024)
        architecture = ConformerCTC(conformer, vocabulary, blank)
    else:
        blank = config.get("blank_token_id", 8192)
        durations = config.get("durations", (0, 1, 2, 3, 4)) if config["model_type"] == "parakeet_tdt" else ()
        start = read_json(folder, "generation_config.json", optional=True).get("decoder_start_token_id", blank)
        if start not in (None, blank):
            raise BaseModelError(f"'{folder}' begins texts with the token {start}; only the blank is implemented.")
        architecture = ConformerTransducer(
            conformer,
            vocabulary,
            blank,
            transducer=TransducerConfig(
                config.get("decoder_hidden_size", 640), config.get("num_decoder_layers", 2), tuple(durations)
            ),
            max_symbols=config.get("max_symbols_per_step", 10),
        )
    shapes = jax.eval_shape(architecture.init, jax.random.key(0))
    tensors = read_tensors(folder)
    for name in [name for name in tensors if ".lstm.bias_ih_" in name]:
        # PyTorch adds two biases to the same gates.
        other = name.replace("_ih_", "_hh_")
        if other in tensors:
            tensors[name.replace("_ih_", "_")] = tensors.pop(name) + tensors.pop(other)
    params = fill(shapes, tensors, parakeet_tensor, folder, ignored=("num_batches_tracked",))
    return Base.make(architecture, params, Tokenizer(read_definition(folder), blank, "plain"))


_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "intermediate_size": 4096,
    "subsampling_conv_channels": 256,
    "scale_input": True,
}


def _check_front_end(folder: Path, config: ConformerConfig) -> None:
    found = read_json(folder, "preprocessor_config.json", optional=True)
    # In newer folders the settings are part of those of the processor.
    found = found or read_json(folder, "processor_config.json", optional=True).get("feature_extractor", {})
    expected = ParakeetMel(mels=config.num_mel_bins)
    for theirs, ours in _FRONT_END.items():
        if found.get(theirs, getattr(expected, ours)) != getattr(expected, ours):
            raise BaseModelError(
                f"The front end of '{folder}' has {theirs}={found[theirs]}; only {getattr(expected, ours)} is "
                "implemented."
            )


def parakeet_tensor(path: tuple[str, ...]) -> tuple[str, Any]:
    """The tensor of a parameter; see `Rename`."""
    *modules, name = path
    words = [re.sub(r"_(\d+)$", r".\1", m) if m.startswith("layers_") else m for m in modules]
    if lstm := next((m for m in modules if m.startswith("lstm_")), None):
        layer = lstm.removeprefix("lstm_")
        if name == "bias":
            return f"decoder.lstm.bias_l{layer}", None
        return f"decoder.lstm.weight_{'ih' if modules[-1] == 'input' else 'hh'}_l{layer}", np.transpose
    stem = ".".join(words)
    if name == "kernel":
        return f"{stem}.weight", _kernel
    if modules[-1] == "norm" and name in ("mean", "var"):
        return f"{stem}.running_{name}", None
    return f"{stem}.{'weight' if name in ('scale', 'embedding') else name}", None


def _kernel(tensor: np.ndarray) -> np.ndarray:
    """(out, in, taps …) to (taps x in, out): one tap is a matrix, and one input channel leaves the taps alone."""
    moved = np.moveaxis(tensor, (0, 1), (-1, -2))
    return moved.reshape(-1, moved.shape[-1])
