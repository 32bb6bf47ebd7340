"""`bench submit`: an honest run is published; a hostile one is refused in a line, nothing is written or executed."""

import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bench.cli import main
from bench.core.errors import CheckError, UserError
from bench.core.example_table import accuracy, worst, worst_by
from bench.core.files import read_arrays, sha256, write_arrays
from bench.core.record_files import read_record, write_record
from bench.core.records import Sanity
from bench.publish.fetch_artifacts import open_https
from bench.publish.static_checks import check_submission
from bench.publish.submit import Submission, submit_runs
from bench.publish.untrusted_files import MIB
from bench.verify.inputs import settings
from bench.verify.report import findings_table
from leaderboard.published_results import read_entries
from leaderboard.publishing import add_runs
from tests.forged_records import change_record, replace_in_record
from tests.publish.forging import (
    ABOUT,
    change_arrays,
    change_table,
    evaluated,
    rehash,
    run_of,
    trained,
    tree,
)

MODEL = """
import pathlib

from torch import nn

pathlib.Path(r"CANARY").touch()


def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""


THEIRS = msgspec.structs.replace(ABOUT, title="L-PER", maintainers=("somebody",))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Two seeds of a short training, under the board's attack, on all test examples."""
    return trained(
        tmp_path_factory.mktemp("finished"), "--epochs", "4", "--attacks", "bracket-attack", "--seeds", "0,1"
    )


@pytest.fixture(scope="session")
def other_runs(tmp_path_factory, finished):
    """The same weights on fewer examples, and under a weak attack; and under a bracket, with a certifier."""
    weights = next(finished.glob("*/0")) / "weights.safetensors"
    runs = {}
    for name, words in {
        "few": ("--attacks", "bracket-attack", "--n-examples", "60", "--corruptions", "contrast"),
        "weak": ("--attacks", "pgd-10"),
        "bracket": ("--bracket", "--budget", "100", "--certifiers", "ibp", "--n-examples", "20"),
    }.items():
        runs[name] = evaluated(tmp_path_factory.mktemp(name), weights, *words)
    return runs


@pytest.fixture
def world(tmp_path, finished, monkeypatch):
    """A folder with all that a test may touch: run/, results/ with an entry, tmp/; and a canary that must not be."""
    for name in ("results", "tmp"):
        (tmp_path / name).mkdir()
    shutil.copytree(next(finished.glob("*/0")), tmp_path / "run")
    add_runs(tmp_path / "results", "l-per", THEIRS, [next(finished.glob("*/1"))])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attempt(
    world, *, run=None, about=ABOUT, plugins=(), check_only=False, fetch=False, open_url=open_https, **fields
):  # fmt: skip
    chosen = settings(seed=0, threads=1, attack="pgd-10", plugins=plugins)
    fields = {"entry": "mine", "results": world / "results"} | fields
    submission = Submission(run=run or world / "run", about=about, **fields)
    submit_runs(submission, chosen, check_only=check_only, fetch=fetch, open_url=open_url)


def refused(world, **options):
    """The error of a refused submission, in one line; no file has changed."""
    before = tree(world)
    with pytest.raises((UserError, CheckError)) as caught:
        attempt(world, **options)
    line = str(caught.value)
    assert line.isascii()
    assert line.isprintable()
    assert 20 < len(line) < 700
    assert tree(world) == before
    assert not (world / "canary").exists()
    return line


