"""Metrics against scikit-learn, with and without weights, whatever the batches."""

import warnings

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError
from xpnn.metrics import METRICS, Metric, metric_from, metrics_from
from xpnn.training.totals import Totals

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sklearn import metrics as reference


def measure(metric, loss, prediction, target, weight=None, backend="numpy", batch=7, prepared=False):
    """The metric of a data set, added up in batches on the backend."""
    backend = xpnn.get_backend(backend)
    dtype = str(prediction.dtype)
    shape = prediction.shape[1:]
    device_target = backend.asarray(target, dtype if target.dtype.kind == "f" else "int64")
    if not prepared:
        device_target = loss.prepare(device_target, shape, backend, dtype)
    resolved = metric.resolve(loss, shape)
    totals = Totals(backend, (resolved,), shape)
    with backend.context():
        sums = totals.zero()
        outputs = backend.asarray(prediction)
        weights = None if weight is None else backend.asarray(weight, dtype)
        with backend.discipline():
            for start in range(0, len(prediction), batch):
                rows = slice(start, min(start + batch, len(prediction)))
                part = None if weights is None else weights[rows]
                sums[metric.name] = resolved.add(sums[metric.name], outputs[rows, ...], device_target[rows, ...], part)
    return totals.read(sums, loss)[metric.name]


@pytest.fixture
def three_classes():
    random = np.random.default_rng(3)
    return random.standard_normal((60, 3)), random.integers(0, 3, 60), random.integers(0, 4, 60).astype(float)


@pytest.fixture
def yes_or_no():
    random = np.random.default_rng(4)
    return random.standard_normal((60, 1)), random.integers(0, 2, 60), random.integers(0, 4, 60).astype(float)


AVERAGES = {
    "precision": (xpnn.metrics.Precision, reference.precision_score),
    "recall": (xpnn.metrics.Recall, reference.recall_score),
    "f1": (xpnn.metrics.F1, reference.f1_score),
}


def test_every_metric_on_every_backend(backend, dtype):
    random = np.random.default_rng(5)
    scores, labels = random.standard_normal((30, 6)).astype(dtype), random.integers(0, 6, 30)
    values, targets = random.standard_normal((30, 2)).astype(dtype), random.standard_normal((30, 2)).astype(dtype)
    weight = random.random(30)
    for name, kind in METRICS.items():
        numeric = name in ("mae", "rmse", "r2")
        data = (xpnn.MSE(), values, targets) if numeric else (xpnn.CrossEntropy(), scores, labels)
        expected = measure(kind(), *data, weight=weight)
        found = measure(kind(), *data, weight=weight, backend=backend)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
def test_accuracy(three_classes, weighted):
    scores, labels, weight = three_classes
    weight = weight if weighted else None
    expected = reference.accuracy_score(labels, scores.argmax(1), sample_weight=weight)
    loss = xpnn.CrossEntropy()
    assert measure(xpnn.metrics.Accuracy(), loss, scores, labels, weight) == pytest.approx(expected)
    one_hot = np.eye(3)[labels]
    assert measure(xpnn.metrics.Accuracy(), loss, scores, one_hot, weight) == pytest.approx(expected)
    assert measure(xpnn.metrics.Accuracy(), xpnn.MSE(), scores, one_hot, weight) == pytest.approx(expected)


def test_accuracy_of_one_output_knows_logits_from_probabilities(yes_or_no):
    logits, labels, _ = yes_or_no
    expected = reference.accuracy_score(labels, logits[:, 0] > 0)
    probabilities = 1 / (1 + np.exp(-logits))
    assert measure(xpnn.metrics.Accuracy(), xpnn.BinaryCrossEntropy(), logits, labels) == pytest.approx(expected)
    from_probabilities = xpnn.BinaryCrossEntropyFromProbabilities()
    assert measure(xpnn.metrics.Accuracy(), from_probabilities, probabilities, labels) == pytest.approx(expected)
    assert measure(xpnn.metrics.Accuracy(), xpnn.Hinge(), logits, labels) == pytest.approx(expected)
    given = measure(xpnn.metrics.Accuracy(threshold=0.25), xpnn.BinaryCrossEntropy(), logits, labels)
    assert given == pytest.approx(reference.accuracy_score(labels, logits[:, 0] > 0.25))


def test_accuracy_of_several_questions_counts_each():
    random = np.random.default_rng(0)
    logits, labels = random.standard_normal((20, 4)), random.integers(0, 2, (20, 4))
    expected = np.mean((logits > 0) == labels)
    assert measure(xpnn.metrics.Accuracy(), xpnn.BinaryCrossEntropy(), logits, labels) == pytest.approx(expected)


