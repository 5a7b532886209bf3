"""A linear probe: how well the activations themselves tell classes apart, the ceiling for anything linear read off
them.

Multinomial logistic regression on standardised inputs, every class weighing the same:

    min over W, b of   mean_c mean_{t in c} -ln softmax(W x_t + b)_c  +  (strength / 2) ||W||^2
"""

from dataclasses import dataclass

import numpy as np

STRENGTH = 0.02
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """weights: [d, C] on standardised inputs.

    bias: [C]. mean, scale: [d], of the training rows; a constant input has scale 1.

    converged: whether the minimum was reached.
    """

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    converged: bool

    def predict(self, x: np.ndarray) -> np.ndarray:
        """x [T, d] -> the likeliest class of each row, int64 [T]."""
        return np.argmax((x - self.mean) / self.scale @ self.weights + self.bias, axis=1)


def fit_probe(x: np.ndarray, labels: np.ndarray, n_classes: int, strength: float = STRENGTH) -> Probe:
    """x: [T, d].

    labels: int [T], of which each of the n_classes occurs. Deterministic: it starts from zero and the minimum is
    unique.

    Raises ValueError when a class has no row.
    """
    from scipy.optimize import minimize

    sizes = np.bincount(labels, minlength=n_classes)
    x = np.asarray(x, np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (x - mean) / scale
    target = np.eye(n_classes)[labels]
    weight = 1 / (n_classes * sizes[labels])[:, None]
    d = x.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: d * n_classes].reshape(d, n_classes), flat[d * n_classes :]
        scores = z @ weights + bias
        scores -= scores.max(1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        of_scores = weight * (np.exp(log_p) - target)
        gradient = np.concatenate([(z.T @ of_scores + strength * weights).ravel(), of_scores.sum(0)])
        return float(-(weight * target * log_p).sum() + strength / 2 * np.square(weights).sum()), gradient

    options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-10, "gtol": 1e-6}
    minimum = minimize(loss, np.zeros((d + 1) * n_classes), jac=True, method="L-BFGS-B", options=options)
    weights, bias = minimum.x[: d * n_classes].reshape(d, n_classes), minimum.x[d * n_classes :]
    return Probe(weights, bias, mean, scale, bool(minimum.success))


def macro_f1(true: np.ndarray, predicted: np.ndarray, n_classes: int) -> float:
    """Mean over classes of F1 = 2 hits / (true + predicted); a class that is neither there nor predicted has F1 = 0."""
    hits = np.bincount(true[true == predicted], minlength=n_classes)
    both = np.bincount(true, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    return float((2 * hits / np.maximum(both, 1)).mean())
