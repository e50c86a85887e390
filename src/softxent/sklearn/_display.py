"""The falling loss of a fit, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted


class LossCurveDisplay:
    """Plot of an estimator's loss by iteration.

    Made by `from_estimator`; matplotlib is imported when something is drawn.

    Parameters
    ----------
    loss_curve : array of shape (n_iterations,)
        The loss after each iteration.
    estimator_name : str, optional
        Name in the legend; None: no legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        What was drawn into.
    figure_ : matplotlib Figure
        Its figure.
    line_ : matplotlib Line2D
        The curve.

    See Also
    --------
    SoftmaxRegression : has a `loss_curve_`.

    Examples
    --------
    >>> from softxent.sklearn import LossCurveDisplay
    >>> LossCurveDisplay([1.1, 0.6, 0.5]).loss_curve
    array([1.1, 0.6, 0.5])
    """

    def __init__(self, loss_curve: Any, *, estimator_name: str | None = None) -> None:
        self.loss_curve = np.asarray(loss_curve, dtype=float)
        if self.loss_curve.ndim != 1:
            raise ValueError("loss_curve must have one dimension, a number for each iteration; got "
                             f"shape {self.loss_curve.shape}")
        self.estimator_name = estimator_name

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **kwargs: Any
    ) -> LossCurveDisplay:
        """Draw the loss of a fitted estimator, or of a pipeline that ends in one.

        Parameters
        ----------
        estimator : estimator
            With a `loss_curve_`: `SoftmaxRegression`, or scikit-learn's own that have one.
        name : str, optional
            Name in the legend; default: the estimator's class.
        ax : matplotlib Axes, optional
            What to draw into; default: axes of a new figure.
        **kwargs
            For `matplotlib.axes.Axes.plot`.

        Returns
        -------
        LossCurveDisplay

        Raises
        ------
        AttributeError
            The estimator has no loss curve.
        sklearn.exceptions.NotFittedError
            It is not fitted.
        ImportError
            Matplotlib is not installed.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from softxent.sklearn import LossCurveDisplay, SoftmaxRegression
        >>> model = SoftmaxRegression(max_iter=1000).fit(*load_iris(return_X_y=True))
        >>> LossCurveDisplay.from_estimator(model)      # doctest: +SKIP
        """
        last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
        check_is_fitted(last)
        if not hasattr(last, "loss_curve_"):
            raise AttributeError(f"{type(last).__name__} has no loss_curve_; fit an estimator that "
                                 "keeps one, such as SoftmaxRegression")
        display = cls(last.loss_curve_, estimator_name=name or type(last).__name__)
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> LossCurveDisplay:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            What to draw into; default: axes of a new figure.
        name : str, optional
            Name in the legend; default: `estimator_name`.
        **kwargs
            For `matplotlib.axes.Axes.plot`.

        Returns
        -------
        LossCurveDisplay
            Itself, with `ax_`, `figure_` and `line_`.

        Raises
        ------
        ImportError
            Matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(f"LossCurveDisplay needs Matplotlib ({error}); pip install "
                              "'softxent[plot]'") from error
        if ax is None:
            _, ax = plt.subplots()
        label = name or self.estimator_name
        iterations = np.arange(1, len(self.loss_curve) + 1)
        (self.line_,) = ax.plot(iterations, self.loss_curve, **{"label": label, **kwargs})
        ax.set(xlabel="iteration", ylabel="loss")
        if self.line_.get_label() and not str(self.line_.get_label()).startswith("_"):
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
