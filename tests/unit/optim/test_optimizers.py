"""Every optimizer against its textbook formula in plain NumPy, through one shared matrix."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from ddl import optim
from ddl.arrays import Layout, host, namespace_of
from ddl.errors import ConfigError
from ddl.kernels.backend import use_compiled

ALL = {
    "sgd": optim.SGD(lr=0.1),
    "momentum": optim.Momentum(lr=0.05, momentum=0.8),
    "nesterov": optim.Momentum(lr=0.05, momentum=0.8, nesterov=True),
    "adam": optim.Adam(lr=0.02, beta1=0.85, beta2=0.95),
    "adamw": optim.AdamW(lr=0.02, weight_decay=0.0),
    "nadam": optim.NAdam(lr=0.02, beta2=0.95),
    "radam": optim.RAdam(lr=0.02, beta2=0.99),
    "rmsprop": optim.RMSprop(lr=0.02),
    "adagrad": optim.Adagrad(lr=0.3),
    "lars": optim.LARS(lr=1.0, trust=0.05),
    "lamb": optim.LAMB(lr=0.02),
}
ELEMENTWISE = [name for name, optimizer in ALL.items() if not optimizer.layerwise]


def textbook(kind: str, o, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """One layer's parameters after steps along ``gradients`` (means), by the formulas of the papers."""
    p, m, v, product = p.astype(np.float64).copy(), 0.0, 0.0, 1.0
    for t, g in enumerate(gradients, start=1):
        wd = o.weight_decay
        if kind == "sgd":
            p = p - o.lr * (g + wd * p)
        elif kind == "momentum":
            m = o.momentum * m + g + wd * p
            p = p - o.lr * m
        elif kind == "nesterov":
            d = g + wd * p
            m = o.momentum * m + d
            p = p - o.lr * (d + o.momentum * m)
        elif kind in ("adam", "adamw", "lamb", "nadam", "radam"):
            d = g if kind in ("adamw", "lamb") else g + wd * p
            m = o.beta1 * m + (1 - o.beta1) * d
            v = o.beta2 * v + (1 - o.beta2) * d**2
            m_hat, v_hat = m / (1 - o.beta1**t), v / (1 - o.beta2**t)
            u = m_hat / (np.sqrt(v_hat) + o.eps)
            if kind == "nadam":
                mu, following = (o.beta1 * (1 - 0.5 * 0.96 ** (s * o.momentum_decay)) for s in (t, t + 1))
                product *= mu
                ahead = (1 - mu) / (1 - product) * d + following / (1 - product * following) * m
                p = p - o.lr * ahead / (np.sqrt(v_hat) + o.eps)
            elif kind == "radam":
                longest = 2 / (1 - o.beta2) - 1
                rho = longest - 2 * t * o.beta2**t / (1 - o.beta2**t)
                if rho > 5:
                    r = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
                    m_hat = m_hat * np.sqrt(r * (1 - o.beta2**t)) / (np.sqrt(v) + o.eps)
                p = p - o.lr * m_hat
            elif kind == "adamw":
                p = p - o.lr * (u + wd * p)
            elif kind == "lamb":
                u = u + wd * p
                p = p - o.lr * np.linalg.norm(p) / np.linalg.norm(u) * u
            else:
                p = p - o.lr * u
        elif kind == "rmsprop":
            d = g + wd * p
            v = o.decay * v + (1 - o.decay) * d**2
            p = p - o.lr * d / (np.sqrt(v) + o.eps)
        elif kind == "adagrad":
            d = g + wd * p
            v = v + d**2
            p = p - o.lr * d / (np.sqrt(v) + o.eps)
        elif kind == "lars":
            trust = o.trust * np.linalg.norm(p) / (np.linalg.norm(g) + wd * np.linalg.norm(p))
            m = o.momentum * m + trust * o.lr * (g + wd * p)
            p = p - m
    return p


def with_decay(optimizer, weight_decay: float):
    return replace(optimizer, weight_decay=weight_decay)


def run(optimizer, p, gradients, scale=1.0, slots=None, first=0, xp=np):
    """Flat parameters on the host after some steps on arrays of ``xp``; slots, which lie there, start at zero."""
    p = xp.array(p)
    slots = zero_slots(optimizer, p) if slots is None else slots
    for step, g in enumerate(gradients, start=first):
        optimizer.update(p, xp.asarray(g), slots, optimizer.lr, step, scale)
    return host(p)


