"""The page in front of asv's site: what each machine's newest commit measured, and its history.

`write` reads asv's results and what `asv publish` made of them, and writes

- `overview.json`: every figure of the page, with the benchmark, the parameters and, by its commit,
  the results file that it is from;
- `index.html`: that file as a page, by `overview.html`; no script, nothing from elsewhere;
- `sparklines/`: its pictures.

What was not measured, was skipped or has failed is None with a `status`, never a number.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import datetime
import itertools
import json
import math
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: A regression that came before so many others is asv's page's.
REGRESSIONS = 15


@dataclass(frozen=True)
class Table:
    """A table of the page: which benchmarks, and how they are laid out.

    A benchmark that the results do not have is left out; parameters that are not the columns', and
    more than one benchmark, make rows.
    """

    title: str
    benchmarks: tuple[str, ...]
    #: What a reader has to know.
    about: str
    #: The parameter whose values are the columns.
    columns: str | None = None
    #: How a figure is written: "plain" by its unit, "faster" and "share" from ratios.
    style: str = "plain"
    sparklines: bool = True
    #: A first row: the largest of all figures of a column.
    worst: bool = False


TABLES = (
    Table("Beside other libraries", ("peers.Ratio.track_ratio",),
          "Loss and gradient, both sides in one process in turn; bold is the fastest of them at a "
          "shape. In small print is our time over theirs, which is what is recorded.",
          "peer", "faster",
          sparklines=False),
    Table("Share of the memory's speed", ("limit.Limit.track_time_over_limit",),
          "How near the kernel comes to loops that only move the same memory, in the same run: "
          "100 % is the limit. In small print is our time over that of the loop.", "case", "share"),
    Table("Loss and gradient", ("loss.LossGrad.time_loss_grad",), "Into an array of the caller's.",
          "backend"),
    Table("In place", ("loss.LossGrad.time_in_place",), "The gradient over the logits.", "backend"),
    Table("Loss and a fresh gradient", ("loss.LossGrad.time_fresh",),
          "The gradient is allocated in the call.", "backend"),
    Table("Loss alone", ("loss.Loss.time_loss",), "No gradient.", "backend"),
    Table("A small call", ("call.Call.time_call",),
          "Hardly any arithmetic: what Python, checks and the choice of a kernel cost."),
    Table("Start", ("startup.Startup.timeraw_import", "startup.Startup.timeraw_first_call_cold",
                    "startup.Startup.timeraw_first_call_warm"),
          "Fresh interpreters. Cold: with nothing in the cache; warm: with what was compiled "
          "before."),
    Table("Worst error", ("accuracy.Accuracy.track_worst_ulp_loss",
                          "accuracy.Accuracy.track_worst_ulp_grad"),
          "Units in the last place, against exact arithmetic.", "backend", worst=True),
    Table("Peak memory", ("memory.Memory.peakmem_loss_grad",), "Of the whole process."),
    Table("Training", ("trainer.Trainer.time_fit", "trainer.Trainer.track_final_loss"),
          "A fit of softxent.sklearn.SoftmaxRegression, and the objective that it ended at."),
)
#: Where rows of shapes are many: those that other libraries were measured at come first.
MAIN_SHAPES = "peers.Ratio.track_ratio"


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A results file: what one commit measured in one environment of one machine."""

    file: str
    results: Any
    revision: int

    @property
    def where(self) -> tuple[str, str]:
        """Machine and environment: what is not of one is not compared."""
        return self.results.params["machine"], self.results.env_name

    def has(self, name: str, index: dict[str, Any]) -> bool:
        """Whether it has results of the benchmark as it is now."""
        return name in self.results.get_result_keys(index["benchmarks"])

    def figures(self, name: str, index: dict[str, Any]) -> list[tuple[float | None, str]]:
        """Return a benchmark's figure for each of its parameters, with what became of it."""
        combinations = list(itertools.product(*index["benchmarks"][name]["params"]))
        if not self.has(name, index):
            return [(None, "not measured")] * len(combinations)
        had = set(itertools.product(*self.results.get_result_params(name)))
        values = self.results.get_result_value(name, index["benchmarks"][name]["params"])
        found: list[tuple[float | None, str]] = []
        for combination, value in zip(combinations, values, strict=True):
            if value is None:
                found.append((None, "failed" if combination in had else "not measured"))
            elif math.isnan(value):  # by itself, or not chosen in that run
                found.append((None, "skipped"))
            else:
                found.append((value, "measured") if math.isfinite(value) else (None, "failed"))
        return found


