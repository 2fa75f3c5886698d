"""Cohort batches: a job's rows are its own in any company, and little of them is padding."""

import dataclasses
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from specialize.corpus import (
    Assignment,
    CorpusConfig,
    Cut,
    Order,
    Shapes,
    Size,
    cohort_batches,
    eval_batches,
    eval_shapes,
    need,
    open_corpus,
    program_cost,
    queue_order,
    train_shapes,
)
from specialize.errors import ConfigError
from tests.bases import tiny_whisper
from tests.people import write_people

CUT = Cut(4, 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    manifest = write_people(folder, speakers=5, utterances=10)
    return open_corpus(CorpusConfig(manifest=manifest, cache=folder / "cache"), tiny_whisper())


def assignments(corpus, step=0):
    return [Assignment(speaker.train, 7 + place, step) for place, speaker in enumerate(corpus.speakers)]


def longest(corpus):
    return need(u for speaker in corpus.speakers for u in (*speaker.train, *speaker.dev, *speaker.test))


def shapes(corpus, slots=5):
    return train_shapes(assignments(corpus), longest(corpus), slots, CUT, 12, 4)


def contents(part, slot):
    """The rows of a slot without their padding."""
    return [
        (part.audio[slot, row, :n].tobytes(), part.labels[slot, row, :u].tolist())
        for row, (n, u) in enumerate(zip(part.samples[slot], part.label_lengths[slot], strict=True))
        if n
    ]


def run(corpus, given, steps):
    return [dispatch.parts for dispatch in cohort_batches(corpus, given, steps, CUT, shapes(corpus))]


def test_rows_are_the_same_in_any_company_and_slot(corpus):
    given = assignments(corpus)
    together = run(corpus, given, 6)
    alone = run(corpus, [None, given[2], None, None, given[0]], 6)
    for parts, others in zip(together, alone, strict=True):
        for part, other in zip(parts, others, strict=True):
            assert contents(part, 2) == contents(other, 1)
            assert contents(part, 0) == contents(other, 4)
            assert contents(other, 0) == []


def test_steps_can_be_cut_anywhere(corpus):
    whole = run(corpus, assignments(corpus), 6)
    later = run(corpus, assignments(corpus, step=4), 2)
    for parts, others in zip(whole[4:], later, strict=True):
        jax.tree.map(np.testing.assert_array_equal, parts, others)


def test_an_iterator_resumes_with_the_identical_batch(corpus):
    iterator = cohort_batches(corpus, assignments(corpus), 6, CUT, shapes(corpus))
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = list(iterator)
    fresh = cohort_batches(corpus, assignments(corpus), 6, CUT, shapes(corpus))
    fresh.set_state(state)
    assert len(expected) == 3
    jax.tree.map(np.testing.assert_array_equal, list(fresh), expected)


def test_rows_hold_the_utterance_and_zeros_after_it(corpus):
    for parts in run(corpus, assignments(corpus), 3):
        for part in parts:
            for slot, row in itertools.product(range(5), range(2)):
                assert not part.audio[slot, row, part.samples[slot, row] :].any()
                assert not part.labels[slot, row, part.label_lengths[slot, row] :].any()
                assert part.labels[slot, row, part.label_lengths[slot, row] - 1] == tiny_whisper().tokenizer.end


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (7, 4), (5, 4), (30, 2)])
def test_every_utterance_is_seen_as_often_as_any_other(count, batch):
    order = Order(tuple(range(1000, 1000 + count)), batch, seed=3)
    steps = 3 * count  # whole cycles and whole epochs
    seen = Counter(row for step in range(steps) for row in order.rows(step))
    assert set(seen) == set(range(count))
    assert max(seen.values()) - min(seen.values()) <= 1


def test_few_utterances_are_all_in_every_step():
    order = Order((300, 100, 200), 4, seed=0)
    assert {order.rows(step) for step in range(5)} == {(1, 2, 0)}


def test_orders_differ_by_seed_and_by_cycle():
    lengths = tuple(range(1000, 1012))
    assert [Order(lengths, 4, 0).rows(s) for s in range(3)] != [Order(lengths, 4, 1).rows(s) for s in range(3)]
    assert [Order(lengths, 4, 0).rows(s) for s in range(3)] != [Order(lengths, 4, 0).rows(s) for s in range(3, 6)]


def test_rows_rise_in_length_within_a_step():
    rng = np.random.default_rng(0)
    lengths = tuple(rng.integers(1000, 9000, 20).tolist())
    order = Order(lengths, 4, seed=1)
    for step in range(12):
        of_step = [lengths[row] for row in order.rows(step)]
        assert of_step == sorted(of_step)


def test_no_part_is_empty_for_all(corpus):
    """Whose size would be none, which no base can compute."""
    one, *more = corpus.speakers[0].train
    assert Cut(6, 2).parts([[one], [], [one, *more[:2]]]) == [[[one], [], [one, more[0]]], [[], [], [more[1]]]]
    assert Cut(6, 2).parts([[], []]) == [[[], []]]
    queue = [dataclasses.replace(of, train=of.train[:1]) for of in assignments(corpus)]
    longest = need(u for of in queue for u in of.train)
    sizes = train_shapes(queue, longest, 5, Cut(4, 1), 6, 3).sizes
    assert all(size.samples and size.labels for size in sizes)


