"""`benchmarks/dashboard.py`: what it says is what the result files say, and it needs no network.

On results that are made here, in asv's own format by asv's own class, of a repository made here.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

for name in ("asv", "jinja2", "matplotlib"):
    pytest.importorskip(name, reason="the extra `benchmark`, which the dashboard needs")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHAPES = ["65536x10", "1024x32000", "256x1000:f64:F"]
BACKENDS = ["cython", "numba"]
STRANGE = """</td><script>document.title = "taken"</script>'"&+% µ"""
#: Name: (unit, parameters).
SUITE = {
    "peers.Ratio.track_ratio": ("ours/peer", {"shape": SHAPES[:2], "peer": ["NumPy", "PyTorch"]}),
    "loss.LossGrad.time_loss_grad": (
        "seconds", {"backend": BACKENDS, "shape": SHAPES, "n_threads": [1, 2]}),
    "loss.LossGrad.time_in_place": (
        "seconds", {"backend": BACKENDS, "shape": SHAPES, "n_threads": [1, 2]}),
    "limit.Limit.track_time_over_limit": (
        "unit", {"shape": SHAPES[:2], "case": ["in place", "loss"]}),
    "call.Call.time_call": ("seconds", {"case": ["32x10", STRANGE]}),
    "startup.Startup.timeraw_import": ("seconds", {}),
    "accuracy.Accuracy.track_worst_ulp_loss": (
        "ulp", {"loss": ["cross_entropy", "focal"], "backend": BACKENDS}),
    "accuracy.Accuracy.track_worst_ulp_grad": (
        "ulp", {"loss": ["cross_entropy", "focal"], "backend": BACKENDS}),
    "memory.Memory.peakmem_loss_grad": ("bytes", {"shape": SHAPES[:1]}),
    "other.Thing.time_thing": ("seconds", {}),
}
MACHINES = ("amd-epyc-v4", "intel-xeon-v3")
COMMITS = 6


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def dashboard(_path):
    import dashboard

    return dashboard


@pytest.fixture(scope="module")
def overview(_path):
    import overview

    return overview


# ---- results, made -------------------------------------------------------------------------------


