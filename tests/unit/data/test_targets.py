"""The kind of a target is decided once, from the training part; every other file is read the same way."""

import numpy as np
import pytest

from ddl.data import Arrays, Inputs, Known, decide, labels_of, open_dataset
from ddl.errors import ConfigError, DataError
from ddl.nn.context import Context
from ddl.nn.losses import BinaryCrossEntropy

from .filewriters import write, write_csv

X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
THIRDS = np.arange(12) % 3
HALVES = np.arange(12) % 2


def opened(tmp_path, y, **options):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    return open_dataset("files", path=str(tmp_path / "a.npz"), validation=0.0, test=0.0, **options)


@pytest.mark.parametrize(
    ("y", "loss", "kind", "expected", "reason"),
    [
        (HALVES * 1.0, "cross_entropy", "classes", HALVES, "2 classes, from whole floats 0.0, 1.0"),
        (HALVES * 1.0, "binary_cross_entropy", "classes", HALVES, "2 classes"),
        (HALVES[:, None] * 1.0, "cross_entropy", "classes", HALVES, "2 classes"),
        (THIRDS[:, None], "auto", "classes", THIRDS, "3 classes, from whole numbers 0, 1, 2"),
        (THIRDS.astype(np.uint8)[:, None], "auto", "classes", THIRDS, "3 classes"),
        (HALVES * 2 - 1, "binary_cross_entropy", "classes", HALVES, "2 classes, from whole numbers -1, 1"),
        (HALVES * 2 - 1, "auto", "classes", HALVES, "2 classes"),
        (HALVES * 2.0 - 1, "cross_entropy", "classes", HALVES, "2 classes, from whole floats -1.0, 1.0"),
        (HALVES + 1.0, "binary_cross_entropy", "classes", HALVES, "2 classes, from whole floats 1.0, 2.0"),
        (np.eye(3)[THIRDS], "cross_entropy", "classes", THIRDS, "3 classes, from rows with a single 1"),
        (np.eye(3, dtype=int)[THIRDS], "auto", "classes", THIRDS, "3 classes"),
        (THIRDS * 1.0, "auto", "values", THIRDS[:, None], 'data.target_kind = "classes" makes them 3 classes'),
        (THIRDS, "mse", "values", THIRDS, "because of loss 'mse'"),
        (X[:, 0], "auto", "values", X[:, :1], "from floating-point numbers"),
        (THIRDS / 2, "binary_cross_entropy", "probabilities", THIRDS[:, None] / 2, "from 0 to 1"),
        (np.eye(3)[THIRDS] * 0.7 + 0.1, "cross_entropy", "probabilities", np.eye(3)[THIRDS] * 0.7 + 0.1, "3 classes"),
        ((X > 0) * 1, "binary_cross_entropy", "multilabel", X > 0, "labels per sample"),
        ((X > 0) * 1, "auto", "multilabel", X > 0, "labels per sample"),
        (X > 0, "auto", "multilabel", X > 0, "labels per sample"),
        (np.eye(3, dtype=int)[THIRDS], "binary_cross_entropy", "multilabel", np.eye(3)[THIRDS], "labels per sample"),
    ],
)
def test_the_kind_follows_from_the_targets_and_the_loss(tmp_path, y, loss, kind, expected, reason):
    splits = opened(tmp_path, y, loss=loss)
    assert splits.target.kind == kind and reason in splits.target.reason
    splits.train.hold([range(12)])
    delivered = splits.train.gather(np.arange(12))["y"]
    assert np.allclose(delivered.reshape(expected.shape), expected)
    assert (delivered.dtype.kind == "i") == (kind == "classes")
    in_memory = decide(Arrays(X, y), loss)
    assert in_memory.kind == kind
    assert np.allclose(in_memory.apply(Arrays(X, y)).gather(np.arange(12))["y"].reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("y", "loss", "kind", "message"),
    [
        (X[:, 0], "cross_entropy", "auto", "needs class numbers or rows of probabilities.*data.target_kind"),
        (X, "cross_entropy", "auto", "rows of probabilities whose sum is 1.*data.target_kind"),
        (THIRDS * 1.0, "binary_cross_entropy", "auto", "needs two classes; y holds 3"),
        (X[:, 0], "binary_cross_entropy", "auto", "probabilities lie in 0 .. 1.*data.target_kind"),
        (THIRDS - 1, "auto", "auto", "below 0 can be a class, a value or padding.*data.target_kind"),
        ((X > 0) * 1, "cross_entropy", "auto", "rows with several labels, or none: set model.loss = 'binary_cross_ent"),
        ((X > 0) * 2 - 1, "binary_cross_entropy", "auto", "are 0 or 1, or probabilities"),
        (THIRDS, "cross_entropy", "values", "does not go with loss 'cross_entropy'"),
        (THIRDS, "mse", "classes", "does not go with loss 'mse'"),
    ],
)
def test_targets_outside_the_losss_domain_are_refused_with_the_setting(tmp_path, y, loss, kind, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, y, loss=loss, target_kind=kind)


