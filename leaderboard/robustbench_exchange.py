"""Import of RobustBench's model_info as reported entries, and export of our entries as model_info."""

import statistics
from pathlib import Path
from typing import Any

import msgspec

from bench.core.config import CORRUPTIONS, Suite, get_suite
from bench.core.errors import UserError
from bench.core.folders import changed_in_one_step
from leaderboard.model_info import ModelInfo
from leaderboard.published_results import ABOUT, REPORTED, About, Entry, check_name, suite_folder
from leaderboard.render import threat_name
from leaderboard.untrusted_text import ascii_quotes, check_line

SAME_EPS = 0.02  # relative: RobustBench lists both 0.031 and 8/255


def export_model_info(entry: Entry) -> dict[str, Any]:
    """The model_info of an entry: means over its seeds, in percent with two decimals.

    `reported` is the accuracy under all of our attacks and contests. If it is below that of AutoAttack, it is also
    `external`. UserError if the entry was not attacked.
    """
    if entry.reported is not None:
        return entry.reported.as_json()
    if not entry.measured:
        raise UserError(f"{entry.name} was not attacked; RobustBench lists accuracies under attack only")
    records, about = [run.record for run in entry.runs], entry.about
    robust, clean = [float(run.robust.mean()) for run in entry.runs], [record.clean.acc for record in records]
    attacked = statistics.fmean(robust)
    columns = [run.columns["autoattack"] for run in entry.runs if "autoattack" in run.columns]
    autoattack = [float(column.mean()) for column in columns]
    by_autoattack = statistics.fmean(autoattack) if len(autoattack) == len(records) else None
    lower = by_autoattack is not None and _percent(attacked) != _percent(by_autoattack)
    seeds = ""
    if len(records) > 1:
        spreads = f"{_percent(statistics.stdev(clean))} (clean) and {_percent(statistics.stdev(robust))} (attacked)"
        seeds = f"Mean over {len(records)} seeds, with standard deviations of {spreads} points."
    return ModelInfo(
        name=about.title, dataset=records[0].dataset, link=about.url, authors=about.authors, venue=about.paper,
        architecture=records[0].model, additional_data=about.extra_data,
        eps=threat_name(records[0].threat).partition(" ")[2], number_forward_passes=records[0].networks,
        clean_acc=_percent(statistics.fmean(clean)), reported=_percent(attacked),
        autoattack_acc=None if by_autoattack is None else _percent(by_autoattack),
        external=_percent(attacked) if lower else None,
        footnote=" ".join(part for part in (about.note, seeds) if part) or None,
        unreliable=any(record.sanity.verdict == "unreliable" for record in records),
    ).as_json()  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def import_model_info(path: Path, results: Path, suite: str, name: str, norm: str) -> Path:
    """Write a model_info file into results/SUITE/NAME as a reported entry; returns the new folder.

    norm: Linf, L2 or corruptions, which RobustBench encodes in the name of the file's folder. UserError if the file has
    another data set or threat model than the suite, or if the entry exists already.
    """
    rules, info = get_suite(suite), ModelInfo.read(path)
    if (info.dataset, norm) != (rules.dataset, rules.norm):
        raise UserError(f"{path} is for {info.dataset}, {norm}; suite {suite} is for {rules.dataset}, {rules.norm}")
    if norm == CORRUPTIONS:
        if info.corrupted is None:
            raise UserError(f"{path} has no accuracy under corruptions; only models with one can be added")
    elif not same_eps(info, rules):
        raise UserError(f"{path} has eps {info.eps}; suite {suite} has {rules.eps:g}")
    elif info.attacked is None:
        raise UserError(f"{path} has no accuracy under attack; only models with one can be added")
    if info.attacked is not None and info.attacked > info.clean:
        raise UserError(f"{path} has {info.attacked:.2%} under attack and {info.clean:.2%} without one; correct it")
    about = _about(info)
    for key in ("title", "paper", "authors", "note", "url"):
        check_line(getattr(about, key) or "", f"{path.name}: {key}")
    for key in ("architecture", "eps"):
        check_line(str(getattr(info, key) or ""), f"{path.name}: {key}")
    home = suite_folder(results, suite) / check_name(name, "entry")
    if home.exists():
        raise UserError(f"{home} exists already; remove it, or choose another name")
    with changed_in_one_step(home.parent) as part:
        (part / name).mkdir()
        (part / name / ABOUT).write_bytes(msgspec.toml.encode(about))
        (part / name / REPORTED).write_bytes(path.read_bytes())  # unchanged, so that no field is lost
    return home


def same_eps(info: ModelInfo, rules: Suite) -> bool:
    """Whether a file is for the eps of a suite. Files about corruptions have no eps, or a meaningless one."""
    return info.threat_eps is not None and abs(info.threat_eps - rules.eps) <= SAME_EPS * rules.eps


def _about(info: ModelInfo) -> About:
    data = f"Additional data: {info.data}." if info.data.startswith("synthetic") else None
    notes = [
        info.note,
        data,
        info.corruption_note,
        "RobustBench calls its accuracy unreliable." if info.unreliable else None,
    ]
    return About(
        title=ascii_quotes(" ".join(info.name.split())),
        paper=ascii_quotes(", ".join(part for part in (info.authors, info.venue) if part)),
        licence="not stated",
        authors=ascii_quotes(info.authors or ""),
        url=info.link if (info.link or "").startswith("https://") else None,
        extra_data=info.additional_data,
        note=ascii_quotes(" ".join(part for part in notes if part)) or None,
    )