class Project:
    """A repository with results, in a folder."""

    def __init__(self, folder: Path, commits: int = COMMITS, suite: dict = SUITE):
        self.folder, self.suite = folder, suite
        self.results = folder / "results"
        self.git("init", "-q", "-b", "main")
        for setting in ("user.name=t", "user.email=t@t", "commit.gpgsign=false"):
            self.git("config", *setting.split("="))
        self.commits = []
        for number in range(commits):
            date = f"2024-03-{number + 1:02} 12:00:00 +0000"
            self.git("commit", "-q", "--allow-empty", "-m", f"Kernel <b>{number}</b>",
                     GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
            self.commits.append(self.git("rev-parse", "HEAD"))
        self.config = folder / "asv.conf.json"
        self.config.write_text(json.dumps({
            "version": 1, "project": "softxent & <co>", "repo": ".", "branches": ["main"],
            "results_dir": "results", "html_dir": ".asv/html", "env_dir": ".asv/env",
            "show_commit_url": "https://example.org/commit/",
        }), encoding="utf-8")
        self.benchmarks = {name: {
            "name": name, "unit": unit, "version": "1", "params": [
                [repr(value) for value in values] for values in parameters.values()],
            "param_names": list(parameters), "type": "track" if "track" in name else "time",
            "code": "", "timeout": 60,
        } for name, (unit, parameters) in suite.items()}
        from asv import util

        self.results.mkdir()
        util.write_json(str(self.results / "benchmarks.json"), self.benchmarks, 2)

    def git(self, *arguments: str, **environment: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.folder, check=True, capture_output=True, text=True,
            env={**os.environ, **environment}).stdout.strip()

    def machine(self, name: str, **fields: str) -> None:
        from asv import util

        (self.results / name).mkdir()
        util.write_json(str(self.results / name / "machine.json"), {
            "machine": name, "cpu": f"{name} CPU", "num_cpu": "2", "os": "Linux", "arch": "x86_64",
            "ram": "24", **fields}, 1)

    def measure(self, commit: int, machine: str, values, names=None) -> Path:
        """Write a results file; `values(name, parameters)` is the figure of each."""
        from asv.results import Results
        from asv.runner import BenchmarkResult

        found = Results(
            {"machine": machine, "python": "3.11", "numpy": "2.4.6", "cpu": f"{machine} CPU",
             "num_cpu": "2", "os": "Linux", "arch": "x86_64", "ram": "24"},
            {"numpy": "2.4.6"}, self.commits[commit],
            1_709_294_400_000 + 86_400_000 * commit, "3.11", "virtualenv-py3.11-numpy2.4.6", {})
        for name in names or self.benchmarks:
            benchmark = self.benchmarks[name]
            figures = [values(name, dict(zip(benchmark["param_names"], combination, strict=True)))
                       for combination in itertools.product(*self.suite[name][1].values())]
            none = [None] * len(figures)
            found.add_result(
                benchmark, BenchmarkResult(figures, none, none, 0, "", None),
                started_at=datetime.datetime(2024, 4, 1, tzinfo=datetime.UTC), duration=1.0)
        found.save(str(self.results))
        return self.results / found._filename


def steady(scale: float):
    """Figures that are told apart by name and parameters."""
    def values(name, parameters):
        base = 1 + sum(map(ord, name + "".join(map(str, parameters.values())))) % 97
        if "Ratio" in name or "limit" in name:
            return scale * base / 60
        if "ulp" in name:
            return scale * base / 50
        return scale * base * (1e6 if "mem" in name else 1.37e-5)
    return values


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two machines: one with all commits but the fourth, and a step upward in its last two."""
    made = Project(tmp_path_factory.mktemp("project"))
    for name in MACHINES:
        made.machine(name)
    for commit in (0, 1, 2, 4, 5):
        def values(name, parameters, factor=1.0 + 0.01 * commit + 0.5 * (commit >= 4)):
            if name == "peers.Ratio.track_ratio" and parameters["peer"] == "PyTorch":
                return math.nan                            # skipped
            if parameters.get("backend") == "numba" and parameters.get("n_threads") == 2 and (
                    parameters["shape"] == SHAPES[0]):
                return None                                # failed
            return steady(factor)(name, parameters)
        made.measure(commit, MACHINES[0], values)
    made.measure(3, MACHINES[1], steady(2.0), ["loss.LossGrad.time_loss_grad"])
    return made


def copy_of(project, folder, **config):
    """The project's results and repository in another folder, to be spoilt."""
    shutil.copytree(project.folder, folder, dirs_exist_ok=True)
    file = folder / "asv.conf.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **config}),
                    encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def site(project, dashboard):
    built = project.folder / "site"
    assert dashboard.main(["--config", str(project.config), "--out", str(built)]) == 0
    return built


def figures_of(file: Path) -> dict:
    """What a results file says, without asv: a figure by name and parameters' reprs."""
    found = {}
    content = json.loads(file.read_text(encoding="utf-8"))
    for name, columns in content["results"].items():
        row = dict(zip(content["result_columns"], columns, strict=False))
        combinations = list(itertools.product(*row["params"]))
        for combination, figure in zip(combinations, row["result"] or [None] * len(combinations),
                                       strict=True):
            found[name, combination] = None if figure is None or math.isnan(figure) else figure
    return found


@pytest.fixture(scope="module")
def newest(project):
    """The figures of the newest commit, of its file."""
    name = f"{project.commits[-1][:8]}-*.json"
    return figures_of(next((project.results / MACHINES[0]).glob(name)))


@pytest.fixture(scope="module")
def data(site):
    return json.loads((site / "overview.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(site):
    return (site / "index.html").read_text(encoding="utf-8")


def table_named(data, title, section=0):
    return next(table for table in data["sections"][section]["tables"] if table["title"] == title)


def cells_of(table):
    return {(row["title"], column): found for row in table["main"] + table["others"]
            for column, found in row["cells"].items()}


# ---- the overview --------------------------------------------------------------------------------


def test_figures_are_the_result_files(data, newest, project):
    section = data["sections"][0]
    files = [figures_of(project.results / commit["file"]) for commit in section["commits"]]
    assert files[-1] == newest
    seen = 0
    for table in section["tables"]:
        assert table["commit"] == len(files) - 1
        for (title, _), found in cells_of(table).items():
            key = found["benchmark"], tuple(found["parameters"].values())
            assert found["value"] == newest[key]
            if not title.startswith("worst of all"):
                assert found["history"] == [figures[key] for figures in files]
            seen += 1
    assert seen > 30


def test_worst_of_all_is_the_largest(data, newest):
    cells = cells_of(table_named(data, "Worst error"))
    for backend in BACKENDS:
        for what in ("loss", "grad"):
            name = f"accuracy.Accuracy.track_worst_ulp_{what}"
            figures = [figure for (benchmark, parameters), figure in newest.items()
                       if benchmark == name and repr(backend) in parameters]
            found = cells[f"worst of all: {what}", backend]
            assert found["value"] == max(figures)
            assert found["history"][-1] == found["value"]


def test_worst_of_all_compares_like_with_like(overview):
    """A loss that is new is no change for the worse, and a missing one none for the better."""
    def row(loss, history):
        return {"title": loss, "shape": None, "cells": {"numba": {
            "benchmark": "a.b_loss", "value": history[-1], "history": history, "before": None}}}

    def found(*rows):
        (row,) = overview.worst(list(rows), ["numba"], 2)
        return row["cells"]["numba"]

    new = found(row("old", [1.0, 2.0, 1.5]), row("new", [None, None, 3.0]))
    assert (new["value"], new["before"], new["history"]) == (3.0, None, [None, None, 3.0])
    gap = found(row("one", [1.0, 2.0, 1.5]), row("two", [3.0, None, 1.0]))
    assert (gap["value"], gap["before"], gap["history"]) == (1.5, 3.0, [3.0, None, 1.5])
    gone = found(row("one", [1.0, 2.0, 1.5]), row("two", [3.0, 3.0, None]))
    assert (gone["value"], gone["before"]) == (1.5, 2.0)
    none = found(row("one", [1.0, 2.0, None]))
    assert (none["value"], none["before"], none["history"]) == (None, None, [None] * 3)


def test_what_has_no_figure_is_no_number(data, page):
    ratio = cells_of(table_named(data, "Beside other libraries"))
    assert ratio["65536x10", "PyTorch"]["status"] == "skipped"
    assert ratio["65536x10", "PyTorch"]["value"] is None
    table = table_named(data, "Loss and gradient")
    failed = cells_of(table)["65536x10", "numba"]
    # Two threads have failed, and two are what the table is of: one thread is no stand-in.
    assert failed["parameters"]["n_threads"] == "2"
    assert (failed["status"], failed["value"], failed["sparkline"]) == ("failed", None, None)
    assert set(failed["history"]) == {None}
    assert "loss.LossGrad.time_loss_grad" in data["sections"][0]["failed"]
    # What no commit has is no column; what failed is one, without a number.
    assert "PyTorch" not in table_named(data, "Beside other libraries")["columns"]
    assert "numba" in table["columns"]
    assert re.search(r'value=""[^>]*numba[^>]*>–</data>', page)
    assert re.search(r'value=""[^>]*>–</data>\s*<small class="bad">failed</small>', page)
    assert not re.search(r"\b(NaN|nan|None|null)\b", page)


def test_machines_and_commits(data, project):
    first, second = data["sections"]
    assert [section["machine"]["machine"] for section in data["sections"]] == list(MACHINES)
    assert [commit["hash"] for commit in first["commits"]] == [
        project.commits[number] for number in (0, 1, 2, 4, 5)]
    assert first["commits"][0]["subject"] == "Kernel <b>0</b>"
    assert first["commits"][0]["date"] == "2024-03-01"
    assert first["versions"] == {"python": "3.11", "numpy": "2.4.6"}
    assert [table["title"] for table in second["tables"]] == ["Loss and gradient"]
    assert "In place" in second["left_out"]
    values = {found["value"] for found in cells_of(second["tables"][0]).values()}
    assert values.isdisjoint(found["value"] for found in cells_of(
        table_named(data, "Loss and gradient")).values())


def test_shapes_beside_those_of_the_peers_come_after(data):
    table = table_named(data, "Loss and gradient")
    assert [row["title"] for row in table["main"]] == SHAPES[:2]
    assert [row["title"] for row in table["others"]] == SHAPES[2:]
    # Where no peer was measured at any of its shapes, all are main ones.
    assert [row["title"] for row in table_named(data, "Peak memory")["main"]] == SHAPES[:1]


def test_regressions_are_those_of_asv(data, site, project):
    published = json.loads((site / "asv" / "regressions.json").read_text(encoding="utf-8"))
    assert len(data["regressions"]) == len(published["regressions"]) > 15
    found = next(found for found in data["regressions"]
                 if found["benchmark"] == "startup.Startup.timeraw_import")
    # The fourth commit was not measured: the step is in it or in the fifth.
    assert found["commits"] == [project.commits[2], project.commits[4]]
    assert found["after"] / found["before"] == pytest.approx(1.5, abs=0.05)
    assert found["where"] == {"machine": MACHINES[0]}


def test_page_escapes_what_results_say(page):
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;/td&gt;&lt;script&gt;" in page
    assert "softxent &amp; &lt;co&gt;" in page
    assert "onerror" not in page


def test_every_sparkline_has_words(page, site):
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == len(list((site / "sparklines").iterdir())) > 10
    for image in images:
        file = re.search(r'src="(sparklines/\d+\.svg)"', image)[1]
        assert (site / file).read_text(encoding="utf-8").startswith("<?xml")
        assert re.search(r'alt="[^"]+: from \d[^"]* to \d[^"]*; commits that have it: [15]"', image)


def test_only_unknown_benchmarks(tmp_path, dashboard):
    made = Project(tmp_path, 1, {"other.Thing.time_thing": SUITE["other.Thing.time_thing"]})
    made.machine(MACHINES[0])
    made.measure(0, MACHINES[0], steady(1.0))
    assert dashboard.main(["--config", str(made.config)]) == 0
    text = (tmp_path / ".asv" / "html" / "index.html").read_text(encoding="utf-8")
    assert "Left out, for there are no results of it: Beside other libraries" in text
    assert "asv sees none." in text


def test_results_that_are_not_shown_are_named(tmp_path, dashboard, project):
    config = copy_of(project, tmp_path)
    folder = tmp_path / "results" / MACHINES[0]
    (folder / "0123abcd-damaged.json").write_text("{", encoding="utf-8")
    # A commit of another branch, with a figure that must not become the newest.
    for command in (["checkout", "-q", "-b", "side"],
                    ["commit", "-q", "--allow-empty", "-m", "aside"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    side = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True,
                          capture_output=True, text=True).stdout.strip()
    source = next(folder.glob(f"{project.commits[-1][:8]}-*.json"))
    (folder / source.name.replace(project.commits[-1][:8], side[:8])).write_text(
        source.read_text(encoding="utf-8").replace(project.commits[-1], side), encoding="utf-8")
    assert dashboard.main(["--config", str(config), "--out", str(tmp_path / "built")]) == 0
    built = json.loads((tmp_path / "built" / "overview.json").read_text(encoding="utf-8"))
    assert built["sections"][0]["commits"][-1]["hash"] == project.commits[-1]
    damaged, aside = built["unread"]
    assert damaged.startswith(f"{MACHINES[0]}/0123abcd-damaged.json: ")
    assert aside.endswith("its commit is not on the dashboard's branches")


def test_figures_of_an_older_version_of_a_benchmark_are_not_compared(tmp_path, dashboard, project):
    config = copy_of(project, tmp_path)
    file = tmp_path / "results" / "benchmarks.json"
    benchmarks = json.loads(file.read_text(encoding="utf-8"))
    benchmarks["call.Call.time_call"]["version"] = "2"
    file.write_text(json.dumps(benchmarks), encoding="utf-8")
    assert dashboard.main(["--config", str(config), "--out", str(tmp_path / "built")]) == 0
    built = json.loads((tmp_path / "built" / "overview.json").read_text(encoding="utf-8"))
    assert "A small call" in built["sections"][0]["left_out"]


def test_figures_of_other_parameters_are_not_compared(tmp_path, dashboard, project):
    config = copy_of(project, tmp_path)
    file = tmp_path / "results" / "benchmarks.json"
    benchmarks = json.loads(file.read_text(encoding="utf-8"))
    benchmarks["memory.Memory.peakmem_loss_grad"]["params"] = [["'1x2'"]]
    file.write_text(json.dumps(benchmarks), encoding="utf-8")
    assert dashboard.main(["--config", str(config), "--out", str(tmp_path / "built")]) == 0
    built = json.loads((tmp_path / "built" / "overview.json").read_text(encoding="utf-8"))
    assert "Peak memory" in built["sections"][0]["left_out"]


@pytest.mark.parametrize(("value", "unit", "text"), [
    (1.234e-9, "seconds", "1.23 ns"), (5.5e-5, "seconds", "55.0 µs"), (0.25, "seconds", "250 ms"),
    (12.0, "seconds", "12.0 s"), (4321.0, "seconds", "4,321 s"), (0.0, "seconds", "0 ns"),
    (123456789, "bytes", "123 MB"), (12, "bytes", "12.0 B"), (1.5, "ulp", "1.50 ulp"),
    (0.0, "ulp", "0 ulp"), (0.3333, "unit", "0.333"), (2e-7, "", "2.00e-07"),
    (-2.5, "", "-2.50"), (None, "seconds", "–"),
])
def test_quantity(overview, value, unit, text):
    assert overview.quantity(value, unit) == text


@pytest.mark.parametrize(("value", "style", "written"), [
    (0.25, "faster", ("4.00 × faster", "0.250")), (1.25, "faster", ("1.25 × slower", "1.25")),
    (1.0, "faster", ("1.00 × faster", "1.00")), (0.0, "faster", ("0", "")),
    (None, "faster", ("–", "")), (1.6, "share", ("62 %", "1.60")), (None, "share", ("–", "")),
    (2.0, "plain", ("2.00", "")),
])
def test_figure(overview, value, style, written):
    assert overview.figure({"value": value, "unit": ""}, style) == written


@pytest.mark.parametrize(("value", "before", "text"), [
    (1.1, 1.0, "+10 %"), (0.5, 1.0, "−50 %"), (1.001, 1.0, "±0 %"), (1.0, None, ""),
    (None, 1.0, ""), (1.0, 0.0, ""),
])
def test_change(overview, value, before, text):
    assert overview.change(value, before) == text


def test_links_to_commits_are_of_the_web(data, overview):
    link = '<a href="https://example.org/commit/'
    assert link in overview.render(data)
    spoilt = overview.render({**data, "commit_url": "javascript:alert(1)//"})
    assert "javascript:" not in spoilt
    assert link not in spoilt


def test_the_projects_own_results(tmp_path, dashboard, overview):
    config = BENCHMARKS / "asv.conf.json"
    if not (BENCHMARKS.parent / ".git").exists():
        pytest.skip("results are of commits, and this is no clone")
    if subprocess.run(["git", "rev-parse", "-q", "--verify", "main"], cwd=BENCHMARKS, check=False,
                      capture_output=True).returncode:
        pytest.skip("asv wants the branch main of a repository")
    target = tmp_path / "built"
    assert dashboard.main(["--config", str(config), "--out", str(target)]) == 0
    built = json.loads((target / "overview.json").read_text(encoding="utf-8"))
    assert built["unread"] == []
    assert table_named(built, "Beside other libraries")
    # A name that the suite does not have would be left out without a word to us.
    suite = json.loads((BENCHMARKS / "results" / "benchmarks.json").read_text(encoding="utf-8"))
    assert {name for table in overview.TABLES for name in table.benchmarks} <= set(suite)


# ---- no network ----------------------------------------------------------------------------------


def test_copies_are_what_their_manifest_says(dashboard):
    files = dashboard.manifest()
    for file in files:
        content = (dashboard.VENDOR / file.file).read_bytes()
        assert dashboard.matches(content, file.integrity), file.file
        assert not dashboard.matches(content + b" ", file.integrity)
        assert "permission notice shall be" in " ".join(
            (dashboard.VENDOR / file.license_file).read_text(encoding="utf-8").split())
    known = {file.file for file in files} | {"manifest.json", "refresh.py", ".gitattributes"}
    assert {path.name for path in dashboard.VENDOR.iterdir() if path.is_file()} == known


def test_site_loads_nothing_from_elsewhere(site, dashboard):
    assert list(dashboard.outside_loads(site)) == []
    text = (site / "asv" / "index.html").read_text(encoding="utf-8")
    assert "integrity" not in text
    links = re.findall(r'(?:src|href)="(vendor/[^"]+)"', text)
    assert len(links) == len(dashboard.manifest())
    for link in links:
        assert (site / "asv" / link).is_file()
    assert len(list((site / "asv" / "vendor" / "licenses").iterdir())) == 6
    assert text.count("Content-Security-Policy") == 1


@pytest.mark.parametrize(("name", "content", "found"), [
    ("a.html", '<script src="https://example.org/a.js"></script>', "https://example.org/a.js"),
    ("a.html", "<SCRIPT SRC=//example.org/a.js></SCRIPT>", "//example.org/a.js"),
    ("a.html", '<link rel="stylesheet" href="http://example.org/a.css">',
     "http://example.org/a.css"),
    ("a.html", '<img srcset="a.png 1x, https://example.org/a.png 2x">',
     "https://example.org/a.png"),
    ("a.html", '<p style="background: url(https://example.org/a.png)">',
     "https://example.org/a.png"),
    ("a.html", '<style>@import "https://example.org/a.css";</style>', "https://example.org/a.css"),
    ("a.html", '<meta http-equiv="refresh" content="0; URL=https://example.org/">',
     "https://example.org/"),
    ("a.html", '<iframe src="https://example.org/"></iframe>', "https://example.org/"),
    ("a.html", '<base href="https://example.org/">', "https://example.org/"),
    ("b/a.css", "p { background: url('//example.org/a.png') }", "//example.org/a.png"),
    ("a.svg", '<svg><image xlink:href="https://example.org/a.png"/></svg>',
     "https://example.org/a.png"),
    ("a.html", '<a href="https://example.org/">elsewhere</a><img src="a.png">', None),
    ("a.html", '<img src="data:image/png;base64,AAAA"><link href="a.css">', None),
    ("a.css", "p { background: url(a.png) }", None),
])
def test_what_is_loaded_from_elsewhere_is_found(tmp_path, dashboard, name, content, found):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [link for _, link in dashboard.outside_loads(tmp_path)] == ([found] if found else [])


def asv_pages(folder):
    import asv

    shutil.copytree(Path(asv.__file__).with_name("www"), folder)
    return folder / "index.html"


@pytest.mark.parametrize(("old", "new", "named"), [
    # Another script, one with another hash, one without any.
    ("</head>", '<script src="https://example.org/new.js"></script></head>', "example.org/new.js"),
    ("</head>", '<link href="//example.org/new.css" rel="stylesheet"></head>', "new.css"),
    ('integrity="sha256-Fg', 'integrity="sha256-Gg', "has no copy of it"),
    ("<head>", "<head lang=en>", "0 <head>"),
])
def test_an_asv_with_another_page_is_an_error(tmp_path, dashboard, old, new, named):
    index = asv_pages(tmp_path / "asv")
    text = index.read_text(encoding="utf-8")
    assert old in text
    index.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(dashboard.DashboardError, match=re.escape(named)):
        dashboard.make_offline(tmp_path / "asv")


def test_a_changed_copy_is_an_error(tmp_path, dashboard, monkeypatch):
    asv_pages(tmp_path / "asv")
    shutil.copytree(dashboard.VENDOR, tmp_path / "vendor")
    with (tmp_path / "vendor" / "jquery.flot.js").open("a", encoding="utf-8") as file:
        file.write("fetch('/');")
    monkeypatch.setattr(dashboard, "VENDOR", tmp_path / "vendor")
    with pytest.raises(dashboard.DashboardError, match=r"jquery\.flot\.js is not the file"):
        dashboard.make_offline(tmp_path / "asv")


# ---- the command ---------------------------------------------------------------------------------


def test_a_link_that_is_left_is_an_error(tmp_path, dashboard, project, monkeypatch, capsys):
    monkeypatch.setattr(dashboard.overview, "render",
                        lambda data: '<img src="https://example.org/a.png">')
    target = tmp_path / "built"
    assert dashboard.main(["--config", str(project.config), "--out", str(target)]) == 1
    assert "index.html would still load https://example.org/a.png" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_site_that_was(tmp_path, dashboard, project, capsys):
    config = copy_of(project, tmp_path / "project")
    target = tmp_path / "built"
    assert dashboard.main(["--config", str(config), "--out", str(target)]) == 0
    (tmp_path / "project" / "results" / "benchmarks.json").unlink()
    assert dashboard.main(["--config", str(config), "--out", str(target)]) == 1
    assert "asv publish has failed" in capsys.readouterr().err
    assert (target / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "project"]


def test_a_folder_of_other_things_is_kept(tmp_path, dashboard, project, capsys):
    (tmp_path / "thesis.tex").write_text("", encoding="utf-8")
    assert dashboard.main(["--config", str(project.config), "--out", str(tmp_path)]) == 1
    assert "take an empty or a new folder" in capsys.readouterr().err
    file = tmp_path / "thesis.tex"
    assert dashboard.main(["--config", str(project.config), "--out", str(file)]) == 1
    assert "take an empty or a new folder" in capsys.readouterr().err
    assert file.is_file()


def test_bad_arguments(tmp_path, dashboard, project, site, monkeypatch, capsys):
    assert dashboard.main(["--config", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    monkeypatch.setattr(dashboard, "build", lambda config, target: None)
    arguments = ["--config", str(project.config), "--out", str(site)]
    assert dashboard.main([*arguments, "--serve", "--port", "70000"]) == 1
    assert "cannot serve on port 70000" in capsys.readouterr().err
    assert dashboard.main([*arguments, "--screenshots", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    monkeypatch.setattr(dashboard.shutil, "which", lambda name: None)
    assert dashboard.main([*arguments, "--screenshots", str(tmp_path)]) == 1
    assert "apt-get install chromium" in capsys.readouterr().err


def test_serves_this_machine_alone(site, dashboard):
    with dashboard.server(site, 0) as serving:
        assert serving.server_address[0] == "127.0.0.1"
        with pytest.raises(dashboard.DashboardError, match="cannot serve on port"):
            dashboard.server(site, serving.server_port)


def test_serves_until_ctrl_c(project, tmp_path, heeds_ctrl_c):
    child = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "dashboard.py"), "--config", str(project.config),
         "--out", str(tmp_path / "built"), "--serve", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "built" in child.stdout.readline()
        address = child.stdout.readline().split()[0]
        with urllib.request.urlopen(address + "overview.json", timeout=30) as answer:
            assert json.load(answer)["project"] == "softxent & <co>"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, out.strip(), err) == (0, "", "")


# ---- in a browser --------------------------------------------------------------------------------


class Browser:
    """Chromium, with what it asked for, what failed and what its console says."""

    def __init__(self, driver, address: str):
        self.driver, self.address = driver, address

    def wait_for(self, script: str):
        """Wait until a script returns something, and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.1).until(
            lambda driver: driver.execute_script(f"return {script}"), message=script)

    def requests(self) -> list[str]:
        """Addresses asked for since the last time; all were answered, by the server, and well."""
        asked, answered = {}, {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            parameters = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                asked[parameters["requestId"]] = parameters["request"]["url"]
            elif message["method"] == "Network.responseReceived":
                answered[parameters["requestId"]] = parameters["response"]["status"]
            else:
                assert message["method"] != "Network.loadingFailed", message
        assert {url for url in asked.values() if not url.startswith(self.address)} == set()
        assert {asked[key]: answered.get(key) for key in asked} == dict.fromkeys(
            asked.values(), 200)
        return list(asked.values())

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(site, dashboard, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser")
    chromium, driver = dashboard.chromium(), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium with its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in dashboard.CHROMIUM_FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1300,900")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with dashboard.server(site, 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            with webdriver.Chrome(options, webdriver.ChromeService(driver)) as started:
                # It begins with pages of its own.
                started.get("about:blank")
                started.get_log("performance")
                yield Browser(started, f"http://127.0.0.1:{serving.server_port}/")
        finally:
            serving.shutdown()
            thread.join()


FIGURES = """[...document.querySelectorAll("data.figure")].map(
    element => [element.dataset.benchmark, element.dataset.parameters, element.value,
                element.textContent])"""
SCALES = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "kB": 1e3, "MB": 1e6, "ulp": 1.0, "": 1.0}


def read_again(text: str) -> float:
    """The number that a figure was before it was written for people."""
    number, unit = re.fullmatch(r"([\d.,]+)\s*(.*)", text).groups()
    number = float(number.replace(",", ""))
    if unit == "× faster":
        return 1.0 / number
    if unit == "%":
        return 100.0 / number
    return number if unit == "× slower" else number * SCALES[unit]


def test_browser_overview(browser, newest):
    browser.driver.get(browser.address)
    assert browser.driver.title == "softxent & <co>: benchmarks"
    shown = browser.driver.execute_script(
        f"document.querySelectorAll('details').forEach(each => each.open = true); return {FIGURES}")
    asked = browser.requests()
    assert len([url for url in asked if url.endswith(".svg")]) > 10
    assert browser.console() == []
    assert browser.driver.execute_script(
        "return [...document.images].every(image => image.naturalWidth > 0)")
    of_first_machine = browser.driver.execute_script(
        "return document.querySelector('details').querySelectorAll('data.figure').length")
    assert of_first_machine > 30
    for name, parameters, value, text in shown[:of_first_machine]:
        figure = newest[name, tuple(json.loads(parameters).values())]
        assert value == ("" if figure is None else repr(figure))
        if figure is None:
            assert text == "–"
        else:
            assert read_again(text) == pytest.approx(figure, rel=1e-2), (name, parameters)


def test_browser_phone(browser):
    """Nothing but the tables is wider than a phone; they scroll by themselves."""
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})
    try:
        browser.driver.get(browser.address)
        assert browser.driver.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.requests()


def test_browser_series(browser, newest):
    """A figure leads to asv's graph of it, which is drawn."""
    browser.driver.get(browser.address)
    link = browser.driver.execute_script("""
        return [...document.querySelectorAll("td a")].find(link => link.querySelector(
            "data[data-benchmark='loss.LossGrad.time_loss_grad']")).href""")
    browser.driver.get(link)
    # The line's colour, in the picture of the graph.
    drawn = browser.wait_for("""(() => {
        const canvas = document.querySelector("#main-graph canvas.flot-base");
        if (!canvas || !canvas.width) return 0;
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let i = 0; i < pixels.length; i += 4)
            count += pixels[i] == 0x24 && pixels[i + 1] == 0x7a && pixels[i + 2] == 0xad;
        return count;
    })()""")
    assert drawn > 100
    words = browser.driver.execute_script("return document.body.innerText")
    assert "loss.LossGrad.time_loss_grad" in words
    # What was chosen is what the figure is of, and no other series.
    chosen = browser.driver.execute_script("""
        return [...document.querySelectorAll("#graphdisplay-navigation .btn.active")].map(
            button => button.innerText.trim())""")
    assert {MACHINES[0], "cython", SHAPES[0], "2"} <= set(chosen)
    assert {MACHINES[1], "numba", *SHAPES[1:]}.isdisjoint(chosen)
    asked = browser.requests()
    assert any("/vendor/jquery.flot.js" in url for url in asked)
    assert any("/graphs/" in url for url in asked)
    assert browser.console() == []


def test_browser_regressions(browser, data):
    browser.driver.get(browser.address + "asv/index.html#/regressions")
    rows = browser.wait_for("""(() => {
        const rows = document.querySelectorAll("#regressions-body tbody tr");
        return rows.length && [...rows].map(row => row.innerText);
    })()""")
    for found in data["regressions"]:
        assert any(row.startswith(found["benchmark"]) for row in rows)
    # Sorted by name.
    browser.driver.execute_script(
        "document.querySelector('#regressions-body thead th').click()")
    browser.wait_for("""(() => {
        const rows = [...document.querySelectorAll("#regressions-body tbody tr")];
        const names = rows.map(row => row.cells[0].innerText);
        return names.every((name, i) => !i || names[i - 1].localeCompare(name) <= 0);
    })()""")
    for page in ("#/", "#/summarylist"):
        browser.driver.get(browser.address + "asv/index.html" + page)
        browser.wait_for("document.body.innerText.includes('time_thing')")
    browser.requests()
    assert browser.console() == []


def test_browser_refuses_other_hosts(browser):
    browser.driver.get(browser.address + "asv/index.html")
    refused = browser.driver.execute_async_script("""
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", event => done(event.blockedURI));
        new Image().src = "http://127.0.0.2:9/elsewhere.png";""")
    assert refused == "http://127.0.0.2:9/elsewhere.png"


def test_screenshots(browser, site, dashboard, tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "SCREENSHOTS", {
        "series": dashboard.SCREENSHOTS["series"]})
    dashboard.take_screenshots(site, tmp_path)
    picture = (tmp_path / "dashboard-series.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 5_000 < len(picture) < 150_000
