"""A next-word model of 10,000 words in bounded memory: `softxent.linear`, with NumPy alone.

The text is what every Python brings: the sources of its standard library, by words and signs. The
model (Bengio et al. 2003) looks up an embedding of each of the words before, and predicts the next
from a hidden layer of them. What costs is the last layer, of 10,000 classes, whose loss and
gradients `linear_cross_entropy_with_grad` gives without an array of the logits.

Held out are whole files. Beside the model stands what counting finds in the same text: bigrams,
interpolated with single words (Witten and Bell 1991). A perplexity is exp of the mean loss: a die
with that many faces is as hard to predict.

    python docs/examples/next_word.py              # less than a minute on two cores
    python docs/examples/next_word.py --quick      # seconds: a tenth of the text
"""

import argparse
import collections
import random
import re
import sysconfig
import time
from pathlib import Path

import numpy as np

from softxent.linear import linear_cross_entropy, linear_cross_entropy_with_grad

VOCABULARY = 10_000  # the most frequent words; all others are one
CONTEXT = 4  # words that the next is predicted from
FEATURES, HIDDEN = 48, 64
BATCH = 512
RATE = 0.1
HELD_OUT = 20  # one file of so many
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "encodings", "pydoc_data"}


def read(n_words, seed):
    """Return the words of random files of the standard library: to learn from, and held out."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in folder.rglob("*.py") if not LEFT_OUT & set(path.parts))
    random.Random(seed).shuffle(paths)
    learned, held_out = [], []
    for i, path in enumerate(paths):
        words = re.findall(r"\w+|[^\w\s]|\n", path.read_text(encoding="utf-8", errors="ignore"))
        (held_out if i % HELD_OUT == 0 else learned).extend(words)
        if len(learned) >= n_words:
            break
    return learned[:n_words], held_out


def bigram_loss(learned, first, second):
    """Return the mean loss of second words after first ones, by counts of what was learned.

    A bigram's share is mixed with that of the single word, the more so the more different words
    have followed the first: each of these was new once.
    """
    singles = np.bincount(learned, minlength=VOCABULARY) + 1.0
    singles /= singles.sum()
    pairs = collections.Counter(zip(learned[:-1].tolist(), learned[1:].tolist(), strict=True))
    followed = np.bincount(learned[:-1], minlength=VOCABULARY)[first]
    followers = np.bincount([pair[0] for pair in pairs], minlength=VOCABULARY)[first]
    followers = np.maximum(followers, 1)  # of a word that ended the text: the single words' share
    seen = np.array([pairs[pair] for pair in zip(first.tolist(), second.tolist(), strict=True)])
    return -np.log((seen + followers * singles[second]) / (followed + followers)).mean()


class Model:
    """Embeddings of the words before, a hidden layer, and a score for every word."""

    def __init__(self, learned, rng):
        def layer(*shape):
            return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

        counts = np.bincount(learned, minlength=VOCABULARY) + 1.0
        self.parameters = {
            "embedding": layer(VOCABULARY, FEATURES),
            "hidden": layer(HIDDEN, CONTEXT * FEATURES),
            "hidden_bias": np.zeros(HIDDEN, np.float32),
            "out": layer(VOCABULARY, HIDDEN) * np.float32(0.1),
            "out_bias": np.log(counts / counts.sum()).astype(np.float32),
        }
        self.squares = {name: np.full_like(p, 1e-6) for name, p in self.parameters.items()}

    def hidden(self, words):
        """Return the embeddings of rows of CONTEXT words, side by side, and their hidden layer."""
        p = self.parameters
        x = p["embedding"][words].reshape(len(words), -1)
        return x, np.tanh(x @ p["hidden"].T + p["hidden_bias"])

    def loss(self, words, targets):
        """Return the mean loss, whatever the number of rows."""
        p = self.parameters
        return linear_cross_entropy(self.hidden(words)[1], p["out"], targets, bias=p["out_bias"])

    def learn(self, words, targets, rate):
        """Take a step of Adagrad; return the batch's mean loss."""
        p = self.parameters
        x, h = self.hidden(words)
        loss, grads = linear_cross_entropy_with_grad(h, p["out"], targets, bias=p["out_bias"])
        d = grads.x * (1 - h * h)
        self.step("out", grads.weight, rate)
        self.step("out_bias", grads.bias, rate)
        d_x = (d @ p["hidden"]).reshape(-1, FEATURES)
        self.step("hidden", d.T @ x, rate)
        self.step("hidden_bias", d.sum(axis=0), rate)
        # Of the embeddings, only those that are in the batch.
        rows, where = np.unique(words, return_inverse=True)
        gradient = np.zeros((len(rows), FEATURES), np.float32)
        np.add.at(gradient, where.reshape(-1), d_x)
        self.step("embedding", gradient, rate, rows)
        return loss

    def step(self, name, gradient, rate, rows=slice(None)):
        """Move a parameter, or rows of it, against its gradient."""
        squares = self.squares[name][rows] + gradient * gradient
        self.squares[name][rows] = squares
        self.parameters[name][rows] -= rate * gradient / np.sqrt(squares)


def contexts(numbers):
    """Return the CONTEXT words before each word that has them, and these words."""
    rows = np.lib.stride_tricks.sliding_window_view(numbers, CONTEXT + 1)
    return rows[:, :-1], rows[:, -1]


def main():
    """Read, count, learn, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=int, default=500_000, help="words to learn from")
    parser.add_argument("--seed", type=int, default=0, help="of the files, the start, the order")
    parser.add_argument("--quick", action="store_true", help="a tenth of the words")
    options = parser.parse_args()
    start = time.perf_counter()
    text, held_out_text = read(options.words // (10 if options.quick else 1), options.seed)
    frequent = collections.Counter(text).most_common(VOCABULARY - 1)
    number_of = {word: number for number, (word, _) in enumerate(frequent, 1)}
    learned = np.array([number_of.get(word, 0) for word in text])
    held_out = np.array([number_of.get(word, 0) for word in held_out_text])
    words, targets = contexts(learned)
    test = contexts(held_out[:20_000])
    rng = np.random.default_rng(options.seed)
    model = Model(learned, rng)
    n_steps = len(targets) // BATCH
    print(f"{len(learned):,} words to learn from, {len(test[1]):,} held out, "
          f"{np.mean(test[1] == 0):.1%} of these beyond the {len(frequent):,} most frequent; "
          f"{sum(p.size for p in model.parameters.values()):,} parameters")

    order, losses = rng.permutation(len(targets)), []
    for i in range(n_steps):
        rows = order[i * BATCH:(i + 1) * BATCH]
        losses.append(model.learn(words[rows], targets[rows], RATE * (1.0 - i / n_steps)))
        if (i + 1) % max(n_steps // 6, 1) == 0:
            print(f"step {i + 1:,} of {n_steps:,}: perplexity {np.exp(np.mean(losses[-50:])):.1f} "
                  f"while learning, {time.perf_counter() - start:.0f} s", flush=True)
    loss = model.loss(*test)
    print(f"held out, as one call (logits of {test[1].size * VOCABULARY * 4 / 1e6:,.0f} MB, "
          "of which some rows exist at a time):")
    print(f"    the model   perplexity {np.exp(loss):6.1f}")
    bigrams = bigram_loss(learned, test[0][:, -1], test[1])
    print(f"    bigrams     perplexity {np.exp(bigrams):6.1f}")
    if loss >= bigrams:
        raise SystemExit("the model has not learned more than bigrams know")


if __name__ == "__main__":
    main()