class Bomb:
    """A pickle that runs code when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def with_objects(run, name):
    """An .npz with an array of objects, each a pickle that runs code."""
    arrays = read_arrays(run / f"{name}.npz") | {"note": np.array([Bomb(run.parent / "canary")], dtype=object)}
    np.savez(run / f"{name}.npz", **arrays)
    rehash(run, name)


def with_pickle(run, name, file):
    (run / file).write_bytes(pickle.dumps(Bomb(run.parent / "canary")))
    rehash(run, name)


def with_bomb(run, size):
    """Zeros by the hundred megabytes, in some kilobytes; `size` is their size in the directory."""
    path = run / "examples.npz"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("note.npy", "w") as member:
        for _ in range(65):
            member.write(bytes(MIB))
    data = path.read_bytes()
    at = data.rindex(b"note.npy") - 46 + 24  # of the uncompressed size, in the directory
    path.write_bytes(data[:at] + size.to_bytes(4, "little") + data[at + 4 :])
    rehash(run, "examples")


def with_members(run, names, content=b""):
    with zipfile.ZipFile(run / "examples.npz", "a") as archive:
        for name in names:
            archive.writestr(name, content)
    rehash(run, "examples")


def npy(header):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def with_header(run, change):
    """Other claims in the header of the weights."""
    data = (run / "weights.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    (run / "weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
    rehash(run, "weights")


def first_tensor(header):
    return next(value for key, value in header.items() if key != "__metadata__")


def with_spec(run, change):
    """Another model in the header of the weights and throughout the record."""

    def respec(header):
        spec = json.loads(header["__metadata__"]["robust-bracket"])
        change(spec)
        header["__metadata__"]["robust-bracket"] = json.dumps(spec)

    with_header(run, respec)


def with_model(run, model):
    with_spec(run, lambda spec: spec.update(model=model))
    change_record(run, lambda r: (r.update(model=model), r["config"].update(model=model)))


def other_weights(run):
    """Other weights, with their own hash in the record."""
    with safe_open(run / "weights.safetensors", framework="np") as file:
        header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({key: value[::-1].copy() for key, value in state.items()}, run / "weights.safetensors", metadata=header)
    rehash(run, "weights")


def claim_robust(table):
    """Claim that all broken examples are robust."""
    table["robust/bracket-attack"][:] = table["clean"]


def no_witnesses(arrays):
    arrays.update({key: value[:0] for key, value in arrays.items()})


def relabel(table):
    table["label"][:] = table["prediction"]
    table["clean"][:] = True


def repredict(table):
    table["prediction"][:] = table["label"]
    table["clean"][:] = True


def permute(table):
    for key, column in table.items():
        if key != "index":
            table[key] = column[::-1].copy()


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


def into(run, **fields):
    change_record(run, lambda r: r.update(fields))


def artifact_of(run, name, **fields):
    change_record(run, lambda r: r["artifacts"][name].update(fields))


def linked(run, name):
    path = run / name
    path.rename(run.parent / "elsewhere")
    path.symlink_to(run.parent / "elsewhere")


UNREADABLE = "weights.safetensors cannot be read"
# case: (edit of an honest run, part of the error)
HOSTILE = {
    # names
    "script in the defense's name": (lambda r: into(r, defense="<script>alert(1)</script>"), "is not a valid spec"),
    "quotes in the defense's name": (lambda r: into(r, defense="a' onload='x"), "is not a valid spec"),
    "text that runs backwards": (lambda r: into(r, defense="pgd\u202eta"), "U+202E"),
    "a letter that looks like ours": (lambda r: into(r, defense="\u0440gd-at"), "U+0440"),
    "control characters in the model": (lambda r: into(r, model="cnn\x1b[2J\nok"), "U+001B"),
    "half a character": (lambda r: replace_in_record(r, '"small-cnn"', '"\\ud800"'), "U+D800"),
    "markup in a spec": (
        lambda r: change_record(r, lambda p: p["attacks"].update({"<img src=x>": p["attacks"]["bracket-attack"]})),
        "is not a valid spec",
    ),
    "suite with a parent folder": (lambda r: into(r, suite="../digits"), "suite '../digits'"),
    "suite that there is not": (lambda r: into(r, suite="digitz"), "unknown suite"),
    "no suite": (lambda r: into(r, suite=None), "does not belong to a suite"),
    "command for a shell": (
        lambda r: change_record(r, lambda p: p["provenance"].update(command="bench run --out x; rm -rf ~")),
        "not a plain `bench run`",
    ),
    # files
    "link to a file": (lambda r: linked(r, "weights.safetensors"), "not a regular file"),
    "link to the record": (lambda r: linked(r, "record.json"), "not a regular file"),
    "link to a device": (lambda r: (r / "log.jsonl").unlink() or (r / "log.jsonl").symlink_to("/dev/zero"), "links"),
    "pipe": (lambda r: (r / "config.json").unlink() or os.mkfifo(r / "config.json"), "not a regular file"),
    "folder inside": (lambda r: (r / "contests").mkdir(), "does not belong to a run"),
    "code beside the record": (lambda r: (r / "conftest.py").write_text("import os"), "does not belong to a run"),
    "file name of two lines": (lambda r: (r / "a\nb\x1b").write_text(""), "does not belong to a run"),
    "huge record": (lambda r: sparse(r / "record.json", 2 * MIB), "at most 1048576"),
    "huge configuration": (lambda r: sparse(r / "config.json", 2**40), "at most 1048576"),
    "huge weights": (lambda r: sparse(r / "weights.safetensors", 2**40), "at most"),
    "no table": (lambda r: (r / "examples.npz").unlink(), "no examples.npz"),
    # JSON
    "deep JSON": (lambda r: (r / "record.json").write_text("[" * 100_000), "nested too deep"),
    "deep configuration": (lambda r: (r / "config.json").write_text('{"a":' * 40 + "1" + "}" * 40), "nested too deep"),
    "key twice": (lambda r: replace_in_record(r, '"seed": 0', '"seed": 0, "seed": 1'), "'seed' twice"),
    "NaN": (lambda r: replace_in_record(r, '"acc": 0', '"acc": NaN, "ac": 0'), "the number nan"),
    "infinity by an exponent": (lambda r: replace_in_record(r, '"seed": 0', '"seed": 1e999'), "the number inf"),
    "number of 5,000 digits": (lambda r: replace_in_record(r, '"seed": 0', f'"seed": {"9" * 5000}'), "5000 digits"),
    "text without end": (lambda r: into(r, model="a" * 100_000), "100000 characters"),
    "not UTF-8": (lambda r: (r / "record.json").write_bytes(b'{"a": "\xff"}'), "UnicodeDecodeError"),
    "record that is a list": (lambda r: (r / "record.json").write_text("[]"), "not a record"),
    "field of another schema": (lambda r: into(r, rank=1), "unknown field"),
    "schema of the future": (lambda r: into(r, schema=99), "99"),
    "schema that is a list": (lambda r: into(r, schema=[1]), "schema is [1]"),
    # numbers
    "accuracy below 0": (lambda r: change_record(r, lambda p: p["clean"].update(acc=-0.5)), "clean.acc is -0.5"),
    "accuracy above 1": (lambda r: change_record(r, lambda p: p["worst"].update(robust_acc=93.0)), "its table gives"),
    "interval above 1": (lambda r: change_record(r, lambda p: p["clean"].update(ci95=[0.1, 1.5])), "its table gives"),
    "interval upside down": (lambda r: change_record(r, lambda p: p["clean"]["ci95"].reverse()), "its table gives"),
    "negative cost": (lambda r: change_record(r, lambda p: p["training"].update(seconds=-1.0)), "must not be negative"),
    "negative seed": (lambda r: into(r, seed=-1), "seed is -1"),
    "seed that no file system takes": (lambda r: into(r, seed=2**40), "the seed is 1099511627776"),
    "eps in grey levels": (lambda r: change_record(r, lambda p: p["threat"].update(eps=51.0)), "eps 51.0"),
    "another norm": (lambda r: change_record(r, lambda p: p["threat"].update(norm="L2")), "norm L2"),
    "another data set": (lambda r: into(r, dataset="mnist"), "data set mnist"),
    "data set that is a file": (lambda r: into(r, dataset="/etc/evil.npz"), "is not a valid spec"),
    "more parameters than there are": (lambda r: into(r, parameters=10**9), "the record says 1000000000"),
    "smaller than it is": (
        lambda r: change_record(r, lambda p: p["size"].update(kept=7, flops=9)), "the record says 7 of 71,568 weights",
    ),
    # arrays
    "objects in the table": (lambda r: with_objects(r, "examples"), "pickles"),
    "objects among the witnesses": (lambda r: with_objects(r, "witnesses"), "pickles"),
    "pickle as the table": (lambda r: with_pickle(r, "examples", "examples.npz"), "not an .npz"),
    "zip bomb": (lambda r: with_bomb(r, 65 * MIB), "unpacks to"),
    "zip bomb that belittles itself": (lambda r: with_bomb(r, 10), "Bad CRC-32"),
    "zip of 2,000 members": (lambda r: with_members(r, [f"{i}.npy" for i in range(2000)]), "more than 1000"),
    "array with a parent folder": (lambda r: with_members(r, ["../../evil.npy"], npy_of(np.zeros(1))), "'../../evil'"),
    "array larger than its bytes": (
        lambda r: with_members(r, ["a.npy"], npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }")),
        "does not have the size in its header",
    ),
    "code in the header of an array": (
        lambda r: with_members(r, ["a.npy"], npy("__import__('os').system('touch canary')")), "examples.npz",
    ),
    "column of no attack": (
        lambda r: change_arrays(r, "examples", lambda t: t.update({"robust/none": t["clean"]})), "does not belong to",
    ),
    "negative passes": (
        lambda r: change_arrays(r, "examples", lambda t: t["passes/bracket-attack"].__setitem__(0, -5)), "has negative",
    ),
    "table in another order": (lambda r: change_table(r, lambda t: t.update(index=t["index"][::-1])), "test order"),
    # weights
    "pickle as weights": (lambda r: with_pickle(r, "weights", "weights.safetensors"), UNREADABLE),
    "tensors that overlap": (
        lambda r: with_header(r, lambda h: first_tensor(h).update(data_offsets=[0, 4], shape=[1])), "invalid offset",
    ),
    "tensor of another size": (
        lambda r: with_header(r, lambda h: first_tensor(h).update(shape=[10**9, 10**9])), UNREADABLE,
    ),
    "header without end": (lambda r: sparse(r / "weights.safetensors", 99) or rehash(r, "weights"), "JSON"),
    "weights of another seed": (other_weights, "predictions"),
    "model too large to build": (lambda r: with_model(r, "small-cnn:width=100000000"), "too small to hold"),
    "model in a file": (lambda r: with_model(r, "evil.py:build"), "--trust-code"),
    "certifier in a file": (
        lambda r: change_record(r, lambda p: p["certifiers"].update({"evil.py:f": PROOF})), "on the certifiers",
    ),
    "another architecture": (lambda r: with_model(r, "mlp"), "refused: configuration"),
    # artifacts
    "wrong hash": (lambda r: artifact_of(r, "weights", sha256="0" * 64), "hash of weights"),
    "malformed hash": (lambda r: artifact_of(r, "weights", sha256="../../x"), "not a SHA-256"),
    "wrong size": (lambda r: artifact_of(r, "weights", bytes=7), "hash of weights"),
    "size beyond all": (lambda r: artifact_of(r, "weights", bytes=10**14), "are allowed"),
    "path with a parent folder": (lambda r: artifact_of(r, "weights", path="../../../etc/passwd"), "beside the record"),
    "absolute path": (lambda r: artifact_of(r, "witnesses", path="/etc/passwd"), "beside the record"),
    "address of a file": (lambda r: artifact_of(r, "weights", url="file:///etc/passwd"), "https"),
    "address that anybody on the way can change": (
        lambda r: artifact_of(r, "weights", url="http://example.org/weights.safetensors"), "https",
    ),
    "address that runs": (lambda r: artifact_of(r, "weights", url="javascript:alert(1)"), "https"),
    "address with a password": (lambda r: artifact_of(r, "weights", url="https://a:b@example.org/w"), "https"),
    "artifact of no kind": (
        lambda r: change_record(r, lambda p: p["artifacts"].update(evil=p["artifacts"]["weights"])), "nothing else",
    ),
    "evidence left out": (
        lambda r: ((r / "witnesses.npz").unlink(), artifact_of(r, "witnesses", path=None)), "neither a file nor",
    ),
    "evidence lost": (lambda r: (r / "witnesses.npz").unlink(), "is missing"),
    # claims
    "edited table": (lambda r: change_arrays(r, "examples", claim_robust), "the record and its table disagree"),
    "edited table, record and hash": (lambda r: change_table(r, claim_robust), "have a witness but are robust"),
    "forged throughout": (
        lambda r: (change_table(r, claim_robust), change_arrays(r, "witnesses", no_witnesses)), "attacked again",
    ),
    "labels made right": (lambda r: change_table(r, relabel), "labels"),
    "predictions made right": (lambda r: change_table(r, repredict), "predictions"),
    "examples permuted": (lambda r: change_table(r, permute), "labels"),
    "witness outside the ball": (
        lambda r: change_arrays(r, "witnesses", lambda w: w["x_adv"].__setitem__(0, 1 - w["x_adv"][0])), "within eps",
    ),
    "witness outside the box": (
        lambda r: change_arrays(r, "witnesses", lambda w: w["x_adv"].__isub__(0.01)), "in the box",
    ),
    "witness that is no number": (
        lambda r: change_arrays(r, "witnesses", lambda w: w["x_adv"].__setitem__(0, np.nan)), "within eps",
    ),
    "certificate without a certifier": (
        lambda r: change_arrays(r, "examples", lambda t: t.update({"certified/ibp": t["clean"]})), "does not belong to",
    ),
    "unreliable by its own verdict": (
        lambda r: change_record(r, lambda p: p["sanity"].update(verdict="unreliable")), "not a bound",
    ),
    "without a verdict": (lambda r: change_record(r, lambda p: p["sanity"].update(verdict="unchecked")), "not a bound"),
    "config of another run": (lambda r: change_record(r, lambda p: p["config"].update(training={})), "configuration"),
    "batches of its own": (lambda r: change_record(r, lambda p: p["config"].update(eval_batch=9)), "eval_batch 9"),
    "data of another hash": (
        lambda r: change_record(r, lambda p: p["provenance"].update(data_hash="0" * 64)), "hash of the data",
    ),
}  # fmt: skip
PROOF = {"certified_acc": 0.0, "ci95": [0.0, 0.0], "mean_radius": 0.0, "seconds": 0.0}


def npy_of(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# these pass the static checks; `bench verify` and the board's checks refuse them
VERIFIED = {
    "more parameters than there are", "smaller than it is",
    "weights of another seed", "model too large to build", "another architecture",
    "edited table, record and hash", "forged throughout", "labels made right", "predictions made right",
    "examples permuted", "witness outside the ball", "witness outside the box", "witness that is no number",
    "config of another run", "data of another hash", "wrong hash", "wrong size", "table in another order",
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in VERIFIED)) for case in HOSTILE]
)
def test_a_hostile_run_is_refused(case, world):
    edit, reason = HOSTILE[case]
    edit(world / "run")
    (world / "evil.py").write_text(MODEL.replace("CANARY", str(world / "canary")))
    assert reason in refused(world)


@pytest.mark.parametrize(("entry", "reason"), {
    "../../evil": "is not valid",
    "/etc/evil": "is not valid",
    "a..b": "is not valid",
    "": "is not valid",
    "<script>alert(1)</script>": "is not valid",
    "PGD-AT": "is not valid",
    "con/../nul": "is not valid",
    "pgd\u2010at": "is not valid",
    "\u0440gd-at": "is not valid",
    "a" * 65: "is not valid",
    "1-per": "looks like 'l-per'",
    "l_per": "looks like 'l-per'",
}.items())  # fmt: skip
def test_an_invalid_or_imitating_name_is_refused(entry, reason, world):
    assert reason in refused(world, entry=entry)


@pytest.mark.parametrize(("fields", "reason"), [
    ({"title": "\u0422RADES"}, "U+0422"),
    ({"title": "a\u200bb"}, "U+200B"),
    ({"title": "two\nlines"}, "U+000A"),
    ({"title": "t" * 201}, "201 characters"),
    ({"paper": "  "}, "paper is empty"),
    ({"licence": ""}, "licence is empty"),
    ({"url": "javascript:alert(1)"}, "https"),
    ({"url": "https://example.org/\"><script>"}, "https"),
    ({"authors": "\ud835\udd6c"}, "U+D835"),
])  # fmt: skip
def test_the_description_of_an_entry_is_checked(fields, reason, world):
    assert reason in refused(world, about=msgspec.structs.replace(ABOUT, **fields))


@pytest.mark.parametrize(("toml", "reason"), [
    ("a = " + "[" * 5000, "nested too deep"),
    ("a = 1\na = 2", "about.toml"),
    ('title = "x"\npaper = "x"\nlicence = "x"\nrank = 1', "unknown field"),
    ('title = 2026-01-01\npaper = "x"\nlicence = "x"', "Expected `str`"),
    ('title = "x"', "missing required field"),
    ("#" * 70_000, "at most 65536"),
    ("\xff", "about.toml"),
])  # fmt: skip
def test_a_malformed_about_toml_is_refused(toml, reason, world):
    (world / "about.toml").write_bytes(toml.encode("latin-1"))
    assert reason in refused(world, about=None)


def test_a_link_to_a_run_is_refused(world):
    (world / "run").rename(world / "elsewhere")
    (world / "run").symlink_to(world / "elsewhere")
    assert "not a folder" in refused(world)


@pytest.mark.slow
def test_a_published_run_is_never_overwritten(world):
    attempt(world, entry="mine")
    before = tree(world)
    attempt(world, entry="mine")  # the same run: nothing to do
    assert tree(world) == before
    change_record(world / "run", lambda record: record["provenance"].update(finished="2026-11-30T00:00:00Z"))
    assert "is published already" in refused(world, entry="mine")


@pytest.mark.slow
def test_an_entry_has_one_recipe_and_each_seed_its_own_weights(world, finished):
    for seed in (0, 5):
        shutil.copytree(world / "run", world / "twins" / str(seed))
        into(world / "twins" / str(seed), seed=seed)
    assert "have the same weights" in refused(world, run=world / "twins")
    into(world / "twins" / "5", seed=0)
    assert "was given twice" in refused(world, run=world / "twins")
    shutil.copytree(next(finished.glob("*/1")), world / "both" / "1")
    shutil.copytree(world / "run", world / "both" / "0")
    into(world / "both" / "1", config_hash="0" * 12)
    assert "one recipe at a time" in refused(world, run=world / "both")
    into(world / "run", config_hash="0" * 12)
    assert "one recipe at a time" in refused(world, entry="l-per", about=THEIRS)  # of which another seed is published
    assert "differs from the new description" in refused(world, entry="l-per")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [("few", "the board needs"), ("weak", "none of the attacks of the board")])
def test_a_run_that_breaks_the_rules_of_the_board_is_refused(name, reason, world, other_runs):
    assert reason in refused(world, run=other_runs[name])


@pytest.mark.slow
def test_the_table_of_a_run_may_have_columns_of_its_corruptions_only(world, other_runs):
    run = shutil.copytree(other_runs["few"], world / "corrupted")
    assert set(check_submission(run, world / "results", "mine").corruptions) == {"contrast"}
    change_arrays(run, "examples", lambda table: table.update({"corrupted/contrast:severity=6": table["clean"]}))
    assert "column 'corrupted/contrast:severity=6'" in refused(world, run=run)


def test_what_a_run_folder_holds_beside_the_files_of_an_entry_is_not_published(world):
    (world / "run" / "verdicts").mkdir()
    for name in ("verdicts/tool.json", "losses.npz"):
        (world / "run" / name).write_text("not read")
    attempt(world)
    home = world / "results/digits/mine/0"
    assert {"verdicts", "losses.npz"}.isdisjoint(path.name for path in home.iterdir())
    (home / "losses.npz").write_text("")
    assert "does not belong to a run" in refused(world, run=home, about=None, check_only=True)


def test_an_entry_says_that_its_training_used_additional_data(world):
    change_record(world / "run", lambda r: r["config"]["training"].update(extra="more.npz"))
    assert "additional data, 'more.npz'; give --extra-data" in refused(world)
    assert "--extra-data" not in refused(world, about=msgspec.structs.replace(ABOUT, extra_data=True))


def test_an_honest_run_is_published(world, capsys):
    (world / ".git").mkdir()
    attempt(world, artifacts_url="https://example.org/mine")
    out = capsys.readouterr().out
    assert f"\n    bench submit RUNS --reproduces digits/mine --by NAME --results {world / 'results'}\n" in out
    assert "git add" in out
    (entry,) = [entry for entry in read_entries(world / "results", "digits")[0] if entry.name == "mine"]
    (run,) = entry.runs
    claimed = read_record(world / "run")
    fell = [example for contest in run.contests for example in contest.broken]
    assert run.robust.mean() == pytest.approx(claimed.worst.robust_acc - len(fell) / 360)
    assert set(run.columns) == {"bracket-attack"}
    assert run.record.artifacts["weights"].url == "https://example.org/mine/0/weights.safetensors"
    assert sorted({path.name for path in run.folder.iterdir()} - {"contests"}) == [
        "checked.json", "examples.npz", "record.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_seed_is_published_with_its_files(world, capsys):
    attempt(world, with_files=(0,), about=msgspec.structs.replace(ABOUT, maintainers=("somebody",)))
    out = capsys.readouterr().out
    assert "Nobody else" not in out
    assert "git switch" not in out
    assert f"written: {world / 'results/digits/mine'}" in out
    home = world / "results/digits/mine/0"
    record = read_record(home)
    files = {"weights.safetensors", "witnesses.npz"}
    assert files <= {path.name for path in home.iterdir()}
    assert {file.path for file in record.artifacts.values()} >= files
    main(["verify", str(home), "--sample", "8"])  # SystemExit if it fails
    pull_request = world / "pr/digits/mine"
    pull_request.parent.mkdir(parents=True)
    (world / "results/digits/mine").rename(pull_request)
    attempt(world, run=pull_request / "0", about=None, check_only=True, author="somebody")
    (pull_request / "0" / "checked.json").unlink()
    shutil.rmtree(pull_request / "0" / "contests", ignore_errors=True)  # of examples that fell in the verification
    options = {"run": pull_request / "0", "about": None, "check_only": True, "author": "somebody"}
    assert "no checked.json" in refused(world, **options)
    shutil.copy(world / "run" / "config.json", pull_request / "0")
    assert "is a run folder" in refused(world, **options)


@pytest.mark.slow
def test_a_pruned_network_of_which_nothing_is_certified_is_published(world, tmp_path_factory):
    """network.json holds the masks of its layers, and no certificate says which certifier wrote it."""
    out = tmp_path_factory.mktemp("pruned")
    words = ["run", "--defense", "binary-subnet", "--suite", "digits", "--epochs", "1", "--set", "steps=1"]
    main([*words, "--attacks", "bracket-attack", "--certifiers", "ibp", "--out", str(out), "--quiet"])
    (run,) = out.glob("digits-*/0")
    assert read_record(run).certifiers["ibp"].certified_acc == 0
    assert (run / "network.json").stat().st_size > 2 * 32768
    attempt(world, run=run, entry="binary-subnet", about=msgspec.structs.replace(ABOUT, title="Binary subnetwork"))
    assert (world / "results/digits/binary-subnet/0/checked.json").exists()


def moved(run):
    """The same network, with a bias moved by a millionth."""
    with safe_open(run / "weights.safetensors", framework="np") as file:
        header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    last = max(key for key in state if key.endswith("bias"))
    state[last] = state[last] + np.float32(1e-6)
    save_file(state, run / "weights.safetensors", metadata=header)
    rehash(run, "weights")


@pytest.mark.slow
def test_a_copy_of_another_entry_is_refused(world):
    attempt(world)
    about = msgspec.structs.replace(ABOUT, title="Something else")
    assert "are those of entry mine" in refused(world, entry="other", about=about)
    moved(world / "run")
    assert "mine/0 and other/0 are the same network" in refused(world, entry="other", about=about)


@pytest.mark.slow
def test_all_seeds_of_a_recipe_are_published_or_none(world, finished, capsys):
    shutil.copytree(finished, world / "both")
    last = sorted((world / "both").rglob("record.json"))[-1].parent
    change_table(last, repredict)
    assert "predictions" in refused(world, run=world / "both")
    shutil.rmtree(world / "both")
    shutil.rmtree(world / "results/digits/l-per")  # which is a copy of seed 1
    attempt(world, run=finished)
    assert sorted(path.name for path in (world / "results/digits/mine").iterdir()) == ["0", "1", "about.toml"]


@pytest.mark.slow
def test_a_full_disk_leaves_no_partial_entry(world, finished, monkeypatch):
    shutil.rmtree(world / "results/digits/l-per")  # which is a copy of seed 1
    calls = []

    def fails_at_last(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left on device")
        write_record(*args)

    monkeypatch.setattr("leaderboard.publishing.write_record", fails_at_last)
    before = tree(world)
    with pytest.raises(OSError, match="no space"):
        attempt(world, run=finished)
    assert tree(world) == before


@pytest.mark.slow
def test_what_was_verified_is_what_is_published(world, monkeypatch):
    """Somebody swaps the record and the table after the report."""
    honest = read_record(world / "run")

    def swap_and_report(findings):
        change_table(world / "run", lambda table: table["robust/bracket-attack"].__setitem__(table["clean"], True))
        return findings_table(findings)

    monkeypatch.setattr("bench.publish.submit.findings_table", swap_and_report)
    attempt(world)
    assert read_record(world / "run").worst != honest.worst
    assert read_record(world / "results/digits/mine/0").worst == honest.worst


def test_a_seed_without_a_record_beside_the_others_is_refused(world, finished):
    shutil.copytree(finished, world / "both")
    last = sorted((world / "both").rglob("record.json"))[-1]
    last.unlink()
    assert f"{last.parent} has no record.json" in refused(world, run=world / "both")


@pytest.mark.slow
def test_a_repeated_verdict_of_unreliable_is_refused(world, monkeypatch):
    def form_verdict(*args, **options):
        return Sanity("unreliable", ["no gradient"])

    monkeypatch.setattr("bench.publish.examine.form_verdict", form_verdict)
    assert "no gradient" in refused(world)


@pytest.mark.slow
def test_a_check_writes_nothing_and_needs_no_title(world, capsys):
    before = tree(world)
    attempt(world, about=None, check_only=True)
    assert tree(world) == before
    assert "would be accepted" in capsys.readouterr().out
    assert "--title" in refused(world, about=None)


def reopen(run, tried):
    """A bracket with one open example, whose last attack tried `tried` examples."""
    rows = read_arrays(run / "examples.npz")
    row = np.flatnonzero(rows["clean"] & (rows["status"] == "broken"))[-1]
    stage = str(rows["decided_by"][row])

    def undecide(table):
        table["status"][row], table["decided_by"][row] = "open", ""

    change_arrays(run, "examples", undecide)
    table = read_arrays(run / "examples.npz")
    robust, strongest = accuracy(table["status"] != "broken"), worst(table)

    def follow(record):
        record |= {"worst": msgspec.to_builtins(strongest), "worst_by": worst_by(table)}
        bracket = record["bracket"]
        bracket["stages"][stage]["broken"] -= 1
        bracket["stages"]["square"] = bracket["stages"]["clean"] | {"tried": tried, "broken": 0}
        bracket |= {"open": 1, "robust_acc": robust.acc, "robust_ci95": robust.ci95}

    change_record(run, follow)


@pytest.mark.slow
def test_a_bracket_whose_attacks_all_ran_counts_as_an_attack_of_the_board(world, other_runs):
    run = shutil.copytree(other_runs["bracket"], world / "bracket")
    assert check_submission(run, world / "results", "mine").bracket.open == 0
    reopen(run, tried=1)
    assert check_submission(run, world / "results", "mine").bracket.open == 1
    shutil.copytree(run, world / "cut")
    change_record(run, lambda r: r["bracket"]["stages"]["square"].update(tried=0))
    assert "none of the attacks of the board" in refused(world, run=run)
    spent = {"truncated": True, "time_limit": 0.5, "seconds": 0.6}
    change_record(world / "cut", lambda r: r["bracket"].update(spent))
    assert "time limit of 0.5 s with 1 examples open" in (line := refused(world, run=world / "cut"))
    assert "run it again without --time-limit" in line
    change_record(world / "cut", lambda r: r["bracket"].update(truncated=False))  # a lie
    assert "bracket is not truncated, with a time limit of 0.5 s, 0.6 s spent" in refused(world, run=world / "cut")
    earlier = {"truncated": False, "time_limit": None, "budget": None, "budget_seconds": 600.0}
    change_record(world / "cut", lambda r: r["bracket"].update(earlier))
    assert "budget was a limit of time" in refused(world, run=world / "cut")


def test_a_reported_entry_gets_no_seeds(world):
    home = world / "results/digits/mine"
    home.mkdir()
    (home / "reported.json").write_text("{}")
    assert "RobustBench" in refused(world)


@pytest.mark.slow
def test_code_is_imported_only_if_it_is_named(world, capsys):
    """The model's file touches the canary when it is imported."""
    source = world / "mine.py"
    source.write_text(MODEL.replace("CANARY", str(world / "canary")))
    words = ("--epochs", "1", "--attacks", "bracket-attack", "--model", "mine.py:build")
    run = run_of(trained(world / "own", *words))
    (world / "canary").unlink()
    assert "--trust-code" in refused(world, run=run)
    source.write_text(source.read_text() + "# changed\n")
    before = tree(world)
    with pytest.raises(UserError, match="--trust-code"):
        attempt(world, run=run, plugins=[source])
    (world / "canary").unlink()
    assert tree(world) == before


