import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.core import record_checks, record_files
from bench.core.errors import UserError
from bench.core.example_table import Accuracy, Threat, accuracy, mean_radius, robustness
from bench.core.records import (
    VERDICTS,
    Artifact,
    AttackResult,
    Bracket,
    BracketStage,
    CertifierResult,
    Record,
    Sanity,
    Training,
)
from tests.core.test_example_table import CLEAN, FGSM, PGD, certified_table, hits, make_table


def under(values):
    found = accuracy(hits(values))
    return AttackResult(found.acc, found.ci95, forwards=8, backwards=4, seconds=0.5)


def make_record(**changes):
    values = {
        "schema": 2, "suite": None, "dataset": "digits", "model": "cnn", "parameters": 8,
        "defense": "standard", "seed": 3,
        "threat": Threat("Linf", 0.2), "config": {"a": [1, None]}, "config_hash": "abc", "n_examples": 4,
        "clean": accuracy(hits(CLEAN)), "attacks": {"fgsm": under(FGSM), "pgd-10": under(PGD)},
        "worst": robustness(hits([1, 0, 0, 0])), "certifiers": {},
        "training": Training(epochs=1, seconds=2.5, forwards=40, backwards=30, warnings=["w"]),
        "sanity": Sanity("ok", []), "artifacts": {"weights": Artifact("00", 5, path="w")},
        "provenance": {"threads": 1},
    }  # fmt: skip
    return Record(**(values | changes))


def test_a_true_record_passes():
    record_checks.check_record(make_record(), make_table())
    table = {key: value for key, value in make_table().items() if not key.startswith("robust/")}
    record_checks.check_record(make_record(attacks={}, worst=None), table)


def bracketed(**changes):
    """A record and its table, in which the bracket broke the example that the attacks left."""
    status, by = np.array(["broken"] * 4), np.array(["malt", "pgd-10", "fgsm", "clean"])
    table = make_table(status=status, decided_by=by)
    none, stages = accuracy(hits([0, 0, 0, 0])), {name: BracketStage(4, 0, 1, 1, 1, 1.0) for name in by.tolist()}
    bracket = Bracket(none.acc, none.ci95, none.acc, none.ci95, 0, 1.0, stages, {}, budget=10, truncated=False)
    return make_record(bracket=bracket, **changes), table


def test_worst_includes_the_bracket_and_in_earlier_records_it_does_not():
    nothing = robustness(hits([0, 0, 0, 0]))
    by = ["fgsm", "pgd-10", "bracket"]
    for changes in ({"worst": nothing, "worst_by": by}, {}):
        record, table = bracketed(**changes)
        record_checks.check_record(record, table)
        assert record.attacked == nothing
    for changes, said in (
        ({"worst_by": by}, "worst accuracy is 0.25; its table gives 0.0"),
        ({"worst": nothing}, "worst accuracy is 0.0; its table gives 0.25"),
        ({"worst": nothing, "worst_by": ["fgsm"]}, "disagree on the attacks that set"),
    ):
        with pytest.raises(UserError, match=said):
            record_checks.check_record(*bracketed(**changes))


@pytest.mark.parametrize(
    ("open_examples", "seconds", "truncated", "cut"),
    [
        (3, 10.2, None, True),
        (0, 10.2, None, False),
        (3, 9.0, None, False),
        (3, 9.0, True, True),
        (3, 11.0, False, False),
    ],
)
def test_what_a_time_limit_cut_is_known_of_earlier_records_too(open_examples, seconds, truncated, cut):
    ends = (0.0, (0.0, 0.1))
    bracket = Bracket(*ends, *ends, open_examples, seconds, {}, {}, truncated=truncated, budget_seconds=10.0)
    assert bracket.cut_by_time == cut
    assert bracket.effective_time_limit == 10.0
    free = Bracket(*ends, *ends, open_examples, seconds, {}, {}, truncated=False, budget=10)
    assert (free.cut_by_time, free.out_of_time, free.effective_time_limit) == (False, False, None)