def read(results: Path, published: set[str],
         index: dict[str, Any]) -> tuple[list[Run], list[str]]:
    """Return the runs of published commits, in the order of these, and what is left out and why."""
    from asv.results import Results, iter_results_paths
    from asv.util import UserError

    revisions = {commit: int(revision)
                 for revision, commit in index["revision_to_hash"].items()}
    runs, unread = [], []
    for folder, name, machine in sorted(iter_results_paths(str(results))):
        file = Path(folder, name).relative_to(results).as_posix()
        try:
            found = Results.load(str(Path(folder, name)), machine_name=machine)
        except UserError as error:
            unread.append(f"{file}: {error}")
            continue
        if found.commit_hash in published and found.commit_hash in revisions:
            runs.append(Run(file, found, revisions[found.commit_hash]))
        else:
            unread.append(f"{file}: its commit is not on the dashboard's branches")
    return sorted(runs, key=lambda run: (run.revision, run.file)), unread


def text_of(parameter: str) -> str:
    """Return a parameter's value, as a reader wants it, of its repr."""
    try:
        return str(ast.literal_eval(parameter))
    except (SyntaxError, ValueError):
        return parameter


def number_of(parameter: str) -> float:
    """Return a parameter's value for comparisons: the number that it is, or 0."""
    try:
        return float(text_of(parameter))
    except ValueError:
        return 0.0


def graph_link(name: str, parameters: dict[str, str], run: Run, index: dict[str, Any]) -> str:
    """Return the address of asv's page of one series, from the overview."""
    own = {key: value or "" for key, value in run.results.params.items()}
    own |= {f"env-{key}": value for key, value in run.results.env_vars.items()}
    chosen = {key: own.get(key) for key, values in index["params"].items()
              if len(values) > 1 and key != "branch"}
    return hash_link(name, chosen, parameters)


def hash_link(name: str, chosen: dict[str, str | None], parameters: dict[str, str],
              **others: str) -> str:
    """Return the address of a page of asv's site, as asv's scripts write it."""
    query = {key: "[none]" if value is None else value for key, value in chosen.items()}
    query |= {f"p-{key}": value for key, value in parameters.items()} | others
    return f"asv/index.html#{urllib.parse.quote(name)}?{urllib.parse.urlencode(query)}"


# ---- figures -------------------------------------------------------------------------------------


