"""Batches of requests: everybody is served as alone, trouble stays with its row, and what is too much is refused."""

import gc
import threading
import time
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from specialize.errors import Forgotten, SpecializeError
from specialize.serve.batcher import Batcher, Busy, Closed
from specialize.serve.recognizer import Hypothesis, Recognizer
from specialize.serve.slots import Resident
from specialize.submodel import LoRA
from tests.serve.stores import clips, made, store_of, talking


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    base = talking()
    store = store_of(tmp_path_factory.mktemp("store"), base)
    store.save(made(base, "other", 5, LoRA(("encoder/layers_0/feed_forward1/linear1",), rank=2)))
    return Recognizer(base, store, batch=4, slots=4)


class Slow:
    """A recogniser that takes its time, and has trouble with some clips."""

    batch = 4

    def padded(self, samples: int, lengths: Sequence[int] = ()) -> int:
        return samples

    def __init__(self, seconds: float = 0.05):
        self.seconds, self.batches, self.go = seconds, [], threading.Event()
        self.go.set()

    def decode(
        self, residents: Sequence[Resident | None], clips: Sequence[np.ndarray], padded: int
    ) -> list[Hypothesis]:
        self.go.wait(10)
        time.sleep(self.seconds)
        self.batches.append([len(clip) for clip in clips])
        if any(len(clip) == 13 for clip in clips):
            raise SpecializeError("thirteen")
        return [Hypothesis(str(len(clip)), (), 0.0, None) for clip in clips]


def text_of(coming, seconds: float = 10) -> str:
    return coming.result(seconds).text


def test_everybody_gets_what_they_would_alone(recognizer):
    people = ["s0", None, "s1", "s2", "other", "s0", None, "s1", "other", "s2"]
    residents = [None if one is None else recognizer.fetch(one) for one in people]
    sound, seen = clips(len(people)), []
    batcher = Batcher(recognizer, [16_000], linger=0.2, watch=seen.append)
    texts = [batcher.submit(resident, [clip])[0] for resident, clip in zip(residents, sound, strict=True)]
    found = [text_of(text, 120) for text in texts]
    batcher.close()
    alone = [recognizer.transcribe_batch([c], [r])[0] for c, r in zip(sound, residents, strict=True)]
    assert found == alone
    assert len(set(found)) > 2
    assert sum(batch.rows for batch in seen) == len(people)
    assert len(seen) < len(people)


def test_whoever_comes_meanwhile_is_in_the_next_batch():
    slow = Slow()
    slow.go.clear()
    batcher = Batcher(slow, [], linger=0.0)
    first = batcher.submit(None, [np.zeros(9, np.float32)])[0]
    while batcher.waiting:
        time.sleep(0.001)
    later = [batcher.submit(None, [np.zeros(n, np.float32)])[0] for n in (5, 4, 7, 3, 2)]
    slow.go.set()
    assert [text_of(text) for text in (first, *later)] == ["9", "5", "4", "7", "3", "2"]
    batcher.close()
    assert slow.batches == [[9], [5, 4, 3, 2], [7]]  # what is longer than the first does not ride along


def test_a_row_in_trouble_has_it_alone():
    slow = Slow()
    slow.go.clear()
    batcher = Batcher(slow, [], linger=0.0)
    texts = [batcher.submit(None, [np.zeros(n, np.float32)])[0] for n in (20, 13, 12, 11)]
    slow.go.set()
    with pytest.raises(SpecializeError, match="thirteen"):
        texts[1].result(10)
    assert [text_of(texts[i]) for i in (0, 2, 3)] == ["20", "12", "11"]
    with pytest.raises(SpecializeError, match="thirteen"):
        batcher.submit(None, [np.zeros(13, np.float32)])[0].result(10)
    batcher.close()


def test_too_much_is_refused_and_says_when_to_come_again():
    slow = Slow(0.2)
    batcher = Batcher(slow, [], linger=0.0, budget=0.3, waiting=100)
    batcher.submit(None, [np.zeros(5, np.float32)])[0].result(10)  # what a row costs is known now
    taken = []
    with pytest.raises(Busy) as refused:
        taken.extend(batcher.submit(None, [np.zeros(5, np.float32)])[0] for _ in range(100))
    assert 0 < len(taken) < 100
    assert refused.value.retry_after >= 1
    for text in taken:
        assert text_of(text) == "5"
    batcher.submit(None, [np.zeros(5, np.float32)])[0].result(10)
    batcher.close()


def test_no_more_wait_than_may():
    slow = Slow()
    slow.go.clear()
    batcher = Batcher(slow, [], waiting=3, linger=0.0)
    with pytest.raises(Busy):
        list(batcher.submit(None, [np.zeros(5, np.float32)])[0] for _ in range(9))  # noqa: C400
    slow.go.set()
    batcher.close()


def test_the_end_serves_what_waits_and_takes_nothing_more():
    slow = Slow()
    batcher = Batcher(slow, [])
    texts = [batcher.submit(None, [np.zeros(5, np.float32)])[0] for _ in range(9)]
    batcher.close()
    assert [text_of(text, 0) for text in texts] == ["5"] * 9
    with pytest.raises(Closed):
        batcher.submit(None, [np.zeros(5, np.float32)])[0]


def test_who_is_cancelled_costs_nothing_and_who_is_forgotten_gets_nothing(recognizer):
    slow = Slow()
    slow.go.clear()
    batcher = Batcher(slow, [], linger=0.0)
    first = batcher.submit(None, [np.zeros(5, np.float32)])[0]
    while batcher.waiting:
        time.sleep(0.001)
    gone = recognizer.cache.resident(made(recognizer.base, "gone", 7))
    forgotten = batcher.submit(gone, [np.zeros(5, np.float32)])[0]
    cancelled = batcher.submit(None, [np.zeros(6, np.float32)])[0]
    recognizer.forget("gone")
    cancelled.cancel()
    slow.go.set()
    with pytest.raises(Forgotten):
        forgotten.result(10)
    first.result(10)
    batcher.close()
    assert slow.batches == [[5]]


def test_who_waits_for_the_next_batch_holds_nothing_of_the_last():
    """A deleted speaker's Submodel and recording would stay in memory until somebody else came."""
    batcher = Batcher(Slow(0.0), [], linger=0.0)
    resident, clip = Resident("ana", LoRA(("nowhere",), rank=1), np.zeros(5, np.float32)), np.zeros(5, np.float32)
    seen = [weakref.ref(one) for one in (resident, clip)]
    assert text_of(batcher.submit(resident, [clip])[0]) == "5"
    del resident, clip
    for _ in range(100):
        gc.collect()
        if not any(one() for one in seen):
            break
        time.sleep(0.01)
    assert [one() for one in seen] == [None, None]
    batcher.close()


def test_a_recording_of_many_pieces_is_taken_as_a_whole_by_whoever_is_idle():
    slow = Slow(0.1)
    batcher = Batcher(slow, [], linger=0.0, budget=0.15)
    batcher.submit(None, [np.zeros(5, np.float32)])[0].result(10)  # what a row costs is known now
    pieces = batcher.submit(None, [np.zeros(5, np.float32)] * 40)
    with pytest.raises(Busy):
        batcher.submit(None, [np.zeros(5, np.float32)])
    assert [text_of(text) for text in pieces] == ["5"] * 40
    batcher.close()
