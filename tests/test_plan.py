"""Dispatch: what `explain` says is what a call does; choices hold where they should."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

import softxent as sx
from softxent import _machine, _plan, _run, _threads
from softxent.backends import BACKENDS

RNG = np.random.default_rng(0)


@pytest.fixture
def plans(monkeypatch):
    """The plans of the calls made in a test."""
    seen = []
    execute = _run.execute

    def record(plan, problem):
        seen.append(plan)
        return execute(plan, problem)

    monkeypatch.setattr(_run, "execute", record)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
@pytest.mark.parametrize("shape", [(1, 2), (40, 10), (3000, 40), (300, 1500)])
@pytest.mark.parametrize("grad", [True, False])
def test_explain_gives_the_plan_of_the_call(plans, dtype, order, shape, grad):
    n, c = shape
    logits = {
        "C": np.zeros((n, c), dtype),
        "F": np.zeros((c, n), dtype).T,
        "strided": np.zeros((n, 3 * c), dtype)[:, ::3],
    }[order]
    if n == 1 and order == "F":
        order = "C" if logits.flags.c_contiguous else order
    targets = RNG.integers(0, c, n)
    (sx.cross_entropy_with_grad if grad else sx.cross_entropy)(logits, targets)
    assert plans == [sx.explain(shape, dtype, order=order, grad=grad)]


def test_every_backend_says_why():
    plan = sx.explain((100, 100))
    assert set(plan.why) == set(BACKENDS)
    assert all(plan.why.values())
    forced = sx.explain((100, 100), backend="numpy")
    assert forced.why == {**dict.fromkeys(BACKENDS, "not asked for: numpy is"),
                          "numpy": "asked for"}


def test_a_plan_prints_itself_for_people():
    text = str(sx.explain((64, 1000), backend="numpy", n_threads=1))
    assert text.splitlines()[0].startswith("cross_entropy classes float32 C: numpy, 1 thread, ")
    assert all(name in text for name in BACKENDS)


def test_choices_in_order_argument_setting_environment(plans, monkeypatch):
    logits = np.zeros((4, 3))
    monkeypatch.setenv("SOFTXENT_BACKEND", "numpy")
    sx.cross_entropy(logits, [0, 1, 2, 0])
    assert plans.pop().why["numpy"] == "SOFTXENT_BACKEND"
    if sx.available_backends()["cython"] != "available":
        pytest.skip("one backend alone leaves nothing to choose")
    with sx.set_backend("cython"):
        sx.cross_entropy(logits, [0, 1, 2, 0])
        assert plans.pop().backend == "cython"
        sx.cross_entropy(logits, [0, 1, 2, 0], backend="numpy")
        assert plans.pop().backend == "numpy"
    sx.cross_entropy(logits, [0, 1, 2, 0])
    assert plans.pop().backend == "numpy"


def test_small_work_stays_on_one_thread_and_large_work_is_shared():
    assert sx.explain((32, 10)).n_threads == 1
    assert sx.explain((1, 10**4)).n_threads == 1
    one_row = sx.explain((1, 10**7))
    assert one_row.cut == (one_row.n_threads > 1)
    assert not sx.explain((1, 10**7), backend="numpy").cut
    large = sx.explain((10**6, 100))
    assert large.n_threads in (1, sx.get_num_threads())
    assert large.grain * large.n_threads <= 10**6
    assert sx.explain((10**6, 100), n_threads=1).n_threads == 1


def test_few_long_rows_are_shared():
    """Pieces rounded up to groups of rows held 32 x 1,000,000 as one, for one thread."""
    for shape in ((32, 10**6), (64, 50_257), (10, 10**5)):
        plan = sx.explain(shape)
        assert plan.n_threads in (1, sx.get_num_threads())
        assert plan.grain <= -(-shape[0] // plan.n_threads)
        assert plan.grain < shape[0] or plan.n_threads == 1


def test_doubles_of_which_little_is_kept_are_not_streamed():
    header = Path(__file__).parents[1] / "src/softxent/backends/cython/call.h"
    kept = int(re.search(r"#define SX_KEPT (\d+)", header.read_text(encoding="utf-8"))[1])
    assert kept == _plan.KEPT_ROW
    longest = 2 * kept // 8
    assert sx.explain((10**4, longest), "float64", grad_out=True).streams
    assert not sx.explain((10**4, longest + 1), "float64", grad_out=True).streams
    assert sx.explain((10**3, 10**6), grad_out=True).streams


def test_a_cache_that_a_host_has_for_many_is_not_ours(monkeypatch, tmp_path):
    """Two processors were told of 480 MB: nothing went past the caches, 1.3 times as long."""
    (tmp_path / "index3").mkdir()
    (tmp_path / "index3" / "size").write_text("491520K\n")
    monkeypatch.setattr(_machine, "_CACHES", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert _machine.last_level_cache.__wrapped__() == 64 << 20
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    assert _machine.last_level_cache.__wrapped__() == 480 << 20


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dtype": "int32"}, "dtype"),
        ({"order": "A"}, "order"),
        ({"loss": "hinge"}, "loss"),
        ({"targets": "votes"}, "targets"),
        ({"shape": ()}, "shape"),
        ({"shape": (3, 0)}, "shape"),
        ({"backend": "fortran"}, "backend"),
    ],
)
def test_explain_refuses_what_names_nothing(arguments, named):
    with pytest.raises(ValueError, match=named):
        sx.explain(**{"shape": (3, 3), **arguments})


def test_dtype_may_be_numpys_own():
    assert sx.explain((3, 3), np.float64) == sx.explain((3, 3), "float64")
    assert sx.explain((3, 3), np.dtype("float32")) == sx.explain((3, 3))


def test_a_plain_mapping_in_the_place_of_os_environ(monkeypatch):
    """The small call's look at the environment went behind os.environ, where such have nothing."""
    monkeypatch.setattr(os, "environ", {"SOFTXENT_BACKEND": "numpy"})
    assert sx.explain((4, 3)).backend == "numpy"
    assert sx.cross_entropy([[0.0, 0.0]], [0]) == pytest.approx(np.log(2))
    monkeypatch.setattr(os, "environ", {})
    assert sx.explain((4, 3)).why


def test_few_class_major_rows_are_shared(monkeypatch):
    """A line of memory has 16 rows of float32: two threads may have one each of 32."""
    monkeypatch.setattr(_threads, "effective_threads", lambda requested: 2)  # on any machine
    plan = sx.explain((32, 1_000_000), order="F", n_threads=2)
    assert (plan.n_threads, plan.grain) == (2, 16)
