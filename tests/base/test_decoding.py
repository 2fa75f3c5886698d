"""Greedy decoding: what a row says depends on nothing but its own audio, follows the logits, and keeps its limits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base import Architecture, Base, Batch, ConformerCTC, ConformerTransducer
from specialize.errors import BaseModelError
from tests.bases import TALKING, random_batch, random_speech, talking_whisper, tiny_parakeet_tdt, whisper_of

TOKENS = 24


@pytest.fixture(params=sorted(TALKING))
def base(request) -> Base:
    return TALKING[request.param]()


@functools.cache
def compiled(architecture: Architecture, tokens: int):
    return jax.jit(functools.partial(architecture.decode, max_tokens=tokens))


def decoded(base: Base, audio, samples, architecture=None, tokens: int = TOKENS) -> np.ndarray:
    """Ids [B, tokens]."""
    return np.asarray(compiled(architecture or base.architecture, tokens)(base.params, audio, samples).ids)


def lengths_of(ids: np.ndarray, end: int) -> np.ndarray:
    """Tokens before the end, or all of them."""
    return np.where((ids == end).any(axis=1), (ids == end).argmax(axis=1), ids.shape[1])


def test_the_bases_of_these_tests_say_something(base):
    ids = decoded(base, *random_speech(base))
    assert len(np.unique(ids, axis=0)) > 2
    assert len(np.unique(ids)) > 6
    assert len(set(lengths_of(ids, base.tokenizer.end))) > 1


def test_what_is_in_the_padding_changes_no_text(base):
    audio, samples = random_speech(base)
    poisoned = np.where(np.arange(audio.shape[1]) < samples[:, None], audio, np.nan).astype(np.float32)
    assert np.isnan(poisoned).any()
    np.testing.assert_array_equal(decoded(base, poisoned, samples), decoded(base, audio, samples))


def test_a_row_is_decoded_as_it_is_alone(base):
    audio, samples = random_speech(base)
    together = decoded(base, audio, samples)
    for row in (2, 3):
        n = samples[row]
        alone = decoded(base, audio[row : row + 1, :n], samples[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


def test_vmapped_over_slots_is_one_at_a_time(base):
    slots = [random_speech(base, seed=seed) for seed in range(2)]
    audio, samples = (np.stack(arrays) for arrays in zip(*slots, strict=True))
    samples[1, 2:] = 0
    decode = jax.vmap(lambda p, a, n: base.architecture.decode(p, a, n, max_tokens=TOKENS).ids, (None, 0, 0))
    together = np.asarray(jax.jit(decode)(base.params, audio, samples))
    for slot in range(2):
        np.testing.assert_array_equal(together[slot], decoded(base, audio[slot], samples[slot]))


def test_rows_without_audio_say_nothing(base):
    audio, samples = random_speech(base)
    samples[1] = 0
    ids = decoded(base, audio, samples)
    assert (ids[1] == base.tokenizer.end).all()
    assert (lengths_of(ids, base.tokenizer.end) > 0).sum() == 3
    assert (decoded(base, audio, np.zeros_like(samples)) == base.tokenizer.end).all()


def test_fewer_tokens_are_the_first_of_more(base):
    audio, samples = random_speech(base)
    np.testing.assert_array_equal(decoded(base, audio, samples, tokens=5), decoded(base, audio, samples)[:, :5])


@pytest.mark.parametrize(
    ("name", "beam"),
    [("conformer-ctc", 1), ("conformer-ctc", 3), ("conformer-transducer", 1), ("conformer-transducer", 3), ("tdt", 1)],
)
def test_room_that_the_audio_cannot_fill_changes_no_text_and_is_not_looked_at(name, beam):
    base = tiny_parakeet_tdt() if name == "tdt" else TALKING[name]()
    architecture = base.with_beam(beam).architecture
    assert isinstance(architecture, ConformerCTC | ConformerTransducer)
    audio, samples = random_speech(base, seconds=1.0)
    most = int(architecture.frames(jnp.asarray(samples))[0]) * getattr(architecture, "max_symbols", 1)
    programs = [
        jax.jit(functools.partial(architecture.decode, max_tokens=tokens)).lower(base.params, audio, samples).compile()
        for tokens in (most, 40 * most)
    ]
    exact, roomy = (np.asarray(program(base.params, audio, samples).ids) for program in programs)
    np.testing.assert_array_equal(roomy[:, :most], exact)
    assert roomy.shape == (len(audio), 40 * most)
    assert (roomy[:, most:] == base.tokenizer.end).all()
    analyses: list[Any] = [program.memory_analysis() for program in programs]
    exactly, roomily = (analysis.temp_size_in_bytes for analysis in analyses)
    assert roomily < 1.1 * exactly + 2 * roomy.nbytes


def test_a_text_is_no_longer_than_its_audio_allows():
    base = talking_whisper()
    audio, samples = random_speech(base)
    at_once = dataclasses.replace(whisper_of(base), tokens_per_second=2.0)
    ids, freely = decoded(base, audio, samples, at_once), decoded(base, audio, samples)
    lengths, limits = lengths_of(ids, base.tokenizer.end), np.ceil(2.0 * samples / 16_000) + 8
    np.testing.assert_array_equal(lengths, np.minimum(lengths_of(freely, base.tokenizer.end), limits))
    assert (lengths == limits).any(), "no text was cut"
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(ids[row, :length], freely[row, :length])
        assert (ids[row, length:] == base.tokenizer.end).all(), "nothing comes after the end"


def test_a_text_is_the_argmax_of_the_logits_after_it():
    base = talking_whisper()
    architecture, (audio, samples) = whisper_of(base), random_speech(base)
    ids = decoded(base, audio, samples)
    prompt = np.tile(np.array(architecture.prompt, np.int32), (len(ids), 1))
    logits = np.array(jax.jit(architecture.logits)(base.params, audio, samples, np.concatenate([prompt, ids], axis=1)))
    logits = logits[:, prompt.shape[1] - 1 : -1]
    unbound = logits.argmax(-1)
    logits[:, :, list(architecture.suppress)] = -np.inf
    logits[:, 0, list(architecture.begin_suppress)] = -np.inf
    limits = lengths_of(ids, base.tokenizer.end)
    for row, limit in enumerate(limits):
        np.testing.assert_array_equal(ids[row, :limit], logits[row, :limit].argmax(-1))
    assert np.isin(unbound[0, : limits[0]], architecture.suppress).any(), "nothing was suppressed"


def test_suppressed_tokens_are_never_said():
    base = talking_whisper()
    architecture, (audio, samples) = whisper_of(base), random_speech(base)
    plain = dataclasses.replace(architecture, suppress=(), begin_suppress=())
    freely = decoded(base, audio, samples, plain)
    said = decoded(base, audio, samples)
    assert np.isin(freely, architecture.suppress).any()
    assert not np.isin(said, architecture.suppress).any()
    not_first = dataclasses.replace(plain, begin_suppress=tuple(np.unique(freely[:, 0]).tolist()))
    changed = decoded(base, audio, samples, not_first)
    assert not np.isin(changed[:, 0], not_first.begin_suppress).any()
    assert np.isin(changed[:, 1:], not_first.begin_suppress).any(), "only the first token is bound"


def test_more_tokens_than_the_base_has_places_for_are_refused():
    base = talking_whisper()
    batch = random_batch(base)
    with pytest.raises(ValueError, match="at most 62"):
        decoded(base, batch.audio, batch.samples, tokens=63)
    assert decoded(base, batch.audio, batch.samples, tokens=62).shape == (3, 62)


@pytest.mark.parametrize("name", ["conformer-ctc", "conformer-transducer"])
def test_a_beam_through_a_base_finds_texts_that_are_no_less_probable(name):
    base = TALKING[name]()
    audio, samples = random_speech(base, rows=3, seconds=1.0)
    wide = base.with_beam(32)  # so wide that little is lost on the way
    assert wide.fingerprint == base.fingerprint
    found = []
    for architecture in (base.architecture, wide.architecture):
        ids = decoded(base, audio, samples, architecture)
        lengths = lengths_of(ids, base.tokenizer.end).astype(np.int32)
        assert (lengths < TOKENS).all(), "texts are whole"
        batch = Batch(audio, samples, ids.astype(np.int32), lengths)
        found.append((ids, np.asarray(jax.jit(base.architecture.losses)(base.params, batch).total)))
    (greedy, cost), (_, of_beam) = found
    assert (of_beam <= cost + 1e-3).all()
    np.testing.assert_array_equal(decoded(base, audio, samples, base.with_beam(1).architecture), greedy)


def test_there_is_no_beam_for_durations():
    base = tiny_parakeet_tdt().with_beam(2)
    with pytest.raises(BaseModelError, match="no beam search for token-and-duration"):
        decoded(base, *random_speech(base))


def test_the_log_probability_of_a_whispers_text_is_that_of_its_tokens_by_teacher_forcing():
    base = talking_whisper()
    architecture = dataclasses.replace(whisper_of(base), no_speech=7)
    audio, samples = random_speech(base)
    for most in (TOKENS, 3):  # three tokens are too few to come to the end
        found = compiled(architecture, most)(base.params, audio, samples)
        ids = np.asarray(found.ids)
        start = len(architecture.prompt)
        tokens = np.concatenate([np.tile(architecture.prompt, (len(ids), 1)), ids], axis=1).astype(np.int32)
        logits = np.array(jax.jit(architecture.logits)(base.params, audio, samples, tokens))
        silent = jax.nn.softmax(logits[:, 0], axis=-1)[:, 7]
        np.testing.assert_allclose(found.no_speech, silent, rtol=1e-4)
        logits[..., list(architecture.suppress)] = -np.inf
        logits[:, start - 1, list(architecture.begin_suppress)] = -np.inf
        each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[:, start - 1 : -1])), ids[..., None], -1)[..., 0]
        lengths = lengths_of(ids, base.tokenizer.end)
        limits = np.ceil(samples * architecture.tokens_per_second / architecture.sample_rate) + 8
        counted = lengths + (lengths < limits)  # the end is decided on too, where it is not the limit's
        expected = [row[:n].sum() for row, n in zip(each, counted, strict=True)]
        np.testing.assert_allclose(found.log_prob, expected, rtol=1e-4)
        assert (lengths < TOKENS).any()
        assert (expected[0] < -0.1).any()


def test_a_whisper_without_the_token_does_not_say_whether_there_is_speech():
    base = talking_whisper()
    assert compiled(base.architecture, TOKENS)(base.params, *random_speech(base)).no_speech is None


@pytest.mark.parametrize(
    ("name", "beam"),
    [("conformer-ctc", 1), ("conformer-ctc", 3), ("conformer-transducer", 3)],  # greedy transducers: test_transducer.py
)
def test_a_log_probability_is_at_most_that_of_all_alignments_of_the_text(name, beam):
    base = TALKING[name]().with_beam(beam)
    audio, samples = random_speech(base)
    samples[1] = 0
    found = compiled(base.architecture, 400)(base.params, audio, samples)
    ids = np.asarray(found.ids)
    lengths = lengths_of(ids, base.tokenizer.end)
    labels = np.where(ids == base.tokenizer.end, 0, ids)[:, : max(lengths)]
    losses = jax.jit(base.architecture.losses)(base.params, Batch(audio, samples, labels, lengths.astype(np.int32)))
    log_prob = np.asarray(found.log_prob)
    assert log_prob[1] == 0.0
    said = lengths > 0
    assert said.sum() >= 2
    assert (log_prob[said] <= -np.asarray(losses.total)[said] + 1e-3).all()
    assert (log_prob[said] < 0).all()
    assert found.no_speech is None
