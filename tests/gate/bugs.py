"""Bugs of one line each that are easy to make and hard to notice, for a copy of the project."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("attacks", "bench", "certifiers", "defenses", "leaderboard")


@dataclass(frozen=True)
class Bug:
    file: str
    original: str
    replacement: str


BUGS = {
    "PGD steps down the loss": Bug(
        "attacks/ascent.py", "x_adv + length * direction(gradient, step)", "x_adv - length * direction(gradient, step)"
    ),
    "projection onto a ball of half the size": Bug(
        "bench/core/threat.py",
        "return self.clamp(_add_towards(x, -eps)), self.clamp(_add_towards(x, eps))",
        "return self.clamp(_add_towards(x, -eps / 2)), self.clamp(_add_towards(x, eps / 2))",
    ),
    "projection onto a ball of twice the size": Bug(  # in the loop of an attack; what it returns is projected again
        "bench/core/threat.py",
        "low, high = self._interval(x)\n            return",
        "low, high = ThreatModel(self.norm, 2 * self.eps, self.box)._interval(x)\n            return",
    ),
    "batch norm in train mode": Bug(
        "bench/core/modes.py", "with mode_of(model, training=False):", "with mode_of(model, training=True):"
    ),
    "eps in the wrong unit": Bug(
        "bench/core/threat.py", "torch.full((1,), self.eps, ", "torch.full((1,), self.eps / 255, "
    ),
}


def copy(folder: Path, bug: Bug | None = None) -> Path:
    """The project's packages in a folder of their own, with a bug or without."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    if bug is not None:
        path = folder / bug.file
        text = path.read_text(encoding="utf-8")
        assert text.count(bug.original) == 1, f"{bug.file} has changed; update the bug"
        path.write_text(text.replace(bug.original, bug.replacement), encoding="utf-8")
    return folder
