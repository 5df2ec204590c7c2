"""Picture files: PNG, JPEG and others, read with Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xpnn.backend import host
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, DataError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files with these endings, in small or capital letters, are pictures."""

Size = int | tuple[int, int]

LARGEST_SIDE = 4096
"""Pictures are resized to so many pixels at most: a slip of the pen shall not fill the memory."""


def is_picture(path: Path) -> bool:
    """True if the name is that of a picture. Hidden files, as a Mac leaves beside pictures, are none."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder itself, by name."""
    return sorted(path for path in folder.iterdir() if is_picture(path) and path.is_file())


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders of a folder, by name; hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_pictures(
    files: Iterable[str | os.PathLike[str]], resize: Size | None = None, channels: int | None = None
) -> Array:
    """Picture files as one array (samples, height, width, channels), float32, from 0 (black) to 1.

    A photograph is turned as its camera says. Of an animation the first picture is read. What is transparent becomes
    white. A single channel is grey; three are red, green and blue.

    Args:
        files: their paths.
        resize: (height, width), or one number for both: every picture is resized to that, whatever its proportions.
        channels: 1 or 3; without it 1 if all pictures are grey, else 3.

    Raises:
        DataError: Pillow is not installed, a file is no picture, or they differ in size and `resize` is not given.
        ConfigError: resize (at most 4096 each way) or channels make no sense.
    """
    size = checked_size(resize)
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels={channels!r} makes no sense; give 1 (grey) or 3 (red, green, blue)")
    pillow = _pillow()
    xp = host().xp
    pictures: list[Array] = []
    first = ""
    for file in files:
        picture = _read(pillow, Path(file), size, channels)
        if not pictures:
            first = os.fspath(file)
        elif picture.shape[:2] != pictures[0].shape[:2]:
            height, width = pictures[0].shape[:2]
            raise DataError(
                f"{os.fspath(file)!r} is {picture.shape[1]} pixels wide and {picture.shape[0]} high, {first!r} is "
                f"{width} wide and {height} high; pictures of different sizes need resize=({height}, {width}), say "
                f"(on the command line --resize {height},{width})"
            )
        pictures.append(picture)
    if not pictures:
        raise DataError("there are no pictures to read")
    widest = max(picture.shape[2] for picture in pictures)
    if any(picture.shape[2] != widest for picture in pictures):
        pictures = [xp.repeat(picture, widest // picture.shape[2], axis=2) for picture in pictures]
    return xp.stack(pictures)


def checked_size(resize: Any) -> tuple[int, int] | None:
    """(height, width) from what a user gave. Raises ConfigError if that is no size."""
    if resize is None:
        return None
    sides = tuple(resize) if isinstance(resize, (tuple, list)) else (resize, resize)
    if len(sides) != 2:
        raise ConfigError(f"resize={resize!r} is no size; give (height, width), or one number for both")
    height, width = (check_integer("a side of resize", side) for side in sides)
    if max(height, width) > LARGEST_SIDE:
        raise ConfigError(f"resize={resize!r} is too large; give at most {LARGEST_SIDE} pixels for each side")
    return height, width


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise DataError(
            f'pictures are read with Pillow, which does not load ({error}); pip install "xpnn[data]"'
        ) from None
    return PIL


def _read(pillow: Any, path: Path, size: tuple[int, int] | None, channels: int | None) -> Array:
    """One picture, (height, width, 1 or 3), float32."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of a picture that is huge, and of a damaged one that it reads in part: both are refused.
            warnings.simplefilter("error")
            with pillow.Image.open(path) as opened:
                return _as_array(pillow, pillow.ImageOps.exif_transpose(opened), size, channels)
    except pillow.UnidentifiedImageError:
        raise DataError(f"{str(path)!r} is no picture, or a damaged one; replace the file, or take it away") from None
    except (OSError, ValueError, SyntaxError, EOFError, Warning, pillow.Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{str(path)!r} cannot be read as a picture: {reason}; replace the file, or take it away"
        ) from None


def _as_array(pillow: Any, picture: Any, size: tuple[int, int] | None, channels: int | None) -> Array:
    xp = host().xp
    bilinear = pillow.Image.Resampling.BILINEAR
    deep = picture.mode == "F" or picture.mode.startswith("I")
    if deep:
        # 16 bits a pixel, which Pillow's conversion to grey would cut off at 255.
        grey = xp.asarray(picture, dtype=xp.float32)
        if picture.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"it holds numbers of kind {picture.mode!r}, wants 8 or 16 bits for each colour")
        picture = pillow.Image.fromarray(grey / 65535)
    else:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            ground = pillow.Image.new("RGBA", picture.size, "white")
            picture = pillow.Image.alpha_composite(ground, picture).convert("RGB")
        grey_already = picture.mode in ("1", "L")
        wanted = "L" if channels == 1 or (channels is None and grey_already) else "RGB"
        picture = picture.convert(wanted)
    if size is not None and (picture.height, picture.width) != size:
        picture = picture.resize((size[1], size[0]), bilinear)
    array = xp.asarray(picture, dtype=xp.float32)
    if not deep:
        array = array / 255
    if array.ndim == 2:
        array = array[:, :, None]
    return xp.repeat(array, 3, axis=2) if deep and channels == 3 else array
