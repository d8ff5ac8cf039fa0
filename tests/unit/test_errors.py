"""Errors of any class travel between ranks as text."""

from __future__ import annotations

import pickle
import threading

import pytest

from ddl.errors import ConfigError, DataError, PeerLost, UserCodeError, UserError


class NeedsThree(DataError):
    """A user's error whose constructor pickle cannot call, with an attribute that pickle cannot store."""

    exit_status = 7

    def __init__(self, file, line, extra):
        self.lock, self.line = threading.Lock(), line
        super().__init__(f"{extra} in {file}")


def test_an_error_of_a_users_class_arrives_with_its_message_and_status():
    error = pickle.loads(pickle.dumps(NeedsThree("a.csv", 3, "a hole")))
    assert type(error) is DataError and str(error) == "a hole in a.csv"
    assert (error.exit_status, error.line) == (7, 3)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("wrong"),
        UserError("wrong"),
        DataError("torn", "x.csv", 3, "line"),
        PeerLost({2, 1}, 4, "a sum"),
        UserCodeError("it raised", "Traceback ..."),
    ],
)
def test_errors_of_the_package_arrive_unchanged(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error)
    assert {**vars(copy), "exit_status": error.exit_status} == {**vars(error), "exit_status": error.exit_status}
