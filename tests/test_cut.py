"""Few rows, their classes cut among threads; gradients past the caches: the bits of neither."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import softxent as sx
from levels import force, share_all, usable_levels
from softxent import _plan

RNG = np.random.default_rng(5)


#: Other backends neither cut rows nor store past the caches: `test_others_do_not`.
LEVELS = [level for level in usable_levels() if level.backend == "cython"]


@pytest.fixture(autouse=True, params=LEVELS, ids=str)
def _shared(request, monkeypatch):
    force(request.param, monkeypatch)
    share_all(monkeypatch)
    yield
    _plan.forget_plans()


def test_others_do_not():
    """Or they belong into `LEVELS`."""
    for backend in {level.backend for level in usable_levels()} - {"cython"}:
        assert not sx.explain((1, 4099), backend=backend, n_threads=2).cut


def special(z):
    """Rows that leave the usual lane, one a kind."""
    n, c = z.shape
    z = z.copy()
    z[0, : min(c - 1, 2048)] = -np.inf
    if n > 1:
        z[1, c // 2] = np.nan
    if n > 2:
        z[2] = 3e6 * np.sign(z[2])
    return z


CALLS = {
    "cross_entropy": lambda z, y, k, out: sx.cross_entropy_with_grad(z, y, n_threads=k,
                                                                     grad_out=out),
    "rows": lambda z, y, k, out: (sx.cross_entropy(z, y, n_threads=k, reduction="none"),),
    "weighted": lambda z, y, k, out: sx.cross_entropy_with_grad(
        z, y, n_threads=k, grad_out=out, class_weight=np.linspace(0.5, 1, z.shape[1]),
        upstream=3.0),
    "focal": lambda z, y, k, out: sx.focal_loss_with_grad(z, y, n_threads=k, grad_out=out),
    "logsumexp": lambda z, y, k, out: (sx.logsumexp(z, n_threads=k),),
    "softmax": lambda z, y, k, out: (sx.softmax(z, n_threads=k, out=out),),
    "log_softmax": lambda z, y, k, out: (sx.log_softmax(z, n_threads=k, out=out),),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_same_bits_cut(name, dtype):
    for n, c in ((1, 66), (1, 4099), (2, 1024), (3, 2500), (1, 40_000)):
        z = (4 * RNG.standard_normal((n, c))).astype(dtype)
        y = RNG.integers(0, c, n)
        if n > 1:
            y[-1] = -100
        # Spread ones have probabilities that are subnormal.
        for logits in (z, 6 * z, special(z) if dtype != "float16" else -z):
            assert sx.explain((n, c), dtype, n_threads=2).cut
            assert not sx.explain((n, c), dtype, n_threads=1).cut
            for where in ("fresh", "apart", "in place"):
                results = []
                for k in (1, 2, 3, 7):
                    source = logits.copy()
                    out = {"fresh": None, "apart": np.empty_like(source), "in place": source}[where]
                    found = CALLS[name](source, y, k, out)
                    results.append([np.asarray(part).tobytes() for part in found])
                assert results[1:] == results[:-1], (n, c, where)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_past_the_caches(dtype):
    """Rows that begin and end anywhere in a line, next to memory that must stay."""
    for n, c in ((1, 65), (5, 100), (70, 1000), (3, 5000), (33, 257)):
        z = (4 * RNG.standard_normal((n, c))).astype(dtype)
        y = RNG.integers(0, c, n)
        wanted = sx.cross_entropy_with_grad(z, y, n_threads=1)
        for shift in range(0, 16, 3):
            room = np.full(n * c + 40, 7, dtype)
            out = room[shift : shift + n * c].reshape(n, c)
            assert sx.explain((n, c), dtype, grad_out=True).streams
            for k in (1, 3):
                out[:] = 5
                loss, grad = sx.cross_entropy_with_grad(z, y, grad_out=out, n_threads=k)
                assert loss == wanted[0]
                assert grad.tobytes() == wanted[1].tobytes()
                assert (room[:shift] == 7).all()
                assert (room[shift + n * c :] == 7).all()


LONG_CALLS = {
    "cross_entropy": sx.cross_entropy_with_grad,
    "smoothing": functools.partial(sx.cross_entropy_with_grad, label_smoothing=0.1),
    "probabilities": lambda z, y, **more: sx.cross_entropy_with_grad(
        z, np.random.default_rng(1).random(z.shape, np.float32) / z.shape[1], **more),
    "temperature": functools.partial(sx.cross_entropy_with_grad, temperature=0.7, upstream=-3.0),
    "squared error": sx.softmax_squared_error_with_grad,
    "softmax": lambda z, y, *, grad_out, **more: (0, sx.softmax(z, out=grad_out, **more)),
}


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("name", LONG_CALLS)
@pytest.mark.parametrize(("dtype", "n_classes"), [
    ("float32", 157_003), ("float32", 1_049_700), ("float64", 79_001), ("float16", 157_003)])
def test_same_bits_of_rows_longer_than_what_is_kept(monkeypatch, dtype, n_classes, name, past):
    """Further e are in the output, but for the last ones, or taken again: there, and in place."""
    z = (4 * RNG.standard_normal((6, n_classes))).astype(dtype)
    z = z if dtype == "float16" else special(z)
    y = RNG.integers(0, n_classes, 6)
    y[3] = -100
    y[5], z[5, -2], z[5, 160_000 % n_classes :][:3000] = n_classes - 1, 30, -20
    monkeypatch.setattr(_plan, "last_level_cache", lambda: 0 if past else 1 << 60)
    _plan.forget_plans()
    plan = sx.explain(z.shape, dtype, grad_out=True, n_threads=1)
    assert plan.streams == past
    call = LONG_CALLS[name]
    more = {"n_threads": 1} if name == "softmax" else {"n_threads": 1, "reduction": "none"}
    in_place = z.copy()
    rows, _ = call(in_place, y, grad_out=in_place, **more)
    for shift in (0, 1, 7):
        room = np.full(z.size + 40, 7, dtype)
        out = room[shift : shift + z.size].reshape(z.shape)
        again, _ = call(z, y, grad_out=out, **more)
        assert np.asarray(again).tobytes() == np.asarray(rows).tobytes()
        assert out.tobytes() == in_place.tobytes()
        assert (room[:shift] == 7).all()
        assert (room[shift + z.size :] == 7).all()


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("n_classes", [255, 256, 490, 1000, 1024, 1029, 2061, 5003, 40_007])
def test_same_bits_of_a_map_in_turn(monkeypatch, dtype, n_classes, past):
    """Of the rows before, while others are reduced; each row by itself has none before it."""
    z = (4 * RNG.standard_normal((41, n_classes))).astype(dtype)
    if dtype != "float16":
        z[:9] = special(z[:9])
        z[20:23] = special(z[20:23])
        # By a shift below the smallest normal number, which that block's e are above.
        z[30], z[30, 1024:2048] = 0, -87.9 if dtype == "float32" else -708.8
        z[31, 1010:] -= 90
        z[32, :1100] -= 900
    y = RNG.integers(0, n_classes, len(z))
    y[[4, 24, 40]] = -100
    monkeypatch.setattr(_plan, "last_level_cache", lambda: 0 if past else 1 << 60)
    monkeypatch.setattr(_plan, "PIECE_NS", 1e12)  # all rows are one piece
    _plan.forget_plans()
    plan = sx.explain(z.shape, dtype, grad_out=True, n_threads=1)
    assert (plan.streams, plan.grain) == (past, len(z))
    # Or all that is small would be 0 after the division by the sum.
    upstream = 1.0 if dtype == "float16" else 2.0**20
    more = {"n_threads": 1, "reduction": "none", "upstream": upstream}
    wanted = [sx.cross_entropy_with_grad(z[j : j + 1], y[j : j + 1], **more) for j in range(len(z))]
    rows = np.concatenate([loss for loss, _ in wanted])
    grads = np.concatenate([grad for _, grad in wanted])
    in_place = z.copy()
    again, _ = sx.cross_entropy_with_grad(in_place, y, grad_out=in_place, **more)
    assert again.tobytes() == rows.tobytes()
    assert in_place.tobytes() == grads.tobytes()
    for shift in (0, 1, 7, 12):
        room = np.full(z.size + 40, 7, dtype)
        out = room[shift : shift + z.size].reshape(z.shape)
        again, _ = sx.cross_entropy_with_grad(z, y, grad_out=out, **more)
        assert again.tobytes() == rows.tobytes()
        assert out.tobytes() == grads.tobytes()
        assert (room[:shift] == 7).all()
        assert (room[shift + z.size :] == 7).all()


def test_halves_in_exp_are_rounded_alike_beside_any_power():
    """An e by its block's power is the e by its row's, where z log2 e is a half: without FMA."""
    z = np.array([3.1191623, 3.8123095, 21.140989], "f4")
    assert (z * np.float32(1.442695) % 1 == 0.5).all()  # in float32; its own half is not
    blocks = np.arange(200_003) // 1024
    z = np.minimum(RNG.choice(z, len(blocks)), 31 - (blocks % 5).astype("f4"))
    z[::1024] = 31 - blocks[::1024] % 5
    z[0] = 32
    found = set()
    for k in (1, 2):
        for in_place in (False, True):
            source = z.copy()
            out = source if in_place else np.empty_like(source)
            sx.softmax(source, out=out, n_threads=k)
            found.add(out.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_of_class_major_rows_from_anywhere_in_a_line(dtype):
    """Groups and threads' ranges begin at lines, wherever arrays do; nothing else is written."""
    line = 64 // np.dtype(dtype).itemsize
    for n, c in ((64, 65), (96, 200), (80, 1500), (112, 11_000), (71, 130)):
        z = special((4 * RNG.standard_normal((n, c))).astype(dtype))
        y = RNG.integers(0, c, n)
        y[5] = -100
        wanted = sx.cross_entropy_with_grad(z, y, n_threads=1, reduction="none")
        for shift, out_shift in ((0, 0), (4, 4), (4, 6), (line - 1, line - 1), (1, None)):
            source = np.full(n * c + 40, 7, dtype)
            logits = source[shift : shift + n * c].reshape(c, n).T
            room, out = source, logits
            if out_shift is not None:
                room = np.full(n * c + 40, 7, dtype)
                out = room[out_shift : out_shift + n * c].reshape(c, n).T
            for k in (1, 3):
                logits[...] = z
                rows, grad = sx.cross_entropy_with_grad(logits, y, grad_out=out, n_threads=k,
                                                        reduction="none")
                assert rows.tobytes() == wanted[0].tobytes()
                assert np.array(grad, order="C").tobytes() == wanted[1].tobytes()
                start = shift if out_shift is None else out_shift
                assert (room[:start] == 7).all()
                assert (room[start + n * c :] == 7).all()
                alone = sx.cross_entropy(source[shift : shift + n * c].reshape(c, n).T if room
                                         is not source else np.asfortranarray(z), y, n_threads=k,
                                         reduction="none")
                assert alone.tobytes() == wanted[0].tobytes()


def test_kept_e_is_one_walks_at_a_time():
    """A signal handler's own call, in the middle of another's walk, does without."""
    import signal

    z = (4 * RNG.standard_normal((1 << 10, 1 << 13))).astype(np.float32)
    y = RNG.integers(0, z.shape[1], len(z))
    inner, at = z[:3, :5000].copy(), y[:3] % 5000
    wanted = sx.cross_entropy_with_grad(z, y, n_threads=1)
    inner_wanted = sx.cross_entropy_with_grad(inner, at, n_threads=1)
    seen = []

    busy = []

    def handler(number, frame):
        if not busy:
            busy.append(True)
            seen.append(sx.cross_entropy_with_grad(inner, at, n_threads=1))
            busy.clear()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
        for _ in range(200):
            loss, grad = sx.cross_entropy_with_grad(z, y, n_threads=1)
            assert loss == wanted[0]
            assert grad.tobytes() == wanted[1].tobytes()
            if len(seen) > 50:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert all(loss == inner_wanted[0] and grad.tobytes() == inner_wanted[1].tobytes()
               for loss, grad in seen)