def cells(name: str, runs: list[Run], newest: int, index: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a benchmark's figures, each with its history: `newest` is the run that counts."""
    benchmark = index["benchmarks"][name]
    found = []
    for position, history in enumerate(zip(*(run.figures(name, index) for run in runs),
                                           strict=True)):
        parameters = parameters_at(benchmark, position)
        figures = [figure for figure, _ in history]
        value, status = history[newest]
        found.append({
            "benchmark": name, "parameters": parameters, "unit": benchmark.get("unit") or "",
            "value": value, "status": status, "before": last_before(figures, newest),
            "history": figures,
            "graph": graph_link(name, parameters, runs[newest], index), "sparkline": None,
        })
    return found


def parameters_at(benchmark: dict[str, Any], position: int) -> dict[str, str]:
    """Return the parameters, as reprs, of a place in a benchmark's figures."""
    values = next(itertools.islice(itertools.product(*benchmark["params"]), position, None))
    return dict(zip(benchmark["param_names"], values, strict=True))


def last_before(history: list[float | None], newest: int) -> float | None:
    """Return the figure of the last commit before the newest that has one."""
    return next((figure for figure in reversed(history[:newest]) if figure is not None), None)


def is_measured(found: dict[str, Any]) -> bool:
    """Whether any commit has a figure."""
    return any(value is not None for value in found["history"])


def is_known(found: dict[str, Any]) -> bool:
    """Whether any commit has a figure, or the newest one failed.

    Without either, a row or column is left out: a quick run would make tables of dashes, for asv
    does not tell what was not chosen from what was skipped.
    """
    return is_measured(found) or found["status"] == "failed"


def closest(row: dict[str, Any]) -> str | None:
    """Return the column of a row's largest figure."""
    values = {column: found["value"] for column, found in row["cells"].items()
              if found["value"] is not None}
    return max(values, key=lambda column: values[column], default=None)


def rows_of(table: Table, runs: list[Run], newest: int,
            index: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table: its title, shape, and a cell a column (or None)."""
    names = [name for name in table.benchmarks if name in index["benchmarks"]]
    for name in names:
        of_it = cells(name, runs, newest, index)
        # Of numbers of threads, the largest that was measured; all are on asv's page.
        most = max(of_it, key=lambda found: (is_measured(found), number_of(
            found["parameters"].get("n_threads", ""))))["parameters"].get("n_threads")
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for found in of_it:
            parameters = found["parameters"]
            if parameters.get("n_threads") != most:
                continue
            named = [key for key in parameters if key not in (table.columns, "n_threads")]
            others = tuple(text_of(parameters[key]) for key in named)
            short = name.rpartition(".")[2].partition("_")[2].replace("_", " ")
            title = " · ".join(([short] if len(names) > 1 or not others else []) + [*others])
            row = rows.setdefault(others, {
                "title": title, "cells": {},
                "header": " · ".join(named) if named and len(names) == 1 else "benchmark",
                "shape": text_of(parameters["shape"]) if "shape" in parameters else None})
            column = text_of(parameters[table.columns]) if table.columns in parameters else ""
            row["cells"][column] = found
        yield from rows.values()


def worst(rows: list[dict[str, Any]], columns: list[str],
          newest: int) -> Iterator[dict[str, Any]]:
    """Yield a row a benchmark: the largest figure of each column, at each commit.

    Of those that the newest commit has; a commit that lacks one of them cannot be compared.
    """
    names = dict.fromkeys(found["benchmark"] for row in rows for found in row["cells"].values())
    for name in names:
        largest_of = {}
        for column in columns:
            of_column = [row["cells"][column] for row in rows if column in row["cells"]
                         and row["cells"][column]["benchmark"] == name]
            if not of_column:
                continue
            known = [found for found in of_column if found["value"] is not None]
            largest = max(known, key=lambda found: found["value"], default=of_column[0])
            history = [None if None in values else max(values)
                       for values in zip(*(found["history"] for found in known), strict=True)
                       ] or [None] * len(largest["history"])
            largest_of[column] = {**largest, "history": history,
                                  "before": last_before(history, newest)}
        short = name.rpartition("_")[2]
        yield {"title": f"worst of all: {short}", "header": "benchmark", "shape": None,
               "cells": largest_of}


def table_of(table: Table, runs: list[Run], main_shapes: set[str],
             index: dict[str, Any]) -> dict[str, Any] | None:
    """Return a table for a section, or None where it measured nothing of it."""
    present = [position for position, run in enumerate(runs)
               if any(run.has(name, index) for name in table.benchmarks)]
    if not present:
        return None
    newest = max(present)
    rows = [row for row in rows_of(table, runs, newest, index)
            if any(map(is_known, row["cells"].values()))]
    if not rows:
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row["cells"]))
    columns = [column for column in columns if any(
        is_known(row["cells"][column]) for row in rows if column in row["cells"])]
    if table.worst:
        rows = [*worst(rows, columns, newest), *rows]
    for row in rows:
        row["closest"] = closest(row)
    main = [row for row in rows if row["shape"] in main_shapes or row["shape"] is None]
    return {
        "title": table.title, "about": table.about, "style": table.style,
        "row_header": rows[0]["header"],
        "columns": columns, "commit": newest,
        "missing": [name for name in table.benchmarks if name not in {
            found["benchmark"] for row in rows for found in row["cells"].values()}],
        "main": main or rows, "others": [row for row in rows if row not in main] if main else [],
        "sparklines": table.sparklines,
    }


# ---- sections ------------------------------------------------------------------------------------


def subjects(commits: list[str], folder: Path) -> dict[str, str]:
    """Return the first lines of commits' messages, as far as the folder's repository has them."""
    done = subprocess.run(
        ["git", "log", "--no-walk", "--ignore-missing", "--format=%H %s", *commits, "--"],
        cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def day(milliseconds: float) -> str:
    """Return the date of an asv timestamp."""
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%d")


def section_of(runs: list[Run], index: dict[str, Any],
               titles: dict[str, str]) -> dict[str, Any]:
    """Return what one environment of one machine has measured."""
    newest = runs[-1].results
    machine = {key: value for key, value in index["machines"].get(
        newest.params["machine"], {"machine": newest.params["machine"]}).items()
        if key != "version"}
    main_shapes = {text_of(shape) for name, benchmark in index["benchmarks"].items()
                   if name == MAIN_SHAPES for key, values in
                   zip(benchmark["param_names"], benchmark["params"], strict=True)
                   if key == "shape" for shape in values}
    tables = {table.title: table_of(table, runs, main_shapes, index) for table in TABLES}
    return {
        "machine": machine, "environment": newest.env_name,
        "versions": {key: value for key, value in newest.params.items()
                     if key not in machine and value not in (None, "")},
        "commits": [{
            "hash": run.results.commit_hash, "date": day(run.results.date), "file": run.file,
            "subject": titles.get(run.results.commit_hash, ""),
        } for run in runs],
        "tables": [table for table in tables.values() if table],
        "left_out": [title for title, table in tables.items() if not table],
        "failed": sorted(name for name in newest.get_result_keys(index["benchmarks"])
                         if any(status == "failed"
                                for _, status in runs[-1].figures(name, index))),
    }


def regressions_of(site: Path, index: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the regressions that asv found, the newest first."""
    found = []
    described = {"branch", "arch", "cpu", "num_cpu", "os", "ram"}
    published = json.loads((site / "asv" / "regressions.json").read_text(encoding="utf-8"))
    for entry, _, graph, position, last, best, jumps in published["regressions"]:
        name = entry.partition("(")[0]
        benchmark = index["benchmarks"][name]
        parameters = {} if position is None else parameters_at(benchmark, position)
        first, revision, before, after = jumps[-1]
        commits = [index["revision_to_hash"][str(at)] for at in (first, revision)
                   if at is not None]
        found.append({
            "benchmark": name, "parameters": parameters, "unit": benchmark.get("unit") or "",
            # The rest of machine.json goes with the machine's name.
            "where": {key: value for key, value in graph.items() if key not in described},
            "revision": revision, "commits": commits,
            "date": day(index["revision_to_date"][str(revision)]),
            "before": before, "after": after, "last": last, "best": best,
            "graph": hash_link(name, graph, parameters, commits="-".join(commits)),
        })
    found.sort(key=lambda regression: (-regression["revision"],
                                       -regression["after"] / (regression["before"] or math.inf)))
    return found


def overview(config: Path, site: Path) -> dict[str, Any]:
    """Return what the page says, of the results and the site that asv has made of them."""
    from asv.config import Config
    from asv.repo import get_repo

    conf = Config.load(str(config))
    with contextlib.chdir(config.parent):
        repo = get_repo(conf)
        published = set(repo.get_tags().values()).union(
            *(repo.get_branch_commits(branch) for branch in conf.branches))
    index = json.loads((site / "asv" / "index.json").read_text(encoding="utf-8"))
    info = json.loads((site / "asv" / "info.json").read_text(encoding="utf-8"))
    runs, unread = read(config.parent / conf.results_dir, published, index)
    by_place: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_place.setdefault(run.where, []).append(run)
    titles = subjects(sorted({run.results.commit_hash for run in runs}), config.parent)
    sections = [section_of(place, index, titles) for place in
                sorted(by_place.values(), key=lambda place: -place[-1].revision)]
    machines = collections.Counter(machine for machine, _ in by_place)
    for section in sections:
        section["shares_machine"] = machines[section["machine"]["machine"]] > 1
    return {
        "project": conf.project, "asv": info["asv-version"], "made": day(info["timestamp"]),
        "commit_url": conf.show_commit_url, "results": conf.results_dir,
        "benchmarks": len(index["benchmarks"]), "sections": sections,
        "regressions": regressions_of(site, index), "unread": unread,
    }


# ---- writing -------------------------------------------------------------------------------------


def cells_of(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every cell of the main rows, with its table."""
    for section in data["sections"]:
        for table in section["tables"]:
            for row in table["main"]:
                yield from ((table, found) for found in row["cells"].values())


def draw_sparklines(data: dict[str, Any], site: Path) -> None:
    """Draw the histories of the main rows, and name the files in their cells.

    From zero: a fifth more is a fifth higher. A commit without a figure is a gap.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder = site / "sparklines"
    folder.mkdir()
    # The same figures make the same bytes.
    style = {"svg.hashsalt": "softxent", "svg.fonttype": "none", "lines.solid_capstyle": "round"}
    numbers = itertools.count(1)
    with mpl.rc_context(style):
        # Inches of 72 points; `overview.html` shows them at this size in pixels.
        canvas = Figure(figsize=(120 / 72, 30 / 72))
        for table, found in cells_of(data):
            if not table["sparklines"] or not is_measured(found):
                continue
            canvas.clear()
            axes = canvas.add_axes((0.0, 0.0, 1.0, 1.0))
            axes.axis("off")
            heights = [math.nan if past is None else past for past in found["history"]]
            axes.plot(heights, color=LINE, linewidth=1.5, marker="o", markersize=2.5)
            if found["value"] is not None:
                axes.plot([table["commit"]], [found["value"]], "o", color=POINT, markersize=4.5)
            known = [0.0, *(past for past in found["history"] if past is not None)]
            room = 0.15 * (max(known) - min(known) or 1.0)
            axes.set_xlim(-0.5, len(heights) - 0.5)
            axes.set_ylim(min(known) - room, max(known) + room)
            file = f"{next(numbers)}.svg"
            canvas.savefig(folder / file, transparent=True, metadata={"Date": None})
            found["sparkline"] = f"sparklines/{file}"


#: Seen on white and on black.
LINE, POINT = "#4a90d9", "#e07b39"
SECONDS = (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
BYTES = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9))
MISSING = "–"


def digits(value: float) -> str:
    """Return a number in three digits, with as many more as it has before the point."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def quantity(value: float | None, unit: str) -> str:
    """Return a figure with its unit."""
    if value is None:
        return MISSING
    scale = {"seconds": SECONDS, "s": SECONDS, "bytes": BYTES}.get(unit)
    if scale is None:
        return f"{digits(value)} {unit}".removesuffix(" unit").strip()
    name, size = next(((name, size) for name, size in reversed(scale) if abs(value) >= size),
                      scale[0])
    return f"{digits(value / size)} {name}"


def figure(found: dict[str, Any], style: str) -> tuple[str, str]:
    """Return how a cell is written, and the recorded ratio where that is another number."""
    value, unit = found["value"], found["unit"]
    if value is None or style == "plain" or value <= 0.0:
        return quantity(value, unit), ""
    if style == "share":
        return f"{100.0 / value:.0f} %", digits(value)
    if style != "faster":
        raise ValueError(f"style: 'plain', 'share' or 'faster', not {style!r}")
    times, word = (1.0 / value, "faster") if value <= 1.0 else (value, "slower")
    return f"{digits(times)} × {word}", digits(value)


def change(value: float | None, before: float | None) -> str:
    """Return by how much a figure has changed."""
    if value is None or not before:
        return ""
    percent = round(100.0 * (value / before - 1.0))
    return f"{percent:+d} %".replace("-", "−").replace("+0", "±0")


def is_web(link: str) -> bool:
    """Whether an address may be a link: not a script's, for one."""
    return urllib.parse.urlsplit(link).scheme in ("http", "https")


def render(data: dict[str, Any]) -> str:
    """Return the page. All of it that is from results is escaped."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}
    templates.globals.update(
        figure=figure, quantity=quantity, change=change, text_of=text_of, is_web=is_web,
        most_regressions=REGRESSIONS)
    return templates.get_template("overview.html").render(data)


def write(config: Path, site: Path) -> None:
    """Write the page and its files into a site whose folder `asv` is what asv has published."""
    data = overview(config, site)
    draw_sparklines(data, site)
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (site / "overview.json").write_text(text, encoding="utf-8")
    # The page has what the file has, and nothing else.
    (site / "index.html").write_text(render(json.loads(text)), encoding="utf-8")
