"""The suite for asv: every benchmark runs on this commit, here, in asv and in a user's project."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softxent as sx
from softxent.cli.peers import PEERS
from softxent.losses import LOSSES

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
KINDS = re.compile(r"(time|timeraw|track|peakmem)_")
#: What series are called: a dashboard's links, and years of results, depend on it.
SERIES = {
    "accuracy.Accuracy": {"track_worst_ulp_loss", "track_worst_ulp_grad"},
    "call.Call": {"time_call"},
    "limit.Limit": {"track_time_over_limit"},
    "loss.Loss": {"time_loss"},
    "loss.LossGrad": {"time_loss_grad", "time_in_place", "time_fresh"},
    "losses.Losses": {"time_with_grad"},
    "memory.Memory": {"peakmem_loss_grad"},
    "peers.Ratio": {"track_ratio"},
    "pieces.Pieces": {"time_logsumexp", "time_softmax", "time_log_softmax"},
    "startup.Startup": {"timeraw_import", "timeraw_first_call_cold", "timeraw_first_call_warm"},
    "trainer.Trainer": {"time_fit", "track_final_loss"},
}


@pytest.fixture(scope="module")
def suite():
    """Import a module of the suite as asv does: as one of the package in benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.delenv("ASV_ENV_DIR", raising=False)
        yield lambda name: importlib.import_module(f"benchmarks.{name}")
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]


def benchmark_of(suite, series):
    module, _, name = series.partition(".")
    return getattr(suite(module), name)


def methods(benchmark):
    return {name for name, _ in inspect.getmembers(benchmark, inspect.isfunction)
            if KINDS.match(name)}


def cells(benchmark, method):
    params = getattr(getattr(benchmark, method), "params", getattr(benchmark, "params", ()))
    return itertools.product(*params)


@pytest.mark.parametrize("series", SERIES)
def test_names_and_versions_are_kept(suite, series):
    benchmark = benchmark_of(suite, series)
    assert methods(benchmark) == SERIES[series]
    assert re.fullmatch(r"\d+", benchmark.version)  # or a comment that is edited ends a series
    for method in SERIES[series]:
        for cell in cells(benchmark, method):
            assert all(isinstance(value, str | int) for value in cell)  # found again by their repr


def test_there_are_no_other_series(suite):
    found = set()
    folders = (BENCHMARKS / "benchmarks", ROOT / "src/softxent/asv")
    for name in (path.stem for folder in folders for path in folder.glob("[a-z]*.py")):
        module = suite(name)
        found |= {f"{name}.{key}" for key, value in vars(module).items()
                  if inspect.isclass(value) and not key.startswith("_") and methods(value)}
    assert found == set(SERIES)


def test_what_is_importable_is_the_suite(suite):
    import softxent.asv

    shared = {series.partition(".")[2] for series in SERIES} - {"Accuracy"}
    assert set(softxent.asv.__all__) == shared
    for series in SERIES:
        name = series.partition(".")[2]
        if name in shared:
            ours = inspect.getsource(getattr(softxent.asv, name))
            assert ours == inspect.getsource(benchmark_of(suite, series)), "installed: another one"


def test_parameters_are_the_project_s_tables(suite):
    shapes = suite("shapes")
    assert set(shapes.QUICK) <= set(shapes.TARGETS)
    assert tuple(PEERS) == suite("peers").PEERS
    assert set(suite("accuracy").LOSSES) == set(LOSSES)
    assert set(suite("losses").LOSSES) == {*LOSSES, "cross_entropy_grad_hess"}
    assert set(suite("_cells").BACKENDS) == set(sx.available_backends())


def test_the_quick_subset_has_cells_of_every_series(suite):
    regex = re.compile(importlib.import_module("quick").regex())
    total = quick = 0
    for series, names in SERIES.items():
        benchmark = benchmark_of(suite, series)
        for method in names:
            found = [", ".join(map(repr, cell)) for cell in cells(benchmark, method)]
            selected = [cell for cell in found
                        if regex.search(f"{series}.{method}({cell})" if cell
                                        else f"{series}.{method}")]
            assert selected, method
            total, quick = total + len(found), quick + len(selected)
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert f"is {quick} of the suite's {total} cells" in text
    assert all(f"`{series}.{min(names)[:4]}" in text for series, names in SERIES.items())


# ---- every benchmark runs ------------------------------------------------------------------------


def first_backend():
    return next(name for name, state in sx.available_backends().items() if state == "available")


def run(benchmark, method, *cell, cache=()):
    """Set a cell up as asv does, again as before each sample; return its value."""
    made = benchmark()
    if hasattr(made, "setup"):
        made.setup(*cache, *cell)
        made.setup(*cache, *cell)
    return getattr(made, method)(*cache, *cell)


