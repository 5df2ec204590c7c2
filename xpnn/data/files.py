"""Tables from CSV, Parquet and NPZ files."""

from __future__ import annotations

import gzip
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xpnn.backend import host
from xpnn.data.idx import is_idx, read_idx_folder, read_idx_images
from xpnn.data.table import Table, image_shape_of
from xpnn.dispatch import Array
from xpnn.errors import DataError

# What stands for "no value" in a column of numbers. In the target only the empty cell does: a class may be called "NA".
_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A", "?")

_NEEDS_PANDAS = {".csv", ".tsv", ".txt", ".parquet", ".pq"}


def read_table(path: str | os.PathLike[str], target: str | None, drop: Iterable[str] = ()) -> Table:
    """A file with a target, for training.

    Args:
        path: CSV (.csv, .tsv, .txt; also .gz), Parquet (.parquet, .pq), NPZ (.npz), or a folder of MNIST's IDX files.
        target: the column to be predicted; for NPZ the name of the array, "y" or "labels" without one; not used for
            IDX.
        drop: columns that are not to be used; for files that have names of columns, CSV and Parquet.

    Raises:
        DataError: the file cannot be read, or is no table of finite numbers with that target.
    """
    path = Path(path)
    drop = list(drop)
    if drop and (path.is_dir() or _kind(path) == ".npz"):
        raise DataError(f"{str(path)!r} has no names of columns; leave out --drop")
    if path.is_dir():
        return read_idx_folder(path)
    _require_file(path)
    if _kind(path) == ".npz":
        return _table_from_npz(path, target)
    frame = _frame(path, target)
    if target is None:
        raise DataError(f"which column is to be predicted? Give --target; {_columns(frame)}")
    if target in drop:
        raise DataError(f"{target!r} is the column to be predicted, and cannot be dropped")
    _require_columns(path, frame, [target, *drop])
    features = [name for name in frame.columns if name != target and name not in set(drop)]
    if not features:
        raise DataError(f"{str(path)!r} has no column besides the target {target!r}")
    x = _numbers(path, frame, features, "mend the file, or leave the column out with --drop {!r}")
    return Table(x, _target(path, frame[target]), tuple(features), target)


def read_features(path: str | os.PathLike[str], features: tuple[str, ...]) -> Array:
    """The named columns of a file, in that order, for prediction: (samples, features), float64.

    A file without column names (NPZ, IDX) must have as many features as there are names.

    Raises:
        DataError: the file cannot be read, lacks columns (at most twelve are listed), or has a cell that is no finite
            number.
    """
    path = Path(path)
    _require_file(path)
    if _kind(path) == ".npz":
        arrays = _arrays(path)
        x = _samples(path, *_pick_inputs(path, arrays, None))
    elif _kind(path) in _NEEDS_PANDAS:
        frame = _frame(path, None)
        _require_columns(path, frame, features)
        return _numbers(path, frame, list(features), "mend the file: the model needs this column")
    elif is_idx(path):
        x = read_idx_images(path).x
    else:
        raise _unknown_kind(path)
    if x.shape[1] != len(features):
        raise DataError(f"{str(path)!r} has {x.shape[1]} features, the model wants {len(features)}")
    return x


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder; give a file")
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is empty")