def test_ignored_labels_do_not_count(three_classes):
    scores, labels, weight = three_classes
    ignored = np.where(np.arange(60) % 3 == 0, -100, labels)
    keep = ignored != -100
    loss = xpnn.CrossEntropy(ignore_index=-100)
    found = measure(xpnn.metrics.Accuracy(), loss, scores, ignored)
    assert found == pytest.approx(reference.accuracy_score(labels[keep], scores.argmax(1)[keep]))
    found = measure(xpnn.metrics.TopK(2), loss, scores, ignored, weight)
    top = reference.top_k_accuracy_score(labels[keep], scores[keep], k=2, sample_weight=weight[keep])
    assert found == pytest.approx(top)
    matrix = reference.confusion_matrix(labels[keep], scores.argmax(1)[keep])
    assert measure(xpnn.metrics.ConfusionMatrix(), loss, scores, ignored) == matrix.tolist()


@pytest.mark.parametrize("weighted", [False, True])
def test_top_k(weighted):
    random = np.random.default_rng(1)
    scores, labels, weight = random.standard_normal((50, 8)), random.integers(0, 8, 50), random.random(50)
    weight = weight if weighted else None
    for k in (1, 3, 5):
        expected = reference.top_k_accuracy_score(labels, scores, k=k, labels=range(8), sample_weight=weight)
        found = measure(xpnn.metrics.TopK(k), xpnn.CrossEntropy(), scores, labels, weight)
        assert found == pytest.approx(expected)


def test_equal_outputs_are_ranked_in_their_order():
    scores = np.zeros((4, 4))
    assert measure(xpnn.metrics.TopK(2), xpnn.CrossEntropy(), scores, np.arange(4)) == 0.5
    assert measure(xpnn.metrics.Accuracy(), xpnn.CrossEntropy(), scores, np.arange(4)) == 0.25


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_averages_over_classes(name, average, three_classes):
    kind, expected = AVERAGES[name]
    scores, labels, weight = three_classes
    for weights in (None, weight):
        found = measure(kind(average=average), xpnn.CrossEntropy(), scores, labels, weights)
        assert found == pytest.approx(expected(labels, scores.argmax(1), average=average, sample_weight=weights))


@pytest.mark.parametrize("name", AVERAGES)
def test_a_class_that_does_not_occur_is_left_out(name, three_classes):
    kind, expected = AVERAGES[name]
    scores, labels, _ = three_classes
    scores = np.concatenate([scores, np.full((60, 1), -9.0)], axis=1)
    found = measure(kind(), xpnn.CrossEntropy(), scores, labels)
    assert found == pytest.approx(expected(labels, scores.argmax(1), average="macro"))


@pytest.mark.parametrize("name", AVERAGES)
def test_binary_scores(name, yes_or_no):
    kind, expected = AVERAGES[name]
    logits, labels, weight = yes_or_no
    for weights in (None, weight):
        wanted = pytest.approx(expected(labels, logits[:, 0] > 0, sample_weight=weights))
        assert measure(kind(), xpnn.BinaryCrossEntropy(), logits, labels, weights) == wanted
        two = np.concatenate([-logits, logits], axis=1)
        assert measure(kind(), xpnn.CrossEntropy(), two, labels, weights) == wanted
    assert measure(kind(), xpnn.BinaryCrossEntropy(), logits * 0 - 1, labels * 0) == 0.0


def test_confusion_matrix(three_classes, yes_or_no):
    scores, labels, weight = three_classes
    found = measure(xpnn.metrics.ConfusionMatrix(), xpnn.CrossEntropy(), scores, labels)
    assert found == reference.confusion_matrix(labels, scores.argmax(1)).tolist()
    assert all(type(count) is int for row in found for count in row)
    found = measure(xpnn.metrics.ConfusionMatrix(), xpnn.CrossEntropy(), scores, labels, weight / 4)
    np.testing.assert_allclose(found, reference.confusion_matrix(labels, scores.argmax(1), sample_weight=weight / 4))
    logits, labels, _ = yes_or_no
    found = measure(xpnn.metrics.ConfusionMatrix(), xpnn.BinaryCrossEntropy(), logits, labels)
    assert found == reference.confusion_matrix(labels, logits[:, 0] > 0).tolist()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(weighted, outputs):
    random = np.random.default_rng(2)
    prediction, target = random.standard_normal((40, outputs)), random.standard_normal((40, outputs))
    weight = random.random(40) if weighted else None
    expected = {
        "mae": reference.mean_absolute_error(target, prediction, sample_weight=weight),
        "rmse": reference.mean_squared_error(target, prediction, sample_weight=weight) ** 0.5,
        "r2": reference.r2_score(target, prediction, sample_weight=weight),
    }
    for name, value in expected.items():
        assert measure(metric_from(name), xpnn.MSE(), prediction, target, weight) == pytest.approx(value)


