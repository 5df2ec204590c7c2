"""Text for networks that continue it: characters as numbers, and windows of a text with what comes next."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xpnn.backend import host
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import DataError

TEXTS = {"opticks": "opticks_queries.txt"}
"""The texts that come with xpnn, by name; the folder `texts` says where they are from."""


def load_text(name: str | os.PathLike[str] = "opticks") -> str:
    """A text that comes with xpnn, or any text file in UTF-8.

    Args:
        name: "opticks" (the Queries of Newton's Opticks, 1730: 104,000 characters), or the path of a file.

    Raises:
        DataError: there is no such file, or it is no UTF-8 text, or it is empty.
    """
    path = Path(__file__).parent / "texts" / TEXTS[name] if isinstance(name, str) and name in TEXTS else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{str(path)!r} is no UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        known = ", ".join(TEXTS)
        raise DataError(
            f"cannot read the text {str(path)!r}: {error.strerror or error}; give a file, or one of: {known}"
        ) from None
    if not text:
        raise DataError(f"{str(path)!r} is empty")
    return text


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a network knows; the number of each is its place.

    Attributes:
        characters: each once.

    Raises:
        DataError: a character stands there twice, or there is none.
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise DataError("a vocabulary wants at least one character, and each of them once; use Vocabulary.of(text)")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """All characters of a text, in the order of their code points."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Array:
        """The numbers of the characters, (length,), int64. Raises DataError for a character that is not there."""
        numbers = {character: number for number, character in enumerate(self.characters)}
        unknown = sorted(set(text) - set(numbers))
        if unknown:
            raise DataError(
                f"the vocabulary of {len(self)} characters has no {unknown[0]!r}"
                f"{f', and {len(unknown) - 1} others' if len(unknown) > 1 else ''}; leave them out of the text, or "
                "make the vocabulary of all texts together"
            )
        xp = host().xp
        return xp.asarray([numbers[character] for character in text], dtype=xp.int64)

    def decode(self, numbers: Array) -> str:
        """The text of numbers. Raises DataError if one is not the number of a character."""
        text = []
        for number in numbers:
            if not 0 <= int(number) < len(self):
                raise DataError(f"{int(number)} is the number of no character; there are 0 to {len(self) - 1}")
            text.append(self.characters[int(number)])
        return "".join(text)


def next_token_windows(numbers: Array, length: int, step: int | None = None) -> tuple[Array, Array]:
    """Pieces of a long sequence, and the same pieces one place further: what a network is to predict at each place.

    x[i] = numbers[i step : i step + length] and y[i] = numbers[i step + 1 : i step + 1 + length]; what remains at the
    end is left out.

    Args:
        numbers: (total,), a text as numbers.
        length: of a window.
        step: from the beginning of one window to that of the next; without it `length`: no overlap.

    Returns:
        x and y, (windows, length) each.

    Raises:
        DataError: the sequence is not longer than a window.
        ConfigError: length or step is no positive integer.
    """
    length = check_integer("length", length)
    step = length if step is None else check_integer("step", step)
    total = len(numbers)
    if total <= length:
        raise DataError(
            f"a sequence of {total} has no window of {length} with something after it; give a longer one, or a "
            f"smaller length (at most {max(total - 1, 0)})"
        )
    xp = host().xp
    starts = xp.arange(0, total - length, step)
    places = starts[:, None] + xp.arange(length)
    return numbers[places], numbers[places + 1]
