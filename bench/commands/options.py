"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.arguments import duration, eps_list, integer, seed_list, spec_list, work

if TYPE_CHECKING:
    from bench.verify.inputs import Settings

BUDGET = 1000  # sub-problems for each example: of --bracket without --budget


def add_plugin(sub: argparse.ArgumentParser) -> None:
    help_text = "a Python file that registers defenses, attacks, ...; repeatable"
    sub.add_argument("--plugin", action="append", default=[], dest="plugins", type=Path, metavar="FILE", help=help_text)


def add_suites_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--suites", type=Path, metavar="DIR", help="a folder of further suites, NAME.toml")


def add_quiet(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quiet", action="store_true", help="show no progress on standard error")


def add_machine(sub: argparse.ArgumentParser) -> None:
    add_quiet(sub)
    option = sub.add_argument
    option("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    option("--threads", type=integer("--threads", 1, 1024), metavar="N", help="CPU threads (default: by model size)")
    option("--data-dir", type=Path, metavar="DIR", help="folder with NAME.npz (default: BENCH_DATA, else a download)")


def add_setting(sub: argparse.ArgumentParser) -> None:
    """Add options for the data set, the threat model and the seeds of a run."""
    option = sub.add_argument
    option("--suite", metavar="NAME", help="use the rules of this leaderboard, or of FILE.toml (default: digits)")
    help_text = "one run per seed, 0-4 for five (default: 0)"
    option("--seeds", type=seed_list("--seeds"), default=[0], metavar="0,1,2", help=help_text)
    option("--dataset", metavar="NAME", help="a registered data set, an .npz file, or FILE.py:FUNCTION")
    option("--norm", choices=["Linf", "L2", "L1"], help="norm of the threat model (default: the suite's)")
    help_text = "perturbation size, for images in [0, 1]; attacks also run at each further eps"
    option("--eps", type=eps_list, metavar="8/255,...", help=help_text)
    help_text = "none: points may leave [0, 1], as in some papers; such a run fits no leaderboard"
    option("--box", choices=["pixels", "none"], default="pixels", help=help_text)


def add_training(sub: argparse.ArgumentParser) -> None:
    option = sub.add_argument
    option("--epochs", type=integer("--epochs", 1), metavar="N", help="training epochs (short for --set epochs=N)")
    help_text = "compile the network's passes (short for --set compiled=true)"
    option("--compile", action="store_true", help=help_text)
    help_text = "also show each epoch in a dashboard (needs the extra of this name); changes no number"
    option("--log", choices=["tensorboard", "wandb"], help=help_text)
    help_text = "a hyper-parameter of the defense; repeatable"
    option("--set", action="append", default=[], metavar="KEY=VALUE", help=help_text)


def add_evaluation(sub: argparse.ArgumentParser) -> None:
    option = sub.add_argument
    help_text = (
        "for example cnn:activation=tanh or cnn:mean=0.13:std=0.31, or FILE.py:FUNCTION, called as FUNCTION(shape, "
        "classes): CONTRIBUTING.md"
    )
    option("--model", metavar="SPEC", help=help_text)
    help_text = "for example pgd-50,autoattack; 'none' for clean accuracy only"
    option("--attacks", type=spec_list("--attacks"), metavar="SPEC,...", help=help_text)
    help_text = "for example ibp,alpha-crown (default: none)"
    option("--certifiers", type=spec_list("--certifiers"), default=(), metavar="SPEC,...", help=help_text)
    help_text = "common corruptions: names from `bench list corruptions`, or all, or benchmark (the 15 of CIFAR-10-C)"
    option("--corruptions", type=spec_list("--corruptions"), metavar="NAME,...", help=help_text)
    help_text = "run attacks and certifiers until each example is decided"
    option("--bracket", action="store_true", help=help_text)
    help_text = f"work of --bracket: sub-problems for each example in the certifiers that search (default: {BUDGET})"
    option("--budget", type=work, metavar="N", help=help_text)
    help_text = "end --bracket after 90s, 10m, 2h (default: no limit); a result that it cuts is not publishable"
    option("--time-limit", type=duration, metavar="10m", help=help_text)
    option("--n-examples", type=integer("--n-examples", 1), metavar="N", help="use the first N test examples")
    help_text = "examples of a batch of the evaluation (default: the suite's); random draws of attacks depend on it"
    option("--eval-batch", type=integer("--eval-batch", 1), metavar="N", help=help_text)
    add_machine(sub)
    option("--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of run folders (default: runs)")
    finished = sub.add_mutually_exclusive_group()
    help_text = "print a finished run even if other source code made it"
    finished.add_argument("--reuse", action="store_true", help=help_text)
    help_text = "train and evaluate again, even if the run is finished; the old one is kept in DIR/replaced"
    finished.add_argument("--force", action="store_true", help=help_text)
    option("--json", action="store_true", help="print records as JSON instead of a table")
    add_plugin(sub)


def add_verification(sub: argparse.ArgumentParser, min_sample: int, seed: str = "random") -> None:
    """Add options for the attack with which `bench verify` and `bench submit` check claimed-robust examples."""
    option = sub.add_argument
    help_text = "claimed-robust examples to attack again (default: all; a large sample of more than 2000)"
    option("--sample", type=integer("--sample", min_sample), metavar="N", help=help_text)
    option("--attack", metavar="SPEC", help="the attack on them, for example pgd-50:restarts=5")
    help_text = f"seed of the sample and the attack (default: {seed})"
    option("--seed", type=integer("--seed", 0, 2**31 - 1), metavar="N", help=help_text)
    add_machine(sub)


def print_json(value: Any) -> None:
    """Print a JSON value that may contain msgspec.Structs."""
    from msgspec import to_builtins

    print(json.dumps(to_builtins(value), indent=1))


def verification_settings(args: argparse.Namespace) -> Settings:
    from bench.verify.inputs import settings

    names = ("attack", "sample", "seed", "device", "threads", "data_dir", "plugins")
    return settings(**{name: getattr(args, name) for name in names})
