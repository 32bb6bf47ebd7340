"""Forging a finished run, and comparing folders before and after."""

import hashlib
import stat

from bench.cli import main
from bench.core.example_table import accuracy, worst, worst_by
from bench.core.files import read_arrays, write_arrays
from bench.core.record_files import artifact
from leaderboard.published_results import About
from tests.forged_records import change_record

ABOUT = About(title="Standard training", paper="Nobody (2026)", licence="MIT")
FILES = {"weights": "weights.safetensors", "examples": "examples.npz", "witnesses": "witnesses.npz"}


def trained(out, *words, defense="standard"):
    """Finished runs of the digits suite, of a second or two."""
    main(["run", "--defense", defense, "--set", "probe_every=0", "--threads", "1", "--out", str(out), *words])
    return out


def evaluated(out, weights, *words):
    """A finished evaluation of weights on the digits suite."""
    main(["eval", "--checkpoint", str(weights), "--suite", "digits", "--threads", "1", "--out", str(out), *words])
    return run_of(out)


def run_of(folder):
    (record,) = folder.rglob("record.json")
    return record.parent


def rehash(run, name):
    """Write the hash and size of a changed file into the record."""
    file = artifact(run / FILES[name])
    change_record(run, lambda r: r["artifacts"][name].update(sha256=file.sha256, bytes=file.bytes))


def change_arrays(run, name, change):
    arrays = {key: value.copy() for key, value in read_arrays(run / FILES[name]).items()}
    change(arrays)
    write_arrays(run / FILES[name], arrays)
    rehash(run, name)


def change_table(run, change):
    """Change the table and every accuracy of the record that follows from it."""
    change_arrays(run, "examples", change)
    table = read_arrays(run / FILES["examples"])

    def follow(record):
        clean, lowest = accuracy(table["clean"]), worst(table)
        record["clean"] = {"acc": clean.acc, "ci95": clean.ci95}
        record["worst"] = {"robust_acc": lowest.robust_acc, "ci95": lowest.ci95}
        record["worst_by"] = worst_by(table)
        for spec, result in record["attacks"].items():
            robust = accuracy(table[f"robust/{spec}"])
            result |= {"robust_acc": robust.acc, "ci95": robust.ci95}

    change_record(run, follow)


def tree(folder):
    """Mode, size and hash of everything in a folder, except Python's caches."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts):
        status = path.lstat()
        plain = stat.S_ISREG(status.st_mode) and status.st_size < 2**26
        files[path] = (status.st_mode, status.st_size, hashlib.sha256(path.read_bytes()).digest() if plain else None)
    return files
