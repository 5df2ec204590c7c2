"""Training: the pure step, and the loop around it."""

from xpnn.training.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
from xpnn.training.history import History
from xpnn.training.state import TrainingState
from xpnn.training.step import Batch, EvaluationState, State, Step, make_evaluation_step, make_step

__all__ = [
    "Batch",
    "Callback",
    "EarlyStopping",
    "EvaluationState",
    "History",
    "LambdaCallback",
    "ModelCheckpoint",
    "State",
    "Step",
    "TrainingState",
    "make_evaluation_step",
    "make_step",
]
