"""Data: built-in sets, files, and their preparation. Host arrays throughout."""

from xpnn.data.datasets import DATASETS, load_dataset
from xpnn.data.files import read_features, read_table
from xpnn.data.idx import read_idx, read_idx_folder
from xpnn.data.images import Images, read_images
from xpnn.data.pictures import read_pictures
from xpnn.data.preparation import Scaling, Target, encode_target, split
from xpnn.data.sequences import pad_sequences
from xpnn.data.table import Table
from xpnn.data.text import TEXTS, Vocabulary, load_text, next_token_windows

__all__ = [
    "DATASETS",
    "TEXTS",
    "Images",
    "Scaling",
    "Table",
    "Target",
    "Vocabulary",
    "encode_target",
    "load_dataset",
    "load_text",
    "next_token_windows",
    "pad_sequences",
    "read_features",
    "read_idx",
    "read_idx_folder",
    "read_images",
    "read_pictures",
    "read_table",
    "split",
]
