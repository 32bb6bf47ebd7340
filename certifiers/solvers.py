"""Mixed-integer programs decided: by SCIP, or by HiGHS."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import numpy as np

from bench.core.errors import UserError
from certifiers.milp import Array, Program

Answer = Array | Literal["none", "unknown"]  # a solution, the proof that there is none, or neither in time
Solver = Callable[[Program, float, float], Answer]


def solver_called(name: Literal["auto", "scip", "highs"]) -> Solver:
    """solve(program, slack, seconds). auto: SCIP where it is installed, else HiGHS."""
    installed = importlib.util.find_spec("pyscipopt") is not None
    if name == "scip" and not installed:
        raise UserError(
            "solver=scip needs pyscipopt, which is not installed; pip install 'robust-bracket[exact]', "
            "or take solver=highs, which comes with scipy"
        )
    return scip if installed and name != "highs" else highs


def scip(program: Program, slack: float, seconds: float) -> Answer:
    """Without an objective: any solution will do, and a branch is dropped as soon as its linear program has none."""
    from pyscipopt import Model, quicksum

    model = Model()
    model.hideOutput()
    model.setParams(
        {
            "limits/time": seconds,
            "limits/solutions": 1,
            "misc/catchctrlc": False,
            "presolving/dualsparsify/maxrounds": 0,  # on dense rows it takes longer than all the rest
        }
    )
    sides = zip(program.low.tolist(), program.high.tolist(), program.integer.tolist(), strict=True)
    variables = [model.addVar(lb=low, ub=high, vtype="B" if whole else "C") for low, high, whole in sides]
    matrix = program.matrix
    rows = [slice(start, end) for start, end in zip(matrix.indptr, matrix.indptr[1:], strict=False)]
    terms = [(matrix.indices[row], matrix.data[row]) for row in rows]
    margin = program.cost.nonzero()[0]
    terms.append((margin, program.cost[margin]))
    limits = [*program.limit.tolist(), slack - program.constant]
    for (columns, factors), limit in zip(terms, limits, strict=True):
        pairs = zip(columns.tolist(), factors.tolist(), strict=True)
        model.addCons(quicksum(factor * variables[k] for k, factor in pairs) <= limit)
    model.optimize()
    if model.getStatus() == "infeasible":
        return "none"
    best = model.getBestSol()
    return "unknown" if best is None else np.array([best[variable] for variable in variables])


def highs(program: Program, slack: float, seconds: float) -> Answer:
    """The margin is minimised, which shows the way, but the first solution is taken: any gap is small enough."""
    import scipy.sparse as sp
    from scipy.optimize import Bounds, LinearConstraint, milp

    matrix = sp.vstack([program.matrix, sp.csr_matrix(program.cost)])
    found = milp(
        program.cost,
        constraints=LinearConstraint(matrix, ub=np.append(program.limit, slack - program.constant)),
        bounds=Bounds(program.low, program.high),
        integrality=program.integer,
        options={"time_limit": seconds, "mip_rel_gap": 1e9},
    )
    if found.status == 2:
        return "none"
    return "unknown" if found.x is None else found.x
