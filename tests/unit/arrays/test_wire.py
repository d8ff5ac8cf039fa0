"""Short forms for slow links: value and error add up to the original, and NaN and infinity arrive."""

import numpy as np
import pytest

from ddl.kernels.wire import WIRES

NAMES = sorted(WIRES)
EXTREMES = [0, -0.0, 1e-45, -1e-38, 1.17e-38, 1, -127, 128, 65504, -3.4028235e38, 3.39e38, 3.3e38, 2.0**121]


def travel(name, x, way="compiled"):
    """(what arrives, the error) of ``x``; way: "compiled" or "plain"."""
    wire = WIRES[name]
    encode, decode = (getattr(f, "plain", f) if way == "plain" else f for f in (wire.encode, wire.decode))
    error, message = x.copy(), np.empty(wire.nbytes(x.size), np.uint8)
    encode(error, message)
    arrived = np.full(x.size, 7, np.float32)
    decode(arrived, message, False)
    return arrived, error


def arrays(limit=1e38):
    rng = np.random.default_rng(3)
    extremes = np.array([x for x in EXTREMES if abs(x) <= limit], np.float32)
    for size in (0, 1, 31, 33, 2100):
        yield rng.standard_normal(size).astype(np.float32)
        spread = rng.standard_normal(size) * 10.0 ** rng.uniform(-44, 38, size)
        yield spread.clip(-limit, limit).astype(np.float32)
        yield rng.choice(extremes, size)


@pytest.mark.parametrize("name", NAMES)
def test_what_arrives_and_the_error_add_up_to_the_original(name):
    for x in arrays(65504 if name == "float16" else 3.4028235e38):
        arrived, error = travel(name, x)
        assert np.array_equal(arrived.astype(np.float64) + error, x)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_at_most_half_a_step_of_the_short_form(name):
    x = np.random.default_rng(4).standard_normal(32 * 50).astype(np.float32)
    blocks = np.abs(x.reshape(-1, 32)).max(axis=1).repeat(32)
    step = {"bfloat16": np.abs(x) * 2.0**-8, "float16": np.abs(x) * 2.0**-11 + 1e-7, "int8": blocks * 2.0**-6}[name]
    assert (np.abs(travel(name, x)[1]) <= step).all()


@pytest.mark.parametrize("name", NAMES)
def test_plain_and_compiled_write_the_same_bytes(name):
    for x in arrays():
        for one, other in zip(travel(name, x), travel(name, x, "plain"), strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("way", ["plain", "compiled"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_no_scale_hides_what_is_not_finite(way, name, poison):
    x = np.linspace(-1, 1, 100, dtype=np.float32)
    x[40] = poison
    arrived, _ = travel(name, x, way)
    assert not np.isfinite(arrived[40])
    assert np.isfinite(arrived[:32]).all() and np.isfinite(arrived[64:]).all()


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_zeros_stay_zeros(name):
    arrived, error = travel(name, np.zeros(70, np.float32))
    assert not arrived.any() and not error.any()


@pytest.mark.parametrize("name", NAMES)
def test_decoding_can_add(name):
    wire, x = WIRES[name], np.arange(100, dtype=np.float32) - 50
    message, out = np.empty(wire.nbytes(100), np.uint8), np.ones(100, np.float32)
    error = x.copy()
    wire.encode(error, message)
    wire.decode(out, message, True)
    assert np.array_equal(out, 1 + (x - error))


def test_bytes_of_a_million_elements():
    assert {name: wire.nbytes(1 << 20) / (4 << 20) for name, wire in WIRES.items()} == {
        "bfloat16": 0.5,
        "float16": 0.5,
        "int8": 0.2578125,
    }
