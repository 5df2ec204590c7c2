"""Checks that a layer or an op is right, on every backend; public, for your own layers and your own tests.

>>> xpnn.testing.check_gradients(my_layer, input_shape=(4, 3))
>>> xpnn.testing.check_backends(my_layer, input_shape=(4, 3), backends="all")

In a test, with the fixtures of the pytest plug-in (`xpnn.testing.plugin`), which run it on every row of the matrix:

    def test_my_layer(backend, dtype):
        xpnn.testing.check_layer(MyLayer(), input_shape=(4, 3), backend=backend, dtype=dtype)
"""

from xpnn.testing.backends import BackendReport, RowReport, check_backends, check_layer
from xpnn.testing.gradients import GradientReport, check_gradients

__all__ = ["BackendReport", "GradientReport", "RowReport", "check_backends", "check_gradients", "check_layer"]
