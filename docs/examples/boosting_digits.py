"""Gradient boosting of handwritten digits: XGBoost with softxent's objective, beside its own.

It needs xgboost and scikit-learn. Run it by ``python docs/examples/boosting_digits.py``.
"""

import xgboost
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from softxent.xgboost import make_objective, softprob_objective

x, y = load_digits(return_X_y=True)
x, x_held_out, y, y_held_out = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
train, held_out = xgboost.DMatrix(x, label=y), xgboost.DMatrix(x_held_out)
# All start from the same margins: XGBoost's own objective would choose its own start.
parameters = {"objective": "multi:softprob", "num_class": 10, "max_depth": 3, "base_score": 0.0}

objectives = {
    "XGBoost's own": None,
    "softxent's, the same": softprob_objective,
    "softxent's, labels smoothed by 0.05": make_objective(label_smoothing=0.05),
}
for name, objective in objectives.items():
    booster = xgboost.train(parameters, train, num_boost_round=50, obj=objective)
    accuracy = (booster.predict(held_out).argmax(axis=1) == y_held_out).mean()
    print(f"{name:36} held-out accuracy {accuracy:.4f}")
