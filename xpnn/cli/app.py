"""The commands and their options. What they do is in the modules beside this one, imported when it is asked for."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from xpnn.errors import TrainingError, XpnnError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural networks written once against the array API standard, trained on NumPy, CuPy and others.",
)

INTERRUPTED = 130
_USAGE_ERRORS: Any = tuple(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # The name of a file or of a class may have signs that this terminal cannot show.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code.

    0: done; 1: a check found a mismatch, or training failed; 2: the input is not right, said in one line on stderr;
    130: interrupted.
    """
    command = typer.main.get_command(app)
    try:
        result = command.main(
            args=None if arguments is None else list(arguments), prog_name="xpnn", standalone_mode=False
        )
    except _USAGE_ERRORS as error:
        return _fail(error.format_message())
    except TrainingError as error:
        return _fail(str(error), 1)
    except XpnnError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("xpnn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone, as in `xpnn predict ... | head`: nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory")
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int = 2) -> int:
    print(f"xpnn: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        from xpnn import __version__

        typer.echo(f"xpnn {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="xor, xnor, iris, digits, wine, breast_cancer, diabetes; or a CSV, Parquet or NPZ file; "
            "or a folder with one sub-folder of pictures for each class; or a folder of IDX files, as MNIST's.",
            metavar="DATASET_OR_FILE",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="Column to predict; in an NPZ file the array to predict (y or labels without it)."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification or regression. Without it, text and whole numbers with few different values are "
            "classes."
        ),
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Columns to leave out, as in id,name.")] = None,
    resize: Annotated[
        str | None, typer.Option(help="Height and width of all pictures of a folder, as in 32 or 24,32.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, or for images cnn or resnet. Without it, cnn for a folder of pictures, mlp for all else."
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="Change images at random in training: flip (not for digits), shift, or flip,shift."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Units of the hidden layers, as in 64,32; none for a linear model. For cnn and resnet channels."
        ),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Behind each hidden layer of an mlp: relu, tanh, gelu, ...")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data. Without it, enough for about 3000 steps.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples in a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw, rmsprop, ...")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Without it, the optimizer's own.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="numpy, cupy, cupy:1, torch, jax, strict, or auto (CuPy if usable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides split, weights, order and dropout.")] = 0,
    validation: Annotated[
        float | None,
        typer.Option(help="Share of the samples that is held out, as in 0.2 (the usual); 0 holds out nothing."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    precision: Annotated[
        str, typer.Option(help="How layers compute: float32, or on GPUs tf32, bfloat16 or float16.")
    ] = "float32",
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many epochs without a better validation loss; keep the best weights."),
    ] = None,
    save: Annotated[str | None, typer.Option(help="Write the model here, as in model.safetensors.")] = None,
    plot: Annotated[str | None, typer.Option(help="Draw the loss curves here, as in curve.png.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
) -> None:
    """Train a network on a data set, a table or images; features are standardised."""
    from xpnn.cli.training import Options, train_command

    options = Options(
        data=data,
        target=target,
        task=task,
        drop=drop,
        resize=resize,
        model=model,
        augment=augment,
        layers=layers,
        activation=activation,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=lr,
        backend=backend,
        seed=seed,
        validation=validation,
        dtype=dtype,
        precision=precision,
        patience=patience,
        save=save,
        plot=plot,
        quiet=quiet,
    )
    if train_command(options):
        raise typer.Exit(INTERRUPTED)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A model file that `xpnn train --save` wrote.")],
    file: Annotated[
        str,
        typer.Argument(
            help="CSV, Parquet, NPZ or IDX file with the columns that the model was trained on; or a picture, or a "
            "folder of pictures."
        ),
    ],
    output: Annotated[str | None, typer.Option(help="Write the CSV here; without it, to standard output.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where to compute: numpy, cupy, ...")] = None,
) -> None:
    """Predict with a trained model, as CSV: classes with their probability, or numbers."""
    from xpnn.cli.prediction import predict_command

    predict_command(model, file, output, backend)


@app.command()
def backends() -> None:
    """List the backends: version, devices, whether usable or why not, and which ops have their own code."""
    from xpnn.cli.backends import backends_table

    typer.echo(backends_table())


@app.command()
def check(
    backends: Annotated[
        str | None, typer.Option(help="Backends to check, as in numpy,torch; without it, every usable one.")
    ] = None,
    require: Annotated[str | None, typer.Option(help="Backends that must have run, as in numpy,cupy.")] = None,
    report: Annotated[str | None, typer.Option(help="Write the table as a page here, as in report.html.")] = None,
) -> None:
    """Compare every op's values and gradients across backends; the worst error in units of eps."""
    from xpnn.cli.check import check_command

    if not check_command(backends, require, report):
        raise typer.Exit(1)
