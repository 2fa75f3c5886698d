"""What others wrote reaches a terminal as text, in one line, and otherwise as it was."""

import sys

import pytest

from specialize.printable import printable


def test_nothing_that_a_terminal_obeys_is_left():
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(text)
    assert len(shown) == len(text)
    assert not {c for c in shown if not c.isprintable()} - set("\u200c\u200d")


@pytest.mark.parametrize("text", ["plain text", "äöü 中文 🙂", "می\u200cخواهم", "क्\u200dष", "👩\u200d🚀", ""])
def test_writing_stays(text):
    assert printable(text) == text


def test_space_is_space_and_the_rest_is_marked():
    assert printable("a\tb\nc\u00a0d") == "a b c d"
    assert printable("\x1b[2J\u202e\ud800\0") == "\ufffd[2J\ufffd\ufffd\ufffd"
