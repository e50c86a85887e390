"""Handwritten digits in a scikit-learn pipeline: scaling, regression, the penalty by a grid search.

pip install 'softxent[sklearn]'     scikit-learn
python docs/examples/digits_pipeline.py
"""

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softxent.sklearn import SoftmaxRegression

X, y = load_digits(return_X_y=True)
X, X_held_out, y, y_held_out = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)

model = make_pipeline(StandardScaler(), SoftmaxRegression(max_iter=500, label_smoothing=0.01))
search = GridSearchCV(model, {"softmaxregression__C": [0.01, 0.1, 1.0]}, cv=3).fit(X, y)

best = search.best_estimator_[-1]
print(f"C = {best.C} of three, {best.n_iter_[0]} iterations, loss {best.loss_curve_[-1]:.4f}")
print(f"held-out accuracy {search.score(X_held_out, y_held_out):.4f}")
