"""Draw the pictures of docs/gallery.md.

    python docs/make_gallery.py            draw them into docs/gallery/
    python docs/make_gallery.py --out DIR  or elsewhere

Every curve is the library's where it has the function. Needs Matplotlib (the extra `plot`);
PyTorch's curves are left out where it is not installed, and the legend says so. Two runs on one
machine write the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import softxent as sx

FOLDER = Path(__file__).with_name("gallery")

#: Told apart by those who do not see all colours too (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
BLACK, GREY = "#222222", "#999999"
#: For a family of curves, from its first to its last member.
FAMILY = (BLACK, BLUE, GREEN, ORANGE, PURPLE)
STYLE = {
    "figure.dpi": 140, "figure.facecolor": "white",
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8,
    "legend.frameon": False, "lines.linewidth": 1.8, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
}
#: Inches: one panel.
WIDTH, HEIGHT = 4.1, 3.1
#: In a file, shades of the edges of letters and lines included.
COLOURS = 96

Floats = NDArray[np.floating]


def panels(rows: int, columns: int) -> tuple[Any, Any]:
    """Return a figure and its axes, all panels of one size."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(WIDTH * columns, HEIGHT * rows),
                        layout="constrained")


def leading(gap: Floats, n_classes: int = 2) -> Floats:
    """Return rows whose class 0 is `gap` ahead of all others (behind them, where negative)."""
    rows = np.zeros((len(gap), n_classes), gap.dtype)
    rows[:, 0] = gap
    return rows


def row_by_row(loss: str, logits: Floats, **options: Any) -> tuple[Floats, Floats]:
    """Return each row's loss with class 0 as its target, and the gradient's entry there."""
    targets = np.zeros(len(logits), np.intp)
    values, grad = getattr(sx, f"{loss}_with_grad")(logits, targets, reduction="none", **options)
    return values, grad[:, 0]


def mistakes() -> Any:
    """Draw cross-entropy against squared error, for softmax and for a single sigmoid."""
    figure, axes = panels(2, 2)
    gap = np.linspace(-12, 8, 401)
    rows = leading(gap, 10)
    ones = np.ones_like(gap)
    # Half of what two classes cost is one sigmoid's (s - 1)^2 / 2, s the first class's share.
    half = tuple(part / 2 for part in row_by_row("softmax_squared_error", leading(gap)))
    curves = [
        (row_by_row("cross_entropy", rows), row_by_row("softmax_squared_error", rows)),
        (sx.sigmoid_binary_cross_entropy_with_grad(gap, ones, reduction="none"), half),
    ]
    names = [
        ("softmax, 10 classes", "target's logit less the others'",
         (r"cross-entropy: $p_y - 1$",
          r"squared error: $-p_y\,((1 - p_y)^2 + \Sigma_{k\ne y}\, p_k^2)$")),
        ("sigmoid, target 1", "logit",
         (r"cross-entropy: $\sigma - 1$", r"squared error: $(\sigma - 1)\,\sigma\,(1 - \sigma)$")),
    ]
    for (left, right), pair, (title, x, labels) in zip(axes, curves, names, strict=True):
        for (value, grad), colour, label in zip(pair, (BLUE, ORANGE), labels, strict=True):
            left.plot(gap, value, color=colour, label=label.partition(":")[0])
            right.plot(gap, grad, color=colour, label=label)
        left.set(title=f"{title}: loss", xlabel=x, ylabel="loss", ylim=(-1, 12))
        right.set(title=f"{title}: gradient at the target", xlabel=x, ylabel="derivative",
                  ylim=(-1.2, 0.55))
        left.legend(loc="upper right")
        right.legend(loc="upper left")
        for panel in (left, right):
            panel.axvspan(gap[0], 0, color="#f5f0e6", zorder=0)
            panel.set(xlim=(gap[0], gap[-1]), xticks=range(-12, 9, 4))
            panel.text(-11.7, panel.get_ylim()[0], "mistakes, the surer to the left",
                       color="#8a6d3b", fontsize=8, verticalalignment="bottom")
    return figure