@pytest.mark.parametrize("method", ["time_loss_grad", "time_in_place", "time_fresh", "time_loss"])
def test_losses_by_shape(suite, method):
    benchmark = suite("loss").Loss if method == "time_loss" else suite("loss").LossGrad
    for backend, state in sx.available_backends().items():
        if state == "available":
            run(benchmark, method, backend, "32x10", 1)


@pytest.mark.parametrize("shape", ["65536x10:f64:F", "1024x32000:bf16"])
def test_shapes_with_dtype_and_order(suite, shape):
    if "bf16" in shape:
        pytest.importorskip("ml_dtypes", reason="bfloat16 is its")
    run(suite("loss").LossGrad, "time_loss_grad", first_backend(), shape, 1)


def test_in_place_is_in_place(suite):
    """And leaves what the other benchmarks read alone."""
    benchmark = suite("loss").LossGrad()
    cell = (first_backend(), "32x10", 1)
    benchmark.setup(*cell)
    before = benchmark.z.copy()
    benchmark.time_in_place(*cell)
    assert (benchmark.z == before).all()
    assert (benchmark.scratch != before).any()


@pytest.mark.parametrize("method", sorted(SERIES["pieces.Pieces"]))
def test_pieces(suite, method):
    run(suite("pieces").Pieces, method, first_backend(), "32x10", 1)


@pytest.mark.parametrize("loss", [*LOSSES, "cross_entropy_grad_hess"])
def test_every_loss(suite, loss):
    run(suite("losses").Losses, "time_with_grad", loss, first_backend(), "65536x10")


def test_calls(suite):
    for name in suite("call").FUNCTIONS:
        run(suite("call").Call, "time_call", name)


@pytest.mark.parametrize("loss", LOSSES)
def test_errors_are_within_the_contract(suite, loss):
    """The same rows, truth and units as test_accuracy.py and test_options.py."""
    accuracy_table = importlib.import_module("accuracy_table")
    names = accuracy_table.quantities(loss, {"kl_divergence": "probabilities",
                                             "distillation_loss": "logits"}.get(loss, "classes"),
                                      {})
    for method, quantity, factor in (("track_worst_ulp_loss", names.loss, 3),
                                     ("track_worst_ulp_grad", names.gradient, 1)):
        found = run(suite("accuracy").Accuracy, method, loss, first_backend())
        # Focal loss has 1 + gamma units, and gamma is 2.
        limit = accuracy_table.bound(quantity, "float32") * (
            factor if loss == "focal_loss" else 1)
        assert 0 < found <= limit


def test_ratio(suite):
    assert run(suite("peers").Ratio, "track_ratio", "32x10", "numpy") > 0
    with pytest.raises(NotImplementedError, match="bfloat16"):
        run(suite("peers").Ratio, "track_ratio", "1024x32000:bf16", "numpy")


def test_limit(suite):
    if sx.available_backends()["cython"] != "available":
        pytest.skip("the loops are the extension's")
    assert run(suite("limit").Limit, "track_time_over_limit", "8192x1000", "in place") > 0


