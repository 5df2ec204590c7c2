"""xpnn: neural networks written once against the Python array API standard, trained on NumPy, CuPy and others."""

from xpnn import initializers as initializers
from xpnn import losses as losses
from xpnn import metrics as metrics
from xpnn import models as models
from xpnn import numbers as numbers
from xpnn import ops as ops
from xpnn import optimizers as optimizers
from xpnn import schedules as schedules
from xpnn import testing as testing
from xpnn.backend import Backend as Backend
from xpnn.backend import available_backends as available_backends
from xpnn.backend import get_backend as get_backend
from xpnn.backend import set_backend as set_backend
from xpnn.backend import use_backend as use_backend
from xpnn.layers import *
from xpnn.losses import *
from xpnn.network import Network as Network
from xpnn.optimizers import *
from xpnn.schedules import *
from xpnn.training import Callback as Callback
from xpnn.training import EarlyStopping as EarlyStopping
from xpnn.training import History as History
from xpnn.training import LambdaCallback as LambdaCallback
from xpnn.training import ModelCheckpoint as ModelCheckpoint

__version__ = "0.1.0"
