"""The command line: `bench COMMAND`. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.arguments import Parser, duration, eps_list, fail, seed_list, whole
from bench.core import registry
from bench.core.config import parse_overrides, suites
from bench.core.errors import CheckError, UserError
from bench.core.roots import check_one_root
from bench.core.specs import parse_value

if TYPE_CHECKING:
    from bench.core.records import Record
    from bench.plan import Request

BUDGET = 600.0  # seconds of a bracket

# what a study's parameter may be given as, without --set
STUDY_OPTIONS = ("table", "checkpoints", "checkpoint", "model", "dataset", "data_dir", "n_examples", "figure")

KINDS: dict[str, registry.Registry] = {
    "defenses": registry.defense,
    "attacks": registry.attack,
    "libraries": registry.library,
    "certifiers": registry.certifier,
    "datasets": registry.dataset,
    "models": registry.model,
    "studies": registry.study,
}


def parser() -> Parser:
    top = Parser(prog="bench", description="Robust accuracy between what is certified and what survives every attack.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    sub = commands.add_parser("list", help="what there is: defenses, attacks, data sets, models, suites ...")
    sub.add_argument("kind", nargs="?", choices=[*KINDS, "suites"])
    sub.add_argument("--json", action="store_true", help="for programs")
    _add_plugin(sub)
    sub.set_defaults(act=act_list)

    sub = commands.add_parser("run", help="train a defense (or resume), attack and certify it, tabulate it")
    sub.add_argument("--defense", required=True, metavar="NAME", help="see `bench list defenses`")
    sub.add_argument("--epochs", type=whole("--epochs", 1), help="length of the training (short for --set epochs=N)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the defense")
    _add_run_options(sub)
    sub.set_defaults(act=act_run, checkpoint=None)

    sub = commands.add_parser("eval", help="attack and certify weights that are there already")
    sub.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=".safetensors, or a state dict")
    _add_run_options(sub)
    sub.set_defaults(act=act_run, defense=None, epochs=None, set=[])

    sub = commands.add_parser("verify", help="check a run's evidence again: labels, witnesses, certificates, leaks")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    sub.add_argument("--sample", type=whole("--sample", 0), metavar="N", help="claimed-robust examples to attack again")
    sub.add_argument("--attack", metavar="SPEC", help="what attacks them, as pgd-50:restarts=5")
    sub.add_argument("--seed", type=whole("--seed", 0, 2**31 - 1), help="of the sample and the attack (default: drawn)")
    sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sub.add_argument("--threads", type=whole("--threads", 1, 1024), help="CPU threads (default: by the model's size)")
    sub.add_argument("--data-dir", type=Path, help="where NAME.npz is (or BENCH_DATA)")
    sub.add_argument("--json", action="store_true", help="for programs")
    _add_plugin(sub)
    sub.set_defaults(act=act_verify)

    sub = commands.add_parser("table", help="finished runs side by side")
    sub.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of them (default: runs)"
    )
    sub.add_argument("--format", choices=["markdown", "csv", "latex", "json"], default="markdown")
    sub.set_defaults(act=act_table)

    sub = commands.add_parser("study", help="an experiment that is neither a defense nor an attack")
    sub.add_argument("name", metavar="NAME", help="see `bench list studies`")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the study")
    for name in STUDY_OPTIONS:
        sub.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"short for --set {name}=VALUE")
    _add_plugin(sub)
    sub.set_defaults(act=act_study)
    return top


def _add_plugin(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--plugin", action="append", default=[], type=Path, metavar="FILE", help="code of your own")


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--suite", metavar="NAME", help="rules of a leaderboard (default: digits)")
    sub.add_argument("--dataset", metavar="NAME", help="a data set's name, or an .npz")
    sub.add_argument("--model", metavar="SPEC", help="as cnn:activation=tanh, or FILE.py:FUNCTION")
    sub.add_argument("--norm", choices=["Linf", "L2", "L1"])
    sub.add_argument(
        "--eps",
        type=eps_list,
        metavar="8/255,...",
        help="in the scale of images in [0, 1]; after the first: attack there too",
    )
    sub.add_argument("--attacks", metavar="SPEC,...", help="as pgd-50,autoattack; 'none' for clean accuracy alone")
    sub.add_argument("--certifiers", metavar="SPEC,...", help="as ibp,alpha-crown (default: none)")
    sub.add_argument("--bracket", action="store_true", help="attacks and certifiers in turn, until all is decided")
    sub.add_argument("--budget", type=duration, metavar="10m", help="of the bracket, as 90s, 10m, 2h (default: 10m)")
    sub.add_argument("--n-examples", type=whole("--n-examples", 1), metavar="N", help="the first N of the test set")
    sub.add_argument("--seeds", type=seed_list, default=[0], metavar="0,1,2", help="one run each (default: 0)")
    sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sub.add_argument("--threads", type=whole("--threads", 1, 1024), help="CPU threads (default: by the model's size)")
    sub.add_argument("--data-dir", type=Path, help="where NAME.npz is (or BENCH_DATA)")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    sub.add_argument("--json", action="store_true", help="print records instead of a table")
    _add_plugin(sub)


def act_list(args: argparse.Namespace) -> None:
    for path in args.plugin:
        registry.load_plugin(path)
    kinds = [args.kind] if args.kind else [*KINDS, "suites"]
    found = {kind: _summaries(kind) for kind in kinds}
    if args.json:
        print(json.dumps(found[args.kind] if args.kind else found, indent=1))
        return
    for kind, summaries in found.items():
        if not args.kind:
            print(f"{kind}:" if summaries else f"{kind}: none yet")
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            print(f"{'' if args.kind else '  '}{name:<{width}}  {summary}".rstrip())


def _summaries(kind: str) -> dict[str, str]:
    if kind == "suites":
        return {name: suite.summary for name, suite in suites().items()}
    return {name: entry.summary for name, entry in KINDS[kind].entries().items()}


def act_run(args: argparse.Namespace) -> None:
    request = _request(args)
    from bench import harness, plan
    from leaderboard.tables import comparison, run_table

    resolved = plan.plan(request)
    records: list[Record] = []
    for seed in args.seeds:
        finished = (resolved.folder(seed) / "record.json").exists()
        record, folder = harness.run(resolved, seed)
        records.append(record)
        if not args.json:
            when = f" (was finished already, {record.provenance.get('finished')})" if finished else ""
            print(f"\n{run_table(record)}\n\nrun folder: {folder}{when}")
    if args.json:
        from msgspec import to_builtins

        print(json.dumps([to_builtins(record) for record in records], indent=1))
    elif len(records) > 1:
        print(f"\n{comparison(records, 'markdown')}")


def _request(args: argparse.Namespace) -> Request:
    overrides = parse_overrides(args.set)
    if args.epochs is not None:
        if "epochs" in overrides:
            raise UserError("--epochs and --set epochs=... are both given; keep one")
        overrides["epochs"] = str(args.epochs)
    if args.defense is not None and args.defense not in registry.defense and not args.plugin:
        registry.defense.get(args.defense)  # fails with the nearest name, before torch is loaded
    from bench.plan import Request

    if args.budget is not None and not args.bracket:
        raise UserError("--budget is the bracket's; give --bracket too")
    return Request(
        defense=args.defense, checkpoint=args.checkpoint, suite=args.suite, dataset=args.dataset, model=args.model,
        norm=args.norm, eps=args.eps, attacks=_specs(args.attacks, "--attacks"),
        certifiers=_specs(args.certifiers, "--certifiers") or (),
        bracket=(args.budget or BUDGET) if args.bracket else None, n_examples=args.n_examples,
        overrides=overrides, device=args.device, threads=args.threads, plugins=args.plugin, data_dir=args.data_dir,
        out=args.out,
    )  # fmt: skip


def _specs(words: str | None, option: str) -> list[str] | None:
    """The specs of an option; [] for `none`, None where it is not given."""
    specs = None if words is None else [word.strip() for word in words.split(",")]
    if specs is not None and "" in specs:
        raise UserError(f"{option} '{words}' has an empty place; write specs with commas between, or none")
    return [] if specs == ["none"] else specs


def act_verify(args: argparse.Namespace) -> None:
    from bench.core.records import find_records
    from bench.findings import as_table
    from bench.verification import settings, verify

    folders = find_records(args.runs)
    chosen = settings(
        attack=args.attack, sample=args.sample, seed=args.seed, device=args.device, threads=args.threads,
        data_dir=args.data_dir, plugins=args.plugin,
    )  # fmt: skip
    found = {str(folder): verify(folder, chosen) for folder in folders}
    if args.json:
        from msgspec import to_builtins

        how = {"attack": chosen.attack, "sample": chosen.sample, "seed": chosen.seed}
        plain = [{"run": run, **how, "findings": to_builtins(report)} for run, report in found.items()]
        print(json.dumps(plain, indent=1))
    else:
        print("\n\n".join(f"{run}\n{as_table(report)}" for run, report in found.items()))
    failed = [run for run, report in found.items() if any(each.outcome == "failed" for each in report)]
    if failed:
        raise CheckError(f"{len(failed)} of {len(found)} runs failed, the first is {failed[0]}")


def act_table(args: argparse.Namespace) -> None:
    from bench.core.records import find_records, read_run
    from leaderboard.tables import comparison

    folders = find_records(args.runs or [Path("runs")])
    print(comparison([read_run(folder) for folder in folders], args.format))


def act_study(args: argparse.Namespace) -> None:
    for path in args.plugin:
        registry.load_plugin(path)
    from bench.core.specs import options_of

    study = registry.study.get(args.name)
    hints = options_of(study)
    options = {}
    given = [f"{name}={value}" for name in STUDY_OPTIONS if (value := getattr(args, name)) is not None]
    for key, value in parse_overrides([*args.set, *given]).items():
        if key not in hints:
            raise UserError(f"study '{args.name}' has no parameter '{key}'; it has {', '.join(hints)}")
        options[key] = parse_value(value, hints[key][0], f"study '{args.name}': {key}")
    print(study(**options))


def main(argv: Sequence[str] | None = None) -> None:
    """Exit 0: done; 1: a check failed; 2: the user's mistake, in one line."""
    try:
        check_one_root()
        args = parser().parse_args(argv)
        args.act(args)
    except UserError as error:
        fail(str(error))
    except CheckError as error:
        fail(str(error), code=1)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}; choose a place that can be read and written")
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here", code=130)


if __name__ == "__main__":
    main()
