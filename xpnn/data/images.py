"""Images for convolutional networks: from folders of pictures, IDX and NPZ files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpnn.backend import host
from xpnn.data.files import read_table
from xpnn.data.idx import is_idx
from xpnn.data.pictures import ENDINGS, Size, class_folders, pictures_in, read_pictures
from xpnn.data.preparation import encode_target
from xpnn.data.table import Table, check_channels_last
from xpnn.dispatch import Array
from xpnn.errors import DataError


@dataclass(frozen=True)
class Images:
    """A data set of images, on the host.

    Attributes:
        x: (samples, height, width, channels), float32, from 0 to 1.
        y: (samples,), int64: the number of each image's class.
        class_names: the name of each class.
        held_out: a second data set for validation, where the files come with one (MNIST's do).
    """

    x: Array
    y: Array
    class_names: tuple[str, ...]
    held_out: Images | None = None


def read_images(
    path: str | os.PathLike[str],
    *,
    resize: Size | None = None,
    channels: int | None = None,
    target: str | None = None,
) -> Images:
    """Images with their classes.

    Args:
        path: a folder with one sub-folder of pictures (PNG, JPEG, ...) for each class, whose name is that of the
            class; or a folder of MNIST's IDX files; or an NPZ file with arrays "images" (or "X", "x") of shape
            (samples, height, width) or (samples, height, width, channels) and "labels" (or "y").
        resize: (height, width), or one number for both: of every picture. Arrays are not resized.
        channels: 1 or 3, for pictures; without it 1 if all are grey, else 3.
        target: in an NPZ file the name of the array of labels.

    Raises:
        DataError: a file or folder is missing, damaged or not of this kind, pictures differ in size, or a number is
            outside of the range of its kind; the message names the file.
        ConfigError: resize or channels make no sense.
    """
    path = Path(path)
    if path.is_dir() and is_picture_folder(path):
        return _from_folder(path, resize, channels)
    if path.is_file() and not path.name.lower().endswith(".npz"):
        raise DataError(
            f"{str(path)!r} is no data set of images; give an NPZ file, a folder of IDX files, or a folder with one "
            "sub-folder of pictures for each class"
        )
    return images_of_table(read_table(path, target), str(path))


def is_picture_folder(folder: Path) -> bool:
    """True if a folder has sub-folders or pictures, and no IDX files."""
    idx_files = any(is_idx(path) and path.is_file() for path in folder.iterdir())
    return not idx_files and bool(class_folders(folder) or pictures_in(folder))


def picture_table(folder: str | os.PathLike[str], resize: Size | None = None, channels: int | None = None) -> Table:
    """A folder of pictures as a table: each pixel is a feature."""
    images = _from_folder(Path(folder), resize, channels)
    xp = host().xp
    samples, *shape = images.x.shape
    rows = xp.reshape(images.x, (samples, -1))
    return Table(
        rows,
        images.y,
        tuple(f"pixel{index}" for index in range(rows.shape[1])),
        "class",
        "classification",
        images.class_names,
        image=True,
        image_shape=(shape[0], shape[1], shape[2]),
        white=1.0,
        defaults={"model": "cnn", "epochs": 30},
    )


def images_of_table(table: Table, name: str) -> Images:
    """The images whose pixels are the rows of a table; `name` is that of the file, for errors."""
    shape = table.image_shape
    if shape is None:
        raise DataError(
            f"{name!r} holds no images: give an array of shape (samples, height, width) or (samples, height, width, "
            "channels)"
        )
    try:
        check_channels_last(shape)
    except DataError as error:
        raise DataError(f"{name!r}: {error}") from None
    held_out = table.held_out
    y = table.y if held_out is None else host().xp.concat([table.y, held_out.y])
    target = encode_target(y, table.target, "classification", table.class_names)
    samples, white = len(table.x), white_of(table, name)
    second = None
    if held_out is not None:
        other = _unit_range(held_out, shape, white, name)
        second = Images(other, target.values[samples:], target.class_names)
    return Images(_unit_range(table, shape, white, name), target.values[:samples], target.class_names, second)


def white_of(table: Table, name: str) -> float:
    """What white is in a table of images: 255 or 65535 for whole numbers, 1 for fractions.

    Raises DataError, which calls the table `name`, if its numbers are of neither kind.
    """
    if table.white is not None:
        return table.white
    xp = host().xp
    highest = float(xp.max(table.x))
    if float(xp.min(table.x)) < 0 or highest > 65535 or (highest > 1 and (table.x != xp.floor(table.x)).any()):
        raise _out_of_range(table, name)
    return 1.0 if highest <= 1 else 255.0 if highest <= 255 else 65535.0


def _unit_range(table: Table, shape: tuple[int, int, int], white: float, name: str) -> Array:
    """Pixels from 0 to 1, as images."""
    xp = host().xp
    if xp.min(table.x) < 0 or xp.max(table.x) > white:
        raise _out_of_range(table, name)
    return xp.reshape(xp.astype(table.x / white, xp.float32), (len(table.x), *shape))


def _out_of_range(table: Table, name: str) -> DataError:
    xp = host().xp
    return DataError(
        f"{name!r} has pixels from {float(xp.min(table.x)):g} to {float(xp.max(table.x)):g}; give whole numbers from 0 "
        "to 255, or fractions from 0 to 1"
    )


def _from_folder(folder: Path, resize: Size | None, channels: int | None) -> Images:
    classes = class_folders(folder)
    if not classes:
        raise DataError(
            f"{str(folder)!r} holds pictures, and no sub-folders; sort them into one sub-folder for each class"
        )
    if len(classes) < 2:
        raise DataError(
            f"{str(folder)!r} has one sub-folder only, {classes[0].name!r}; there must be one for each of at least two "
            f"classes{_hint_of_nesting(classes[0])}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for number, each in enumerate(classes):
        pictures = pictures_in(each)
        if not pictures:
            raise DataError(
                f"the sub-folder {str(each)!r} holds no pictures ({', '.join(ENDINGS)}); put some there, or take it "
                f"away{_hint_of_nesting(each)}"
            )
        files += pictures
        labels += [number] * len(pictures)
    xp = host().xp
    x = read_pictures(files, resize, channels)
    return Images(x, xp.asarray(labels, dtype=xp.int64), tuple(each.name for each in classes))


def _hint_of_nesting(folder: Path) -> str:
    """For data/train/<class>/...: the folder that was meant."""
    inner: Any = class_folders(folder)
    return f"; its own sub-folders may be the classes: give {str(folder)!r}" if inner else ""
