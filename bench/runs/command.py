"""The command that repeats a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from bench.runs.request import Request


def command_line(request: Request, seed: int) -> str:
    """A shell command. Options of one machine (data folder, device, threads, --out) are left out."""
    return shlex.join(["bench", *_words(request), "--seeds", str(seed)])


def _words(request: Request) -> Iterator[str]:
    if request.checkpoint is not None:
        yield from ("eval", "--checkpoint", request.checkpoint.name)
    else:
        yield from ("run", "--defense", str(request.defense))
    for option, value in (("suite", request.suite), ("dataset", request.dataset), ("model", request.model)):
        if value is not None:
            yield from (f"--{option}", value)
    if request.norm is not None:
        yield from ("--norm", request.norm)
    if request.eps is not None:
        yield from ("--eps", ",".join(map(repr, request.eps)))
    for key, text in request.overrides.items():
        yield from ("--set", f"{key}={text}")
    if request.attacks is not None:
        yield from ("--attacks", ",".join(request.attacks) or "none")
    if request.certifiers:
        yield from ("--certifiers", ",".join(request.certifiers))
    if request.bracket is not None:
        yield from ("--bracket", "--budget", f"{request.bracket:g}s")
    if request.n_examples is not None:
        yield from ("--n-examples", str(request.n_examples))
    for path in request.plugins:
        yield from ("--plugin", path.name)
