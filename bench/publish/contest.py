"""`bench submit --contest`: adversarial examples lower a published accuracy if they pass every check.

The witnesses, the weights, and a contest file by somebody else are untrusted. They are checked as in
bench/publish/submit.py, and the weights must have the hash of the published record. The published record and its table,
this package and its data sets are trusted.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.core import files
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Flags
from bench.core.record_files import WEIGHTS, WITNESSES
from bench.core.records import Artifact
from bench.datasets.split import Split
from bench.publish import static_checks
from bench.publish.fetch_artifacts import OpenUrl, download, open_https
from bench.publish.imitated_names import check_contest_author
from bench.publish.private_copy import copy_file
from bench.publish.static_checks import ARTIFACTS, MAX_BYTES
from bench.publish.submit import check_code, check_size, pull_request
from bench.publish.untrusted_files import check_url, errors_as_one_line, printable
from bench.verify.inputs import Settings, load_data, load_model, make_context
from bench.verify.witnesses import check_points
from leaderboard.published_results import (
    Contest,
    EvaluatedRun,
    add_contest,
    check_name,
    contest_file,
    read_evaluated_run,
    suite_folder,
)
from leaderboard.render import render

MOST_TRIES = 10  # maximum number of witnesses of a contest per example
BROKEN = "robust in the record, now broken"


@dataclass(frozen=True)
class ContestResult:
    """The test examples of a contest's witnesses by outcome, and the newly broken ones that the record certified."""

    outcomes: dict[str, list[int]]
    refuted: list[int]

    @property
    def broken(self) -> list[int]:
        return self.outcomes[BROKEN]

    def __str__(self) -> str:
        rows = [(len(rows), what, _first_few(rows)) for what, rows in self.outcomes.items() if rows]
        return render([], rows, "plain")


def _first_few(examples: Sequence[int]) -> str:
    return f"test examples {', '.join(map(str, examples[:8]))}{', ...' if len(examples) > 8 else ''}"


def contest_run(
    results: Path, run: str, witnesses: Path, *, weights: Path, by: str, settings: Settings, url: str | None = None
) -> None:
    """Lower a published run, SUITE/ENTRY/SEED, by adversarial examples that its own evaluation did not find.

    witnesses: an .npz with `index` (m,) int64, the test examples, and `x_adv` (m,C,H,W) float32 in [0, 1]. weights: the
    file whose hash the record names. url: the https address at which the witnesses will be public. Newly broken
    examples are recorded. CheckError if there are none, or if one of them was certified: its certificate is refuted.
    """
    suite, entry, seed, published = _read_published(results, run)
    static_checks.check_author(by)
    check_contest_author(by)
    if url is not None:
        check_url(url)
    with TemporaryDirectory(prefix="bench-contest-") as name:
        copy = Path(name) / witnesses.name  # so that the checked file is the hashed one
        with errors_as_one_line(witnesses.name):
            copy_file(witnesses, copy, MAX_BYTES[WITNESSES])
        file = Artifact(sha256=files.sha256(copy), bytes=copy.stat().st_size, url=url)
        if (counted := contest_file(published.folder, file.sha256)).exists():
            print(f"{counted} exists already; these witnesses have been counted")
            return
        result = _check_contest(published, copy, weights, settings)
    print(f"{result}\n")
    if not result.broken:
        raise CheckError(f"refused: no witness in {witnesses.name} breaks an example that {run} counts as robust")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    contest = Contest(by=by, broken=result.broken, witnesses=file, finished=now)
    path = add_contest(results, suite, entry, seed, contest)
    before = float(published.robust.mean())
    after = before - len(result.broken) / len(published.robust)
    print(f"{run}: {before:.2%} robust before, {after:.2%} now, by {path}\n\n{pull_request(path.parents[2])}")
    if url is None:
        print("\nNobody else can check it: publish the witnesses, and name their address with --artifacts.")
    _raise_if_refuted(run, result)


