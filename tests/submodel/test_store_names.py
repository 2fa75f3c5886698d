"""Speaker ids can be any text: each has a folder of its own, inside the store, on every file system."""

import itertools

import pytest

from specialize.errors import StoreError
from specialize.submodel import SubmodelStore
from specialize.submodel.store import speaker_folder
from tests.submodel.submodels import assert_same, stored

IDS = [
    "ana",
    "A",
    "a",
    "../x",
    ".",
    "..",
    "...",
    ".hidden",
    "end.",
    "end..",
    "end%2E",
    "a/b",
    "a%2Fb",
    "a\\b",
    "C:\\x",
    "/etc/passwd",
    "%",
    "%%",
    "%41",
    "~",
    "%7E",
    "-",
    "-rf",
    " ",
    "  ",
    " ana",
    "ana ",
    "a b",
    "a+b",
    "line\nbreak",
    "nul\0",
    "*?<>|\"'`$;&",
    "é",  # one code point
    "e\u0301",  # the same letter as two
    "李雷",
    "👩‍🦽",
    "\udc80",  # what Python reads for a byte that is not UTF-8
    "x" * 500,
    "x" * 501,
    "x" * 499 + "y",
    "李" * 500,
    "ana.orbax-checkpoint-tmp",
    "ana.orbax-checkpoint-tmp-1",
]


def test_every_id_has_a_folder_name_of_its_own():
    assert len({speaker_folder(speaker) for speaker in IDS}) == len(IDS)


@pytest.mark.parametrize("speaker", IDS, ids=ascii)
def test_a_name_is_safe_everywhere(speaker):
    name = speaker_folder(speaker)
    assert 0 < len(name) <= 120
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.%")
    assert not name.startswith(".")
    assert not name.endswith(".")


def test_short_texts_of_awkward_letters_never_collide():
    """All texts of up to four letters among those that the encoding treats apart."""
    texts = ["".join(t) for n in range(1, 5) for t in itertools.product(".%2E/a~", repeat=n)]
    assert len({speaker_folder(text) for text in texts}) == len(texts)


def test_names_stay_different_about_the_length_where_they_are_cut():
    texts = [letter * n for letter in ("x", ".", "李", "%") for n in range(1, 140)]
    names = [speaker_folder(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert max(map(len, names)) <= 120
    cut = speaker_folder("x" * 200)
    assert speaker_folder(cut) != cut


def test_plain_ids_stay_readable():
    for speaker in ("ana", "0024", "spk_01-b", "v1.2"):
        assert speaker_folder(speaker) == speaker


def test_an_empty_id_is_refused(tmp_path):
    with pytest.raises(StoreError, match="empty"):
        speaker_folder("")
    with pytest.raises(StoreError, match="empty"):
        SubmodelStore(tmp_path).save(stored(""))


def test_all_live_in_one_store_and_come_back_as_themselves(tmp_path):
    store = SubmodelStore(tmp_path / "outer" / "submodels")
    for seed, speaker in enumerate(IDS):
        store.save(stored(speaker, seed))
    assert sorted(store.speakers()) == sorted(IDS)
    for seed, speaker in enumerate(IDS):
        assert speaker in store
        assert_same(store.load(speaker), stored(speaker, seed))
    assert [path.name for path in tmp_path.iterdir()] == ["outer"]
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["submodels"]
    assert len(list(store.folder.iterdir())) == len(IDS)