def test_a_batch_must_be_cut_evenly():
    with pytest.raises(ConfigError, match="must divide"):
        Cut(4, 3)


def test_eval_batches_hold_every_utterance_once(corpus):
    sets = [speaker.dev + speaker.test for speaker in corpus.speakers]
    batches = eval_batches(corpus, [*sets, ()], 3, eval_shapes(sets, longest(corpus), 6, 3, 2))
    for slot, utterances in enumerate([*sets, ()]):
        rows = [row for batch in batches for row in contents(batch, slot)]
        assert sorted(rows) == sorted((corpus.audio(u).tobytes(), list(u.labels)) for u in utterances)


def test_sizes_hold_everything_and_are_no_more_than_asked():
    rng = np.random.default_rng(1)
    needs = [
        Size(int(n), int(u)) for n, u in zip(rng.integers(3_000, 90_000, 500), rng.integers(1, 30, 500), strict=True)
    ]
    biggest = Size(100_000, 40)
    costs = []
    for count in (1, 2, 4, 8, 16):
        chosen = Shapes.choose(needs, count, biggest)
        assert 1 <= len(chosen.sizes) <= count
        assert list(chosen.sizes) == sorted(chosen.sizes)
        for needed in (*needs, biggest):
            fitted = chosen.fit(needed)
            assert fitted.samples >= needed.samples
            assert fitted.labels >= needed.labels
        costs.append(sum(chosen.fit(needed).samples for needed in needs))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.7 * costs[0]
    with pytest.raises(ValueError, match="more than the largest size"):
        Shapes.choose(needs, 3, biggest).fit(Size(200_000, 1))


def test_sizes_are_the_best_that_brute_force_finds():
    rng = np.random.default_rng(2)
    for _ in range(20):
        lengths = (320 * rng.integers(1, 12, 9)).tolist()
        needs = [Size(n, 1) for n in lengths]
        edges = sorted(set(lengths))
        for count in (1, 2, 3):
            found = sum(Shapes.choose(needs, count, Size(max(lengths), 1)).fit(need).samples for need in needs)
            best = min(
                sum(min(e for e in (*some, edges[-1]) if e >= n) for n in lengths)
                for k in range(count)
                for some in itertools.combinations(edges[:-1], k)
            )
            assert found == best


def test_short_jobs_get_few_sizes(corpus):
    """A size is worth its compilation only where it saves as much."""
    queue = assignments(corpus)

    def count(steps, program):
        return len(train_shapes(queue, longest(corpus), 5, CUT, steps, 8, program).sizes)

    assert count(24, 0) > 2
    assert count(1, 1e9) == 1
    assert count(1, 1e5) < count(1, 0)
    assert count(1, 1e5) <= count(24, 1e5) <= count(2400, 1e5)
    assert count(2400, 1e5) > count(1, 1e5)


def test_an_accelerator_compiles_less_for_the_same_batches(corpus):
    def count(platform):
        cost = program_cost(platform, corpus.sample_rate)
        return len(train_shapes(assignments(corpus), longest(corpus), 5, CUT, 2400, 8, cost).sizes)

    assert count("gpu") == count("tpu") == 1 < count("cpu")


@pytest.fixture(scope="module")
def speechocean(shared, tmp_path_factory) -> Iterator[CorpusConfig]:
    """The real recordings, built once: all of the `personal` speakers, one of each split of the others."""
    folder, cache = shared / "corpora/speechocean762", tmp_path_factory.mktemp("speechocean")
    lines, seen = [], set()
    for line in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
        one = (line["speaker"], line["split"])
        if line["role"] == "personal" or one not in seen:
            lines.append(line | {"audio": str(folder / line["audio"])})
        seen.add(one)
    (cache / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    yield CorpusConfig(manifest=cache / "manifest.jsonl", cache=cache / "built")
    shutil.rmtree(cache)


def test_speechocean(speechocean):
    everyone = open_corpus(speechocean)
    assert everyone.problems == ()
    assert len(everyone.speakers) == 200
    personal = open_corpus(dataclasses.replace(speechocean, role="personal"))
    assert [len(personal.speakers), len(os.listdir(speechocean.cache))] == [75, 1]
    assert {len(s.train) for s in personal.speakers} == {12}


@pytest.mark.parametrize("slots", [5, 15])
def test_little_of_speechocean_is_padding(speechocean, slots):
    corpus = open_corpus(dataclasses.replace(speechocean, role="personal"))
    queue = [Assignment(speaker.train, place, 0) for place, speaker in enumerate(queue_order(corpus.speakers))]
    sizes = train_shapes(queue, longest(corpus), slots, CUT, 30, 8, program_cost("cpu", corpus.sample_rate))
    real = computed = 0
    for at in range(0, len(queue), slots):
        wave = queue[at : at + slots]
        for step in range(24):
            rows = [[a.train[i] for i in Order(tuple(u.samples for u in a.train), 4, a.seed).rows(step)] for a in wave]
            for part in CUT.parts(rows):
                samples = [u.samples for of_slot in part for u in of_slot]
                real += sum(samples)
                computed += len(samples) * sizes.fit(Size(max(samples), 0)).samples
    assert 1 - real / computed < 0.25