def temperature() -> Any:
    """Draw what a temperature does to probabilities, and to the gradient."""
    figure, (left, right) = panels(1, 2)
    tau = np.geomspace(0.1, 100, 200)
    row = np.array([3.0, 2.0, 1.0, 0.0])
    shares = np.stack([sx.softmax(row, temperature=float(each)) for each in tau])
    for k, colour in enumerate(FAMILY[: len(row)]):
        left.plot(tau, shares[:, k], color=colour, label=f"logit {row[k]:g}")
    left.axhline(1 / len(row), color=GREY, linewidth=1, linestyle=":")
    left.set(title="softmax of one row", xlabel="temperature", ylabel="probability",
             xscale="log", xlim=(tau[0], tau[-1]), ylim=(-0.03, 1.03))
    left.legend()

    gap = np.linspace(-12, 12, 401)
    for each, colour in zip((0.5, 1.0, 2.0, 4.0), FAMILY, strict=False):
        _, grad = row_by_row("cross_entropy", leading(gap), temperature=each)
        right.plot(gap, grad, color=colour, label=f"temperature {each:g}")
    right.set(title="cross-entropy's gradient at the target", ylabel="derivative",
              xlabel="target's logit less the other", xlim=(gap[0], gap[-1]))
    right.legend()
    return figure


def focal() -> Any:
    """Draw focal loss and its gradient for several gamma."""
    figure, (left, right) = panels(1, 2)
    p = np.linspace(0.002, 0.998, 500)
    rows = leading(np.log(p) - np.log1p(-p))
    for gamma, colour in zip((0.0, 0.5, 1.0, 2.0, 5.0), FAMILY, strict=True):
        value, grad = row_by_row("focal_loss", rows, gamma=gamma)
        label = rf"$\gamma$ = {gamma:g}" + (" (cross-entropy)" if gamma == 0 else "")
        left.plot(p, value, color=colour, label=label)
        right.plot(p, grad, color=colour, label=label)
    left.set(title="loss", xlabel="target's probability", ylabel="loss", xlim=(0, 1),
             ylim=(-0.1, 5))
    right.set(title="gradient at the target", xlabel="target's probability", ylabel="derivative",
              xlim=(0, 1))
    left.legend()
    return figure


def smoothing() -> Any:
    """Draw label smoothing: where the loss has its minimum, and that it is not 0."""
    figure, (left, right) = panels(1, 2)
    classes = 10
    gap = np.linspace(-4, 16, 401)
    for epsilon, colour in zip((0.0, 0.05, 0.1, 0.2), FAMILY, strict=False):
        value, grad = row_by_row("cross_entropy", leading(gap, classes), label_smoothing=epsilon)
        left.plot(gap, value, color=colour, label=rf"$\varepsilon$ = {epsilon:g}")
        right.plot(gap, grad, color=colour)
        if epsilon:
            best = np.array([np.log1p(classes * (1 - epsilon) / epsilon)])
            value, grad = row_by_row("cross_entropy", leading(best, classes),
                                     label_smoothing=epsilon)
            left.plot(best, value, "o", color=colour, markersize=5)
            right.plot(best, grad, "o", color=colour, markersize=5)
    x = "target's logit less the others'"
    left.set(title="loss, 10 classes (dots: the minimum)", xlabel=x, ylabel="loss",
             xlim=(gap[0], gap[-1]), ylim=(-0.15, 6), xticks=range(-4, 17, 4))
    right.set(title="gradient at the target", xlabel=x, ylabel="derivative",
              xlim=(gap[0], gap[-1]), xticks=range(-4, 17, 4))
    left.legend()
    return figure


def stable() -> Any:
    """Draw what exponentials lose, and what the library's functions keep, in float32."""
    figure, axes = panels(2, 2)
    (value, digits), (behind, ahead) = axes
    with np.errstate(all="ignore"):
        x = np.arange(-130, 130.25, 0.25, dtype=np.float32)
        rows = np.stack([x + np.float32(1), x], axis=1)  # a difference of 1, exactly
        e = np.exp(rows)
        true = 1 / (1 + np.exp(-1.0))
        for found, label, look in (
            ((e / e.sum(axis=1, keepdims=True))[:, 0], "exp, divide", {"color": ORANGE}),
            (sx.softmax(rows)[:, 0], "softxent.softmax", {"color": BLUE, "linestyle": "--"}),
        ):
            value.plot(x, found, label=label, **look)
            digits.plot(x, at_least(np.abs(found / true - 1)), label=label, color=look["color"],
                        linewidth=1.2)

        gap = np.linspace(0, 130, 651, dtype=np.float32)
        rows = leading(gap)
        e = np.exp(rows - rows.max(axis=1, keepdims=True))
        behind.plot(gap, np.log(e / e.sum(axis=1, keepdims=True))[:, 1], color=ORANGE,
                    label="less the maximum, exp, divide, log")
        behind.plot(gap, sx.log_softmax(rows)[:, 1], color=BLUE, linestyle="--",
                    label="softxent.log_softmax")

        gap = np.linspace(0.5, 30, 296, dtype=np.float32)
        rows = leading(gap)
        e = np.exp(rows - rows.max(axis=1, keepdims=True))
        total = e.sum(axis=1)
        true = -np.log1p(np.exp(-gap.astype(np.float64)))
        for found, colour, label in (
            (np.log(e[:, 0] / total), ORANGE, "less the maximum, exp, divide, log"),
            (np.float32(0) - np.log(total), GREEN, "less the maximum, less log S"),
            (sx.log_softmax(rows)[:, 0], BLUE, "softxent.log_softmax"),
        ):
            ahead.plot(gap, at_least(np.abs(found / true - 1)), color=colour, label=label,
                       linewidth=1.2)
    value.set(title="softmax of (x + 1, x): always 0.731", xlabel="x", xlim=(x[0], x[-1]),
              ylabel="first probability", ylim=(-0.05, 1.3))
    for where, text in ((-127, "0 / 0:\nNaN"), (92, "inf / inf:\nNaN")):
        value.text(where, 0.3, text, color=ORANGE, fontsize=8)
    digits.set(title="softmax of (x + 1, x): relative error", xlabel="x", xlim=(x[0], x[-1]),
               ylabel="relative error", yscale="log", ylim=(3e-10, 100))
    behind.set(title="log p of the class behind", xlabel="how far it is behind", xlim=(0, 130),
               ylabel="log p", ylim=(-135, 5))
    behind.annotate("log 0 = -inf", (104, -104), (66, -125), color=ORANGE, fontsize=8,
                    arrowprops={"arrowstyle": "->", "color": ORANGE})
    ahead.set(title="log p of the class ahead: relative error", xlabel="how far it is ahead",
              xlim=(0, 30), ylabel="relative error", yscale="log", ylim=(3e-10, 1e4))
    for panel in (value, digits, ahead):
        panel.legend(loc="upper left")
    behind.legend(loc="lower left", bbox_to_anchor=(0, 0.12))
    return figure


