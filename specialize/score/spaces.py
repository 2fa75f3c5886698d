"""What a report shows of a space: its speakers as points, by what the manifest says of them, and who is near whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from specialize.score.groups import grouped
from specialize.score.transcript import Transcript
from specialize.space import Space, principal
from specialize.space.generators import generator_name
from specialize.space.look import neighbours

NEIGHBOURS = 3
"""Nearest speakers that are listed of each."""
ROWS = 500
"""Speakers that are listed, at most."""


@dataclass(frozen=True)
class SpaceView:
    """A space, as plain data."""

    kind: str
    numbers: int
    """K, of an embedding."""
    points: dict[str, tuple[float, float]]
    """{speaker: its first two principal coordinates}."""
    explained: tuple[float, ...]
    """Share of the variance along each direction."""
    labels: dict[str, dict[str, str]]
    """{attribute: {speaker: its group}}, groups in the order to show; only attributes of speakers that vary."""
    nearest: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    """(speaker, (another, distance)) of each."""


def view_space(
    space: Space,
    transcripts: Sequence[Transcript],
    groups: Sequence[str] | None = None,
    labels: dict[str, dict[str, str]] | None = None,
) -> SpaceView:
    """What there is to see in a space.

    Args:
        space: that was trained.
        transcripts: of speakers of it, with their attributes; speakers without are points without a group.
        groups: attributes to show; None is all that vary.
        labels: more of them, {attribute: {speaker: its group}}.
    """
    of = principal(space)
    points = {
        speaker: (float(row[0]), float(row[1]) if len(row) > 1 else 0.0)
        for speaker, row in zip(of.speakers, of.coordinates, strict=True)
    }
    listed = [
        (speaker, tuple(neighbours(of, space.embeddings[speaker], NEIGHBOURS, but=speaker)))
        for speaker in of.speakers[:ROWS]
    ]
    return SpaceView(
        kind=generator_name(space.generator),
        numbers=space.generator.embedding_size(space.shared["mean"]),
        points=points,
        explained=tuple(float(share) for share in of.explained),
        labels=(labels or {}) | _labels([t for t in transcripts if t.speaker in points], groups),
        nearest=tuple(listed),
    )


def _labels(transcripts: Sequence[Transcript], groups: Sequence[str] | None) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, values in grouped(transcripts, groups)[0].items() if transcripts else ():
        pairs = {(t.speaker, value) for value, of in values.items() for t in of}
        by_speaker = {t.speaker: value for value, of in values.items() for t in of}
        if len(pairs) == len(by_speaker):  # otherwise it is of utterances, not of speakers
            found[name] = by_speaker
    return found
