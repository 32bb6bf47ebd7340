"""`bench export` and `bench import-verdicts`: other verifiers get a run's examples, and give their verdicts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.commands import options
from bench.commands.arguments import integer
from bench.core.counts import counted
from bench.core.errors import CheckError

EXPORT = "write a run's network and examples for other verifiers: ONNX, VNN-LIB 2.0, instances.csv"
IMPORT = "add the answers of another verifier to a run; counterexamples are checked"
IMPORT_ROWS = (
    "A row of the results names a property of `bench export` and its answer (sat, unsat, unknown, timeout). Exit code "
    "1: an answer contradicts the run."
)


def add(commands: Any) -> None:
    sub = commands.add_parser("export", help=EXPORT)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    sub.add_argument("--vnnlib", type=Path, required=True, metavar="DIR", help="the folder to write")
    help_text = "only examples that are neither certified nor broken (default: all that are classified correctly)"
    sub.add_argument("--open", action="store_true", help=help_text)
    help_text = "time limit of an instance in instances.csv (default: 100)"
    sub.add_argument("--seconds", type=integer("--seconds", 1), default=100, metavar="N", help=help_text)
    options.add_machine(sub)
    options.add_plugin(sub)
    sub.set_defaults(act=act_export)

    sub = commands.add_parser("import-verdicts", help=IMPORT, epilog=IMPORT_ROWS)
    sub.add_argument("run", type=Path, metavar="RUN", help="the run folder that was exported")
    sub.add_argument("results", type=Path, metavar="RESULTS", help="the tool's results.csv")
    sub.add_argument("--by", required=True, metavar="TOOL", help="the name of the verifier")
    help_text = "folder of its counterexamples: files with `(X_0 0.5)` or `(X[0, 0, 0, 0] 0.5)`, named after properties"
    sub.add_argument("--counterexamples", type=Path, metavar="DIR", help=help_text)
    options.add_machine(sub)
    options.add_plugin(sub)
    sub.set_defaults(act=act_import)


def _settings(args: argparse.Namespace) -> Any:
    from bench.verify.inputs import settings

    return settings(device=args.device, threads=args.threads, data_dir=args.data_dir, plugins=args.plugins)


def act_export(args: argparse.Namespace) -> None:
    from bench.publish.vnnlib_export import export_vnnlib

    done = export_vnnlib(args.run, args.vnnlib, args.seconds, _settings(args), only_open=args.open)
    print(
        f"{args.vnnlib}: {counted(done.instances, 'instance')}; the logits of ONNX differ from the model's by at most "
        f"{done.difference:.1g} of the largest logit"
    )


def act_import(args: argparse.Namespace) -> None:
    from bench.publish.verdicts import import_verdicts

    verdicts = import_verdicts(args.run, args.results, args.by, _settings(args), args.counterexamples)
    print(verdicts.as_text())
    if verdicts.contradicted or verdicts.refuted:
        n = len(verdicts.contradicted) + len(verdicts.refuted)
        raise CheckError(
            f"{args.run} contradicts {n} of the answers of {args.by}; they are stored, `bench show` lists them"
        )
