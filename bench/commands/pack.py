"""`bench pack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.commands import options
from bench.core.errors import UserError


def add(commands: Any) -> None:
    about = "write the weights of a run as a small file: kept weights only, signs as bits"
    sub = commands.add_parser("pack", help=about)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's seed folder, or its weights.safetensors")
    sub.add_argument("out", type=Path, metavar="FILE", help="ends in .packed; `bench eval --checkpoint FILE` reads it")
    options.add_plugin(sub)
    sub.set_defaults(act=act_pack)


def act_pack(args: argparse.Namespace) -> None:
    from bench.core import registry
    from bench.core.record_files import WEIGHTS
    from bench.training.checkpoints import read_spec
    from bench.training.packed import packed_size, save_packed
    from bench.training.packed_format import SUFFIX
    from bench.training.rebuild import load_weights, new_model

    registry.load_plugins(args.plugins)
    if args.out.suffix != SUFFIX:
        raise UserError(f"{args.out} must end in {SUFFIX}")
    path = args.run / WEIGHTS if args.run.is_dir() else args.run
    spec = read_spec(path)
    if spec is None:
        raise UserError(f"{path} does not say how its network is built; give the weights.safetensors of a run")
    model = new_model(spec)
    load_weights(model, path)
    save_packed(args.out, model, spec)
    size = packed_size(model, spec)
    print(
        f"{args.out}: {size.file:,} bytes, of which {size.rest:,} for biases and batch norm; the rest is "
        f"{size.over_bound:.3f} times the entropy of its masks and values ({size.bound / 8:,.0f} bytes)"
    )