@pytest.mark.parametrize("row", ["numpy", "strict:no_float64"])
def test_r2_of_targets_with_a_large_mean(row):
    """The sum of squares minus the square of the sum would lose every digit here."""
    random = np.random.default_rng(2)
    target = (10000 + random.integers(0, 16, (500, 1)) / 8).astype("float32")
    prediction = target + (random.integers(-1, 2, (500, 1)) / 8).astype("float32")
    expected = reference.r2_score(target.astype("float64"), prediction.astype("float64"))
    assert measure(xpnn.metrics.R2(), xpnn.MSE(), prediction, target, backend=row) == pytest.approx(expected, rel=1e-3)


def test_r2_of_constant_targets():
    same = np.ones((5, 1))
    assert measure(xpnn.metrics.R2(), xpnn.MSE(), same, same) == reference.r2_score(same, same) == 1.0
    assert measure(xpnn.metrics.R2(), xpnn.MSE(), same * 2, same) == reference.r2_score(same, same * 2) == 0.0


def test_squares_of_large_float32_numbers_do_not_overflow():
    prediction = np.full((4, 1), 1e25, "float32")
    assert measure(xpnn.metrics.RootMeanSquaredError(), xpnn.MSE(), prediction, prediction * 0) == pytest.approx(1e25)


def test_labels_of_sequences():
    random = np.random.default_rng(6)
    scores, labels = random.standard_normal((5, 4, 3)), random.integers(0, 3, (5, 4))
    weight = random.random(5)
    found = measure(xpnn.metrics.Accuracy(), xpnn.CrossEntropy(), scores, labels, weight, batch=2)
    expected = reference.accuracy_score(labels.ravel(), scores.argmax(-1).ravel(), sample_weight=np.repeat(weight, 4))
    assert found == pytest.approx(expected)


def test_names():
    assert metric_from("top_3") == xpnn.metrics.TopK(3)
    assert metric_from("accuracy") == xpnn.metrics.Accuracy()
    assert metrics_from("mae")[0].name == "mae"
    with pytest.raises(ConfigError, match=r"'acuracy'.*accuracy, confusion_matrix"):
        metric_from("acuracy")
    with pytest.raises(ConfigError, match=r"write Accuracy\(\)"):
        metric_from(xpnn.metrics.Accuracy)
    with pytest.raises(ConfigError, match="two metrics are called 'accuracy'"):
        metrics_from(["accuracy", xpnn.metrics.Accuracy(0.3)])
    with pytest.raises(ConfigError, match="no list"):
        metrics_from(3)


def test_metrics_that_make_no_sense():
    with pytest.raises(ConfigError, match="always be 1"):
        xpnn.metrics.TopK(3).resolve(xpnn.CrossEntropy(), (3,))
    with pytest.raises(ConfigError, match="two classes"):
        xpnn.metrics.F1(average="binary").resolve(xpnn.CrossEntropy(), (3,))
    with pytest.raises(ConfigError, match="average='mean'"):
        xpnn.metrics.F1(average="mean")
    with pytest.raises(ConfigError, match="positive integer"):
        xpnn.metrics.TopK(0)
    scores = np.zeros((4, 3))
    with pytest.raises(ConfigError, match="compares numbers"):
        measure(xpnn.metrics.MeanAbsoluteError(), xpnn.CrossEntropy(), scores, np.zeros(4, int))


def test_a_metric_of_ones_own():
    class Bias(Metric):
        name = "bias"

        def add(self, sums, prediction, target, weight):
            xp = xpnn.dispatch.namespace(prediction)
            return sums[0] + xp.sum(prediction - target), sums[1] + float(prediction.shape[0])

        def result(self, sums):
            return sums[0] / sums[1]

    net = xpnn.Network(xpnn.Dense(1, 1), seed=1)
    X, y = np.ones((10, 1)), np.zeros((10, 1))
    assert net.evaluate(X, y, loss="mse", metrics=[Bias()], batch_size=3)["bias"] == pytest.approx(
        float(net.predict(X)[0, 0])
    )


def test_top_k_counts_no_guess_that_is_nan():
    prediction = np.array([[np.nan, np.nan, np.nan], [np.nan, 2.0, 1.0], [3.0, np.nan, 1.0]])
    target = np.array([0, 1, 0])
    # NaN counts as ahead of every number: the second and the third answer come second.
    assert measure(xpnn.metrics.TopK(2), xpnn.losses.CrossEntropy(), prediction, target) == pytest.approx(2 / 3)


def test_confusion_matrix_of_weights_that_are_nan_is_no_crash():
    prediction, target = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    matrix = measure(
        xpnn.metrics.ConfusionMatrix(), xpnn.losses.CrossEntropy(), prediction, target, np.array([np.nan, 1.0])
    )
    assert np.isnan(matrix[0][0])
