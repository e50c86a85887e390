"""A trainer of one's own in NumPy: softmax regression by stochastic gradient descent.

Run it by ``python docs/examples/minibatch_trainer.py``.
"""

import numpy as np

import softxent as sx

rng = np.random.default_rng(0)
centres = rng.normal(size=(10, 32))
y = rng.integers(0, 10, 6000)
x = centres[y] + 1.5 * rng.normal(size=(6000, 32))
x = np.column_stack([x, np.ones(6000)])  # the last weight is the bias
x, x_held_out, y, y_held_out = x[:5000], x[5000:], y[:5000], y[5000:]

weights = np.zeros((33, 10))
for epoch in range(5):
    total = 0.0
    for rows in np.array_split(rng.permutation(5000), 40):
        logits = x[rows] @ weights
        # The gradient takes the logits' place; loss and gradient are of the mean over the batch.
        loss, grad = sx.cross_entropy_with_grad(logits, y[rows], grad_out=logits)
        weights -= 0.2 * (x[rows].T @ grad)
        total += loss * len(rows)
    accuracy = sx.accuracy(x_held_out @ weights, y_held_out)
    print(f"epoch {epoch + 1}   loss {total / 5000:.4f}   held-out accuracy {accuracy:.4f}")
