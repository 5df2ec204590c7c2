"""Every layer."""

from xpnn.layers.activation import Activation, ReLU, Sigmoid, Tanh
from xpnn.layers.dense import Dense
from xpnn.layers.layer import Layer, Parameter, Run
from xpnn.layers.sequential import Sequential

__all__ = ["Activation", "Dense", "Layer", "Parameter", "ReLU", "Run", "Sequential", "Sigmoid", "Tanh"]