# a published run, whose weights and witnesses are downloaded


@pytest.fixture
def published(world):
    """The run folder of a pull request; the files to download are in web/."""
    home = world / "head" / "digits" / "mine"
    shutil.copytree(world / "run", world / "web" / "0")
    add_runs(world / "head", "mine", ABOUT, [world / "run"], url="https://example.org")
    return home / "0"


def fetched(world, run, **options):
    def open_url(url, _seconds):
        return (world / "web" / url.removeprefix("https://example.org/")).open("rb")

    return {"run": run, "about": None, "check_only": True, "fetch": True, "open_url": open_url} | options


@pytest.mark.slow
def test_a_published_run_is_fetched_and_checked(world, published, capsys):
    assert "no checked.json" in refused(world, **fetched(world, published))
    attempt(world, artifacts_url="https://example.org")
    shutil.rmtree(published.parent)
    (world / "results/digits/mine").rename(published.parent)
    before = tree(world)
    attempt(world, **fetched(world, published))
    assert tree(world) == before
    assert "would be accepted" in capsys.readouterr().out


@pytest.mark.parametrize(("edit", "reason"), {
    "more bytes": (lambda web: sparse(web / "weights.safetensors", 2**40), "is not the weights.safetensors"),
    "fewer": (lambda web: (web / "weights.safetensors").write_bytes(b""), "is not the weights.safetensors"),
    "others": (lambda web: other_weights(web), "is not the weights.safetensors"),
    "a pickle": (lambda web: with_pickle(web, "weights", "weights.safetensors"), "is not the weights.safetensors"),
    "none": (lambda web: (web / "witnesses.npz").unlink(), "cannot be fetched"),
}.values())  # fmt: skip
def test_a_download_with_another_hash_is_refused(edit, reason, world, published):
    edit(world / "web" / "0")
    assert reason in refused(world, **fetched(world, published))