def _kind(path: Path) -> str:
    """The ending of the name in small letters, without ".gz"."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _unknown_kind(path: Path) -> DataError:
    return DataError(f"{str(path)!r}: files of kind {path.suffix or path.name!r} are not read; {_KINDS}")


_KINDS = "use .csv, .tsv, .txt, .parquet, .npz, or a folder of MNIST's IDX files"


def _frame(path: Path, target: str | None) -> Any:
    """The file as a pandas data frame with at least one row."""
    suffix = _kind(path)
    if suffix not in _NEEDS_PANDAS:
        raise _unknown_kind(path)
    try:
        import pandas as pd
    except ImportError as error:
        raise DataError(
            f'{suffix} files are read with pandas, which does not load ({error}); pip install "xpnn[data]"'
        ) from None
    try:
        with warnings.catch_warnings():
            # Rows that are longer than the header are cut short by pandas, with a warning; here they are an error.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_parquet(path) if suffix in (".parquet", ".pq") else _read_csv(path, target)
    except DataError:
        raise
    except pd.errors.EmptyDataError:
        raise DataError(f"{str(path)!r} is empty") from None
    except UnicodeDecodeError:
        raise DataError(
            f"{str(path)!r} cannot be read as {suffix[1:]}: it is no UTF-8 text; save it as UTF-8"
        ) from None
    except ImportError as error:
        raise DataError(f'{str(path)!r} cannot be read: {_first_line(error)}; pip install "xpnn[data]"') from None
    except Exception as error:  # pandas and pyarrow raise many kinds for a file that they cannot make sense of
        raise DataError(f"{str(path)!r} cannot be read as {suffix[1:]}: {_first_line(error)}") from None
    frame.columns = [str(name) for name in frame.columns]
    _refuse_duplicates(path, list(frame.columns))
    if len(frame) == 0:
        raise DataError(f"{str(path)!r} has a header and no rows")
    return frame


def _read_csv(path: Path, target: str | None) -> Any:
    import pandas as pd

    layout: dict[str, Any] = {
        "sep": _separator(path),
        "skipinitialspace": True,
        # By the ending in small letters too, where pandas looks for ".gz" alone.
        "compression": "gzip" if _compressed(path) else None,
    }
    # As a line like any other the header keeps names that stand there twice; as a header pandas would number them.
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **layout)
    _refuse_duplicates(path, [name for name in header.iloc[0] if name])
    names = [str(name) for name in pd.read_csv(path, nrows=0, **layout).columns]
    missing = {name: [""] if name == target else list(_MISSING) for name in names}
    return pd.read_csv(
        path,
        **layout,
        keep_default_na=False,
        na_values=missing,
        low_memory=False,
        index_col=False,
        float_precision="round_trip",
    )


def _compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise DataError(f"{str(path)!r} has {count} columns called {name!r}; give each its own name")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _separator(path: Path) -> str:
    """The sign between columns: the most frequent one of the first line that is not blank."""
    with gzip.open(path, "rb") if _compressed(path) else path.open("rb") as file:
        line = next((line for line in file if line.strip()), b"")
    return max(",", ";", "\t", "|", key=lambda sign: line.count(sign.encode()))


def _columns(frame: Any) -> str:
    return f"the columns are {_listed(list(frame.columns))}"


def _listed(names: list[str]) -> str:
    """The first twelve names, and how many more there are: an image has a column for each pixel."""
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown}{f' and {len(names) - 12} more' if len(names) > 12 else ''}"


def _require_columns(path: Path, frame: Any, wanted: Iterable[str]) -> None:
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        noun = "column" if len(missing) == 1 else "columns"
        raise DataError(f"{str(path)!r} has no {noun} {_listed(missing)}; {_columns(frame)}")


def _numbers(path: Path, frame: Any, names: list[str], remedy: str) -> Array:
    """Columns as one float64 array. The first cell that is no finite number raises DataError, ending in the remedy."""
    import pandas as pd

    xp = host().xp
    columns = []
    for name in names:
        column = frame[name]
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise DataError(f"{str(path)!r}: column {name!r} has no value in row {row + 1}; {remedy.format(name)}")
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)
        if not numeric:
            # Numbers in another form: decimal fractions of a Parquet file, categories, whole numbers beyond 64 bits.
            parsed = pd.to_numeric(column.astype(str), errors="coerce")
            if parsed.isna().any():
                row = int(parsed.isna().to_numpy().argmax())
                raise DataError(
                    f"{str(path)!r}: column {name!r} is to hold numbers, and has {str(column.iloc[row])[:40]!r} "
                    f"in row {row + 1}; {remedy.format(name)}"
                )
            column = parsed
        values = column.to_numpy(dtype=xp.float64)
        infinite = ~xp.isfinite(values)
        if infinite.any():
            row = int(infinite.argmax())
            raise DataError(f"{str(path)!r}: column {name!r} is {values[row]} in row {row + 1}; {remedy.format(name)}")
        columns.append(values)
    return xp.stack(columns, axis=1)


def _target(path: Path, column: Any) -> Array:
    """The target column as a host array of numbers, or of text."""
    import pandas as pd

    if column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise DataError(f"{str(path)!r}: the target {column.name!r} has no value in row {row + 1}")
    if pd.api.types.is_bool_dtype(column):
        return host().xp.asarray([str(bool(value)) for value in column])
    if pd.api.types.is_numeric_dtype(column):
        kind = "int64" if pd.api.types.is_integer_dtype(column) else "float64"
        return column.to_numpy(dtype=kind)
    return host().xp.asarray([str(value) for value in column])


def _arrays(path: Path) -> dict[str, Array]:
    """The arrays of an NPZ file. Pickled objects are refused: they could run code."""
    xp = host().xp
    try:
        # An NPZ file is a zip file. Of anything else NumPy would say that it may be a pickle, and how to run that.
        with path.open("rb") as content:
            if not zipfile.is_zipfile(content):
                raise DataError(f"{str(path)!r} cannot be read as npz: it is no zip file, or was cut short")
        with xp.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{str(path)!r} cannot be read as npz: it holds pickled Python objects, which could run code; save "
                "arrays of numbers or of text (dtype=str)"
            ) from None
        raise DataError(f"{str(path)!r} cannot be read as npz: {_first_line(error)}") from None


def _pick_inputs(path: Path, arrays: dict[str, Array], target: str | None) -> tuple[str, Array]:
    """The array of inputs: "X", "x" or "images", or the only one that is not the target."""
    for name in ("X", "x", "images"):
        if name in arrays and name != target:
            return name, arrays[name]
    others = [name for name in arrays if name != target]
    if len(others) == 1:
        return others[0], arrays[others[0]]
    raise DataError(f"{str(path)!r} has no array 'X' for the inputs; it has: {', '.join(map(repr, arrays)) or 'none'}")


def _samples(path: Path, name: str, array: Array) -> Array:
    """An array as (samples, features) in float64; further axes are flattened."""
    xp = host().xp
    if array.dtype.kind not in "biuf":
        raise DataError(f"{str(path)!r}: the array {name!r} holds {array.dtype}, wants numbers")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{str(path)!r}: the array {name!r} has shape {array.shape}: there are no samples in it")
    rows = xp.astype(xp.reshape(array, (array.shape[0], -1)), xp.float64)
    if not xp.isfinite(rows).all():
        row, column = (int(index[0]) for index in xp.nonzero(~xp.isfinite(rows)))
        raise DataError(f"{str(path)!r}: the array {name!r} is {rows[row, column]} in sample {row}, feature {column}")
    return rows


def _table_from_npz(path: Path, target: str | None) -> Table:
    arrays = _arrays(path)
    wanted = target or next((name for name in ("y", "labels") if name in arrays), "y")
    if wanted not in arrays:
        raise DataError(
            f"{str(path)!r} has no array {wanted!r} for the target (choose one with --target); "
            f"it has: {', '.join(map(repr, arrays)) or 'none'}"
        )
    name, inputs = _pick_inputs(path, arrays, wanted)
    x = _samples(path, name, inputs)
    y = arrays[wanted]
    if y.ndim == 2 and y.shape[1] == 1:
        y = host().xp.reshape(y, (-1,))
    if y.ndim != 1 or y.dtype.kind not in "biufU":
        raise DataError(
            f"{str(path)!r}: the target {wanted!r} has shape {y.shape} and holds {y.dtype}; "
            "wants one number or text for each sample"
        )
    if len(y) != len(x):
        raise DataError(
            f"{str(path)!r}: {name!r} has {len(x)} samples, the target {wanted!r} has {len(y)}; "
            "give one for each sample"
        )
    if y.dtype.kind == "b":
        y = host().xp.asarray([str(bool(value)) for value in y])
    features = tuple(f"x{index}" for index in range(x.shape[1]))
    return Table(x, y, features, wanted, image=inputs.ndim > 2, image_shape=image_shape_of(inputs.shape[1:]))
