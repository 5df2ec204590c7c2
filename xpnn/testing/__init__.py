"""Checks that a layer or an op is right, on every backend; public, for your own layers and your own tests.

>>> xpnn.testing.check_gradients(my_layer, input_shape=(4, 3))
>>> xpnn.testing.check_backends(my_layer, input_shape=(4, 3), backends="all")
"""
