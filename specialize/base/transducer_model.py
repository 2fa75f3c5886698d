"""A transducer (Graves 2012, arXiv 1211.3711) as plain Linen modules, named as in Hugging Face's Parakeet checkpoints.

An encoder and its projection, a prediction network of LSTMs, and a joint. As in `conformer_model`, every named module
returns one array and is called through `__call__`. What the LSTMs carry from step to step lives in the `cache`
collection.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from specialize.base.conformer_model import ConformerConfig, ConformerEncoder
from specialize.errors import BaseModelError

State = dict[str, Any]
"""What the prediction network carries, `{"lstm_0": {"hidden": [B, E], "cell": [B, E]}, …}`."""


@dataclass(frozen=True)
class TransducerConfig:
    """Sizes of what is put on the encoder, by the names of Hugging Face's `ParakeetRNNTConfig`."""

    decoder_hidden_size: int = 640
    """E, width of the prediction network and of the joint."""
    num_decoder_layers: int = 2
    """LSTMs, one on the other."""
    durations: tuple[int, ...] = ()
    """Frames that an arc may last; logits of them follow those of the tokens (TDT). Empty for an RNN-T."""

    def __post_init__(self):
        if any(duration < 0 for duration in self.durations) or (self.durations and max(self.durations) < 1):
            raise BaseModelError(f"durations={self.durations} must be frames, of which one is at least 1.")


class LSTM(nn.Module):
    """One layer of long short-term memory, with PyTorch's gates: input, forget, cell, output. One bias, of `input`."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], carried: bool = False) -> Float[Array, "B U E"]:
        """The result after each of the inputs.

        Args:
            x: inputs in their order. All are projected at once, by the module `input`; the scan is over the rest.
            carried: begin with what the collection `cache` holds, zeros where it holds nothing, and leave there what
                the last input has led to.
        """
        gates = nn.Dense(4 * self.width, name="input")(x)
        kernel = self.param("kernel", nn.initializers.orthogonal(), (self.width, 4 * self.width))
        nothing = jnp.zeros((x.shape[0], self.width), gates.dtype)
        hidden, cell = nothing, nothing
        variables = None
        if carried:
            names = ("hidden", "cell")
            variables = [self.variable("cache", name, jnp.zeros, nothing.shape, nothing.dtype) for name in names]
            hidden, cell = (variable.value for variable in variables)

        def step(state: Any, gates: Any) -> Any:
            hidden, cell = state
            i, f, g, o = jnp.split(gates + hidden @ kernel, 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        state, y = jax.lax.scan(step, (hidden, cell), jnp.swapaxes(gates, 0, 1))
        if variables is not None:
            for variable, value in zip(variables, state, strict=True):
                variable.value = value
        return jnp.swapaxes(y, 0, 1)


class Prediction(nn.Module):
    """The prediction network: an embedding, LSTMs and a projection."""

    config: TransducerConfig
    vocab_size: int
    """V, with the blank."""

    @nn.compact
    def __call__(self, tokens: Int[Array, "B U1"], carried: bool = False) -> Float[Array, "B U1 E"]:
        """What the labels so far predict, after each of `tokens`; the first of a text is the start, usually the blank.

        A position depends on none after it, so padding may hold any valid id.
        """
        c = self.config
        x = nn.Embed(self.vocab_size, c.decoder_hidden_size, name="embedding")(tokens)
        for layer in range(c.num_decoder_layers):
            x = LSTM(c.decoder_hidden_size, name=f"lstm_{layer}")(x, carried)
        return nn.Dense(c.decoder_hidden_size, name="decoder_projector")(x)


class Joint(nn.Module):
    """From a frame and what is predicted to the logits of an arc."""

    config: TransducerConfig
    vocab_size: int
    """V, with the blank."""

    @nn.compact
    def __call__(self, encoded: Float[Array, "B E"], predicted: Float[Array, "B *U E"]) -> Float[Array, "B *U V"]:
        """Logits of the tokens, and then of the durations where there are any.

        Args:
            encoded: one frame of each row, already projected.
            predicted: after one or several beginnings of its text, [B, E] or [B, U1, E].
        """
        encoded = encoded.reshape(encoded.shape[0], *(1,) * (predicted.ndim - 2), encoded.shape[-1])
        return nn.Dense(self.vocab_size + len(self.config.durations), name="head")(nn.relu(encoded + predicted))


class TransducerModel(nn.Module):
    """Encoder, prediction network and joint."""

    encoder_config: ConformerConfig
    config: TransducerConfig
    vocab_size: int
    """With the blank."""

    def setup(self):
        self.encoder = ConformerEncoder(self.encoder_config)
        self.encoder_projector = nn.Dense(self.config.decoder_hidden_size)
        self.decoder = Prediction(self.config, self.vocab_size)
        self.joint = Joint(self.config, self.vocab_size)

    def encode(self, mel: Float[Array, "B T M"], frames: Int[Array, "B"]) -> Float[Array, "B T2 E"]:
        """The encoder's result, projected for the joint; frames after a row's own are without meaning."""
        return self.encoder_projector(self.encoder(mel, frames))

    def predict(self, tokens: Int[Array, "B U1"]) -> Float[Array, "B U1 E"]:
        """See `Prediction`."""
        return self.decoder(tokens)

    def predict_next(self, token: Int[Array, "B"]) -> Float[Array, "B E"]:
        """See `Prediction`; the collection `cache` holds what came before (see `predict_step`)."""
        return self.decoder(token[:, None], True)[:, 0]

    def join(self, encoded: Float[Array, "B E"], predicted: Float[Array, "B *U E"]) -> Float[Array, "B *U V"]:
        """See `Joint`."""
        return self.joint(encoded, predicted)

    def __call__(self, mel: Any, frames: Any, tokens: Any) -> Float[Array, "B T2 U1 V"]:
        """Logits of every node. They are large; training makes them frame by frame."""
        encoded, predicted = self.encode(mel, frames), self.predict(tokens)
        rows, t, u = *encoded.shape[:2], predicted.shape[1]
        encoded = encoded.reshape(rows * t, -1)
        predicted = jnp.broadcast_to(predicted[:, None], (rows, t, *predicted.shape[1:])).reshape(rows * t, u, -1)
        return self.joint(encoded, predicted).reshape(rows, t, u, -1)


def initial_state(config: TransducerConfig, rows: Any) -> State:
    """What the prediction network carries before the first token of each row; `rows` may be a size of `jax.export`."""
    zeros = jnp.zeros((rows, config.decoder_hidden_size), jnp.float32)
    return {f"lstm_{layer}": {"hidden": zeros, "cell": zeros} for layer in range(config.num_decoder_layers)}


def predict_step(
    model: TransducerModel, params: Any, token: Int[Array, "B"], state: State
) -> tuple[Float[Array, "B E"], State]:
    """One step of the prediction network; with `model` and `params` bound, the `step` of `transducer`'s searches."""
    variables = {"params": params, "cache": {"decoder": state}}
    predicted, changed = model.apply(variables, token, method="predict_next", mutable=["cache"])
    return predicted, changed["cache"]["decoder"]  # pyright: ignore[reportReturnType]