def zero_slots(optimizer, p):
    return {name: namespace_of(p).zeros_like(p) for name in optimizer.slots}


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ALL)
def test_steps_follow_the_textbook(kind, dtype, weight_decay, spelling):
    rng = np.random.default_rng(3)
    optimizer = with_decay(ALL[kind], weight_decay)
    length = 20011 if kind in ("adam", "lamb") else 37  # more than two blocks, and no multiple of one
    p = rng.normal(size=length).astype(dtype)
    means = [rng.normal(size=length).astype(dtype) for _ in range(8 if kind == "radam" else 6)]
    sums = [g * np.asarray(256, dtype) for g in means]
    got = run(optimizer, p, sums, scale=1 / 256, xp=spelling)
    assert got.dtype == dtype
    rtol, atol = (2e-5, 1e-6) if dtype == "float32" else (1e-12, 1e-13)
    np.testing.assert_allclose(got, textbook(kind, optimizer, p, means), rtol, atol)


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
def test_compiled_and_plain_give_the_same_bits(kind, dtype, weight_decay):
    pytest.importorskip("numba")
    rng, optimizer = np.random.default_rng(4), with_decay(ALL[kind], weight_decay)
    p = rng.normal(size=9001).astype(dtype)
    gradients = [rng.normal(size=9001).astype(dtype) for _ in range(4)]
    results = []
    for mode in ("on", "off"):
        use_compiled(mode)
        slots = zero_slots(optimizer, p)
        results.append([run(optimizer, p, gradients, 0.37, slots), *slots.values()])
    use_compiled("auto")
    for compiled, plain in zip(*results, strict=True):
        assert compiled.tobytes() == plain.tobytes()


@pytest.mark.parametrize("kind", ALL)
def test_a_copy_of_the_slots_resumes_with_the_same_bits(kind, spelling):
    rng, optimizer = np.random.default_rng(5), with_decay(ALL[kind], 0.01)
    p = rng.normal(size=100).astype("float32")
    gradients = [rng.normal(size=100).astype("float32") for _ in range(8)]
    whole = run(optimizer, p, gradients, xp=spelling)
    slots = zero_slots(optimizer, spelling.asarray(p))
    half = run(optimizer, p, gradients[:4], slots=slots, xp=spelling)
    copies = {name: spelling.asarray(np.array(host(slot))) for name, slot in slots.items()}
    again = run(optimizer, half, gradients[4:], slots=copies, first=4, xp=spelling)
    assert again.tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("spelling", ["plain", "compiled"], indirect=True)
