"""Published results of made-up entries, as small as they can be."""

import numpy as np

from bench.core import files, record_checks, record_files
from bench.core.example_table import Threat, accuracy, mean_accuracy, mean_radius, robustness
from bench.core.files import sha256
from bench.core.records import (
    SCHEMA,
    Artifact,
    AttackResult,
    Bracket,
    BracketStage,
    CertifierResult,
    CorruptionResult,
    Record,
    Sanity,
    Training,
)
from leaderboard.published_results import About
from leaderboard.publishing import add_runs
from leaderboard.verification_files import Checked, RepeatedAttack, Reproduction, write_reproduction

ABOUT = About(title="An entry", paper="Somebody (2026)", licence="MIT")
CHECK = Sanity("no-warnings", [])


def flags(n, hits, first=0):
    """hits of n examples are True, from `first` on."""
    column = np.zeros(n, dtype=np.bool_)
    column[first : first + hits] = True
    return column


def table_of(robust, *, clean=None, certified=None, **columns):
    clean = np.ones_like(robust) if clean is None else clean
    n = len(robust)
    table = {
        "index": np.arange(n), "label": np.zeros(n, dtype=np.int64), "prediction": np.where(clean, 0, 1),
        "clean": clean, "robust/pgd-50": robust, "passes/pgd-50": np.full(n, 100),
    }  # fmt: skip
    if certified is not None:
        table |= {"certified/ibp": certified, "radius/ibp": np.where(certified, 0.2, 0).astype(np.float32)}
    return table | columns


def under_fog(robust, hits, *, mild):
    """A table with a corruption, and what its record says about it.

    hits: how many examples are correct at severity 5. mild: at severities 1 to 4.
    """
    columns = [flags(len(robust), mild)] * 4 + [flags(len(robust), hits)]
    table = table_of(robust, **{f"corrupted/fog:severity={s}": each for s, each in enumerate(columns, 1)})
    mean = mean_accuracy(np.stack(columns))
    result = CorruptionResult(mean.acc, mean.ci95, [float(each.mean()) for each in columns], seconds=1.0)
    return table, {"config": {"corruptions": ["fog"]}, "corruptions": {"fog": result}, "corrupted": mean}


def record_of(table, **changes):
    def under(robust):
        share = accuracy(robust)
        return AttackResult(share.acc, share.ci95, forwards=300, backwards=200, seconds=2.0)

    certifiers = {}
    if "certified/ibp" in table:
        share = accuracy(table["certified/ibp"])
        certifiers["ibp"] = CertifierResult(share.acc, share.ci95, mean_radius(table, "ibp"), 1.0)
    attacks = {key.removeprefix("robust/"): under(column) for key, column in table.items() if key.startswith("robust/")}
    own = [key for key in attacks if ":eps=" not in key and ":norm=" not in key]
    everywhere = np.logical_and.reduce([table["clean"], *(table[f"robust/{key}"] for key in attacks)])
    values = {
        "schema": SCHEMA, "suite": "digits", "dataset": "digits", "model": "small-cnn", "parameters": 100,
        "defense": "mine", "seed": 0, "threat": Threat("Linf", 0.2), "config": {}, "config_hash": "abc",
        "n_examples": len(table["index"]), "clean": accuracy(table["clean"]), "attacks": attacks,
        "worst": robustness(np.logical_and.reduce([table["clean"], *(table[f"robust/{key}"] for key in own)])),
        "union": robustness(everywhere) if len(own) < len(attacks) else None, "certifiers": certifiers,
        "training": Training(epochs=1, seconds=10.0, forwards=4000, backwards=3000), "sanity": CHECK,
        "artifacts": {}, "provenance": {
            "data_hash": "d", "hardware": "a machine", "device": "cpu", "threads": 1, "finished": "2026-11-20",
            "command": "bench run --defense mine --suite digits --seeds 0",
        },
    }  # fmt: skip
    return Record(**(values | changes))


def write_run(folder, table, *, weights="00", **changes):
    """A finished run's folder, without the weights themselves."""
    folder.mkdir(parents=True)
    files.write_arrays(folder / record_files.TABLE, table)
    artifacts = {
        "weights": Artifact(sha256=weights, bytes=5, path="weights.safetensors"),
        "examples": record_files.artifact(folder / record_files.TABLE),
        "witnesses": Artifact(sha256="11", bytes=5, path="witnesses.npz"),
    }
    record = record_of(table, **({"artifacts": artifacts} | changes))
    record_checks.check_record(record, table)
    record_files.write_record(folder, record)
    return folder


def publish(results, name, tables, *, about=ABOUT, url=None, trained=True, verdict="no-warnings", **changes):
    """An entry with a seed for each table. trained: a recipe, which somebody has trained again; else fixed weights,
    evaluated once for each table.
    """
    settings = {"training": Training(1, 10.0, 4000, 3000)} if trained else {"training": None}
    settings |= {"defense": name, "config_hash": name, "sanity": Sanity(verdict, [])} | changes
    for seed, table in enumerate(tables):
        run = results.parent / "runs" / name / str(seed)
        write_run(run, table, weights=f"{name}{seed}", seed=seed, **settings)
        add_runs(results, name, about, [run], url=url)
    home = results / "digits" / name
    if trained:
        write_reproduction(home, Reproduction(by="the tests", seeds=[7, 8, 9], finished="2026-11-20"))
    return home


def checked_of(run, columns, **changes):
    """What a verification derived of a published run. columns: by attack, the examples that it broke again."""
    values = {
        "table": sha256(run / record_files.TABLE), "attack": "bracket-attack", "seed": 0,
        "columns": {spec: RepeatedAttack(10, fell) for spec, fell in columns.items()},
        "proven": [], "again": [], "solver": [], "fingerprint": [],
    }  # fmt: skip
    return Checked(**(values | changes))


def bracket_of(table):
    """The bracket that follows from the columns `status` and `decided_by`."""
    status, by = table["status"], table["decided_by"]
    low, high = accuracy(status == "certified"), accuracy(status != "broken")
    stages = {
        name: BracketStage(
            tried=len(status), certified=int(((by == name) & (status == "certified")).sum()),
            broken=int(((by == name) & (status == "broken")).sum()), forwards=50, backwards=0, seconds=1.0,
        )
        for name in dict.fromkeys(by[by != ""].tolist())
    }  # fmt: skip
    return Bracket(
        low.acc, low.ci95, high.acc, high.ci95, int((status == "open").sum()), 5.0, stages, {}, budget=10,
        truncated=False,
    )  # fmt: skip