NEARLY = Accuracy(0.75, (accuracy(hits(CLEAN)).ci95[0], 0.99))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": accuracy(hits([1, 1, 1, 1]))}, "clean accuracy is 1.0; its table gives 0.75"),
        ({"clean": NEARLY}, "clean accuracy"),
        ({"clean": Accuracy(float("nan"), NEARLY.ci95)}, "clean accuracy is nan"),
        ({"attacks": {"fgsm": under(CLEAN), "pgd-10": under(PGD)}}, "accuracy under fgsm is 0.75"),
        ({"attacks": {"fgsm": under(FGSM)}}, "disagree on the attacks"),
        (
            {"attacks": {"fgsm": under(FGSM), "pgd-10": under(PGD), "x": under(PGD)}},
            "disagree on the attacks",
        ),
        ({"worst": robustness(hits(FGSM))}, "worst accuracy is 0.5; its table gives 0.25"),
        ({"worst": None}, "worst"),
        ({"certifiers": {"ibp": CertifierResult(1.0, (0.4, 1.0), 0.2, 1.0)}}, "certifiers"),
        ({"n_examples": 5}, "counts 5 examples, its table 4"),
    ],
)
def test_a_tampered_record_is_a_user_error(changes, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        record_checks.check_record(make_record(**changes), make_table())


def test_worst_accuracy_without_an_attack_is_a_user_error():
    table = {key: value for key, value in make_table().items() if not key.startswith("robust/")}
    with pytest.raises(UserError, match=r"\A.*worst.*\Z"):
        record_checks.check_record(make_record(attacks={}), table)


def proven(spec, **changes):
    """What the columns of a certifier in certified_table give."""
    table = certified_table()
    found = accuracy(table[f"certified/{spec}"])
    kind = "probabilistic" if spec == "smoothing" else "deterministic"
    broken = 1 if spec == "exact" else None
    values = {"mean_radius": mean_radius(table, spec), "seconds": 1.0, "kind": kind, "broken": broken}
    return CertifierResult(**({"certified_acc": found.acc, "ci95": found.ci95} | values | changes))


def narrowed(**changes):
    low, high = accuracy(hits([1, 0, 0, 0])), accuracy(hits([1, 0, 0, 0]))
    values = {
        "certified_acc": low.acc, "certified_ci95": low.ci95, "robust_acc": high.acc, "robust_ci95": high.ci95,
        "open": 0, "budget": 60, "seconds": 1.0, "skipped": {}, "truncated": False,
        "stages": {
            "clean": stage(4, broken=1), "fgsm": stage(3, broken=1), "pgd-10": stage(2, broken=1),
            "ibp": stage(1, certified=1),
        },
    }  # fmt: skip
    return Bracket(**(values | changes))


def stage(tried, certified=0, broken=0):
    return BracketStage(tried, certified, broken, 0, 0, 0.0)


def certified_record(**changes):
    values = {"certifiers": {spec: proven(spec) for spec in ("ibp", "exact", "smoothing")}, "bracket": narrowed()}
    return make_record(**(values | changes))


def test_a_true_record_of_certificates_passes():
    record_checks.check_record(certified_record(), certified_table())


STAGES = narrowed().stages


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"certifiers": {}}, "disagree on the certifiers"),
        ({"bracket": None}, "disagree on the bracket"),
        ({"certifiers": {"certified_acc": 0.5}}, "certified accuracy of ibp is 0.5; its table gives 0.25"),
        ({"certifiers": {"mean_radius": 0.2}}, "mean radius of ibp is 0.2; its table gives 0.075"),
        ({"certifiers": {"broken": 0}}, "ibp broke 0 examples; its table gives None"),
        ({"certifiers": {"kind": "probabilistic"}}, "ibp is probabilistic"),
        ({"bracket": narrowed(certified_acc=0.5)}, "bracket's certified accuracy is 0.5; its table gives 0.25"),
        ({"bracket": narrowed(robust_acc=0.5)}, "bracket's robust accuracy is 0.5; its table gives 0.25"),
        ({"bracket": narrowed(robust_ci95=(0.1, 0.9))}, "bracket's robust accuracy"),
        ({"bracket": narrowed(open=1)}, "counts 1 open examples; its table gives 0"),
        ({"bracket": narrowed(stages={"clean": STAGES["clean"]})}, "names 'fgsm', which is no stage"),
        ({"bracket": narrowed(stages=STAGES | {"ibp": stage(1, broken=1)})}, "stage ibp decided 0 . 1"),
        ({"bracket": narrowed(stages=STAGES | {"ibp": stage(0, certified=1)})}, "stage ibp decided"),
        ({"bracket": narrowed(stages=STAGES | {"crown": stage(1, certified=1)})}, "stage crown decided 1"),
        ({"threat": Threat("Linf", 0.3)}, "'radius/ibp' is below eps"),
        ({"bracket": narrowed(budget=None)}, "either a budget or"),
        ({"bracket": narrowed(budget_seconds=60.0)}, "either a budget or"),
        ({"bracket": narrowed(truncated=True)}, "bracket is truncated, with a time limit of None s"),
        ({"bracket": narrowed(truncated=None)}, "bracket is not truncated, with"),
        ({"bracket": narrowed(truncated=True, time_limit=0.5)}, "truncated, with a time limit of 0.5 s.* and 0 ex"),
    ],
)
def test_a_tampered_record_of_certificates_is_a_user_error(changes, said):
    own = changes.get("certifiers")
    if own:
        changes = {"certifiers": certified_record().certifiers | {"ibp": proven("ibp", **own)}}
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        record_checks.check_record(certified_record(**changes), certified_table())


