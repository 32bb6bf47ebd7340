"""`bench submit --contest`: adversarial examples lower a published accuracy, where they hold up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tabulate import tabulate

from bench.core import files
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Flags
from bench.core.records import Artifact
from bench.datasets.split import Split
from bench.publish.fetch_artifacts import OpenUrl, download, open_https
from bench.publish.static_checks import (
    ARTIFACTS,
    WEIGHTS,
    check_by,
    check_url,
    check_weights,
    check_witnesses,
    read_submitted_contest,
)
from bench.publish.submit import check_code, check_size, pull_request
from bench.publish.untrusted_files import one_plain_line, plain
from bench.verify.run import Settings, load_data, load_model, make_context
from bench.verify.witnesses import check_points
from leaderboard.published_results import Contest, EvaluatedRun, add_contest, check_name, read_evaluated_run

HOLDS = "robust by the record, and fall"


@dataclass(frozen=True)
class Contested:
    """What became of a contest's witnesses: their examples by outcome, and the certified among those that fell."""

    outcomes: dict[str, list[int]]
    refuted: list[int]

    @property
    def broken(self) -> list[int]:
        return self.outcomes[HOLDS]

    def __str__(self) -> str:
        rows = [(len(found), what, _few(found)) for what, found in self.outcomes.items() if found]
        return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _few(examples: Sequence[int]) -> str:
    return f"test examples {', '.join(map(str, examples[:8]))}{', ...' if len(examples) > 8 else ''}"


def contest(
    results: Path,
    entry: str,
    witnesses: Path,
    *,
    weights: Path,
    by: str,
    settings: Settings,
    url: str | None = None,
) -> None:
    """Lower a published run, SUITE/ENTRY/SEED, by adversarial examples that its own evaluation did not find.

    witnesses: an .npz with `index` (m,) int64, the test examples, and `x_adv` (m,C,H,W) float32 in [0, 1]. weights: the
    file that the record names. url: the https address where the witnesses will lie for everybody. What holds is
    recorded; CheckError where nothing does, and where a certified example fell, which refutes its certificate.
    """
    suite, name, seed, run = _published(results, entry)
    check_by(by)
    if url is not None:
        check_url(url)
    found = _judge_contest(run, witnesses, weights, settings)
    print(f"{found}\n")
    if not found.broken:
        raise CheckError(f"refused: of {witnesses.name} no witness breaks an example that {entry} counts as robust")
    file = Artifact(sha256=files.sha256(witnesses), bytes=witnesses.stat().st_size, url=url)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    path = add_contest(results, suite, name, seed, Contest(by=by, broken=found.broken, witnesses=file, finished=now))
    before = float(run.robust.mean())
    after = before - len(found.broken) / len(run.robust)
    print(f"{entry}: {before:.2%} robust before, {after:.2%} now, by {path}\n\n{pull_request(path.parents[2])}")
    if url is None:
        print("\nNobody else can check it: publish the witnesses, and say where with --artifacts.")
    _alarm(entry, found)


def recheck_contest(
    results: Path, entry: str, file: Path, *, settings: Settings, open_url: OpenUrl = open_https
) -> None:
    """Judge a contest that somebody else wrote, from the addresses of its witnesses and of the run's weights.

    CheckError where its witnesses do not break exactly the examples that it says.
    """
    *_, run = _published(results, entry)
    claimed = read_submitted_contest(file)
    with TemporaryDirectory(prefix="bench-contest-") as name:
        weights, witnesses = Path(name) / WEIGHTS, Path(name) / ARTIFACTS["witnesses"]
        download(run.record.artifacts["weights"], weights, open_url)
        download(claimed.witnesses, witnesses, open_url)
        found = _judge_contest(run, witnesses, weights, settings)
    print(f"{found}\n")
    if found.broken != claimed.broken:
        raise CheckError(f"refused: {file.name} counts {len(claimed.broken)} broken, its witnesses {len(found.broken)}")
    _alarm(entry, found)


def _alarm(entry: str, found: Contested) -> None:
    if found.refuted:
        raise CheckError(f"CERTIFICATE REFUTED: {entry} certified {_few(found.refuted)}, which fall; see the contest")


def _published(results: Path, entry: str) -> tuple[str, str, int, EvaluatedRun]:
    match entry.split("/"):
        case [suite, name, seed] if seed.isascii() and seed.isdecimal() and len(seed) < 11:
            folder = results / check_name(suite, "suite") / check_name(name, "entry") / str(int(seed))
            if not folder.is_dir():
                raise UserError(f"{entry} is not in {results}; `bench leaderboard` shows what is")
            return suite, name, int(seed), read_evaluated_run(folder)
    raise UserError(f"{plain(entry)!a} names no published run; write SUITE/ENTRY/SEED, as digits/pgd-at/0")


def _judge_contest(run: EvaluatedRun, witnesses: Path, weights: Path, settings: Settings) -> Contested:
    record = run.record
    check_code(record, settings)
    with one_plain_line(witnesses.name):
        check_weights(weights)
        check_witnesses(witnesses)
        if files.sha256(weights) != record.artifacts["weights"].sha256:
            raise UserError(f"{weights} are not the weights of the record, {record.artifacts['weights'].sha256[:12]}")
        data = load_data(record, None, settings)
        if data.hash != record.config.get("data_hash"):
            raise UserError(f"{data.name} here is not the data set of the record; name its folder with --data-dir")
        arrays = files.read_arrays(witnesses)
        index, x_adv = arrays["index"], arrays["x_adv"]
        if index.dtype != np.int64 or x_adv.dtype != np.float32 or index.ndim != 1 or not index.size:
            raise UserError(
                f"'index' is {index.dtype} {index.shape}, 'x_adv' {x_adv.dtype}; not int64 (m,) and float32"
            )
        if x_adv.shape != (len(index), *data.shape):
            raise UserError(f"'x_adv' is of {x_adv.shape}; for {len(index)} images it is {(len(index), *data.shape)}")
        if index.min() < 0 or index.max() >= len(run.robust):
            raise UserError(f"the run is of test examples 0 to {len(run.robust) - 1}; there are witnesses of others")
        check_size(weights, record.model, data)
        model = load_model(weights, record, data, settings)
        context = make_context(model, Split.test(data, settings.device), record, settings)
        checked = check_points(context, index, x_adv)
    stands = run.robust[index]
    outcomes: dict[str, Flags] = {
        HOLDS: stands & checked.adversarial,
        "fallen already, or wrong without any attack": ~stands,
        "beyond eps": stands & checked.too_far,
        "outside [0, 1]": stands & checked.out_of_box & ~checked.too_far,
        "classified right": stands & (checked.correct | checked.near_tie) & ~checked.too_far & ~checked.out_of_box,
    }
    broken = index[outcomes[HOLDS]]
    return Contested(
        {what: np.unique(index[of]).tolist() for what, of in outcomes.items()},
        np.unique(broken[run.certified[broken]]).tolist(),
    )
