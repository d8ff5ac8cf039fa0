"""Losses agree with plain formulas row by row, and their gradients with central differences."""

import numpy as np
import pytest
from check_gradients import context, difference

from ddl import nn
from ddl.arrays import host
from ddl.errors import DataError

random = np.random.default_rng(0)


def check(loss, outputs, targets, xp):
    ctx, outputs, targets = context(len(outputs), xp=xp), xp.asarray(outputs), xp.asarray(targets)
    total, weight, cache = loss.forward(outputs, targets, ctx)
    gradient = np.array(host(loss.backward(cache)))
    wanted = np.array(
        [difference(lambda: loss.forward(outputs, targets, ctx)[0], outputs, at) for at in np.ndindex(*outputs.shape)]
    )
    np.testing.assert_allclose(gradient.reshape(-1), wanted, atol=1e-6 * max(np.abs(wanted).max(), 1))
    return total, weight, gradient


def log_softmax(row):
    return row - np.log(np.exp(row).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 2.0, 3.0)])
@pytest.mark.parametrize("shape", [(5, 4), (1, 4), (2, 3, 4)])
def test_cross_entropy(smoothing, weights, shape, xp):
    outputs = random.standard_normal(shape) * 3
    labels = random.integers(-1, 4, shape[:-1])
    loss, weight, gradient = check(nn.CrossEntropy(smoothing, weights), outputs, labels, xp)
    wanted_loss = wanted_weight = 0.0
    for at in np.ndindex(*shape[:-1]):
        if labels[at] < 0:
            assert not gradient[at].any()
            continue
        target = np.full(4, smoothing / 4)
        target[labels[at]] += 1 - smoothing
        each = weights[labels[at]] if weights else 1.0
        wanted_loss -= each * (target * log_softmax(outputs[at])).sum()
        wanted_weight += each
    assert np.isclose(loss, wanted_loss) and np.isclose(weight, wanted_weight)


def test_cross_entropy_of_probabilities_is_that_of_labels(xp):
    outputs, labels = random.standard_normal((5, 4)), np.array([0, 3, 1, 2, 2])
    for loss in (nn.CrossEntropy(), nn.CrossEntropy(0.1), nn.CrossEntropy(0.1, (1, 2, 3, 4))):
        of_labels, of_shares = check(loss, outputs, labels, xp), check(loss, outputs, np.eye(4)[labels], xp)
        assert np.isclose(of_labels[1], of_shares[1])
        if not (loss.label_smoothing and loss.class_weights):
            assert np.isclose(of_labels[0], of_shares[0])


@pytest.mark.parametrize("soft", [False, True])
def test_a_taught_loss_is_a_share_of_both_and_the_targets_alone_in_evaluation(soft, xp):
    outputs, answers = random.standard_normal((2, 5, 4)) * 2
    labels, weights = np.array([0, -1, 1, 2, 3]), (1.0, 0.5, 2.0, 3.0)
    if soft:
        labels = np.abs(labels)
    targets = np.eye(4)[labels] if soft else labels
    taught, plain = nn.losses.Taught(0.1, weights, 3.0, 0.3), nn.CrossEntropy(0.1, weights)
    alone = check(taught, outputs, targets, xp)
    assert alone[:2] == check(plain, outputs, targets, xp)[:2]
    ctx = context(5, xp=xp)
    ctx.teacher = xp.asarray(answers)
    total, weight, _ = taught.forward(xp.asarray(outputs), xp.asarray(targets), ctx)
    distance = 0.0
    for row, label in enumerate(labels):
        ours, theirs = log_softmax(outputs[row] / 3), log_softmax(answers[row] / 3)
        distance += (weights[label] if label >= 0 else 0.0) * 9 * (np.exp(theirs) * (theirs - ours)).sum()
    assert np.isclose(total, 0.7 * alone[0] + 0.3 * distance) and weight == alone[1]
    for at in np.ndindex(2, 4):
        found = taught.backward(taught.forward(xp.asarray(outputs), xp.asarray(targets), ctx)[2])
        wanted = difference(lambda: taught.forward(xp.asarray(outputs), xp.asarray(targets), ctx)[0], outputs, at)
        assert np.isclose(float(found[at]), wanted, atol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite(xp):
    for dtype in ("float32", "float64"):
        logits, labels = xp.asarray([[1e4, -1e4], [0, 90]], dtype), xp.asarray([1, 1])
        loss, _, cache = nn.CrossEntropy().forward(logits, labels, context(2, xp=xp))
        assert loss == 2e4 and np.isfinite(host(cache)).all()


def test_labels_beyond_the_classes_are_refused(xp):
    with pytest.raises(DataError, match="target 4"):
        nn.CrossEntropy().forward(xp.zeros((1, 4)), xp.asarray([4]), context(1, xp=xp))


@pytest.mark.parametrize("positive", [1.0, 3.0])
def test_binary_cross_entropy(positive, xp):
    outputs = random.standard_normal((6, 1)) * 4
    targets = np.array([1.0, 0, 1, -1, 0.3, 0])
    loss, weight, _ = check(nn.BinaryCrossEntropy(positive), outputs, targets, xp)
    p, t = 1 / (1 + np.exp(-outputs[:, 0])), targets
    each = -positive * t * np.log(p) - (1 - t) * np.log(1 - p)
    assert np.isclose(loss, each[t >= 0].sum())
    assert np.isclose(weight, (1 + (positive - 1) * t)[t >= 0].sum())
    big = nn.BinaryCrossEntropy().forward(xp.asarray([[1e5], [-1e5]]), xp.asarray([1, 0]), context(2, xp=xp))
    assert big[0] == 0 and np.isfinite(host(big[2])).all()


def test_regression_losses(xp):
    outputs, targets = random.standard_normal((4, 3)) * 2, random.standard_normal((4, 3))
    error = outputs - targets
    absolute = np.abs(error)
    huber = np.where(absolute < 0.7, error**2 / 2, 0.7 * (absolute - 0.35))
    for loss, each in ((nn.MSE(), error**2), (nn.MAE(), absolute), (nn.Huber(0.7), huber)):
        total, weight, _ = check(loss, outputs.copy(), targets, xp)
        assert np.isclose(total, each.sum()) and weight == 12
    assert nn.MSE().forward(xp.ones((2, 1)), xp.zeros(2), context(2, xp=xp))[0] == 2
    with pytest.raises(DataError):
        nn.MSE().forward(xp.ones((2, 3)), xp.zeros(2), context(2, xp=xp))


def test_distillation(xp):
    outputs, teacher = random.standard_normal((3, 5)), random.standard_normal((3, 5))
    loss, weight, _ = check(nn.Distillation(3.0), outputs, teacher, xp)
    wanted = 0.0
    for ours, theirs in zip(outputs / 3, teacher / 3):
        p = np.exp(log_softmax(theirs))
        wanted += 9 * (p * (log_softmax(theirs) - log_softmax(ours))).sum()
    assert np.isclose(loss, wanted) and weight == 3
