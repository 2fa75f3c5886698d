"""Texts become ids and come back, or are refused."""

import numpy as np
import pytest

from specialize.base import Tokenizer, TokenizerError, sentence_case
from specialize.errors import BaseModelError
from tests.bases import END, byte_tokenizer, tiny_whisper


def test_every_text_comes_back():
    tokenizer = tiny_whisper().tokenizer
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghij KLMNOP.,'!?äöü中文🙂0123456789"))
    for length in range(1, 60):
        text = "".join(rng.choice(letters, length)).strip()
        if text:
            ids = tokenizer.encode(text)
            assert ids[-1] == tokenizer.end
            assert tokenizer.decode(ids) == text


def test_decoding_stops_at_the_end():
    tokenizer = tiny_whisper().tokenizer
    ids = tokenizer.encode("one")
    assert tokenizer.decode([*ids, *tokenizer.encode("two")]) == "one"


@pytest.mark.parametrize(("text", "reason"), [("", "empty"), (" \n", "empty"), (f"a{END}b", "markup")])
def test_texts_that_cannot_be_made(text, reason):
    with pytest.raises(TokenizerError, match=reason):
        tiny_whisper().tokenizer.encode(text)


def test_a_text_outside_the_vocabulary_is_refused():
    definition, ids = byte_tokenizer()
    # U+0120 stands for the byte of a space, which begins every transcript.
    poor = definition.replace('"z":', '"\\u00ffz":')
    assert poor != definition
    with pytest.raises(TokenizerError, match="zebra"):
        Tokenizer(poor, ids[END]).encode("zebra")


def test_a_damaged_definition_is_an_error():
    with pytest.raises(BaseModelError, match="tokenizer"):
        Tokenizer("{}", 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("i went home", "I went home."),
        ("ALL LOUD", "All loud."),
        ("Is it?", "Is it?"),
        ("and then i left i'm sure", "And then I left I'm sure."),
        ("  two   spaces ", "Two spaces."),
        ("", ""),
        ("i.e. this", "I.e. this."),
    ],
)
def test_sentences(text, sentence):
    assert sentence_case(text) == sentence
    assert sentence_case(sentence) == sentence