@pytest.mark.parametrize(("row", "stage", "certified", "robust"), [
    (2, "pgd-10", [1, 0, 0, 0], [1, 0, 1, 0]),
    (0, "ibp", [0, 0, 0, 0], [1, 0, 0, 0]),
])  # fmt: skip
def test_a_bracket_that_leaves_open_what_the_run_knows_is_a_user_error(row, stage, certified, robust):
    """An example that pgd-10 broke, and one that ibp certified."""
    table = certified_table()
    for key, value in (("status", "open"), ("decided_by", "")):
        table[key] = np.where(np.arange(4) == row, value, table[key])
    low, high = accuracy(hits(certified)), accuracy(hits(robust))
    open_one = narrowed(
        certified_acc=low.acc, certified_ci95=low.ci95, robust_acc=high.acc, robust_ci95=high.ci95, open=1,
        stages={key: value for key, value in STAGES.items() if key != stage},
    )  # fmt: skip
    with pytest.raises(UserError, match="leaves an example open"):
        record_checks.check_record(certified_record(bracket=open_one), table)


def test_records_from_before_brackets_are_read():
    plain = msgspec.to_builtins(make_record())
    for key in ("bracket", "audited"):
        del plain[key]
    assert msgspec.convert(plain, Record) == make_record()


def test_record_round_trip(tmp_path):
    record_files.write_record(tmp_path, make_record())
    assert record_files.read_record(tmp_path) == make_record()
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_record_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        record_files.write_record(tmp_path, make_record(provenance={"loss": float("nan")}))
    assert not list(tmp_path.iterdir())