def test_a_fetched_pickle_is_never_read(world, published):
    with_pickle(world / "web" / "0", "weights", "weights.safetensors")
    file = world / "web" / "0" / "weights.safetensors"
    artifact_of(published, "weights", sha256=sha256(file), bytes=file.stat().st_size)
    assert UNREADABLE in refused(world, **fetched(world, published))


def test_a_published_run_is_in_the_folder_of_its_entry(world, published):
    assert "must be in a folder" in refused(world, **fetched(world, published, entry="other"))
    assert "--fetch" in refused(world, **fetched(world, published, fetch=False))


# random damage


@pytest.mark.slow
def test_every_damaged_file_gives_one_line(world):
    rng = np.random.default_rng(0)
    run, spare = world / "run", world / "spare"
    shutil.copytree(run, spare)
    words = [b"NaN", b"-1", b"[[", b'"', b"null", b"{}", b"1e400", b"\xff", b"\x00", b'"\\u202e"', b"[]", b"true"]
    survived, lines = 0, []
    for _ in range(200):
        name = rng.choice(["record.json", "examples.npz", "weights.safetensors", "witnesses.npz", "config.json"])
        data = bytearray((spare / name).read_bytes())
        for _ in range(rng.integers(1, 4)):
            low = len(data) if name.endswith("json") else min(len(data), 600)  # headers, and the zip's directory
            at = int(rng.integers(0, low)) if rng.random() < 0.7 else int(rng.integers(0, len(data)))
            word = rng.choice(words) if rng.random() < 0.5 else rng.bytes(2)
            data[at : at + int(rng.integers(0, 4))] = word
        (run / name).write_bytes(data)
        for kind in ("weights", "examples", "witnesses"):
            if name.startswith(kind):
                rehash(run, kind)
        try:
            check_submission(run, world / "results", "mine")
            survived += 1
        except UserError as error:
            lines.append(str(error))
        for file in (name, "record.json"):
            shutil.copy(spare / file, run / file)
    assert survived < 200
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_an_npz_with_data_after_its_end_or_without_columns_is_refused(world):
    path = world / "run" / "examples.npz"
    path.write_bytes(path.read_bytes() + b"PK\x05\x06 and more")
    rehash(world / "run", "examples")
    assert "data after its end" in refused(world)
    write_arrays(path, {"index": np.arange(3)})
    rehash(world / "run", "examples")
    assert "has no column" in refused(world)