def test_a_row_without_a_single_1_is_rejected_if_the_others_have_one():
    target = decide(Arrays(X, np.eye(3, dtype=int)[THIRDS]))
    for row in ([0, 0, 0], [1, 1, 0], [0, 0, 2]):
        with pytest.raises(DataError, match="rows with a single 1, but one is"):
            target.apply(Arrays(X[:1], np.array([row])))


def test_the_setting_decides_about_ambiguous_numbers(tmp_path):
    assert labels_of(opened(tmp_path, THIRDS - 1, target_kind="classes").train).tolist() == THIRDS.tolist()
    assert labels_of(opened(tmp_path, THIRDS * 1.0, target_kind="classes").train).tolist() == THIRDS.tolist()
    assert opened(tmp_path, THIRDS, target_kind="values").train.fields["y"].dtype == np.float32


@pytest.mark.parametrize("spelled", [("-1", "+1"), ("-1", "1"), ("0.0", "1.0"), ("0", "1.0"), ("01", "2")])
def test_numbers_of_a_csv_file_are_classes_in_any_spelling(tmp_path, spelled):
    path = write_csv(tmp_path / "a.csv", [[i, spelled[i % 2]] for i in range(12)])
    splits = open_dataset("files", path=str(path), validation=0.0, test=0.0, loss="cross_entropy")
    assert labels_of(splits.train).tolist() == HALVES.tolist()


def test_a_short_file_of_few_numbers_holds_values_if_the_training_file_does(tmp_path):
    train = write_csv(tmp_path / "a.csv", [[i, i * 3] for i in range(100)], ["x", "y"])
    other = write_csv(tmp_path / "b.csv", [[i, [17, 23, 41][i % 3]] for i in range(12)], ["x", "y"])
    splits = open_dataset("files", path=str(train), validation=str(other), test=0.0)
    splits.validation.hold([range(3)])
    assert splits.validation.gather(np.arange(3))["y"].tolist() == [[17], [23], [41]]


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_other_files_are_numbered_as_the_training_file(tmp_path, suffix):
    few = np.array([1, -1, 1])
    if suffix == "npz":
        np.savez(tmp_path / "b.npz", x=X[:3], y=few)
    else:
        write_csv(tmp_path / "b.csv", [[0, 0, label] for label in few])
    np.savez(tmp_path / "a.npz", x=X, y=HALVES * 2 - 1)
    other = str(tmp_path / f"b.{suffix}")
    splits = open_dataset("files", path=str(tmp_path / "a.npz"), validation=0.0, test=other)
    assert labels_of(splits.test).tolist() == [1, 0, 1]
    known = Known.from_json(Known.of(splits.train, splits.names, splits.target).to_json())
    again = Inputs(is_labelled=True).open(other, known)
    assert labels_of(again).tolist() == [1, 0, 1]


def test_a_class_that_only_another_file_has_is_refused(tmp_path):
    np.savez(tmp_path / "b.npz", x=X[:3], y=[1, 2, -1])
    np.savez(tmp_path / "a.npz", x=X, y=HALVES * 2 - 1)
    with pytest.raises(DataError, match=r"target 2 is none of the training part's classes, -1, 1"):
        open_dataset("files", path=str(tmp_path / "a.npz"), validation=0.0, test=str(tmp_path / "b.npz"))


