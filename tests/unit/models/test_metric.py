"""Metrics against scikit-learn and plain NumPy, and the same over any split of the samples."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.errors import ConfigError
from ddl.nn.metric import (
    F1,
    METRICS,
    R2,
    RMSE,
    Accuracy,
    BitsPerByte,
    ConfusionMatrix,
    MeanAbsoluteError,
    Perplexity,
    Precision,
    Recall,
    TopK,
)

RNG = np.random.default_rng(11)
LOGITS = RNG.normal(size=(200, 6)).astype("float32")
LABELS = RNG.integers(0, 5, 200)  # class 5 is chosen now and then and never true
VALUES, TARGETS = RNG.normal(size=(90, 3)), RNG.normal((0, 5, -3), size=(90, 3))


@pytest.fixture
def whole(xp):
    """The figure of a metric over samples of the host's, summed where ``xp`` computes."""

    def whole(metric, outputs, targets, loss=0.0, weight=1.0):
        sums = metric.sums(xp.asarray(outputs), xp.asarray(targets), loss)
        return metric.value(sums, weight)

    return whole


def test_classification_agrees_with_scikit_learn(whole):
    sk = pytest.importorskip("sklearn.metrics")
    chosen = LOGITS.argmax(1)
    assert math.isclose(whole(Accuracy(), LOGITS, LABELS), sk.accuracy_score(LABELS, chosen))
    assert whole(ConfusionMatrix(), LOGITS, LABELS) == sk.confusion_matrix(LABELS, chosen).tolist()
    top = sk.top_k_accuracy_score(LABELS, LOGITS, k=3, labels=range(6))
    assert math.isclose(whole(TopK(3), LOGITS, LABELS), top)
    peers = {Precision: sk.precision_score, Recall: sk.recall_score, F1: sk.f1_score}
    for metric, peer in peers.items():
        for average in ("macro", "weighted", "micro"):
            want = peer(LABELS, chosen, average=average, zero_division=0)
            assert math.isclose(whole(metric(average), LOGITS, LABELS), want), (metric, average)
        want = peer(LABELS > 2, LOGITS[:, 0] > 0)
        for logits in (LOGITS[:, 0], LOGITS[:, :1]):
            assert math.isclose(whole(metric("binary"), logits, (LABELS > 2).astype(int)), want)


def test_regression_agrees_with_scikit_learn(whole):
    sk = pytest.importorskip("sklearn.metrics")
    assert math.isclose(whole(R2(), VALUES, TARGETS), sk.r2_score(TARGETS, VALUES))
    assert math.isclose(whole(MeanAbsoluteError(), VALUES, TARGETS), sk.mean_absolute_error(TARGETS, VALUES))
    assert math.isclose(whole(RMSE(), VALUES[:, :1], TARGETS[:, 0]), math.sqrt(((VALUES - TARGETS)[:, 0] ** 2).mean()))


def test_a_target_that_does_not_vary(whole):
    constant = np.full(10, 3.0)
    assert whole(R2(), constant, constant) == 1
    assert whole(R2(), constant + 0.1, constant) == 0


def test_accuracy_of_one_logit_of_one_hot_targets_and_of_sequences(whole):
    logits = np.array([[0.5], [-2.0], [1.0], [-0.1]])
    assert whole(Accuracy(), logits, np.array([1, 0, 0, 0])) == 0.75
    assert whole(Accuracy(), logits[:, 0], np.array([1.0, 0, 0, 0])) == 0.75
    assert whole(Accuracy(), LOGITS, np.eye(6)[LABELS]) == whole(Accuracy(), LOGITS, LABELS)
    tokens = np.array([[2, 0, -1], [1, -1, -1]])  # below 0: padding
    scores = np.zeros((2, 3, 3))
    scores[0, 0, 2] = scores[0, 1, 0] = scores[1, 0, 2] = 1
    assert math.isclose(whole(Accuracy(), scores, tokens), 2 / 3)
    assert math.isclose(whole(TopK(2), scores, tokens), 1.0)


