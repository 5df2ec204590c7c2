"""Texts, vocabularies and windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpnn.data import TEXTS, Vocabulary, load_text, next_token_windows
from xpnn.errors import ConfigError, DataError


def test_the_bundled_text_is_newtons():
    text = load_text()
    assert text == load_text("opticks")
    assert text.startswith("_Query_ 1. Do not Bodies act upon Light at a distance")
    assert "_Quest._ 31. Have not the small Particles of Bodies certain Powers" in text
    assert len(text) == 104_231
    assert "\r" not in text


@pytest.mark.parametrize("name", TEXTS)
def test_every_text_says_where_it_is_from(name):
    import xpnn.data.text

    folder = xpnn.data.text.Path(xpnn.data.text.__file__).parent / "texts"
    assert f"`{TEXTS[name]}`" in (folder / "README.md").read_text(encoding="utf-8")
    assert load_text(name)


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "t.txt").write_text("größer\n", encoding="utf-8")
    assert load_text(tmp_path / "t.txt") == "größer\n"
    assert load_text(str(tmp_path / "t.txt")) == "größer\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), ("größer".encode("latin-1"), "is no UTF-8 text"), (None, "cannot read the text .* or one of")],
)
def test_files_that_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text(tmp_path / "t.txt")


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(DataError, match="cannot read the text"):
        load_text(tmp_path)


@given(st.text(min_size=1))
def test_decoding_undoes_encoding(text):
    vocabulary = Vocabulary.of(text)
    numbers = vocabulary.encode(text)
    assert numbers.dtype == np.int64
    assert numbers.shape == (len(text),)
    assert vocabulary.decode(numbers) == text
    assert set(numbers.tolist()) == set(range(len(vocabulary)))


def test_no_text_is_no_numbers():
    assert Vocabulary("ab").encode("").shape == (0,)


def test_unknown_characters_and_numbers():
    vocabulary = Vocabulary.of("abc")
    with pytest.raises(DataError, match="of 3 characters has no 'x', and 1 others"):
        vocabulary.encode("abxy")
    with pytest.raises(DataError, match="3 is the number of no character; there are 0 to 2"):
        vocabulary.decode([0, 3])
    with pytest.raises(DataError, match="-1 is the number of no character"):
        vocabulary.decode([-1])


@pytest.mark.parametrize("characters", ["", "aba"])
def test_no_vocabulary(characters):
    with pytest.raises(DataError, match="at least one character, and each of them once"):
        Vocabulary(characters)


@given(st.integers(2, 60), st.integers(1, 20), st.none() | st.integers(1, 25))
def test_windows(total, length, step):
    numbers = np.arange(total)
    if total <= length:
        with pytest.raises(DataError, match=f"at most {total - 1}"):
            next_token_windows(numbers, length, step)
        return
    x, y = next_token_windows(numbers, length, step)
    assert x.shape == y.shape
    assert x.shape[1] == length
    assert np.array_equal(y, x + 1)
    assert np.array_equal(x[:, 0], np.arange(len(x)) * (step or length))
    # one more window would not fit
    assert len(x) * (step or length) + length + 1 > total


@pytest.mark.parametrize(("length", "step"), [(0, None), (2.5, None), (3, 0), (3, -1)])
def test_lengths_that_make_no_sense(length, step):
    with pytest.raises(ConfigError, match="give an integer of at least 1"):
        next_token_windows(np.arange(9), length, step)
