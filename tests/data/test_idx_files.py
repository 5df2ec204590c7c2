"""The IDX reader against files made byte by byte."""

import gzip
import struct

import numpy as np
import pytest

from xpnn.data import read_idx, read_idx_folder
from xpnn.data.idx import read_idx_images
from xpnn.errors import DataError


def idx_bytes(array, code):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder, images, labels, held_out_images=None, held_out_labels=None, compress=False):
    parts = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}
    if held_out_images is not None:
        parts["t10k-images-idx3-ubyte"] = held_out_images
        parts["t10k-labels-idx1-ubyte"] = held_out_labels
    for name, array in parts.items():
        content = idx_bytes(array.astype(np.uint8), 0x08)
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_every_type_of_number(tmp_path, code, dtype):
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4) * 5
    (tmp_path / "a").write_bytes(idx_bytes(array, code))
    got = read_idx(tmp_path / "a")
    assert got.dtype == np.dtype(dtype)
    assert np.array_equal(got, array)


def test_the_bytes_of_the_published_format(tmp_path):
    (tmp_path / "labels").write_bytes(bytes.fromhex("00 00 08 01 00 00 00 03 05 00 04"))
    assert read_idx(tmp_path / "labels").tolist() == [5, 0, 4]


def good():
    return idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2), 0x08)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with the bytes \(none\)"),
        (b"\x89PNG\r\n\x1a\n", "is no IDX file: it begins with the bytes 89 50 4e 47"),
        (b"\0\0\x07\x01" + good()[4:], "is no IDX file"),
        (good()[:9], "is truncated: it has 9 bytes, its header alone takes 16"),
        (good()[:-1], r"is truncated: it has 27 bytes, and wants 28 for numbers of shape \(3, 2, 2\)"),
        (good() + b"x", "is too long: it has 29 bytes, and wants 28"),
        # the header claims more than there can be: refused before anything of that size is made
        (b"\0\0\x08\x03" + b"\xff" * 12, "is truncated"),
        # more axes than an array can have, each of length 0: as long as its header says
        (b"\0\0\x08\xff" + b"\0" * 4 * 255, "is damaged: its header says that it has 255 axes"),
    ],
)
def test_a_damaged_file(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"text", lambda b: b[:20] + b"\xff\xff\xff" + b[23:]])
def test_a_damaged_gzip_file(tmp_path, damage):
    (tmp_path / "a.gz").write_bytes(damage(gzip.compress(good() * 50)))
    with pytest.raises(DataError, match="damaged gzip file"):
        read_idx(tmp_path / "a.gz")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize("compress", [False, True])
def test_a_folder(tmp_path, compress):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 4, 3)), rng.integers(0, 10, 5)
    second, second_labels = rng.integers(0, 256, (2, 4, 3)), rng.integers(0, 10, 2)
    write_mnist(tmp_path, images, labels, second, second_labels, compress=compress)
    table = read_idx_folder(tmp_path)
    assert np.array_equal(table.x, images.reshape(5, 12))
    assert table.x.dtype == np.float32
    assert np.array_equal(table.y, labels)
    assert table.features[-1] == "pixel11"
    assert np.array_equal(table.held_out.x, second.reshape(2, 12))
    assert np.array_equal(table.held_out.y, second_labels)


def test_a_folder_without_labels(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(good())
    with pytest.raises(DataError, match="has no train-labels-idx1-ubyte"):
        read_idx_folder(tmp_path)


def test_images_and_labels_of_different_number(tmp_path):
    write_mnist(tmp_path, np.zeros((3, 2, 2)), np.zeros(4))
    with pytest.raises(DataError, match=r"has 3 images, .* has 4 labels"):
        read_idx_folder(tmp_path)


@pytest.mark.parametrize("missing", ["labels-idx1", "images-idx3"])
def test_half_of_the_part_held_out(tmp_path, missing):
    write_mnist(tmp_path, np.zeros((3, 2, 2)), np.zeros(3), np.zeros((2, 2, 2)), np.zeros(2))
    (tmp_path / f"t10k-{missing}-ubyte").unlink()
    with pytest.raises(DataError, match=rf"t10k-.*-ubyte' has no t10k-{missing}-ubyte \(or \.gz\) beside it; add"):
        read_idx_folder(tmp_path)


def test_no_images(tmp_path):
    write_mnist(tmp_path, np.zeros((0, 2, 2)), np.zeros(0))
    with pytest.raises(DataError, match="holds no images"):
        read_idx_folder(tmp_path)


def test_labels_where_images_are_wanted(tmp_path):
    (tmp_path / "a").write_bytes(idx_bytes(np.zeros(3, np.uint8), 0x08))
    with pytest.raises(DataError, match=r"a' has 1 axes, .*it may hold labels; give"):
        read_idx_images(tmp_path / "a")