def test_several_labels_a_sample_agree_with_scikit_learn(whole):
    sk = pytest.importorskip("sklearn.metrics")
    labels = (RNG.random((200, 6)) < 0.3).astype(float)
    chosen = LOGITS > 0
    assert math.isclose(whole(Accuracy(by_label=True), LOGITS, labels), (chosen == labels).mean())
    both = sk.confusion_matrix(labels.reshape(-1), chosen.reshape(-1))
    assert whole(ConfusionMatrix(by_label=True), LOGITS, labels) == both.tolist()
    peers = {Precision: sk.precision_score, Recall: sk.recall_score, F1: sk.f1_score}
    for metric, peer in peers.items():
        for average in ("macro", "weighted", "micro"):
            want = peer(labels, chosen, average=average, zero_division=0)
            assert math.isclose(whole(metric(average, by_label=True), LOGITS, labels), want), (metric, average)


def test_padded_labels_are_not_counted(whole):
    logits, labels = np.array([[1.0, 1.0], [-1.0, 1.0]]), np.array([[1.0, -1.0], [0.0, 0.0]])
    assert math.isclose(whole(Accuracy(by_label=True), logits, labels), 2 / 3)
    assert whole(Precision("micro", by_label=True), logits, labels) == 0.5


def test_probabilities_as_targets_count_as_their_likelier_class(whole):
    logits = np.array([[2.0], [-2.0], [2.0], [-2.0]])
    assert whole(Accuracy(), logits, np.array([[0.9], [0.2], [0.3], [0.6]])) == 0.5
    assert whole(ConfusionMatrix(), logits[:2], np.array([0.9, 0.2])) == [[1, 0], [0, 1]]
    assert whole(Accuracy(), np.eye(3), np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])) == 2 / 3


def test_perplexity_and_bits_come_from_the_loss(whole):
    assert math.isclose(whole(Perplexity(), LOGITS, LABELS, 30 * math.log(7), 30.0), 7)
    assert math.isclose(whole(BitsPerByte(), LOGITS, LABELS, 30 * math.log(256), 30.0), 8)
    assert whole(Perplexity(), LOGITS, LABELS, 1e6, 1.0) == math.inf


def test_bits_of_outputs_do_not_ask_the_loss(whole):
    shares = np.exp(LOGITS.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = -np.log2(shares[np.arange(len(LABELS)), LABELS]).mean()
    assert math.isclose(whole(BitsPerByte(True), LOGITS, LABELS, 1e9, 3.0), expected)
    assert math.isclose(whole(Perplexity(True), LOGITS, LABELS, 1e9, 3.0), 2**expected)
    padded = np.append(LABELS, -1)
    assert math.isclose(whole(BitsPerByte(True), np.vstack([LOGITS, 9 * LOGITS[:1]]), padded, 1e9, 3.0), expected)


@given(st.lists(st.integers(1, 89), unique=True, max_size=6).map(sorted), st.sampled_from(sorted(METRICS)))
def test_any_split_gives_the_same_figure(cuts, name):
    metric = METRICS[name]()
    regression = name in ("mae", "rmse", "r2")
    outputs, targets = (VALUES, TARGETS) if regression else (LOGITS[:90], LABELS[:90])
    edges = [0, *cuts, 90]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    total = sum(metric.sums(outputs[p], targets[p], 0.125 * (p.stop - p.start)) for p in parts)
    together = metric.sums(outputs, targets, 0.125 * 90)
    np.testing.assert_allclose(metric.value(total, 90.0), metric.value(together, 90.0), rtol=1e-12)


def test_step_sums_have_the_length_they_say(xp):
    for metric in (make() for make in METRICS.values()):
        if metric.every_step:
            sums = metric.sums(xp.asarray(VALUES[:, 0]), xp.asarray(TARGETS[:, 0]), 1.0)
            assert np.size(sums) == metric.every_step


def test_nothing_counted_is_not_a_division_by_zero(whole):
    nothing = np.full(200, -1)
    for metric in (Accuracy(), TopK(), Precision(), Recall(), F1()):
        assert whole(metric, LOGITS, nothing) == 0


def test_an_unknown_average_is_named():
    with pytest.raises(ConfigError, match="macro"):
        Precision("marco")
