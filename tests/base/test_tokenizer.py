"""Texts become ids and come back, or are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from specialize.base import Tokenizer, TokenizerError, character_tokenizer, sentence_case
from specialize.base.tokenizer import read_definition
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


def parts(folder: Path) -> dict[str, int]:
    """A folder with the tokenizer in the three files of older checkpoints; the ids of the markup."""
    definition, ids = byte_tokenizer()
    vocabulary = json.loads(definition)["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    return ids


def test_a_tokenizer_in_parts_is_the_same_as_in_one(tmp_path):
    ids = parts(tmp_path)
    made, whole = Tokenizer(read_definition(tmp_path), ids[END]), tiny_whisper().tokenizer
    for text in ("One two, three.", "äöü 中文 🙂", "it's  2 spaces"):
        assert made.encode(text) == whole.encode(text)
        assert made.decode(whole.encode(text)) == text
    for token, id_ in ids.items():
        assert made.id_of(token) == id_
        with pytest.raises(TokenizerError, match="markup"):
            made.encode(f"a {token} b")


def test_added_tokens_that_would_move_are_refused(tmp_path):
    ids = parts(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: id_ + 1 for token, id_ in ids.items()}))
    with pytest.raises(BaseModelError, match="leaves gaps"):
        read_definition(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"nor merges\.txt"):
        read_definition(tmp_path)


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
        ("i saw a TV", "I saw a TV."),
        ("i TV", "I tv."),
    ],
)
def test_sentences(text, sentence):
    assert sentence_case(text) == sentence


@pytest.mark.parametrize("language", ["en", "it"])
def test_a_sentence_stays_as_it_is(language):
    rng = np.random.default_rng(0)
    letters = np.array(list("iI aAb.,'!?… \t\"”)é0你。"))
    for length in range(300):
        sentence = sentence_case("".join(rng.choice(letters, length % 30)), language)
        assert sentence_case(sentence, language) == sentence


@pytest.mark.parametrize(
    ("language", "text", "sentence"),
    [
        ("it", "dove sono i libri", "Dove sono i libri."),
        ("it", "I LIBRI", "I libri."),
        ("pl", "ty i ja", "Ty i ja."),
        ("zh", "你  好", "你 好"),
        ("zh", "我看 TV b。", "我看 TV b。"),
        ("hi", "नमस्ते", "नमस्ते"),
    ],
)
def test_sentences_of_other_languages(language, text, sentence):
    assert sentence_case(text, language) == sentence


@pytest.mark.parametrize(
    ("text", "adapted"),
    [
        ("Turn ON the light.", "turn on the light"),
        ("Well, that's it!", "well that's it"),
        ("a-b…c", "a b c"),
        ("two  words", "two words"),
        ("7 cats", "7 cats"),
    ],
)
def test_text_is_adapted_to_an_alphabet_of_small_letters(text, adapted):
    assert character_tokenizer(" 'abcdefghijklmnopqrstuvwxyz").adapt(text) == adapted


def test_text_is_adapted_no_more_than_an_alphabet_needs():
    assert character_tokenizer(" ABab.,").adapt("Ab, a. B!") == "Ab, a. B"


def test_characters_outside_an_alphabet_are_named_by_what_is_left():
    tokenizer = character_tokenizer("abc ")
    assert tokenizer.decode(tokenizer.encode("cab a")) == "cab a"
    with pytest.raises(TokenizerError, match="'7 cab' comes back as 'cab'"):
        tokenizer.encode("7 cab")


def test_an_alphabet_has_each_character_once():
    for alphabet in ("", "aba"):
        with pytest.raises(BaseModelError, match="once"):
            character_tokenizer(alphabet)
