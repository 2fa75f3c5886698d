"""Decoding of a whole split, some speakers at a time."""

from collections.abc import Callable, Sequence

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specialize.corpus import Corpus, Shapes, Size, Speaker, program_cost
from specialize.score.transcript import Transcript
from specialize.serve import Recognizer
from specialize.submodel import StoredSubmodel

_SIZES = 16
"""Lengths that utterances are padded to, at most."""
_TOGETHER = 32
"""Speakers whose audio and Submodels are in memory at a time."""


def unheard(corpus: Corpus, speakers: Sequence[Speaker], split: str) -> dict[int, Transcript]:
    """{place in the corpus: a transcript without hypotheses} of all utterances of a split."""
    return {
        u.index: Transcript(
            utterance=u.id,
            speaker=speaker.id,
            reference=u.text,
            base="",
            submodel="",
            seconds=u.samples / corpus.sample_rate,
            split=split,
            role=corpus.built.rows[u.index].role,
            attributes=corpus.built.rows[u.index].attributes,
        )
        for speaker in speakers
        for u in speaker.split(split)
    }


def decode_split(
    recognizer: Recognizer,
    corpus: Corpus,
    speakers: Sequence[Speaker],
    split: str,
    submodel: Callable[[Speaker], StoredSubmodel | None],
    title: str,
) -> dict[int, str]:
    """Texts of all utterances of a split, with progress on stderr.

    Args:
        recognizer: makes them.
        corpus: where the audio is.
        speakers: whose.
        split: train, dev or test.
        submodel: what transcribes a speaker; it gives None for the base alone.
        title: what the progress bar says.

    Returns:
        {place of the utterance in the corpus: text}.
    """
    texts: dict[int, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    utterances = [u for s in speakers for u in s.split(split)]
    count = len(utterances)
    needs = [Size(u.samples, 0) for u in utterances]
    # A size pays for its compilation where it saves that much padding.
    cost = program_cost(jax.default_backend(), corpus.sample_rate)
    lengths = [size.samples for size in Shapes.choose(needs, _SIZES, max(needs), cost).sizes] if needs else []
    if not console.is_terminal:
        console.print(f"decoding {count} utterances, {title}", highlight=False)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"decoding, {title}", total=count)
        for at in range(0, len(speakers), _TOGETHER):
            loaded = [(submodel(s), s) for s in speakers[at : at + _TOGETHER]]
            rows = [(stored, u) for stored, s in loaded for u in s.split(split)]
            audio = [corpus.audio(u) for _, u in rows]
            for place, text in recognizer.stream(audio, [stored for stored, _ in rows], lengths):
                texts[rows[place][1].index] = text
                progress.advance(task)
    return texts
