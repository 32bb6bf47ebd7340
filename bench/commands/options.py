"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.commands.arguments import duration, eps_list, seed_list, whole
from bench.core.errors import UserError


def add_plugin(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--plugin", action="append", default=[], type=Path, metavar="FILE", help="code of your own")


def add_machine(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sub.add_argument("--threads", type=whole("--threads", 1, 1024), help="CPU threads (default: by the model's size)")
    sub.add_argument("--data-dir", type=Path, help="where NAME.npz is (or BENCH_DATA)")


def add_setting(sub: argparse.ArgumentParser) -> None:
    """The data, the threat and the seeds of one recipe."""
    sub.add_argument("--suite", metavar="NAME", help="rules of a leaderboard (default: digits)")
    sub.add_argument("--seeds", type=seed_list, default=[0], metavar="0,1,2", help="one run each (default: 0)")
    sub.add_argument("--dataset", metavar="NAME", help="a data set's name, or an .npz")
    sub.add_argument("--norm", choices=["Linf", "L2", "L1"])
    sub.add_argument(
        "--eps",
        type=eps_list,
        metavar="8/255,...",
        help="in the scale of images in [0, 1]; after the first: attack there too",
    )


def add_training(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--epochs", type=whole("--epochs", 1), help="length of the training (short for --set epochs=N)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the defense")


def add_evaluation(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", metavar="SPEC", help="as cnn:activation=tanh, or FILE.py:FUNCTION")
    sub.add_argument("--attacks", metavar="SPEC,...", help="as pgd-50,autoattack; 'none' for clean accuracy alone")
    sub.add_argument("--certifiers", metavar="SPEC,...", help="as ibp,alpha-crown (default: none)")
    sub.add_argument("--bracket", action="store_true", help="attacks and certifiers in turn, until all is decided")
    sub.add_argument("--budget", type=duration, metavar="10m", help="of the bracket, as 90s, 10m, 2h (default: 10m)")
    sub.add_argument("--n-examples", type=whole("--n-examples", 1), metavar="N", help="the first N of the test set")
    add_machine(sub)
    sub.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    sub.add_argument("--json", action="store_true", help="print records instead of a table")
    add_plugin(sub)


def specs(words: str | None, option: str) -> list[str] | None:
    """The specs of an option; [] for `none`, None where it is not given."""
    found = None if words is None else [word.strip() for word in words.split(",")]
    if found is not None and "" in found:
        raise UserError(f"{option} '{words}' has an empty place; write specs with commas between, or none")
    return [] if found == ["none"] else found