def test_memory(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as asv does
    files = suite("memory").Memory().setup_cache()
    run(suite("memory").Memory, "peakmem_loss_grad", first_backend(), cache=(files,))


def test_startup(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    backend = first_backend()
    for method in sorted(SERIES["startup.Startup"]):
        if method.endswith("cold") and backend != "cython":
            continue  # minutes of a compiler
        code, setup = run(suite("startup").Startup, method,
                          *([] if method == "timeraw_import" else [backend]))
        # Without coverage of what asv does with it: a function in a fresh interpreter.
        script = f"import timeit; print(timeit.timeit({code!r}, {setup!r}, number=1))"
        done = subprocess.run([sys.executable, "-W", "ignore::ResourceWarning", "-c", script],
                              capture_output=True, text=True, check=True)
        assert float(done.stdout) > 0
        assert not done.stderr
    assert not list(tmp_path.iterdir())


def test_trainer(suite):
    pytest.importorskip("sklearn", reason="the estimator is built on it")
    run(suite("trainer").Trainer, "time_fit", "1797x64x10")
    loss = run(suite("trainer").Trainer, "track_final_loss", "1797x64x10")
    assert 0 < loss < 0.2


def test_what_a_commit_lacks_is_skipped(suite, monkeypatch):
    cases = suite("_cells")
    with pytest.raises(NotImplementedError, match="not known"):
        cases.require("fortran")
    with pytest.raises(NotImplementedError, match="1000 threads"):
        cases.require(first_backend(), 1000)
    with pytest.raises(NotImplementedError, match="nonsense"):
        cases.function("nonsense")
    monkeypatch.delattr(sx, "cross_entropy_with_grad")
    with pytest.raises(NotImplementedError, match="cross_entropy_with_grad"):
        run(suite("loss").LossGrad, "time_fresh", first_backend(), "32x10", 1)
    for method in ("time_fit", "track_final_loss"):
        monkeypatch.setitem(sys.modules, "softxent.sklearn", None)
        with pytest.raises(NotImplementedError, match="SoftmaxRegression"):
            run(suite("trainer").Trainer, method, "20000x50x10")


# ---- in asv --------------------------------------------------------------------------------------


@pytest.fixture
def asv(tmp_path, monkeypatch):
    """Run a command of asv with a configuration of its own; all it writes goes into `tmp_path`."""
    pytest.importorskip("asv", reason="what runs the suite")

    def command(benchmark_dir, *arguments, repo=".", launch_method="spawn"):
        configuration = tmp_path / "asv.conf.json"
        configuration.write_text(json.dumps({
            "version": 1, "project": "softxent", "repo": str(repo), "branches": ["HEAD"],
            "environment_type": "existing", "benchmark_dir": str(benchmark_dir),
            "results_dir": str(tmp_path / "results"), "env_dir": str(tmp_path / "env"),
            "html_dir": str(tmp_path / "html"), "launch_method": launch_method}))
        # asv drops PYTHONPATH, and keeps what it knows of machines at home.
        environment = {**os.environ, "HOME": str(tmp_path),
                       "ASV_PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        cache = os.environ.get("SOFTXENT_CACHE_DIR") or Path.home() / ".cache" / "softxent"
        environment["SOFTXENT_CACHE_DIR"] = str(cache)
        done = subprocess.run(
            [sys.executable, "-m", "asv", *arguments, "--config", str(configuration)],
            capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command(tmp_path, "machine", "--yes")
    return command


def test_asv_runs_the_suite(asv, tmp_path):
    """Discovery, each benchmark's signature, and some cells, of which the results are stored."""
    if not (ROOT / ".git").exists():
        pytest.skip("a result belongs to a commit, and this is no clone")
    asv(BENCHMARKS / "benchmarks", "check", "-E", f"existing:{sys.executable}", repo=ROOT)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True,
                            check=True, cwd=ROOT).stdout.strip()
    backend = first_backend()
    asv(BENCHMARKS / "benchmarks", "run", "-E", f"existing:{sys.executable}", "--set-commit-hash",
        commit, "-a", "rounds=1", "-a", "repeat=2", "-a", "warmup_time=0", "--bench",
        rf"call.*'softmax'|loss_grad\('{backend}', '32x10', 1\)|ulp_loss.*focal.*'{backend}'",
        repo=ROOT)
    stored, = (tmp_path / "results").glob("*/*-*.json")
    results = json.loads(stored.read_text())
    assert results["commit_hash"] == commit
    values = {name: [value for value in result[0] if value == value and value is not None]
              for name, result in results["results"].items()}
    assert set(values) == {"call.Call.time_call", "loss.LossGrad.time_loss_grad",
                           "accuracy.Accuracy.track_worst_ulp_loss"}
    assert all(found and min(found) > 0 for found in values.values())


def blocks():
    """The Python of docs/benchmarks.md, by the comment before it."""
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```", text, flags=re.S))


def test_a_user_s_own_suite(asv, tmp_path):
    """The docs' lines, as files of another project's suite; each is three lines or less.

    Forked from a process that has imported them all, as asv does where it is not told otherwise.
    """
    pytest.importorskip("sklearn", reason="the trainer of the example is its")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    found = blocks()
    assert set(found) == {"suite", "params", "trainer"}
    for name, code in found.items():
        assert len(code.splitlines()) <= 3
        (folder / f"bench_{name}.py").write_text(code)
    backend = first_backend()
    said = asv(folder, "run", "-E", f"existing:{sys.executable}", "--quick", "--dry-run",
               "--show-stderr", "--bench",
               r"bench_suite.Call.*'softmax'"
               rf"|bench_suite.LossGrad.time_fresh\('{backend}', '32x10', 1\)"
               rf"|bench_params.Mine.time_loss_grad\('{backend}', '4096x50'"
               r"|bench_trainer.MyTrainer.*1797", launch_method="forkserver")
    for name in ("bench_suite.Call.time_call", "bench_suite.LossGrad.time_fresh",
                 "bench_params.Mine.time_loss_grad", "bench_trainer.MyTrainer.time_fit",
                 "bench_trainer.MyTrainer.track_final_loss"):
        assert re.search(rf"{re.escape(name)} +(ok|[\d.]+)", said), said
    assert "failed" not in said
    assert "skipped" not in said
