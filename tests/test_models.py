"""The networks of `xpnn.models`."""

import numpy as np
import pytest

import xpnn
from xpnn import models
from xpnn.errors import ConfigError, ShapeError


def kinds(layers):
    return [type(layer).__name__ for layer in layers]


def test_mlp():
    assert kinds(models.mlp(3)) == ["Dense", "ReLU", "Dense", "ReLU", "Dense"]
    assert models.mlp(3, ()) == [xpnn.Dense(3)]
    assert models.mlp(3, (5,), xpnn.Tanh) == [xpnn.Dense(5), xpnn.Tanh(), xpnn.Dense(3)]


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3), (4, 4, 2)])
@pytest.mark.parametrize("build", [models.cnn, models.resnet])
def test_images_become_scores(build, shape):
    network = xpnn.Network(*build(5), input_shape=shape)
    assert network.output_shape == (5,)
    assert network.predict(np.zeros((2, *shape))).shape == (2, 5)


def test_each_pooling_of_a_cnn_halves_the_sides():
    layers = models.cnn(2, (4, 6, 8), units=7, dropout=0.0)
    assert kinds(layers).count("MaxPool2D") == 3
    assert "Dropout" not in kinds(layers)
    network = xpnn.Network(*layers, input_shape=(8, 8, 1))
    flat = kinds(layers).index("Flatten")
    assert network.parameters[f"{flat + 1}.weight"].shape == (8, 7)
    with pytest.raises(ShapeError):
        xpnn.Network(*layers, input_shape=(7, 8, 1))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_resnet_has_six_layers_with_weights_for_each_block_of_three_stages(blocks):
    network = xpnn.Network(*models.resnet(2, blocks=blocks), input_shape=(16, 16, 3))
    weights = [name for name in network.parameters if network.parameters[name].ndim in (2, 4)]
    shortcuts = [name for name in weights if "shortcut" in name]
    assert len(shortcuts) == 2
    assert len(weights) - len(shortcuts) == 6 * blocks + 2


def test_augmentation_comes_first():
    for build in (models.cnn, models.resnet):
        assert kinds(build(2, augmentation=[xpnn.RandomFlip(), xpnn.RandomShift(1)]))[:2] == [
            "RandomFlip",
            "RandomShift",
        ]


def test_a_residual_block_without_its_last_scale_is_its_shortcut():
    block = models.residual_block(3)
    network = xpnn.Network(block, input_shape=(4, 4, 3), dtype="float64")
    parameters = dict(network.parameters)
    last = [name for name in parameters if name.endswith("4.weight")]
    assert len(last) == 1
    network.set_parameters({**parameters, last[0]: np.zeros(3)})
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3))
    np.testing.assert_allclose(network.predict(x), x, atol=1e-12)


@pytest.mark.parametrize("build", [models.cnn, models.resnet])
def test_small_networks_are_saved_and_loaded(build, tmp_path):
    network = xpnn.Network(*build(2, (3, 4), augmentation=[xpnn.RandomShift(1)]), input_shape=(6, 6, 1), seed=3)
    network.save(tmp_path / "m.safetensors")
    same = xpnn.Network.load(tmp_path / "m.safetensors")
    x = np.random.default_rng(0).standard_normal((3, 6, 6, 1)).astype(np.float32)
    assert np.array_equal(same.predict(x), network.predict(x))


@pytest.mark.xpnn_rows(dtypes="float32")
@pytest.mark.parametrize("build", [models.cnn, models.resnet])
def test_a_training_is_the_same_on_every_row(build, backend):
    x = np.random.default_rng(0).standard_normal((24, 6, 6, 2)).astype(np.float32)
    y = np.arange(24) % 3

    def losses(where):
        network = xpnn.Network(*build(3, (3, 4), augmentation=[xpnn.RandomShift(1)]), backend=where, seed=2)
        history = network.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=3, batch_size=8, verbose=False)
        return [*history["loss"], network.evaluate(x, y)["loss"]]

    assert losses(backend) == pytest.approx(losses("numpy:readonly"), rel=2e-3)


@pytest.mark.parametrize("filters", [(), 3, None, "16"])
def test_filters_that_make_no_sense(filters):
    for build in (models.cnn, models.resnet):
        with pytest.raises(ConfigError, match="give channels for each stage"):
            build(2, filters)


def test_other_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"dropout=1\.0"):
        models.cnn(2, dropout=1.0)
    with pytest.raises(ConfigError, match="blocks=0"):
        models.resnet(2, blocks=0)
    with pytest.raises(ConfigError):
        models.mlp(2, (0,))
