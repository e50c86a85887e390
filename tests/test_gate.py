"""The gate's decisions, on samples that are made up; and its history's rule of what is kept."""

from __future__ import annotations

import importlib
import math
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """The scripts of benchmarks/, imported as they are run: their folder is on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        before = set(sys.modules)
        yield importlib.import_module
        for name in set(sys.modules) - before:
            path = getattr(sys.modules[name], "__file__", None) or ""
            if path.startswith(str(BENCHMARKS)) or name.partition(".")[0] == "benchmarks":
                del sys.modules[name]


@pytest.fixture(scope="module")
def gate(scripts):
    return scripts("gate")


def measured(gate, cell, factor, rng, groups, process, turn, disturbed):
    """Add groups of a branch whose true ratio is `factor`.

    `process`: how much processes of the same code differ, as a share; `turn`: turns of a process;
    `disturbed`: the share of turns that something else makes up to three times as long.
    """
    for _ in range(groups):
        places = rng.normal(0, process, 3)

        def times(place, factor):
            seconds = 1e-3 * factor * np.exp(place + rng.normal(0, turn, gate.ROUNDS))
            hit = rng.random(gate.ROUNDS) < disturbed
            return list(seconds * np.where(hit, rng.uniform(1, 3, gate.ROUNDS), 1))

        cell.add(*map(times, places, (1, 1, factor)))


def verdict(gate, factor, rng, **noise):
    """Whether the gate calls a branch slower."""
    def measure(cells, groups):
        measured(gate, cells["cell"], factor, rng, groups, **noise)

    cells = {"cell": gate.Cell()}
    measure(cells, gate.GROUPS)
    again = gate.look_again(cells, measure, gate.THRESHOLD)
    return any(gate.is_slower(cell, gate.THRESHOLD) for cell in again.values())


@pytest.mark.parametrize("noise", [
    {"process": 0.0, "turn": 0.0, "disturbed": 0.0},
    {"process": 0.01, "turn": 0.02, "disturbed": 0.05},
    {"process": 0.03, "turn": 0.05, "disturbed": 0.1},
    {"process": 0.02, "turn": 0.03, "disturbed": 0.4},
], ids=["none", "some", "much", "busy"])
def test_a_fifth_is_caught_and_nothing_is_made_up(gate, noise):
    """Seeded: 20 % in a cell is caught each time; of as many unchanged cells none is accused."""
    rng = np.random.default_rng(8)
    assert all(verdict(gate, 1.2, rng, **noise) for _ in range(300))
    assert not any(verdict(gate, 1.0, rng, **noise) for _ in range(300))
    assert not any(verdict(gate, 0.8, rng, **noise) for _ in range(50))


times = st.lists(st.floats(1e-7, 1e2), min_size=1, max_size=9)


@given(times, st.floats(0.3, 3.0), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_without_noise_the_ratio_is_exact_and_sure(gate, base, factor, groups):
    """Whatever the times are, and however the machine drifts from round to round."""
    cell = gate.Cell()
    for _ in range(groups):
        cell.add(base, base, [seconds * factor for seconds in base])
    assert math.exp(cell.ratio) == pytest.approx(factor, rel=1e-12)
    assert cell.noise == 0
    assert gate.is_slower(cell, 0.1) == (cell.ratio > math.log(1.1))
    assert gate.is_sure(cell, 0.1) or math.isclose(factor, 1.1, rel_tol=1e-9)


@given(st.lists(st.tuples(*(st.floats(1e-6, 1e-2),) * 3), min_size=1, max_size=9),
       st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_only_ratios_count(gate, rounds, unit):
    """A machine that is slower throughout gets the same verdict."""
    first, second = gate.Cell(), gate.Cell()
    first.add(*zip(*rounds, strict=True))
    second.add(*zip(*(tuple(unit * seconds for seconds in each) for each in rounds), strict=True))
    assert first.ratio == pytest.approx(second.ratio, abs=1e-9)
    assert first.twins == pytest.approx(second.twins, abs=1e-9)


@given(st.integers(0, 2**32), st.integers(3, 40))
@settings(max_examples=25, deadline=None)
def test_noise_is_the_twins_and_falls_with_groups(gate, seed, groups):
    rng = np.random.default_rng(seed)
    cell = gate.Cell(ratios=[0.0] * groups, twins=list(rng.normal(0, 0.05, groups)))
    more = gate.Cell(ratios=[0.0] * 4 * groups, twins=cell.twins * 4)
    assert more.noise == pytest.approx(cell.noise / 2)
    # A slower branch is no noise.
    assert gate.Cell([0.2] * groups, cell.twins).noise == cell.noise


def test_noise_is_the_median_s_standard_error(gate):
    rng = np.random.default_rng(0)
    medians, said = [], []
    for _ in range(400):
        twins = list(rng.normal(0, 0.03, 15))
        medians.append(statistics.median(twins))
        said.append(gate.Cell([0.0], twins).noise)
    assert statistics.median(said) == pytest.approx(statistics.stdev(medians), rel=0.25)


def test_a_row_says_what_was_measured(gate):
    cell = gate.Cell()
    cell.add([1e-3] * 3, [1e-3] * 3, [1.25e-3] * 3)
    assert gate.row("loss.Loss.time_loss('cython')", cell, "SLOWER") == (
        "| loss.Loss.time_loss('cython') | 1 ms | 1.25 ms | 1.250 | 0.0% | SLOWER |")
    assert gate.noise_of([cell]) == (0, 0)


def test_a_commit_that_is_not_there(gate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gate.py", "--base", "no-such-branch"])
    assert gate.main() == 2
    error = capsys.readouterr().err
    assert "no-such-branch" in error
    assert "--base" in error


# ---- what is kept of the history -----------------------------------------------------------------

DAY = 86_400_000


def results(history, days, size=10_000):
    return [history.Result(Path(f"{day}.json"), f"commit {day}", 1_700_000_000_000 + day * DAY,
                           size) for day in days]


@given(st.sets(st.integers(0, 2000), max_size=80), st.sets(st.integers(0, 2000), max_size=5),
       st.integers(1, 200_000))
@settings(max_examples=50, deadline=None)
def test_what_is_kept(scripts, days, listed, size):
    history = scripts("history")
    found = results(history, days, size)
    kept = {f"commit {day}" for day in listed}
    gone = history.superfluous(found, kept)
    left = [result for result in found if result not in gone]
    assert not {result.commit for result in gone} & kept
    assert history.superfluous(left, kept) == []  # twice is once
    unlisted = [result for result in left if result.commit not in kept]
    assert not unlisted or sum(result.size for result in left) <= history.MACHINE_BYTES
    months = {result.month for result in found}
    assert len(unlisted) <= history.NEWEST + len(months)
    if sum(result.size for result in found) <= history.MACHINE_BYTES:
        newest = sorted(found, key=lambda result: result.date)[-history.NEWEST:]
        assert set(newest) <= set(left)
        assert {result.month for result in left} == months


def test_the_history_s_commits_are_there(scripts):
    history = scripts("history")
    commits = history.listed()
    assert len(commits) == len(set(commits)) >= 8
    assert all(len(commit) == 12 and int(commit, 16) for commit in commits)


@pytest.mark.parametrize(("cpu", "levels", "name"), [
    ("AMD EPYC", ("v4", "v3", "v2"), "amd-epyc-v4"),
    ("AMD EPYC 7763 64-Core Processor", ("v3", "v2"), "amd-epyc-7763-v3"),
    ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", ("v4",), "intel-xeon-platinum-8370c-v4"),
    ("Neoverse-N1", ("generic",), "neoverse-n1-generic"),
    ("", (), "unknown"),
])
def test_machines_are_named_by_processor_and_level(scripts, monkeypatch, cpu, levels, name):
    machine = scripts("machine")
    monkeypatch.setattr(machine._machine, "cpu_name", lambda: cpu)
    monkeypatch.setattr(machine._machine, "usable_levels", lambda: levels)
    assert machine.name() == name
    facts = machine.facts()
    assert facts["machine"] == name
    assert all(isinstance(value, str) for value in facts.values())
    assert platform.node() not in facts.values()


def test_a_run_is_asv_s(scripts, monkeypatch):
    """What asv is asked for; `tests/test_asv_suite.py` runs it."""
    pytest.importorskip("asv", reason="it is asv's command line")
    from asv.machine import MachineCollection

    history = scripts("history")
    saved, asked = {}, []
    monkeypatch.setattr(MachineCollection, "save", saved.__setitem__)
    monkeypatch.setattr(history, "git", lambda *arguments: f"hash of {arguments[-1]}")
    monkeypatch.setattr(history, "asv",
                        lambda *arguments, text: asked.append((arguments, text)) or 2)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["history.py", "run", *arguments])
        assert history.main() == 2  # asv's own
        return asked.pop()

    name = scripts("machine").name()
    arguments, commits = command()
    assert arguments == ("run", "HASHFILE:-", "--machine", name, "--show-stderr")
    assert commits.splitlines() == [f"hash of {commit}^{{commit}}" for commit in history.listed()]
    assert saved[name]["machine"] == name
    arguments, commits = command("--quick", "HEAD", "--", "--skip-existing-commits")
    assert arguments[5:] == ("--bench", scripts("quick").regex(), "--skip-existing-commits")
    assert commits == "hash of HEAD^{commit}"
    arguments, _ = command("--bench", "loss", "HEAD")
    assert arguments[5:] == ("--bench", "loss")