def test_text_classes_do_not_go_with_a_loss_of_values(tmp_path):
    lines = "".join(f'{{"text": "word{i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(6))
    path = write(tmp_path / "a.jsonl", lines)
    with pytest.raises(ConfigError, match="loss 'mse' needs numbers; y holds 2 classes, 'a', 'b'"):
        open_dataset("files", path=str(path), validation=0.0, test=0.0, loss="mse")


def test_binary_cross_entropy_refuses_a_target_above_1():
    context = Context(segments=[slice(0, 2)], shards=[0])
    with pytest.raises(DataError, match="from 0 to 1, got 2"):
        BinaryCrossEntropy().forward(np.zeros((2, 1), np.float32), np.array([[1.0], [2.0]], np.float32), context)


KINDS = np.array(["no", "yes", "maybe"])[THIRDS]  # in the order of their names: maybe, no, yes
NUMBERS = np.array([1, 2, 0])[THIRDS]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_texts_in_an_archive_are_classes_with_one_numbering_for_every_file(tmp_path, save):
    save(tmp_path / "a.npz", x=X, y=KINDS)
    save(tmp_path / "few.npz", x=X[1::3], y=KINDS[1::3])
    path, few = str(tmp_path / "a.npz"), str(tmp_path / "few.npz")
    splits = open_dataset("files", path=path, validation=0.0, test=few)
    assert splits.target.reason == "3 classes, from the texts 'maybe', 'no', 'yes'"
    assert tuple(splits.names) == ("maybe", "no", "yes")
    assert labels_of(splits.train).tolist() == NUMBERS.tolist()
    assert labels_of(splits.test).tolist() == [2] * 4
    known = Known.from_json(Known.of(splits.train, splits.names, splits.target).to_json())
    assert labels_of(Inputs(is_labelled=True).open(few, known)).tolist() == [2] * 4


def test_archives_whose_classes_have_texts_of_other_lengths_are_joined(tmp_path):
    np.savez(tmp_path / "1.npz", x=X[::3], y=KINDS[::3])
    np.savez(tmp_path / "2.npz", x=X[2::3], y=KINDS[2::3])
    splits = open_dataset("files", path=str(tmp_path), validation=0.0, test=0.0)
    assert tuple(splits.names) == ("maybe", "no")
    assert labels_of(splits.train).tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize("y", [KINDS, KINDS.astype(object), KINDS.tolist(), KINDS[:, None]])
def test_texts_in_memory_are_classes(y):
    source = Arrays(X, y)
    target = decide(source)
    assert labels_of(target.apply(source)).tolist() == NUMBERS.tolist()
    with pytest.raises(DataError, match="target never is none of the training part's classes, 'maybe', 'no', 'yes'"):
        target.apply(Arrays(X[:1], ["never"]))
    with pytest.raises(DataError, match="target 1 is a number, those of the training part are texts"):
        target.apply(Arrays(X[:1], [1]))


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        (KINDS, "mse", "needs numbers; y holds 3 classes, 'maybe', 'no', 'yes'"),
        (KINDS, "binary_cross_entropy", "needs two classes; y holds 3"),
        (np.stack([KINDS, KINDS], 1), "auto", r"texts of shape \(2,\)"),
        (np.where(HALVES, "a", ""), "auto", "some samples have no target"),
    ],
)
def test_texts_that_cannot_be_classes_are_refused(y, loss, message):
    with pytest.raises((ConfigError, DataError), match=message):
        decide(Arrays(X, y), loss)


def test_texts_that_seldom_recur_are_not_classes(tmp_path):
    names = [f"name {number}" for number in range(30)]
    with pytest.raises(
        DataError, match=r"y holds 30 different texts in 30 samples, 'name 0', .*: these are no classes"
    ):
        decide(Arrays(np.zeros((30, 2)), names))
    path = write_csv(tmp_path / "a.csv", [[number, name] for number, name in enumerate(names)])
    with pytest.raises(DataError, match=r"a\.csv: y holds 30 different texts in 30 samples"):
        open_dataset("files", path=str(path))
    assert decide(Arrays(np.zeros((30, 2)), np.arange(30).astype(str))).field.size == 30


@pytest.mark.parametrize("loss", ["auto", "mse", "cross_entropy"])
def test_a_target_that_is_not_finite_is_named_before_training(loss):
    with pytest.raises(DataError, match="the target of sample 5 is not finite"):
        decide(Arrays(X, np.where(np.arange(12) == 5, np.nan, X[:, 0])), loss)


def test_whole_number_features_of_a_table_are_not_tokens():
    source = Arrays((X * 100).astype(np.int64), np.eye(3, dtype=int)[THIRDS])
    assert decide(source, measured=True).reason == "3 classes, from rows with a single 1"


def test_an_error_about_targets_names_its_file_once(tmp_path):
    path = write_csv(tmp_path / "a.csv", [[1.5, 0.5], [2.5, "nan"], [1.25, 2.5]])
    with pytest.raises(DataError) as caught:
        open_dataset("files", path=str(path))
    assert str(caught.value).count("a.csv") == 1