def plain_record(**changes):
    return json.dumps(msgspec.to_builtins(make_record()) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b"\xff\xfe\x00",
        plain_record()[:-20],
        plain_record(seed="three"),
        plain_record(seed=1.5),
        plain_record(n_examples=None),
        plain_record(surprise=1),
        plain_record(**{"two\nlines": 1}),
        plain_record(threat={"norm": "Linf", "eps": 0.1, "box": [0, 1]}),
        plain_record(clean={"acc": float("nan"), "ci95": [0, 1]}),
        plain_record(clean={"acc": 0.5, "ci95": [0, 1, 2]}),
        plain_record(clean=0.5),
        plain_record(schema=1),
        plain_record(schema=3),
        b"{}",
        plain_record().replace(b'"seed": 3', b'"seed": 1e999'),
        plain_record().replace(b'"seed": 3, ', b""),
        b'{"provenance": {"a": ' + b"[" * 100_000,
    ],
)
def test_malformed_record_is_a_user_error_in_one_line(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=r"\A.*record.json is not a record: .*\Z"):
        record_files.read_record(tmp_path)


def test_a_record_of_an_older_schema_is_refused_with_both_versions(tmp_path):
    (tmp_path / "record.json").write_bytes(plain_record(schema=1))
    with pytest.raises(UserError, match=r"\A[^\n]*schema is 1[^\n]*schema 2[^\n]*\Z"):
        record_files.read_record(tmp_path)


@pytest.mark.parametrize("verdict", [*VERDICTS, "clean"])
def test_the_verdict_clean_of_older_records_is_read_as_no_warnings(tmp_path, verdict):
    sanity = {"verdict": verdict, "reasons": [], "checks": []}
    (tmp_path / "record.json").write_bytes(plain_record(sanity=sanity))
    expected = "no-warnings" if verdict == "clean" else verdict
    assert record_files.read_record(tmp_path).sanity.verdict == expected
    assert "clean" not in VERDICTS


def test_missing_record_is_a_user_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"\A.*has no record.json.*\Z"):
            record_files.read_record(folder)


def test_find_records(tmp_path):
    for name in ("b/0", "a/1", "a/0"):
        (tmp_path / name).mkdir(parents=True)
        record_files.write_record(tmp_path / name, make_record())
    ordered = [tmp_path / name for name in ("a/0", "a/1", "b/0")]
    assert record_files.find_records([tmp_path]) == ordered
    assert record_files.find_records([tmp_path / "b/0", tmp_path]) == [ordered[2], *ordered[:2]]


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_find_records_without_any_is_a_user_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"\A.*{name} holds no record.json.*\Z"):
        record_files.find_records([tmp_path / name])


def test_find_records_of_published_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (seed,) = record_files.find_records([Path("digits/atas/0")])
    assert (seed.parts[-3:], record_files.read_record(seed).seed) == (("digits", "atas", "0"), 0)
    assert seed in record_files.find_records([Path("digits/atas")])
    for path in ("digits/nothing", "digits", "digits/../digits"):
        with pytest.raises(UserError, match=r"holds no record\.json"):
            record_files.find_records([Path(path)])
    with pytest.raises(UserError, match=r"holds no record\.json"):
        record_files.find_records([Path("digits/atas/0")], strict=True)
    (tmp_path / "digits/atas/0").mkdir(parents=True)  # a local path comes first
    record_files.write_record(tmp_path / "digits/atas/0", make_record())
    assert record_files.find_records([Path("digits/atas")]) == [Path("digits/atas/0")]


def test_find_records_leaves_out_unfinished_runs(tmp_path, capsys):
    done, failed = tmp_path / "done/0", tmp_path / "failed/0"
    for folder in (done, failed):
        folder.mkdir(parents=True)
        (folder / record_files.CONFIG).write_text("{}")
    record_files.write_record(done, make_record())
    assert record_files.find_records([failed, done]) == [done]
    assert capsys.readouterr().err == f"warning: {failed} is left out: it holds an unfinished run\n"
    with pytest.raises(UserError, match="the run is not finished"):
        record_files.find_records([failed])
    with pytest.raises(UserError, match=r"holds no record.json; give"):
        record_files.find_records([failed, done], strict=True)


def test_artifact_of_a_file(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, FIPS 180-2
    assert record_files.artifact(path) == Artifact(sha256=digest, bytes=3, path="w.bin")
