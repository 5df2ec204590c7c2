"""How long one whole training takes: the digits of scikit-learn, 64-64-10 with ReLU, Adam, 20 epochs, batch 32.

    python benchmarks/fit.py [--contenders xpnn,torch] [--rounds 9] [--json FILE]

The data are shuffled in each epoch; loss and accuracy of the training, and both on the validation data, are read as
numbers after each epoch. A second table says what `fit` costs beside its steps.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

import models  # noqa: E402
import overhead  # noqa: E402
from turns import DATA_VARIABLE, Calls, Case, Contender, Table, measure, print_row, readable, run  # noqa: E402

SIZES = (64, 64, 10)
EPOCHS = 20
BATCH = 32


def write_digits(path: str) -> None:
    """The data, shuffled once and split 80/20, into an .npz file."""
    import numpy as np
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.Philox(0)).permutation(len(inputs))
    inputs, labels = (inputs[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    cut = len(inputs) * 4 // 5
    np.savez(path, x=inputs[:cut], y=labels[:cut], x_val=inputs[cut:], y_val=labels[cut:])


def digits() -> tuple[Any, Any, Any, Any]:
    """Inputs and labels of training and validation, as NumPy arrays."""
    import numpy as np

    with np.load(os.environ[DATA_VARIABLE]) as file:
        return file["x"], file["y"], file["x_val"], file["y_val"]


def repeated(fit: Any) -> Calls:
    """Calls of `fit`, which returns its history: a list of the validation accuracies comes last."""

    def calls(count: int) -> float:
        for _ in range(count):
            history = fit()
        accuracies = history[-1]
        if len(accuracies) != EPOCHS or not all(isinstance(value, float) for value in accuracies):
            raise TypeError(f"the history is {accuracies}")
        return accuracies[-1]

    return calls


def xpnn(given: None) -> Calls:
    """`Network.fit`, from the same first weights each time, as all that compile something."""
    import xpnn

    x, y, x_val, y_val = digits()
    net = models.xpnn_network(SIZES, "relu")
    first = dict(net.parameters)

    def fit() -> Any:
        net.set_parameters(first)
        history = net.fit(
            x,
            y,
            loss="cross_entropy",
            optimizer=xpnn.Adam(models.RATES["adam"]),
            epochs=EPOCHS,
            batch_size=BATCH,
            validation_data=(x_val, y_val),
            metrics=["accuracy"],
            verbose=0,
        )
        return [history[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")]

    return repeated(fit)


def torch_eager(given: None) -> Calls:
    """A loop in PyTorch, eager, with its default Adam."""
    return _torch("eager")


def torch_fused(given: None) -> Calls:
    """The same with the fused Adam."""
    return _torch("fused")


def torch_compile(given: None) -> Calls:
    """The same with the whole step compiled, once; a fit starts from the first weights again."""
    return _torch("compile")


def _torch(form: str) -> Calls:
    import torch

    x, y, x_val, y_val = (torch.from_numpy(array) for array in digits())
    criterion = models.torch_loss("cross_entropy")
    net = models.torch_network(SIZES, "relu")
    if form == "compile":
        compiled_step, reset = models.torch_compiled_step(net, "cross_entropy", "adam", count_correct=True)
    first_weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def fit() -> Any:
        net.load_state_dict(first_weights)
        if form == "compile":
            reset()
            step = compiled_step
        else:
            optimizer = models.torch_optimizer(net, "adam", fused=form == "fused")

            def step(inputs: Any, targets: Any) -> tuple[Any, Any]:
                optimizer.zero_grad(set_to_none=True)
                outputs = net(inputs)
                value = criterion(outputs, targets)
                value.backward()
                optimizer.step()
                return value.detach(), (outputs.detach().argmax(1) == targets).sum()

        history: list[list[float]] = [[], [], [], []]
        for _ in range(EPOCHS):
            order = torch.randperm(len(x))
            total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            # One gather for the epoch: batches are then views.
            for inputs, targets in zip(x[order].split(BATCH), y[order].split(BATCH), strict=True):
                value, correct = step(inputs, targets)
                total += value * len(inputs)
                right += correct
            with torch.inference_mode():
                outputs = net(x_val)
                found = (total / len(x), right / len(x), criterion(outputs, y_val))
                accuracy = (outputs.argmax(1) == y_val).float().mean()
            for column, number in zip(history, (*found, accuracy), strict=True):
                column.append(number.item())
        return history

    return repeated(fit)


def jax_loop(given: None) -> Calls:
    """A loop in JAX over a jitted step, which picks the rows of its batch; state and sums are donated."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    x, y, x_val, y_val = (jnp.asarray(array) for array in digits())
    step, start = models.jax_step(SIZES, "relu", "cross_entropy", "adam", count_correct=True)
    first_weights = models.jax_parameters(SIZES)

    def counting_step(carry: Any, x: Any, y: Any, rows: Any) -> Any:
        state, (total, right) = carry
        state, (value, correct) = step(state, x[rows], y[rows])
        return state, (total + value * len(rows), right + correct)

    counting_step = jax.jit(counting_step, donate_argnums=0)
    evaluate = jax.jit(_jax_evaluate)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def fit() -> Any:
        generator = np.random.default_rng(0)
        state = start(copy(first_weights))
        history: list[list[float]] = [[], [], [], []]
        for _ in range(EPOCHS):
            order = generator.permutation(len(x)).astype(np.int32)
            carry = (state, (np.float32(0), np.int32(0)))
            for begin in range(0, len(x), BATCH):
                carry = counting_step(carry, x, y, order[begin : begin + BATCH])
            state, (total, right) = carry
            loss, accuracy = evaluate(state[0], x_val, y_val)
            numbers = (float(total) / len(x), int(right) / len(x), float(loss), float(accuracy))
            for column, number in zip(history, numbers, strict=True):
                column.append(number)
        return history

    return repeated(fit)