def test_a_quadratic_is_minimised(kind, spelling):
    """f(x) = sum c (x - t)^2 / 2 from a start away from the target falls by a factor of 100."""
    c, target = np.linspace(0.5, 2, 20), np.linspace(-1, 1, 20)
    optimizer = ALL[kind]
    p = np.full(20, 3.0)
    slots = zero_slots(optimizer, p)
    first = (c * (p - target) ** 2).sum()
    for step in range(600):
        lr = optimizer.lr * (1 - step / 600)
        optimizer.update(p, 4 * c * (p - target), slots, lr, step, 0.25)
    assert (c * (p - target) ** 2).sum() < first / 100


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("spelling", ["plain", "compiled"], indirect=True)
def test_the_steady_state_allocates_nothing_large(kind, spelling):
    optimizer = with_decay(ALL[kind], 0.01)
    p, g = np.ones(200_000, "float32"), np.ones(200_000, "float32")
    slots = zero_slots(optimizer, p)
    for step in range(2):
        optimizer.update(p, g, slots, 0.01, step, 1.0)
    tracemalloc.start()
    optimizer.update(p, g, slots, 0.01, 2, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150_000  # the arrays have 800,000 bytes; NumPy's own casting buffer is 8192 elements


@pytest.mark.parametrize("kind", ALL)
def test_the_host_waits_for_a_device_only_to_read_the_two_norms_of_a_layer(kind, cupy):
    p, g = cupy.ones(20), cupy.ones(20)
    slots = zero_slots(ALL[kind], p)
    waited = cupy.ndarray.waited
    ALL[kind].update(p, g, slots, 0.01, 0, 1.0)
    assert cupy.ndarray.waited - waited == 2 * ALL[kind].layerwise


@pytest.mark.parametrize("kind", ALL)
def test_gradients_are_unchanged_and_zeros_stay_zeros(kind, spelling):
    optimizer = with_decay(ALL[kind], 0.01)
    p = np.array([1.0, 0, 0, 2.0])
    g = spelling.asarray([0.5, 0, 0, -0.5])
    got = run(optimizer, p, [g] * 3, xp=spelling)
    assert host(g).tolist() == [0.5, 0, 0, -0.5] and (got[1:3] == 0).all() and (got != p)[[0, 3]].all()


@pytest.mark.parametrize("kind", ["lars", "lamb"])
def test_a_layer_of_norm_zero_takes_the_plain_step(kind, xp):
    p = run(ALL[kind], np.zeros(4), [np.ones(4)], xp=xp)
    np.testing.assert_allclose(p, -ALL[kind].lr * np.ones(4), rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad"]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
def test_pytorch_agrees(kind, weight_decay):
    torch = pytest.importorskip("torch")
    o = with_decay(ALL[kind], weight_decay)
    peers = {
        "sgd": lambda p: torch.optim.SGD(p, o.lr, weight_decay=weight_decay),
        "momentum": lambda p: torch.optim.SGD(p, o.lr, o.momentum, weight_decay=weight_decay),
        "nesterov": lambda p: torch.optim.SGD(p, o.lr, o.momentum, weight_decay=weight_decay, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, o.lr, (o.beta1, o.beta2), o.eps, weight_decay),
        "adamw": lambda p: torch.optim.AdamW(p, o.lr, (o.beta1, o.beta2), o.eps, weight_decay),
        "nadam": lambda p: torch.optim.NAdam(p, o.lr, (o.beta1, o.beta2), o.eps, weight_decay, o.momentum_decay),
        "radam": lambda p: torch.optim.RAdam(p, o.lr, (o.beta1, o.beta2), o.eps, weight_decay),
        "rmsprop": lambda p: torch.optim.RMSprop(p, o.lr, o.decay, o.eps, weight_decay),
        "adagrad": lambda p: torch.optim.Adagrad(p, o.lr, weight_decay=weight_decay, eps=o.eps),
    }
    rng = np.random.default_rng(6)
    start, gradients = rng.normal(size=50), [rng.normal(size=50) for _ in range(9)]
    theirs = torch.tensor(start.copy())
    peer = peers[kind]([theirs])
    for g in gradients:
        theirs.grad = torch.tensor(g)
        peer.step()
    rtol = 1e-6 if kind == "nadam" else 1e-10  # PyTorch keeps the product of NAdam's momenta in float32
    np.testing.assert_allclose(run(o, start, gradients), theirs.numpy(), rtol=rtol)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: optim.Adam(lr=0), "optim.lr"),
        (lambda: optim.Adam(beta1=1.0), "beta1"),
        (lambda: optim.RMSprop(eps=0), "eps"),
        (lambda: optim.Momentum(momentum=-0.1), "momentum"),
        (lambda: optim.SGD(weight_decay=-1), "weight_decay"),
        (lambda: optim.SGD(lr=float("nan")), "lr"),
        (lambda: optim.build("adma"), "did you mean 'adam'"),
        (lambda: optim.build("sgd", {"beta1": 0.5}), "beta1"),
    ],
)
def test_impossible_settings_are_named(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_names_build_optimizers():
    assert optim.build("adam", {"lr": 0.5, "beta1": None}) == optim.Adam(lr=0.5)
    for name in optim.OPTIMIZERS:
        assert isinstance(optim.build(name), optim.Optimizer)


LAYOUT = Layout.of({"a.weight": (3, 5), "a.bias": (5,), "b.weight": (5, 7), "b.bias": (7,), "c.weight": (2,)})


def flat(seed: int) -> np.ndarray:
    rng, out = np.random.default_rng(seed), np.zeros(LAYOUT.length, "float32")
    for place in LAYOUT.slices.values():
        out[place] = rng.normal(size=place.stop - place.start)
    return out


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_group_applies_its_own_options_to_each_name(kind, dtype, spelling):
    base = with_decay(ALL[kind], 0.05)
    layout = Layout.of(LAYOUT.shapes, dtype)
    other = optim.Adam(lr=2 * base.lr)
    groups = optim.Groups(
        layout,
        base,
        [optim.Rule("b.*", lr_factor=0.5, weight_decay=0.2), optim.Rule("c.*", optimizer=other)],
        no_decay=["*.bias"],
        freeze=["a.weight"],
    )
    p, g = flat(1).astype(dtype), [flat(s).astype(dtype) for s in (2, 3)]
    on_device = spelling.asarray(p.copy())
    slots = zero_slots(groups, on_device)
    for step, gradient in enumerate(g):
        groups.update(on_device, spelling.asarray(gradient), slots, base.lr * 0.7, step, 0.5)
    trained = [place for name, place in layout.slices.items() if name != "a.weight"]
    norm = sum(float((g[0][place].astype(np.float64) ** 2).sum()) for place in trained)
    np.testing.assert_allclose(groups.squared_norm(spelling.asarray(g[0])), norm, rtol=1e-5)
    got, slots = host(on_device), {name: host(slot) for name, slot in slots.items()}
    want = {
        "a.weight": None,
        "a.bias": (kind, with_decay(base, 0.0), 0.7),
        "b.weight": (kind, with_decay(base, 0.2), 0.35),
        "b.bias": (kind, with_decay(base, 0.0), 0.35),
        "c.weight": ("adam", other, 0.7),
    }
    for name, place in layout.slices.items():
        if want[name] is None:
            assert (got[place] == p[place]).all()
            continue
        of, o, factor = want[name]
        expected = textbook(of, replace(o, lr=o.lr * factor), p[place], [x[place] * 0.5 for x in g])
        np.testing.assert_allclose(got[place], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    covered = np.zeros(layout.length, bool)
    for place in layout.slices.values():
        covered[place] = True
    assert not got[~covered].any() and not any(slot[~covered].any() for slot in slots.values())


def test_equal_neighbours_are_one_pass():
    assert [part.names for part in optim.Groups(LAYOUT, optim.Adam()).ranges] == [tuple(LAYOUT.shapes)]
    assert len(optim.Groups(LAYOUT, optim.LAMB()).ranges) == len(LAYOUT.shapes)
    assert len(optim.Groups(LAYOUT, optim.Adam(), [optim.Rule("b.*", lr_factor=2)]).ranges) == 3
    frozen = optim.Groups(LAYOUT, optim.Adam(), freeze=["*"])
    assert frozen.slots == () and "frozen" in repr(frozen)


def test_a_pattern_without_a_match_is_named():
    with pytest.raises(ConfigError, match=r"'d\.\*'.*a\.weight"):
        optim.Groups(LAYOUT, optim.SGD(), [optim.Rule("d.*", frozen=True)])


@pytest.mark.parametrize("kind", ALL)
def test_float16_parameters_follow_the_float32_update(kind, xp):
    """Squared gradients of 1e-4 are 0 in float16 and so is eps; squares of 1000 overflow."""
    rng, optimizer = np.random.default_rng(7), ALL[kind]
    p = rng.normal(size=9001).astype("float16")
    gradients = [(rng.normal(size=9001) * size).astype("float16") for size in (1e-4, 1e-4, 1000, 1000)]
    half = xp.array(p)
    slots = {n: xp.zeros(len(p), optim.slot_dtype(p.dtype)) for n in optimizer.slots}
    got = run(optimizer, half, gradients, scale=0.5, slots=slots, xp=xp).astype("float32")
    wanted = run(optimizer, p.astype("float32"), [g.astype("float32") for g in gradients], scale=0.5, xp=xp)
    assert np.isfinite(got).all()
    # Storing a parameter rounds it by at most 2**-11 of its size, once per step; the largest one bounds them all.
    bound = len(gradients) * 2.0**-10 * max(np.abs(wanted).max(), np.abs(p).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)


def test_adam_in_your_own_loop_takes_float16_parameters():
    import ddl

    ddl.init()
    x = np.ones(3, "float16")
    optimizer = ddl.DistributedOptimizer(optim.Adam(lr=0.01), {"x": x})
    for _ in range(5):
        optimizer.step({"x": np.full(3, 1e-4, "float16")})
    np.testing.assert_allclose(x, 0.95, atol=5e-3)
