"""What a base reads: padded audio and labels, with their true lengths."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Utterances padded to common lengths. Axes are [B, …], or [S, B, …] for a cohort.

    A row with `samples == 0` is empty: it counts in no loss and changes no other row.
    """

    audio: Any
    """float32 [B, N], in [-1, 1], at the base's sample rate; zeros after `samples`."""
    samples: Any
    """int32 [B], how many samples of each row are speech."""
    labels: Any
    """int32 [B, U], token ids of the text as `Tokenizer.encode` makes them; zeros after `label_lengths`."""
    label_lengths: Any
    """int32 [B]."""
