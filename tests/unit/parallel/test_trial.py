"""A trial alternates between with and without, then keeps the faster."""

import pytest

from ddl.parallel.trial import BLOCK, ENOUGH_S, LEAST, MOST, Trial


def steps(trial, clock, count, seconds):
    """The answers of ``trial`` over ``count`` steps, each of which takes ``seconds(answer, number)``."""
    answers = []
    for number in range(count):
        answers.append(trial.next())
        clock[0] += seconds(answers[-1], number)
    return answers


@pytest.mark.parametrize("with_it", [0.9, 1.1])
def test_the_faster_choice_is_kept(with_it):
    clock = [5.0]
    trial = Trial(lambda: clock[0])
    answers = steps(trial, clock, BLOCK * MOST + 50, lambda does, _: (with_it if does else 1.0) / 1000)
    assert answers[: BLOCK * MOST] == ([True] * BLOCK + [False] * BLOCK) * (MOST // 2)
    assert set(answers[BLOCK * MOST :]) == {with_it < 1} and trial.chosen is (with_it < 1)


def test_outliers_and_the_first_step_after_a_change_do_not_count():
    clock = [0.0]
    trial = Trial(lambda: clock[0])

    def seconds(does, number):
        return 1e-2 if number % BLOCK == 0 or number % 7 == 0 else 0.9e-3 if does else 1e-3

    assert steps(trial, clock, BLOCK * MOST + 1, seconds)[-1] is True


def test_without_a_difference_the_answer_is_no():
    assert steps(Trial(lambda: 0.0), [0.0], BLOCK * MOST + 1, lambda *_: 0.0)[-1] is False


@pytest.mark.parametrize("seconds", [ENOUGH_S / (BLOCK * 7), ENOUGH_S])
def test_long_steps_need_fewer_blocks(seconds):
    clock = [0.0]
    trial = Trial(lambda: clock[0])
    blocks = 0
    while trial.chosen is None:
        steps(trial, clock, 1, lambda does, _: seconds * (0.9 if does else 1.0))
        blocks += 1 / BLOCK
    assert trial.chosen is True
    assert LEAST <= blocks < MOST and int(blocks) == (8 if seconds < ENOUGH_S / BLOCK else LEAST)
