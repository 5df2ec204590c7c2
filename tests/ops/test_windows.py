"""Where windows fit, what lies under their taps, and the helpers around them."""

import math

import numpy as np
import pytest

from xpnn.errors import ShapeError
from xpnn.ops import windows


@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (1, 0), (2, 3)])
def test_output_length_counts_the_places_of_the_window(length, kernel, stride, dilation, padding):
    padded = padding[0] + length + padding[1]
    last_taps = range(dilation * (kernel - 1), padded, stride)
    assert windows.output_length(length, kernel, stride, padding, dilation) == len(last_taps)


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_gives_the_length_over_the_stride_rounded_up(length, kernel, stride, dilation):
    before, after = windows.same_padding(length, kernel, stride, dilation)
    assert windows.output_length(length, kernel, stride, (before, after), dilation) == math.ceil(length / stride)
    assert after - before in (0, 1)
    if before + after:  # with one zero less, there would be one place less
        assert windows.output_length(length, kernel, stride, (before, after - 1), dilation) < math.ceil(length / stride)


def test_what_lies_under_a_tap():
    x = np.arange(10.0).reshape(1, 10, 1)
    under = [windows.slice_under_tap(x, tap, (3,), (3,), (2,)).ravel().tolist() for tap in windows.taps((2,))]
    assert under == [[0.0, 3.0, 6.0], [2.0, 5.0, 8.0]]


def test_taps_come_in_c_order():
    assert list(windows.taps((2, 2))) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_padding_and_cropping_are_inverse(backend, dtype):
    x = backend.asarray(np.arange(24.0).reshape(2, 3, 2, 2), dtype)
    padding = ((1, 0), (2, 3))
    with backend.context(), backend.discipline():
        padded = windows.pad_spatial(x, padding, -1.0)
        back = windows.crop_spatial(padded, padding)
    want = np.pad(backend.to_host(x), ((0, 0), *padding, (0, 0)), constant_values=-1.0)
    np.testing.assert_array_equal(backend.to_host(padded), want)
    np.testing.assert_array_equal(backend.to_host(back), backend.to_host(x))
    assert padded.dtype == x.dtype


def test_spread_puts_zeros_between(backend, dtype):
    x = backend.asarray(np.arange(1.0, 13.0).reshape(1, 2, 3, 2), dtype)
    with backend.context(), backend.discipline():
        apart = windows.spread(x, (3, 2))
    want = np.zeros((1, 4, 5, 2))
    want[:, ::3, ::2] = backend.to_host(x)
    np.testing.assert_array_equal(backend.to_host(apart), want)
    assert apart.dtype == x.dtype


def test_spread_by_one_changes_nothing():
    x = np.ones((2, 3, 1))
    assert windows.spread(x, (1,)) is x


@pytest.mark.parametrize("setting", ["kernel", "stride", "dilation"])
@pytest.mark.parametrize("value", [(0, 1), (1,), (1, 1, 1), (1, -2)])
def test_settings_that_make_no_sense_are_named(setting, value):
    settings = {"kernel": (2, 2), "stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1), setting: value}
    with pytest.raises(ShapeError, match=f"{setting}=.* does not fit; give 2 integers of at least 1"):
        windows.output_size((5, 5), **settings)


@pytest.mark.parametrize("padding", [((0, 0),), ((0, -1), (0, 0)), ((0, 0), (0, 0, 0))])
def test_padding_is_one_pair_for_each_axis(padding):
    with pytest.raises(ShapeError, match=r"give 2 pairs \(before, after\)"):
        windows.output_size((5, 5), (2, 2), (1, 1), padding)


def test_a_window_larger_than_the_padded_input_is_named_with_all_its_lengths():
    with pytest.raises(ShapeError, match=r"window of \(5, 2\) \(kernel \(3, 2\) with dilation \(2, 1\)\) is larger"):
        windows.output_size((3, 5), (3, 2), (1, 1), ((0, 1), (0, 0)), (2, 1))
    with pytest.raises(ShapeError, match=r"window of \(4,\) is larger than the padded input of \(3,\)"):
        windows.output_size((3,), (4,), (1,), ((0, 0),))
