"""Carries a plan out: allocates outputs, runs the kernel over ranges of rows, reduces.

Nothing else calls kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent import _small, _threads
from softxent._plan import Plan, select
from softxent._problem import Problem, check_soft_targets, classes_last
from softxent._sums import tree_sum
from softxent.backends import backend
from softxent.backends._contract import Op


def evaluate(
    problem: Problem | _small.Ready, requested: str | None, n_threads: int | None
) -> tuple[Any, Any]:
    """Plan `problem` and carry it out.

    Returns
    -------
    rows
        "none": an array of the rows' shape, float32 (float64 for float64 logits). Else a float.
    map
        The array of the logits' shape, or None if the problem does not want one.
    """
    return execute(_plan_of(problem, requested, n_threads), problem)


def _plan_of(
    problem: Problem | _small.Ready, requested: str | None, n_threads: int | None
) -> Plan:
    if isinstance(problem, _small.Ready):
        return problem.plan(requested, n_threads)
    return select(problem.key, problem.n_rows, problem.n_classes, requested, n_threads)


def execute(plan: Plan, problem: Problem | _small.Ready) -> tuple[Any, Any]:
    """Carry `plan` out; see `evaluate`."""
    if isinstance(problem, _small.Ready):
        if plan.entry is not None:
            return problem.run(plan)
        problem = problem.plain()
    call = problem.call
    keeps_rows = problem.reduction == "none"
    # One value a row; float64 where it is to be summed unrounded.
    narrow = keeps_rows and call.logits.itemsize != 8 and call.op not in (Op.RANK, Op.BELOW)
    dtype = np.float32 if narrow else np.float64
    shape = (call.n_rows,) if call.summed else call.logits.shape[:-1]
    rows = call.out_rows = np.empty(shape, dtype)
    out, result = _map_output(problem)
    if problem.divisor == 0.0:
        check_soft_targets(problem)
        if out is not None:
            out.fill(0.0)
        return 0.0, result
    call.streams = plan.streams
    if call.n_rows:
        task = backend(plan.backend).bind(call, plan.isa, plan.cut)
        _threads.run(task, call.n_rows, plan.grain, plan.n_threads, plan.wakes)
        if task.refused:
            check_soft_targets(problem)
            raise ValueError("probability targets changed during the call, and were invalid")
    if keeps_rows:
        return rows.reshape(problem.rows_shape), result
    return tree_sum(rows.reshape(-1)) / problem.divisor, result


def _map_output(problem: Problem) -> tuple[Any, Any]:
    """Give the call of `problem` an array to write its map into; return it, and as it was given."""
    out = problem.out
    if problem.key.wants_map:
        if out is None:
            out = np.empty_like(problem.logits, order="K")
        moved = classes_last(out, problem.axis)
        problem.call.out_map = moved if problem.rows_shape else moved[np.newaxis]
    return out, out if problem.given_out is None else problem.given_out


def evaluate_both(
    problem: Problem | _small.Ready, requested: str | None, n_threads: int | None
) -> tuple[Any, Any, Any]:
    """Carry out cross-entropy's problem, and its `second`, that of its Hessian.

    In one walk where the backend can, and rows are not cut; else one after the other, what
    overwrites the logits last.

    Returns
    -------
    rows, map
        As `evaluate`.
    hessian
        The second problem's map.
    """
    plan = _plan_of(problem, requested, n_threads)
    if isinstance(problem, _small.Ready):
        if plan.entry is not None and not plan.cut and backend(plan.backend).pairs:
            return *problem.run(plan), problem.hess
        problem = problem.plain()
    second = problem.second
    assert second is not None
    given = second.out
    if given is not None and np.may_share_memory(given, problem.logits):
        rows, grad = execute(plan, problem)
        return rows, grad, map_only(second, requested, n_threads)
    if plan.cut or not backend(plan.backend).pairs:
        hessian = map_only(second, requested, n_threads)
        return *execute(plan, problem), hessian
    hessian = _map_output(second)[1]
    problem.call.second = second.call
    return *execute(replace(plan, streams=False), problem), hessian


def map_only(
    problem: Problem, requested: str | None, n_threads: int | None
) -> NDArray[np.floating]:
    """Plan and carry out a problem that has no value a row; return its map."""
    result: NDArray[np.floating] = evaluate(problem, requested, n_threads)[1]
    return result