def _jax_evaluate(parameters: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Loss and accuracy."""
    import jax
    import jax.numpy as jnp

    outputs = models.jax_forward(parameters, x, SIZES, "relu")
    picked = jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1)
    return -jnp.mean(picked), jnp.mean(jnp.argmax(outputs, axis=1) == y)


def jax_scan(given: None) -> Calls:
    """JAX with a whole epoch in one jit: lax.scan over the batches, the smaller last batch, the validation."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    x, y, x_val, y_val = (jnp.asarray(array) for array in digits())
    step, start = models.jax_step(SIZES, "relu", "cross_entropy", "adam", count_correct=True)
    first_weights = models.jax_parameters(SIZES)
    whole = len(x) // BATCH * BATCH

    def epoch(state: Any, order: Any) -> Any:
        xs, ys = x[order], y[order]

        def body(state: Any, batch: Any) -> Any:
            return step(state, *batch)

        batches = (xs[:whole].reshape(-1, BATCH, x.shape[1]), ys[:whole].reshape(-1, BATCH))
        state, (values, correct) = jax.lax.scan(body, state, batches)
        total, right = jnp.sum(values) * BATCH, jnp.sum(correct)
        if whole < len(x):
            state, (value, more) = step(state, xs[whole:], ys[whole:])
            total, right = total + value * (len(x) - whole), right + more
        loss, accuracy = _jax_evaluate(state[0], x_val, y_val)
        return state, jnp.stack([total / len(x), right / len(x), loss, accuracy])

    epoch = jax.jit(epoch, donate_argnums=0)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def fit() -> Any:
        generator = np.random.default_rng(0)
        state = start(copy(first_weights))
        history = []
        for _ in range(EPOCHS):
            state, numbers = epoch(state, generator.permutation(len(x)).astype(np.int32))
            history.append(np.asarray(numbers).tolist())
        return list(zip(*history, strict=True))

    return repeated(fit)


def thinc(given: None) -> Calls:
    """A loop in thinc; loss and accuracy in NumPy."""
    import numpy as np

    x, y, x_val, y_val = digits()
    wanted = np.eye(SIZES[-1], dtype=np.float32)

    def fit() -> Any:
        net = models.thinc_network(SIZES, "relu", "cross_entropy")
        optimizer = models.thinc_optimizer("adam")
        generator = np.random.default_rng(0)
        history: list[list[float]] = [[], [], [], []]
        for _ in range(EPOCHS):
            order = generator.permutation(len(x))
            xs, ys = x[order], y[order]
            targets = wanted[ys]
            total, right = 0.0, 0
            for begin in range(0, len(x), BATCH):
                labels = ys[begin : begin + BATCH]
                outputs, backward = net.begin_update(xs[begin : begin + BATCH])
                backward((outputs - targets[begin : begin + BATCH]) * np.float32(1 / len(labels)))
                net.finish_update(optimizer)
                total -= np.log(outputs[np.arange(len(labels)), labels]).sum()
                right += np.count_nonzero(outputs.argmax(1) == labels)
            outputs = net.predict(x_val)
            loss = -np.log(outputs[np.arange(len(y_val)), y_val]).mean()
            accuracy = np.count_nonzero(outputs.argmax(1) == y_val) / len(y_val)
            for column, number in zip(history, (total / len(x), right / len(x), loss, accuracy), strict=True):
                column.append(float(number))
        return history

    return repeated(fit)


def sklearn(given: None) -> Calls:
    """MLPClassifier.fit. It splits the data itself, 80/20 too; no training accuracy, no validation loss."""
    import warnings

    import numpy as np

    x, y, x_val, y_val = digits()
    inputs, labels = np.concatenate([x, x_val]), np.concatenate([y, y_val])

    def fit() -> Any:
        net = models.sklearn_network(
            SIZES,
            "relu",
            "cross_entropy",
            "adam",
            batch_size=BATCH,
            max_iter=EPOCHS,
            early_stopping=True,  # which is how it validates; it never stops before the last epoch:
            n_iter_no_change=EPOCHS + 1,
            validation_fraction=len(x_val) / len(inputs),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            net.fit(inputs, labels)
        return net.loss_curve_, [float(score) for score in net.validation_scores_]

    return repeated(fit)


TABLE = Table(
    script=__file__,
    description=__doc__,
    call="fit",
    cases={"digits": Case("digits, 64-64-10, 20 epochs", None)},
    contenders={
        "xpnn": Contender(xpnn, ("numpy",), {"XPNN_FAST": "0"}),
        "xpnn-fast": Contender(xpnn, ("numpy", "numba")),
        "torch": Contender(torch_eager, ("torch",)),
        "torch-fused": Contender(torch_fused, ("torch",)),
        "torch-compile": Contender(torch_compile, ("torch",)),
        "jax-loop": Contender(jax_loop, ("jax", "jaxlib")),
        "jax-scan": Contender(jax_scan, ("jax", "jaxlib")),
        "thinc": Contender(thinc, ("thinc",)),
        "sklearn": Contender(sklearn, ("scikit-learn",)),
    },
    result="validation accuracy",
)


def print_overhead(report: dict[str, Any], rounds: int) -> None:
    """What `fit` adds to the steps, in percent."""
    results = measure(overhead.TABLE, "xor", list(overhead.TABLE.contenders), rounds)
    report["overhead"] = results
    print()
    print_row(["2-3-1, batch 4, 1000 steps an epoch", "a step", "fit adds", "fit with shuffle=False adds"])
    print_row(["---"] * 4)
    for ours, suffix in (("xpnn", ""), ("xpnn-fast", "-fast")):
        if "seconds" not in results[ours]:
            print_row([ours, "not measured", "-", "-"])
            continue
        cells = [ours, readable(results[ours]["seconds"] / overhead.STEPS)]
        for name in (f"fit{suffix}", f"fit{suffix}-in-order"):
            cells.append(f"{results[name]['ratios'][ours] - 1:.1%}" if "ratios" in results[name] else "failed")
        print_row(cells)


def main() -> None:
    """The table, with the data in a file that the workers find."""
    if DATA_VARIABLE in os.environ:
        run(TABLE, after=print_overhead)
        return
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "digits.npz")
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import fit; fit.write_digits({path!r})"
        if subprocess.run([sys.executable, "-c", code]).returncode:
            raise SystemExit("the digits are scikit-learn's: pip install scikit-learn")
        os.environ[DATA_VARIABLE] = path
        run(TABLE, after=print_overhead)


if __name__ == "__main__":
    main()
