"""xpnn: neural networks written once against the Python array API standard, trained on NumPy, CuPy and others."""

from xpnn import losses, ops, optimizers
from xpnn import numbers as _numbers
from xpnn.backend import Backend, available_backends, get_backend, set_backend, use_backend
from xpnn.layers import *
from xpnn.layers import __all__ as _layers
from xpnn.losses import *
from xpnn.losses import __all__ as _losses
from xpnn.network import Network
from xpnn.optimizers import *
from xpnn.optimizers import __all__ as _optimizers

__version__ = "0.1.0"
