"""Banks of many specs: no more of them on the device than may be, and nobody notices when one is freed."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from specialize.errors import ConfigError
from specialize.serve.recognizer import Recognizer
from specialize.serve.slots import Slots
from specialize.submodel import BiasOnly, LoRA, ResidualAdapter
from tests.serve.stores import clips, made, talking

SPECS = (
    ResidualAdapter(bottleneck=2),
    LoRA(("encoder/layers_0/feed_forward1/linear1",), rank=2),
    BiasOnly(("encoder/layers_0/feed_forward1/linear1",)),
)
SLOTS = 7
"""As no other array of these tests has rows."""


@pytest.fixture(scope="module")
def people():
    return [made(talking(), f"p{i}", i, spec) for i, spec in enumerate(SPECS)]


@pytest.fixture(scope="module")
def expected(people):
    recognizer = Recognizer(talking(), batch=1, slots=SLOTS)
    texts = [recognizer.transcribe(clips(1)[0], one) for one in people]
    assert len(set(texts)) == len(people)
    return texts


def on_device(recognizer: Recognizer) -> set[int]:
    """Which of the specs have a bank, by the arrays that there are."""
    gc.collect()  # recognisers of tests before
    shapes = {array.shape for array in jax.live_arrays()}
    sizes = [recognizer.cache.layout(spec).size for spec in SPECS]
    assert len(set(sizes)) == len(SPECS)
    return {i for i, size in enumerate(sizes) if (SLOTS, size) in shapes}


def test_the_bank_that_was_not_used_for_longest_is_freed_and_comes_back_without_compiling(people, expected):
    recognizer, clip = Recognizer(talking(), batch=1, slots=SLOTS, banks=2), clips(1)[0]
    seen = []
    for i in (0, 1, 0, 2, 0, 1, 1, 2):
        assert recognizer.transcribe(clip, people[i]) == expected[i]
        seen.append(on_device(recognizer))
        assert sum(slots.on_device for slots, _ in recognizer._with.values()) == len(seen[-1])
    assert seen == [{0}, {0, 1}, {0, 1}, {0, 2}, {0, 2}, {0, 1}, {0, 1}, {1, 2}]
    assert all(program._cache_size() == 1 for _, program in recognizer._with.values())
    assert recognizer.held()[SPECS[0]] == 0


def test_a_pinned_speaker_keeps_the_bank(people, expected):
    recognizer, clip = Recognizer(talking(), batch=1, slots=SLOTS, banks=1), clips(1)[0]
    pinned = recognizer.cache.resident(people[0])
    pinned.pinned = True
    for i, submodel in ((0, pinned), (1, people[1]), (2, people[2])):
        assert recognizer.transcribe_batch([clip], [submodel]) == [expected[i]]
    assert on_device(recognizer) == {0, 2}
    pinned.pinned = False
    assert recognizer.transcribe(clip, people[1]) == expected[1]
    assert on_device(recognizer) == {1}


def test_threads_that_take_the_one_bank_from_each_other_all_get_their_text(people, expected):
    recognizer, clip = Recognizer(talking(), batch=1, slots=SLOTS, banks=1), clips(1)[0]
    for one in people:
        recognizer.transcribe(clip, one)
    start = threading.Barrier(len(people))

    def ask(i: int) -> set[str]:
        start.wait()
        return {recognizer.transcribe(clip, people[i]) for _ in range(25)}

    with ThreadPoolExecutor(len(people)) as threads:
        found = list(threads.map(ask, range(len(people))))
    assert found == [{text} for text in expected]
    assert len(on_device(recognizer)) == 1


def test_rows_that_were_given_outlive_the_bank(people):
    recognizer = Recognizer(talking(), batch=1)
    resident = recognizer.cache.resident(people[0])
    slots = Slots(SLOTS, resident.vector.size)
    assert not slots.free(), "there is nothing yet"
    rows = slots.rows([resident], 2)
    assert slots.free()
    assert not slots.held()
    assert not slots.drop(resident)
    np.testing.assert_array_equal(rows, [resident.vector] * 2)
    np.testing.assert_array_equal(slots.rows([resident], 1), [resident.vector])
    assert slots.writes == 2


def test_warming_more_specs_than_banks_leaves_as_many_as_may_be(people, expected):
    recognizer, clip = Recognizer(talking(), batch=1, slots=SLOTS, banks=2), clips(1)[0]
    padded = recognizer.padded(clip.size)
    assert len(list(recognizer.warm(SPECS, [padded]))) == 1
    assert len(on_device(recognizer)) == 2
    assert [recognizer.transcribe(clip, one) for one in people] == expected
    assert all(program._cache_size() == 1 for _, program in recognizer._with.values()), "nothing was compiled"


def test_without_a_bank_there_is_nowhere_to_go():
    with pytest.raises(ConfigError, match="at least 1"):
        Recognizer(talking(), banks=0)