def recheck_contest(results: Path, run: str, file: Path, *, settings: Settings, open_url: OpenUrl = open_https) -> None:
    """Check somebody else's contest; download its witnesses and the run's weights from their addresses.

    CheckError if its witnesses do not break exactly the examples that it lists.
    """
    *_, published = _read_published(results, run)
    claimed = static_checks.read_submitted_contest(file)
    check_contest_author(claimed.by)
    with TemporaryDirectory(prefix="bench-contest-") as name:
        weights, witnesses = Path(name) / WEIGHTS, Path(name) / ARTIFACTS["witnesses"]
        download(published.record.artifacts["weights"], weights, open_url)
        download(claimed.witnesses, witnesses, open_url)
        result = _check_contest(published, witnesses, weights, settings)
    print(f"{result}\n")
    if result.broken != claimed.broken:
        counts = f"{len(claimed.broken)} broken examples, its witnesses break {len(result.broken)}"
        raise CheckError(f"refused: {file.name} lists {counts}")
    _raise_if_refuted(run, result)


def _raise_if_refuted(run: str, result: ContestResult) -> None:
    if result.refuted:
        raise CheckError(f"CERTIFICATE REFUTED: {run} certified {_first_few(result.refuted)}; see the contest")


def _read_published(results: Path, run: str) -> tuple[str, str, int, EvaluatedRun]:
    match run.split("/"):
        case [suite, entry, seed] if seed.isascii() and seed.isdecimal() and len(seed) < 11:
            folder = suite_folder(results, suite) / check_name(entry, "entry") / str(int(seed))
            if not folder.is_dir():
                raise UserError(f"{run} is not in {results}; `bench leaderboard` lists the entries")
            return suite, entry, int(seed), read_evaluated_run(folder)
    raise UserError(f"{printable(run)!a} is not a published run; write SUITE/ENTRY/SEED, as in digits/pgd-at/0")


def _check_contest(run: EvaluatedRun, witnesses: Path, weights: Path, settings: Settings) -> ContestResult:
    record = run.record
    check_code(record, settings)
    with errors_as_one_line(witnesses.name):
        static_checks.check_weights_file(weights)
        static_checks.check_witness_file(witnesses)
        if files.sha256(weights) != record.artifacts["weights"].sha256:
            raise UserError(f"{weights} are not the weights of the record, {record.artifacts['weights'].sha256[:12]}")
        data = load_data(record, None, settings)
        if data.hash != record.config.get("data_hash"):
            raise UserError(f"{data.name} has a different hash from the record's; give its folder with --data-dir")
        static_checks.check_witness_number(witnesses, data.shape, MOST_TRIES * len(run.robust))
        arrays = files.read_arrays(witnesses)
        index, x_adv = arrays["index"], arrays["x_adv"]
        if index.dtype != np.int64 or x_adv.dtype != np.float32 or index.ndim != 1 or not index.size:
            raise UserError(f"'index' is {index.dtype} {index.shape}, 'x_adv' {x_adv.dtype}; not int64 (m,), float32")
        if x_adv.shape != (shape := (len(index), *data.shape)):
            raise UserError(f"'x_adv' has the shape {x_adv.shape}; it must be {shape}")
        if index.min() < 0 or index.max() >= len(run.robust):
            raise UserError(f"'index' has test examples other than 0 to {len(run.robust) - 1}, those of the run")
        check_size(weights, record.model, data)
        model = load_model(weights, record, data, settings)
        context = make_context(model, Split.test(data, settings.device), record, settings)
        checked = check_points(context, index, x_adv)
    robust = run.robust[index]
    outcomes: dict[str, Flags] = {
        BROKEN: robust & checked.adversarial,
        "broken already, or misclassified without an attack": ~robust,
        "beyond eps": robust & checked.too_far,
        "outside [0, 1]": robust & checked.out_of_box & ~checked.too_far,
        "classified correctly": robust & (checked.correct | checked.near_tie) & ~checked.too_far & ~checked.out_of_box,
    }
    broken = index[outcomes[BROKEN]]
    return ContestResult(
        {what: np.unique(index[rows]).tolist() for what, rows in outcomes.items()},
        np.unique(broken[run.certified[broken]]).tolist(),
    )
