"""Images from folders of pictures, IDX and NPZ files: what is read, and what is refused with which words."""

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from xpnn.data import read_images, read_pictures, read_table
from xpnn.errors import ConfigError, DataError


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array))
    if mode is not None:
        picture = picture.convert(mode)
    picture.save(path, **options)
    return path


def pixels(height, width, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes, cat with three grey pictures of 6 x 4, dog with two."""
    for number in range(3):
        save(tmp_path / "set" / "cat" / f"{number}.png", pixels(6, 4, seed=number))
    for number in range(2):
        save(tmp_path / "set" / "dog" / f"{number}.PNG", pixels(6, 4, seed=10 + number))
    return tmp_path / "set"


# Pictures


def test_a_grey_picture_keeps_its_values(tmp_path):
    array = pixels(5, 3)
    x = read_pictures([save(tmp_path / "a.png", array)])
    assert x.shape == (1, 5, 3, 1)
    assert x.dtype == np.float32
    assert np.array_equal(x[0, :, :, 0], array.astype(np.float32) / 255)


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp"])
def test_kinds_of_files_without_loss(tmp_path, ending):
    array = pixels(5, 3, 3)
    options = {"lossless": True} if ending == "webp" else {}
    x = read_pictures([save(tmp_path / f"a.{ending}", array, **options)])
    assert np.array_equal(x[0], array.astype(np.float32) / 255)


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG", "gif"])
def test_kinds_of_files_with_loss(tmp_path, ending):
    array = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    x = read_pictures([save(tmp_path / f"a.{ending}", array)])
    assert x.shape == (1, 8, 8, 3)
    assert np.abs(x[0] - array / 255).max() < 0.03


def test_sixteen_bits_are_not_cut_off(tmp_path):
    array = np.array([[0, 255], [32768, 65535]], np.uint16)
    x = read_pictures([save(tmp_path / "a.png", array)])
    assert x[0, :, :, 0] == pytest.approx(array / 65535, abs=1e-6)
    assert read_pictures([tmp_path / "a.png"], channels=3).shape == (1, 2, 2, 3)
    assert read_pictures([tmp_path / "a.png"], resize=1)[0, 0, 0, 0] == pytest.approx(array.mean() / 65535, rel=1e-3)


def test_black_and_white_palettes_and_transparency(tmp_path):
    black_and_white = save(tmp_path / "a.png", np.array([[0, 255]], np.uint8), mode="1")
    assert read_pictures([black_and_white]).ravel().tolist() == [0, 1]
    palette = save(tmp_path / "b.png", np.full((2, 2, 3), (255, 0, 0), np.uint8), mode="P")
    assert read_pictures([palette])[0, 0, 0] == pytest.approx([1, 0, 0], abs=0.02)
    glass = save(tmp_path / "c.png", np.array([[[0, 0, 0, 0], [10, 20, 30, 255]]], np.uint8))
    assert read_pictures([glass])[0, 0] * 255 == pytest.approx(np.array([[255, 255, 255], [10, 20, 30]]), abs=0.01)


def test_grey_and_colour_together_have_three_channels(tmp_path):
    files = [save(tmp_path / "a.png", pixels(3, 3)), save(tmp_path / "b.png", pixels(3, 3, 3))]
    x = read_pictures(files)
    assert x.shape == (2, 3, 3, 3)
    assert np.array_equal(x[0, :, :, 0], x[0, :, :, 2])
    assert read_pictures(files, channels=1).shape == (2, 3, 3, 1)
    assert read_pictures(files[:1], channels=3).shape == (1, 3, 3, 3)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    array = pixels(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise
    x = read_pictures([save(tmp_path / "a.png", array, exif=exif)])
    assert np.array_equal(x[0, :, :, 0], np.rot90(array, -1).astype(np.float32) / 255)


@pytest.mark.parametrize(("resize", "shape"), [((3, 5), (3, 5)), ([3, 5], (3, 5)), (4, (4, 4))])
def test_resizing(tmp_path, resize, shape):
    files = [
        save(tmp_path / "a.png", np.full((6, 4), 51, np.uint8)),
        save(tmp_path / "b.png", np.full((9, 9), 51, np.uint8)),
    ]
    x = read_pictures(files, resize=resize)
    assert x.shape == (2, *shape, 1)
    assert x == pytest.approx(0.2)


@pytest.mark.parametrize("resize", [0, -1, (3,), (3, 4, 5), 2.5, "big", (3, 0)])
def test_sizes_that_make_no_sense(tmp_path, resize):
    with pytest.raises(ConfigError, match="resize"):
        read_pictures([save(tmp_path / "a.png", pixels(2, 2))], resize=resize)


@pytest.mark.parametrize("channels", [0, 2, 4, "rgb"])
def test_channels_that_make_no_sense(tmp_path, channels):
    with pytest.raises(ConfigError, match=r"give 1 \(grey\) or 3"):
        read_pictures([save(tmp_path / "a.png", pixels(2, 2))], channels=channels)


def test_pictures_of_different_sizes(tmp_path):
    files = [save(tmp_path / "a.png", pixels(6, 4)), save(tmp_path / "b.png", pixels(5, 4))]
    message = r"b\.png' is 4 pixels wide and 5 high, .*a\.png' is 4 wide and 6 high; .*resize=\(6, 4\).*--resize 6,4"
    with pytest.raises(DataError, match=message):
        read_pictures(files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no picture, or a damaged one"),
        (b"text", "is no picture, or a damaged one"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "a.png'"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pictures([tmp_path / "a.png"])


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_files_that_were_cut_short(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", pixels(40, 40, 3))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"a\.\w+'"):
        read_pictures([path])


def test_a_picture_that_would_fill_the_memory(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", pixels(40, 40))
    for limit in (1000, 100):  # Pillow warns above its limit, and refuses above twice of that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="cannot be read as a picture: Image size"):
            read_pictures([path])


def test_a_picture_of_fractions(tmp_path):
    path = save(tmp_path / "a.tif", np.ones((2, 2), np.float32))
    with pytest.raises(DataError, match="numbers of kind 'F', wants 8 or 16 bits"):
        read_pictures([path])


def test_no_pictures_at_all():
    with pytest.raises(DataError, match="there are no pictures to read"):
        read_pictures([])


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'Pillow, which does not load .* pip install "xpnn\[data\]"'):
        read_pictures([tmp_path / "a.png"])


# Folders


def test_a_folder_with_a_sub_folder_for_each_class(folder):
    images = read_images(folder)
    assert images.x.shape == (5, 6, 4, 1)
    assert images.class_names == ("cat", "dog")
    assert images.y.tolist() == [0, 0, 0, 1, 1]
    assert images.y.dtype == np.int64
    assert images.held_out is None
    assert np.array_equal(images.x[1, :, :, 0], pixels(6, 4, seed=1).astype(np.float32) / 255)
    assert np.array_equal(images.x[4, :, :, 0], pixels(6, 4, seed=11).astype(np.float32) / 255)


def test_other_files_and_hidden_folders_are_passed_over(folder):
    (folder / "README.txt").write_text("about")
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "cat" / "._0.png").write_bytes(b"x")
    (folder / ".cache").mkdir()
    assert len(read_images(folder).x) == 5


def test_folders_with_pictures_of_two_sizes(folder):
    save(folder / "dog" / "9.png", pixels(3, 3))
    with pytest.raises(ConfigError, match="too large; give at most 4096 pixels"):
        read_images(folder, resize=(8, 4097))
    with pytest.raises(DataError, match="--resize 6,4"):
        read_images(folder)
    assert read_images(folder, resize=8).x.shape == (6, 8, 8, 1)
    assert read_images(folder, resize=(8, 4), channels=3).x.shape == (6, 8, 4, 3)


def test_folders_that_are_refused(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"sub-folder '.*empty' holds no pictures \(\.bmp, .*\); put some there, or take it away$"
    ):
        read_images(folder)
    with pytest.raises(DataError, match="holds pictures, and no sub-folders"):
        read_images(folder / "cat")
    with pytest.raises(
        DataError, match=r"has one sub-folder only, 'set'.*; its own sub-folders may be the classes: give"
    ):
        read_images(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="one with a sub-folder of pictures for each class"):
        read_images(tmp_path / "nothing")
    with pytest.raises(DataError, match="there is no file"):
        read_images(tmp_path / "missing")


def test_classes_below_a_part_of_the_data(folder, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for name in ("cat", "dog"):
            save(tmp_path / "data" / part / name / "0.png", pixels(2, 2))
    with pytest.raises(DataError, match=r"test' holds no pictures .*give '.*test'"):
        read_images(tmp_path / "data")


# Arrays


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("X", "y"), ("x", "y"), ("pictures", "labels")])
def test_npz(tmp_path, images, labels):
    x = pixels(5, 6, 4)
    np.savez(tmp_path / "t.npz", **{images: x, labels: np.array([3, 3, 7, 7, 3])})
    found = read_images(tmp_path / "t.npz")
    assert np.array_equal(found.x, (x.astype(np.float32) / 255)[..., None])
    assert found.y.tolist() == [0, 0, 1, 1, 0]
    assert found.class_names == ("3", "7")


def test_npz_with_colours_fractions_and_names(tmp_path):
    x = np.random.default_rng(0).random((4, 3, 2, 3))
    np.savez(tmp_path / "t.npz", images=x, kind=np.array(["b", "a", "b", "a"]))
    found = read_images(tmp_path / "t.npz", target="kind")
    assert found.x == pytest.approx(x, abs=1e-7)
    assert found.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 3)), "holds no images"),
        (np.ones((4, 2, 2, 2, 2)), "holds no images"),
        (np.full((4, 2, 2), -1.0), "has pixels from -1 to -1"),
        (np.full((4, 2, 2), 1.5), "has pixels from 1.5 to 1.5; give whole numbers from 0 to 255, or fractions"),
        (np.full((4, 2, 2), 70000), "has pixels from 70000"),
    ],
)
def test_npz_that_is_refused(tmp_path, x, message):
    np.savez(tmp_path / "t.npz", images=x, labels=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "t.npz")


def test_a_pickle_is_refused(tmp_path):
    objects = np.empty(2, dtype=object)
    objects[:] = ["a", 1]
    np.savez(tmp_path / "t.npz", images=objects, labels=np.zeros(2))
    with pytest.raises(DataError, match=r"cannot be read as npz: it holds pickled Python objects.*; save arrays of"):
        read_images(tmp_path / "t.npz")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 6), (4, 5, 5)])
def test_channels_that_come_first(tmp_path, shape):
    np.savez(tmp_path / "t.npz", images=np.ones((4, *shape)), labels=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match=r"t\.npz': images of shape .* seem to have their channels first; .*transpose"):
        read_images(tmp_path / "t.npz")


@pytest.mark.parametrize("shape", [(1, 8, 1), (3, 8, 3), (4, 4, 4), (8, 3, 8)])
def test_low_images_are_read(tmp_path, shape):
    np.savez(tmp_path / "t.npz", images=np.ones((4, *shape)), labels=np.array([0, 1, 0, 1]))
    assert read_images(tmp_path / "t.npz").x.shape == (4, *shape)


def test_another_kind_of_file(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,2\n")
    with pytest.raises(DataError, match="is no data set of images; give an NPZ file, a folder"):
        read_images(tmp_path / "t.csv")


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_idx_with_a_part_held_out(tmp_path):
    x, other = pixels(6, 3, 2), pixels(2, 3, 2, seed=1)
    write_idx(tmp_path / "train-images-idx3-ubyte", x)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 5, 9, 0, 5, 9]))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", other)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([9, 0]))
    (tmp_path / "notes").mkdir()
    found = read_images(tmp_path)
    assert np.array_equal(found.x[..., 0], x.astype(np.float32) / 255)
    assert found.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.class_names == ("0", "5", "9")
    assert np.array_equal(found.held_out.x[..., 0], other.astype(np.float32) / 255)
    assert found.held_out.y.tolist() == [2, 0]
    assert read_table(tmp_path, None).image_shape == (3, 2, 1)


def test_idx_whose_parts_differ_in_shape(tmp_path):
    for stem, shape in (("train", (2, 3, 4)), ("t10k", (2, 4, 3))):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte", np.zeros(shape))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", np.array([0, 1]))
    with pytest.raises(
        DataError, match=r"have shape \(3, 4, 1\) and 12 pixels, those held out \(4, 3, 1\) and 12; give"
    ):
        read_images(tmp_path)


def test_no_warning_is_left_behind(folder):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_images(folder)
    assert not seen
