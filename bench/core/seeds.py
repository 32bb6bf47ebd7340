"""Random generators derived from a run's seed, and the fingerprint of the machine and its software."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.core.package_origins import ROOT

PACKAGES = (
    "robust-bracket", "torch", "torchvision", "numpy", "scipy", "pyscipopt", "pyautoattack", "torchattacks", "foolbox",
    "adv-lib",
)  # fmt: skip


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^31) for one purpose: a function of the run's seed and the names of the purpose."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def generator(device: torch.device, seed: int, *names: str | int) -> torch.Generator:
    """A generator on `device`, seeded for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, *names))


def fingerprint(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions, hardware, threads and git commit, for the provenance of a record."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "device": device.type,
        "threads": threads,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of our source tree, with `-dirty` if files are changed or untracked; None for an installed package."""
    if not (ROOT / ".git").exists() or (commit := _git("rev-parse", "HEAD")) is None:
        return None
    return f"{commit}-dirty" if _git("status", "--porcelain") != "" else commit


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(ROOT), *words]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def cpu_name() -> str:
    """The processor, such as `AMD EPYC family 25 model 17 (2 cores, AVX512)`.

    Family and model distinguish processors of the same name. The last word is the instruction set that torch uses; with
    another one, the same training gives other weights.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    words = [facts.get("model name") or platform.processor() or platform.machine()]
    words += [f"{label} {facts[key]}" for label, key in (("family", "cpu family"), ("model", "model")) if key in facts]
    return f"{' '.join(words)} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"
