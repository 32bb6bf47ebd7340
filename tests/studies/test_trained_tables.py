import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.core.errors import UserError
from bench.core.sealed_json import DIGEST
from bench.studies.reproduction.paper_tables import read_paper_table
from bench.studies.reproduction.reproduce_thesis import ReproduceStudy
from bench.studies.reproduction.trained_tables import DEFENSES, TABLES

PUBLISHED = Path(__file__).parents[2] / "leaderboard/results/digits/atas"


@pytest.fixture
def write(tmp_path):
    """A run that differs from a published one in some fields, in a folder of its own."""

    def write_run(seed, acc, *, epochs=30, n=10_000, defense="atas", settings=None, **fields):
        record = json.loads((PUBLISHED / "0" / "record.json").read_text())
        record.pop(DIGEST)
        attack = next(iter(record["attacks"].values()))
        record |= {
            "seed": seed, "dataset": "cifar10", "model": "resnet18:mean=0.5+0.5+0.5:std=1+1+1", "defense": defense,
            "threat": {"norm": "Linf", "eps": 8 / 255}, "n_examples": n,
            "attacks": {"pgd-10": attack | {"robust_acc": acc}},
        } | fields  # fmt: skip
        record["config"] |= {"training": record["config"]["training"] | (settings or {})}
        record["training"]["epochs"] = epochs
        folder = tmp_path / f"{defense}-{seed}"
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps(record))

    return write_run


def report(tmp_path, table, **options):
    return ReproduceStudy(table=table, runs=str(tmp_path), **options).run()


def test_the_mean_over_seeds_is_beside_the_papers(write, tmp_path):
    write(0, 0.48)
    write(1, 0.50)
    figures = json.loads(report(tmp_path, "5.11", form="json"))["figures"]
    (pgd,) = [each for each in figures if each["figure"] == "PGD10"]
    assert (pgd["row"], pgd["ours"], pgd["paper"], pgd["verdict"]) == ("ATAS", pytest.approx(49.0), 50.03, "equal")
    text = report(tmp_path, "5.11")
    assert "here" not in text
    assert "not available (no weights): cifar10, resnet18, Linf 0.0314: PGD10, FreeAT" in text


@pytest.mark.parametrize(("fields", "said"), [
    ({"epochs": 29}, "ATAS has 29 of 30 epochs here"), ({"n": 500}, "ATAS has 500 of 10000 test examples here"),
    ({"model": "small-cnn"}, "ATAS is a small-cnn here"),
    ({"model": "resnet18:width=4"}, "ATAS is a resnet18:width=4 here"),
    ({"dataset": "cifar10:train=100"}, "ATAS has the data cifar10:train=100 here"),
])  # fmt: skip
def test_a_smaller_run_has_no_verdict_and_is_named(write, tmp_path, fields, said):
    write(0, 0.48, **fields)
    text = report(tmp_path, "5.11")
    assert said in text
    assert "equal" not in text


def test_settings_tell_rows_apart_and_table_42_has_errors(write, tmp_path):
    for seed, growth in enumerate(("none", "linear")):
        settings = {"eps_growth": growth, "periods": [0.5, 0.75]}
        write(seed, 0.5, defense="pas", model="resnet18:width=32", epochs=200, settings=settings, config_hash=growth)
    figures = json.loads(report(tmp_path, "4.2", form="json"))["figures"]
    found = {(each["model"], each["row"]): each["ours"] for each in figures if each["figure"] == "PGD"}
    assert found["resnet18:width=32", "Constant, periods"] == found["resnet18:width=32", "Linear, periods"] == 50.0
    assert not [row for _, row in found if row.startswith("Cosine")]


@pytest.mark.parametrize(("eps_max", "said"), [("1.5eps", True), ("2.0eps", False), (str(16 / 255), False)])
def test_a_training_with_another_eps_max_is_named(write, tmp_path, eps_max, said):
    settings = {"eps_growth": "cosine", "eps_max": eps_max, "periods": []}
    write(0, 0.5, defense="pas", model="resnet18:width=32", epochs=200, settings=settings)
    text = report(tmp_path, "4.2")
    assert ("Cosine has eps_max=1.5eps instead of 2eps here" in text) == said == ("here" in text)


@pytest.mark.parametrize("trained_at", [2, 8])
def test_table_2_of_the_reflected_loss_is_attacked_at_8_255(write, tmp_path, trained_at):
    record = json.loads((PUBLISHED / "0" / "record.json").read_text())
    result = next(iter(record["attacks"].values()))
    specs = {"pgd-50": 0.1, "pgd-50:restarts=10": 0.2, "pgd-50:restarts=10:eps=0.03137254901960784": 0.3}
    write(
        0, 0, defense="r-pgd", settings={"steps": 4}, epochs=20, model="preact-resnet18",
        threat={"norm": "Linf", "eps": trained_at / 255},
        attacks={spec: result | {"robust_acc": acc} for spec, acc in specs.items() if trained_at == 2 or acc < 0.3},
    )  # fmt: skip
    figures = json.loads(report(tmp_path, "reflected-2", form="json"))["figures"]
    found = {(each["row"], each["figure"]): (each["ours"], each["paper"]) for each in figures}
    assert set(found) == {("R-PGD, 4 steps", "RA"), ("R-PGD, 4 steps", "SA")}
    ours, paper = found["R-PGD, 4 steps", "RA"]
    assert (ours, paper) == ((30.0, 20.726) if trained_at == 2 else (20.0, 34.19))


def test_every_row_of_the_tables_is_a_defense():
    for table in TABLES:
        name = table if table.startswith("reflected") else f"thesis-{table}"
        for block in read_paper_table(name).blocks:
            assert set(block.rows) <= set(DEFENSES)


@pytest.mark.parametrize(("table", "options"), [("5.11", {"exact": True}), ("reflected-1", {"seed": 3})])
def test_an_option_that_a_table_does_not_use_is_refused(tmp_path, table, options):
    with pytest.raises(UserError, match=f"table {table} does not use {next(iter(options))}"):
        ReproduceStudy(table=table, runs=str(tmp_path) if table == "5.11" else None, **options).run()


def test_a_folder_of_runs_must_be_given():
    with pytest.raises(UserError, match="--runs DIR"):
        ReproduceStudy(table="5.11").run()


def test_the_option_that_the_message_names_exists(write, tmp_path, capsys):
    write(0, 0.48)
    main(["study", "reproduce", "--table", "5.11", "--runs", str(tmp_path)])
    assert "ATAS" in capsys.readouterr().out
