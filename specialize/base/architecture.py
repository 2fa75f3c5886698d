"""The contract between an architecture and the rest: everything else is written against these names."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from specialize.base.batch import Batch


class Losses(NamedTuple):
    """A loss for each utterance, not yet normalised, so that a caller can sum over rows and parts first."""

    total: Any
    """float32 [B], summed over the tokens (or lattice) of each utterance; 0 for an empty row."""
    count: Any
    """float32 [B], what `total` is divided by for a mean: target tokens; 0 for an empty row."""


class Decoded(NamedTuple):
    """What a search has found in each utterance, and how probable that is."""

    ids: Any
    """int32 [B, max_tokens], token ids of the text, `Tokenizer.end` after the end."""
    log_prob: Any
    """float32 [B], natural logarithm of the probability of what the search decided on: the tokens and the end of a
    decoder that writes, the alignment of a CTC or a transducer, all alignments that a beam has merged. 0 for an empty
    row."""
    no_speech: Any = None
    """float32 [B], the probability that there is no speech in it, in [0, 1]; None of a base that cannot say."""


class Augment(NamedTuple):
    """Randomness for one training forward pass of one slot."""

    key: Any
    """A JAX key, derived from (job, step) and never from the slot."""
    strength: Any
    """float32 scalar: SpecAugment strength; 0 leaves the features as they are, 1 is the published policy."""


@runtime_checkable
class Architecture(Hashable, Protocol):
    """Pure functions of (params, arrays): a hashable, static description that may be closed over by `jit`.

    `params` is the Linen parameter tree of the module. All methods work on [B, …] and are vmapped by callers.
    """

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def max_samples(self) -> int:
        """The longest utterance that the architecture takes, in samples."""
        ...

    @property
    def max_labels(self) -> int:
        """The longest label sequence that `losses` takes."""
        ...

    def min_samples(self, labels: Sequence[int]) -> int:
        """The shortest utterance that can have these labels, in samples."""
        ...

    def losses(self, params: Any, batch: Batch, *, augment: Augment | None = None) -> Losses:
        """Training loss of each utterance. Independent of padding and of the other rows."""
        ...

    def decode(self, params: Any, audio: Float[Array, "B N"], samples: Int[Array, "B"], *, max_tokens: int) -> Decoded:
        """The most probable text, greedily or by a beam, and how probable it is."""
        ...