def at_least(error: Floats) -> Floats:
    """Return errors for a logarithmic axis, those of 0 at its lower end."""
    return np.maximum(error, 1e-9)


def confident() -> Any:
    """Draw a confident row's loss and gradient here, in PyTorch, and in truth: float32."""
    figure, axes = panels(1, 2)
    gap = np.linspace(0, 60, 241, dtype=np.float32)
    rows = leading(gap)
    others = np.exp(-gap.astype(np.float64))
    truth = np.log1p(others), others / (1 + others)
    theirs = by_torch(rows)
    for i, (panel, title) in enumerate(zip(axes, ("loss", "gradient at the target, its size"),
                                           strict=True)):
        panel.plot(gap, truth[i], color="#c8c8c8", linewidth=6, label="truth (float64, log1p)")
        panel.plot(gap, np.abs(row_by_row("cross_entropy", rows)[i]), color=BLUE,
                   label="softxent, float32")
        if theirs is None:
            panel.plot([], [], color=ORANGE, label="PyTorch: not installed, left out")
        else:
            seen = np.abs(theirs[i])
            panel.plot(gap, np.where(seen > 0, seen, np.nan), color=ORANGE, linestyle="--",
                       label="PyTorch, float32")
            zero = gap[seen == 0]
            panel.plot(zero, np.full_like(zero, 1e-27), color=ORANGE, linewidth=4)
            panel.text(zero[0], 4e-27, "PyTorch: exactly 0", color=ORANGE, fontsize=8)
        panel.set(title=title, xlabel="how far the target is ahead", yscale="log",
                  xlim=(gap[0], gap[-1]), ylim=(3e-28, 10))
        panel.legend(loc="upper right")
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel("|derivative|")
    return figure


def by_torch(logits: Floats) -> tuple[Floats, Floats] | None:
    """Return what `row_by_row("cross_entropy", ...)` does, by PyTorch; None without it."""
    try:
        import torch
    except ImportError:
        return None
    z = torch.from_numpy(logits).requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, torch.zeros(len(logits), dtype=torch.long),
                                             reduction="none")
    loss.sum().backward()
    return loss.detach().numpy(), z.grad.numpy()[:, 0]


def write(figure: Any, file: Path) -> None:
    """Write a PNG of few colours, a third of the size, and without Matplotlib's signature."""
    from PIL import Image  # Matplotlib needs it too

    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


PICTURES: dict[str, Callable[[], Any]] = {
    draw.__name__: draw for draw in (mistakes, temperature, focal, smoothing, stable, confident)
}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", metavar="DIR", type=Path, default=FOLDER,
                        help="where to draw them (default: %(default)s)")
    folder = parser.parse_args().out
    try:
        import matplotlib
    except ImportError as error:
        print(f"needs Matplotlib, the extra 'plot' ({error})", file=sys.stderr)
        return 1
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.rcdefaults()  # not what a user's settings make of them
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            figure = draw()
            write(figure, folder / f"{name}.png")
            plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
