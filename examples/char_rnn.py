"""A recurrent network that learns to write: it predicts the next character of a text.

    e_t        = the vector of character t, a row of a table that is trained
    i, f, o    = sigmoid of e_t W_x + h_(t-1) W_h + b, three gates; g = tanh of a fourth part
    c_t        = f c_(t-1) + i g              what the network remembers
    h_t        = o tanh(c_t)                  what it shows (Hochreiter and Schmidhuber, 1997)
    p_t        = softmax(h_t W + b)           the probability of each character to be number t + 1
    L          = -mean log p_t[next character]

trained on windows of 64 characters of Newton's Opticks, or of a text of your own. The last tenth of the text is held
out. Then the network writes: it draws a character from softmax(scores / temperature), reads it, and goes on.
"""

from __future__ import annotations

import argparse
from math import log

import xpnn
from xpnn.data import Vocabulary, load_text, next_token_windows
from xpnn.sampling import draw


def write(net: xpnn.Network, vocabulary: Vocabulary, start: str, length: int, temperature: float, seed: int) -> str:
    """`length` characters that follow on `start`; the network reads as many before each as `start` has."""
    numbers = vocabulary.encode(start).tolist()
    for step in range(length):
        logits = net.predict([numbers[-len(start) :]])[0, -1]
        numbers.append(draw(logits, seed, step, temperature))
    return vocabulary.decode(numbers[len(start) :])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print what the network writes, and return the last losses."""
    parser = argparse.ArgumentParser(description="next character, with an LSTM")
    parser.add_argument("--text", default="opticks", help="a text file of your own")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--window", type=int, default=64, help="characters that the network sees at once")
    parser.add_argument("--windows", type=int, help="train on so many windows only, for a short run")
    parser.add_argument("--write", type=int, default=300, metavar="LENGTH", help="how many characters to write")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: the most probable; 1: as learnt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    text = load_text(options.text)
    vocabulary = Vocabulary.of(text)
    numbers = vocabulary.encode(text)
    border = len(numbers) * 9 // 10
    x, y = (part[: options.windows] for part in next_token_windows(numbers[:border], options.window))
    held_out = tuple(part[: options.windows] for part in next_token_windows(numbers[border:], options.window))
    print(f"{len(text)} characters, {len(vocabulary)} different ones; {len(x)} windows to train on")

    net = xpnn.Network(
        xpnn.Embedding(len(vocabulary), 32),
        xpnn.LSTM(options.units, return_sequences=True),
        xpnn.Dense(len(vocabulary)),
        backend=options.backend,
        seed=options.seed,
    )
    history = net.fit(
        x,
        y,
        loss="cross_entropy",
        optimizer=xpnn.Adam(5e-3, clip_global_norm=1.0),
        epochs=options.epochs,
        batch_size=16,
        validation_data=held_out,
    )
    result = {"loss": history["loss"][-1], "val_loss": history["val_loss"][-1]}
    print(f"{result['loss'] / log(2):.2f} bits a character, {result['val_loss'] / log(2):.2f} on what was held out")

    start = text[border : border + options.window]
    print(f"\nafter: {start!r}\nthe network writes:\n")
    print(write(net, vocabulary, start, options.write, options.temperature, options.seed))
    return result


if __name__ == "__main__":
    main()
