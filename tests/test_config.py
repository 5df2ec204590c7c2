"""Objects described by their constructor's arguments."""

import json
import math

import pytest

import xpnn
from xpnn import config
from xpnn.config import Configurable, decode, encode
from xpnn.errors import ConfigError
from xpnn.layers import Layer


class Scale(Layer):
    """A layer of a user's."""

    def __init__(self, factor=2.0, *, names=(), table=None, inner=None):
        self.factor = factor
        self.names = names
        self.table = table
        self.inner = inner


class Bare(Layer):
    """A layer without a constructor of its own."""


def there_and_back(value, **options):
    return decode(json.loads(json.dumps(encode(value))), **options)


@pytest.mark.parametrize(
    "value",
    [
        xpnn.Dense(3),
        xpnn.Dense(2, 3, bias=False, weight_initializer=xpnn.initializers.Normal(0.1)),
        xpnn.Sequential(xpnn.Dense(3), xpnn.Sequential(xpnn.ReLU(), xpnn.Dropout(0.25))),
        xpnn.Residual(xpnn.Dense(3), shortcut=xpnn.Dense(3)),
        xpnn.Parallel(xpnn.Reshape(3, -1), [xpnn.Flatten()], combine="concatenate", axis=1),
        xpnn.Each(xpnn.Embedding(4, 2), [xpnn.Dense(2), xpnn.Tanh()], combine="add"),
        xpnn.Embedding(5, 2),
        Scale(0.5, names=("a", "b"), table={1: (2.0, None), "x": True}, inner=Bare()),
    ],
    ids=repr,
)
def test_what_is_encoded_comes_back_equal(value):
    built = there_and_back(value)
    assert built == value
    assert repr(built) == repr(value)


def test_layers_that_were_one_object_are_one_object_again():
    dense = xpnn.Dense(3)
    built = there_and_back(xpnn.Sequential(dense, xpnn.Parallel(xpnn.Dense(3), [xpnn.Tanh(), dense]), dense))
    assert built.layers[0] is built.layers[2]
    assert built.layers[1].branches[1].layers[1] is built.layers[0]
    assert built.layers[1].branches[0] is not built.layers[0]


@pytest.fixture
def own_classes(monkeypatch):
    """The classes that a test defines are known for that test only."""
    monkeypatch.setattr(Configurable, "_classes", dict(Configurable._classes))


def defined_in(module):
    """A layer class Twin, as if `module` had defined it."""

    return type("Twin", (Layer,), {"__module__": module, "__qualname__": "Twin"})


def test_a_class_may_have_the_name_of_one_of_xpnns(own_classes):
    class Dense(Layer):
        def __init__(self, size):
            self.size = size

    assert encode(Dense(3))["class"].endswith("test_a_class_may_have_the_name_of_one_of_xpnns.<locals>.Dense")
    assert encode(xpnn.Dense(3))["class"] == "xpnn.layers.Dense"
    both = xpnn.Sequential(Dense(3), xpnn.Dense(3))
    for built in (there_and_back(both), there_and_back(both, custom=[Dense])):
        assert [type(layer) for layer in built.layers] == [Dense, xpnn.Dense]


def test_two_modules_may_have_classes_of_one_name(own_classes):
    first, second = defined_in("first"), defined_in("second")
    assert type(there_and_back(first())) is first
    assert type(there_and_back(second())) is second


def test_a_class_whose_module_was_renamed_is_found_if_its_name_is_clear(own_classes):
    first = defined_in("first")
    data = encode(first())
    data["class"] = "__main__.Twin"
    assert type(decode(data)) is first
    second = defined_in("second")
    with pytest.raises(ConfigError, match=r"first\.Twin, second\.Twin have its name.*custom=\[Twin\]"):
        decode(data)
    assert type(decode(data, custom=[second])) is second


def test_an_unknown_class_is_named_with_what_to_do():
    data = encode(Bare())
    data["class"] = "Nowhere"
    with pytest.raises(ConfigError, match=r"names a class 'Nowhere' .*custom=\[Nowhere\]"):
        decode(data)


@pytest.mark.parametrize("value", [len, object(), {1, 2}, 1j])
def test_what_has_no_description_is_refused(value):
    with pytest.raises(ConfigError, match="cannot be written into a model file"):
        encode(Scale(table={"x": [value]}))


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(Scale()) == "Scale()"
    assert repr(Scale(3.0, names=("a",))) == "Scale(factor=3.0, names=('a',))"
    assert repr(Bare()) == "Bare()"


def test_equality_compares_type_and_arguments():
    assert Scale(2.0) == Scale()
    assert Scale(3.0) != Scale()
    assert Bare() != Scale()
    assert Bare() != 3
    layer = Bare()
    assert len({layer, layer, Bare()}) == 2


def test_by_name():
    table = {"bare": Bare}
    assert config.by_name("layer", "bare", table, Layer) == Bare()
    layer = Scale()
    assert config.by_name("layer", layer, table, Layer) is layer
    with pytest.raises(ConfigError, match="layer='bar' is unknown; known names: bare"):
        config.by_name("layer", "bar", table, Layer)
    with pytest.raises(ConfigError, match=r"layer=3 is a int; give a name or an xpnn\.Layer object"):
        config.by_name("layer", 3, table, Layer)


def test_check_integer_and_check_number():
    assert config.check_integer("n", 3) == 3
    assert config.check_integer("n", -2, minimum=-2) == -2
    for value in (0, 1.0, "1", True, None):
        with pytest.raises(ConfigError, match=r"n=.* makes no sense; give an integer of at least 1"):
            config.check_integer("n", value)
    assert config.check_number("x", 3, "a finite number", math.isfinite) == 3.0
    for value in (math.inf, math.nan, "3", None, True, [1.0]):
        with pytest.raises(ConfigError, match=r"x=.* makes no sense; give a finite number"):
            config.check_number("x", value, "a finite number", math.isfinite)
