"""IDX files, the format of MNIST and of the data sets made after it.

A file is: two zero bytes, one byte for the type of the numbers, one for the number of axes, the length of each axis as
a big-endian 32-bit integer, then the numbers, big-endian, the last axis fastest (Y. LeCun, C. Cortes and C. Burges,
"The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

from xpnn.backend import host
from xpnn.data.table import Table, image_shape_of
from xpnn.dispatch import Array
from xpnn.errors import DataError

# type byte -> dtype of the numbers as they lie in the file
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# More than any data set has; NumPy's arrays have at most 64.
_MOST_AXES = 16

_TRAINING = ("train-images", "train-labels")
_HELD_OUT = ("t10k-images", "t10k-labels")


def is_idx(path: Path) -> bool:
    """True if the name is that of an IDX file, which has no ending of its own: "idx" stands in it."""
    return "idx" in path.name


def read_idx(path: str | os.PathLike[str]) -> Array:
    """The array in an IDX file, gzipped if its name ends in ".gz".

    Returns:
        a host array with the type and the axes that the file says, in the machine's byte order.

    Raises:
        DataError: the file is missing, is no IDX file, or holds more or fewer numbers than it says.
    """
    content = _content(path)
    name = os.fspath(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataError(
            f"{name!r} is no IDX file: it begins with the bytes {content[:4].hex(' ') or '(none)'}, "
            "where an IDX file has 00 00, a type from 08 to 0e, and the number of axes"
        )
    axes = content[3]
    if axes > _MOST_AXES:
        raise DataError(f"{name!r} is damaged: its header says that it has {axes} axes")
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(f"{name!r} is truncated: it has {len(content)} bytes, its header alone takes {start}")
    shape = struct.unpack(f">{axes}I", content[4:start])
    xp = host().xp
    dtype = xp.dtype(_TYPES[content[2]])
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(content) != wanted:
        fault = "is truncated" if len(content) < wanted else "is too long"
        raise DataError(
            f"{name!r} {fault}: it has {len(content)} bytes, and wants {wanted} for numbers of shape {shape}"
        )
    array = xp.frombuffer(content, dtype=dtype, offset=start)
    return xp.reshape(array.astype(dtype.newbyteorder("=")), shape)


def read_idx_folder(folder: str | os.PathLike[str]) -> Table:
    """The data set in a folder of MNIST's layout.

    It must hold train-images-idx3-ubyte and train-labels-idx1-ubyte; t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, if both are there, become the held-out part. Each may end in ".gz", and may have a dot
    before "idx".

    Raises:
        DataError: a file is missing or damaged, or images and labels differ in number.
    """
    images, labels = (_find(folder, stem) for stem in _TRAINING)
    if images is None or labels is None:
        stem = _TRAINING[0] if images is None else _TRAINING[1]
        raise DataError(
            f"the folder {os.fspath(folder)!r} has no {stem}-idx{_axes(stem)}-ubyte (or .gz); "
            "give a folder with MNIST's four files, one with a sub-folder of pictures for each class, or a CSV, "
            "Parquet or NPZ file"
        )
    held_out_images, held_out_labels = (_find(folder, stem) for stem in _HELD_OUT)
    if held_out_images is None and held_out_labels is None:
        return _pair(images, labels)
    if held_out_images is None or held_out_labels is None:
        there, stem = (held_out_images, _HELD_OUT[1]) if held_out_images else (held_out_labels, _HELD_OUT[0])
        raise DataError(
            f"{str(there)!r} has no {stem}-idx{_axes(stem)}-ubyte (or .gz) beside it; add that file, or take this one "
            "away"
        )
    return _pair(images, labels, _pair(held_out_images, held_out_labels))


def read_idx_images(path: str | os.PathLike[str]) -> Table:
    """The images of one IDX file, without labels."""
    array = read_idx(path)
    x, features = _pixels(array, path)
    return Table(x, None, features, image=True, image_shape=image_shape_of(array.shape[1:]))


def _pair(images: Path, labels: Path, held_out: Table | None = None) -> Table:
    """Images and their labels as a table."""
    array = read_idx(images)
    x, features = _pixels(array, images)
    shape = image_shape_of(array.shape[1:])
    y = read_idx(labels)
    if y.ndim != 1:
        raise DataError(f"{str(labels)!r} has {y.ndim} axes; labels have one")
    if len(x) != len(y):
        raise DataError(
            f"{str(images)!r} has {len(x)} images, {str(labels)!r} has {len(y)} labels; give two files that "
            "belong together"
        )
    if len(x) == 0:
        raise DataError(f"{str(images)!r} holds no images")
    if held_out is not None and (held_out.features != features or held_out.image_shape != shape):
        raise DataError(
            f"the images of {str(images)!r} have shape {shape or array.shape[1:]} and {len(features)} pixels, those "
            f"held out {held_out.image_shape} and {len(held_out.features)}; give files that belong together"
        )
    defaults = {"layers": (128, 64), "batch_size": 128, "epochs": 10}
    return Table(
        x,
        y,
        features,
        "label",
        "classification",
        image=True,
        image_shape=shape,
        held_out=held_out,
        defaults=defaults,
    )


def _pixels(images: Array, path: str | os.PathLike[str]) -> tuple[Array, tuple[str, ...]]:
    """Images as rows, and the names of the pixels: in float32 where that holds every number of the file exactly."""
    xp = host().xp
    if images.ndim < 2:
        raise DataError(
            f"{os.fspath(path)!r} has {images.ndim} axes, where images have 2 or more: it may hold labels; give a file "
            "of images"
        )
    count = math.prod(images.shape[1:])
    small = images.dtype.itemsize <= 2 or images.dtype == xp.float32
    rows = xp.astype(xp.reshape(images, (images.shape[0], count)), xp.float32 if small else xp.float64)
    return rows, tuple(f"pixel{index}" for index in range(count))


def _find(folder: str | os.PathLike[str], stem: str) -> Path | None:
    """The file of the folder whose name begins with the stem, as in "train-images-idx3-ubyte.gz"."""
    for separator in "-.":
        for ending in ("", ".gz"):
            path = Path(folder) / f"{stem}{separator}idx{_axes(stem)}-ubyte{ending}"
            if path.is_file():
                return path
    return None


def _axes(stem: str) -> int:
    """How many axes a file of images, or of labels, has by its name."""
    return 3 if "images" in stem else 1


def _content(path: str | os.PathLike[str]) -> bytes:
    name = os.fspath(path)
    try:
        if name.endswith(".gz"):
            with gzip.open(path) as file:
                return file.read()
        return Path(path).read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name!r} is a damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {name!r}: {error.strerror or error}") from None
