"""`bench show RUN`: one record in full."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.options import add_plugin, add_suites_option, print_json
from bench.core import registry
from bench.core.config import Suite, TrainingConfig, add_suites, as_json, make_config, suites
from bench.core.errors import UserError
from bench.core.model_specs import parse_model
from bench.core.record_command import give_code
from bench.core.specs import parse_spec

if TYPE_CHECKING:
    from bench.core.records import Record
    from leaderboard.record_report import Setting

UNKNOWN = "unknown"  # the default of a setting of a defense that is not registered


def add(commands: Any) -> None:
    sub = commands.add_parser("show", help="print one run in full: settings, costs, checks, provenance")
    sub.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    sub.add_argument("--json", action="store_true", help="print the record as JSON, with the settings that differ")
    sub.add_argument("--all", action="store_true", help="also list the checks that passed or were skipped")
    add_suites_option(sub)
    add_plugin(sub)
    sub.set_defaults(act=act_show)


def act_show(args: argparse.Namespace) -> None:
    from bench.core.record_files import find_records, read_run
    from bench.core.verdict_files import read_verdicts
    from bench.core.verification import verified
    from leaderboard.published_report import after_contests, read_published
    from leaderboard.record_report import record_report
    from leaderboard.render import terminal_width, wrapped

    if args.suites is not None:
        add_suites(args.suites)
    folders = find_records([args.run])
    if len(folders) > 1:
        raise UserError(f"{args.run} holds {len(folders)} runs; give one of them, such as {folders[0]}")
    registry.load_plugins(args.plugins)
    folder = folders[0]
    record = verified(read_run(folder), folder)
    suite = _suite_of(record)
    settings = _all_settings(record) if suite is None else _differences(record, suite)
    name = None if suite is None else suite.name
    verdicts, published = read_verdicts(folder), read_published(folder)
    if args.json:
        values: dict[str, Any] = {"folder": str(folder), "suite": name, "settings": settings, "record": record}
        if published is not None:
            values |= {"contests": published.contests, "checked": published.checked}
            values |= {"after_contests": after_contests(published)}
        print_json(values | ({"verdicts": verdicts} if verdicts else {}))
        return
    note = "" if suite is None else _unknown_defense(record)
    report = record_report(
        record, folder, settings, name, terminal_width(), note=note, every=args.all, published=published
    )
    print(report)
    if verdicts:
        print("\nOther verifiers:", *(wrapped(each.as_text(), terminal_width()) for each in verdicts), sep="\n\n")


def _suite_of(record: Record) -> Suite | None:
    """The suite of the run, or of its data set if it names none; None if the suite is unknown."""
    return suites().get(record.suite or record.dataset)


def _all_settings(record: Record) -> list[Setting]:
    from leaderboard.record_report import Setting

    training = record.config.get("training", {})
    settings = {key: value for key, value in record.config.items() if key != "training"} | training
    return [Setting(name, value, None) for name, value in settings.items()]


def _is_unknown(record: Record) -> bool:
    return record.training is not None and record.defense not in registry.defense


def _unknown_defense(record: Record) -> str:
    """Say that the settings of a plugin's defense have no defaults to compare with; "" for a registered defense."""
    if not _is_unknown(record):
        return ""
    return (
        f"The defense '{record.defense}' is unknown here, so its own settings are all listed; {give_code(record)} to "
        "compare them with its defaults."
    )


def _differences(record: Record, suite: Suite) -> list[Setting]:
    """The settings of a run that differ from the suite's rules, or from the defense's defaults if it has no rule.

    Settings that the run's version did not have are left out. Of a defense that is not registered (its --plugin was not
    given), settings that every defense has are compared with the suite's, and all others are listed as unknown.
    """
    from leaderboard.record_report import Setting

    special = dict(suite.defenses.get(record.defense, {}))
    model = special.pop("model", suite.model)
    rules: dict[str, Any] = {"model": parse_model(model)[0].text, "norm": suite.norm, "eps": suite.eps, "box": True}
    if record.bracket is None:  # with a bracket, the suite's attacks are not run by default
        rules["attacks"] = [parse_spec(spec, registry.attack).text for spec in suite.attacks]
    named = (*rules, "attacks", "certifiers", "budget", "time_limit", "bracket")
    settings: dict[str, Any] = {key: record.config.get(key) for key in named} | {"box": record.threat.box}
    if not suite.corruptions:  # those of a suite have names for several, such as benchmark
        settings["corruptions"] = record.config.get("corruptions")
    if record.training is not None:
        settings |= record.config.get("training", {})
        if record.defense in registry.defense:
            config_class = registry.defense.get(record.defense).config_class
            rules |= as_json(make_config(config_class, record.defense, suite.training, special))
        else:
            by_suite = {**suite.training, **special}
            common = {key: value for key, value in by_suite.items() if key in TrainingConfig.__dataclass_fields__}
            known = as_json(make_config(TrainingConfig, record.defense, common))
            rules |= dict.fromkeys(record.config.get("training", {}), UNKNOWN) | by_suite | known
    return [Setting(k, v, rules.get(k)) for k, v in settings.items() if (v or k in rules) and v != rules.get(k)]
