"""A small transformer that learns to write: it predicts the next character of a text.

    x          = the vectors of the characters, rows of a table that is trained
    A(x)       = softmax(Q K^T / sqrt(d)) V     Q, K, V: linear maps of x for each head; a character looks at those
                                                before it alone, and their distance turns Q and K (rotary positions)
    h          = x + A(norm(x))                 one block: attention, then
    x'         = h + W_2 gelu(W_1 norm(h))      a small network for each character
    p_t        = softmax(norm(x'_t) W + b)      after the last block: the probability of each character to come next
    L          = -mean log p_t[next character]

(Vaswani et al., "Attention is all you need", NeurIPS 2017), trained on windows of 64 characters of Newton's Opticks, or
of a text of your own. The last tenth of the text is held out. Then the network writes: it draws a character from
softmax(scores / temperature), reads it, and goes on.
"""

from __future__ import annotations

import argparse
from math import ceil, log

import xpnn
from xpnn.data import Vocabulary, load_text, next_token_windows
from xpnn.sampling import draw


def transformer(characters: int, features: int, heads: int, blocks: int, dropout: float) -> list[xpnn.Layer]:
    """The layers: (batch, time) numbers of characters -> (batch, time, characters) scores of the next one."""
    layers: list[xpnn.Layer] = [xpnn.Embedding(characters, features), xpnn.Dropout(dropout)]
    for _ in range(blocks):
        layers.append(xpnn.TransformerEncoderBlock(heads, 4 * features, dropout=dropout, causal=True, rotary=True))
    return [*layers, xpnn.LayerNorm(), xpnn.Dense(characters)]


def write(net: xpnn.Network, vocabulary: Vocabulary, start: str, length: int, temperature: float, seed: int) -> str:
    """`length` characters that follow on `start`; the network reads as many before each as `start` has."""
    numbers = vocabulary.encode(start).tolist()
    for step in range(length):
        logits = net.predict([numbers[-len(start) :]])[0, -1]
        numbers.append(draw(logits, seed, step, temperature))
    return vocabulary.decode(numbers[len(start) :])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print what the network writes, and return the last losses."""
    parser = argparse.ArgumentParser(description="next character, with a causal transformer")
    parser.add_argument("--text", default="opticks", help="a text file of your own")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=2)
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
    # A window begins in the middle of another one: each character is seen with more and with less before it.
    x, y = (
        part[: options.windows]
        for part in next_token_windows(numbers[:border], options.window, step=max(options.window // 2, 1))
    )
    held_out = tuple(part[: options.windows] for part in next_token_windows(numbers[border:], options.window))
    print(f"{len(text)} characters, {len(vocabulary)} different ones; {len(x)} windows to train on")

    net = xpnn.Network(
        *transformer(len(vocabulary), options.features, options.heads, options.blocks, dropout=0.1),
        backend=options.backend,
        seed=options.seed,
    )
    steps = options.epochs * ceil(len(x) / 32)
    rate = xpnn.Warmup(max(steps // 20, 1), xpnn.Cosine(2e-3, steps))
    history = net.fit(
        x,
        y,
        loss="cross_entropy",
        optimizer=xpnn.AdamW(rate, weight_decay=0.05, clip_global_norm=1.0),
        epochs=options.epochs,
        batch_size=32,
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
