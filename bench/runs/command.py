"""The command that repeats a run."""

from __future__ import annotations

import shlex

from bench.runs.request import Request


def command_line(request: Request, seed: int) -> str:
    """A shell command. Options of one machine (data folder, device, threads, --out) are left out."""
    if request.checkpoint is None:
        words = ["bench", "run", "--defense", str(request.defense)]
    else:
        words = ["bench", "eval", "--checkpoint", request.checkpoint.name]
    options = [
        *((f"--{name}", getattr(request, name)) for name in ("suite", "dataset", "model", "norm")),
        ("--eps", None if request.eps is None else ",".join(map(repr, request.eps))),
        *(("--set", f"{key}={text}") for key, text in request.overrides.items()),
        ("--attacks", None if request.attacks is None else ",".join(request.attacks) or "none"),
        ("--certifiers", ",".join(request.certifiers) or None),
    ]  # fmt: skip
    words += [word for option, value in options if value is not None for word in (option, value)]
    if request.bracket is not None:
        words += ["--bracket", "--budget", f"{request.bracket:g}s"]
    if request.n_examples is not None:
        words += ["--n-examples", str(request.n_examples)]
    words += [word for path in request.plugins for word in ("--plugin", path.name)]
    return shlex.join([*words, "--seeds", str(seed)])
