"""Data: built-in sets, files, and their preparation. Host arrays throughout."""

from xpnn.data.datasets import DATASETS, load_dataset
from xpnn.data.files import read_features, read_table
from xpnn.data.idx import read_idx, read_idx_folder
from xpnn.data.preparation import Scaling, Target, encode_target, split
from xpnn.data.table import Table

__all__ = [
    "DATASETS",
    "Scaling",
    "Table",
    "Target",
    "encode_target",
    "load_dataset",
    "read_features",
    "read_idx",
    "read_idx_folder",
    "read_table",
    "split",
]
