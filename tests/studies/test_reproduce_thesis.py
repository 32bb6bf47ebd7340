import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.cli import main
from bench.core.errors import UserError
from bench.core.sealed_json import DIGEST
from bench.core.threat import ThreatModel
from bench.datasets.split import Split
from bench.models.mlp import fc1
from bench.studies.reproduction.paper_comparison import Comparison, Figure
from bench.studies.reproduction.paper_tables import read_paper_table
from bench.studies.reproduction.reproduce_thesis import ReproduceStudy, _certifiers, measure, pgd_points
from tests.certifying import Exact, calls
from tests.linear import exact_margin, linear_model, near_the_boundary
from tests.studies.distances import at_some_distance

SHAPE = (1, 2, 3)
N = 12


@pytest.fixture
def folder(tmp_path):
    """A small data set by the name of mnist, and fresh weights by the names of two published checkpoints."""
    draw = np.random.default_rng(0)
    images = {f"x_{split}": draw.integers(0, 256, (n, 28, 28), np.uint8) for split, n in (("train", 10), ("test", N))}
    np.savez(tmp_path / "mnist.npz", **images, y_train=np.arange(10), y_test=np.arange(N) % 10)
    torch.manual_seed(0)
    for name in ("mnist_fc1_l1_kw.ckpt", "mnist_fc1_l2_c-per.ckpt"):
        torch.save(fc1((1, 28, 28), 10).state_dict(), tmp_path / name)
    return {"checkpoints": str(tmp_path), "data_dir": str(tmp_path), "threads": 1, "device": "cpu"}


def test_pgd_on_a_linear_model_reaches_the_corner():
    model = linear_model(SHAPE, 2)
    batch = near_the_boundary(model, SHAPE)
    threat = ThreatModel("Linf", 0.1)
    x_adv = pgd_points(model, batch, threat, torch.Generator().manual_seed(0))
    weight = model[1].weight.detach()
    descent = (weight[1 - batch.y] - weight[batch.y]).sign().view_as(batch.x)
    torch.testing.assert_close(x_adv, batch.x + 0.1 * descent)  # 20 steps of eps / 10 reach the corner from anywhere
    assert threat.contains(x_adv, batch.x).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_measurements_of_a_linear_model(norm):
    model = linear_model(SHAPE, 3)
    batch, far = at_some_distance(model, SHAPE, norm)
    y = batch.y.clone()
    y[:4] = (y[:4] + 1) % 3  # clean errors
    reference = read_paper_table("thesis-3.7" if norm == "L2" else "thesis-3.6")
    far[:4] = 0
    eps = float(far.sort().values[10:12].mean())
    threat = ThreatModel(norm, eps)
    safe = (exact_margin(model, batch, threat) > 0) & (batch.y == y)
    assert safe.sum() == 9
    figures = measure(
        model, Split.of_tensors(batch.x, y), threat, _certifiers(reference, None),
        generator=torch.Generator().manual_seed(0), title="linear",
    )  # fmt: skip
    assert figures["CTE", ""] == pytest.approx(20)
    assert figures["CRE", "fast-lin"] == figures["CRE", "ibp"] == pytest.approx(55)
    assert figures["ACB", "fast-lin"] == pytest.approx(0.45 * eps)
    assert figures["radius", "pec"] == pytest.approx(float(far.clamp(max=eps).mean()), rel=1e-4)
    assert (("CRE", "pec") in figures) == (norm == "L2")
    assert 45 <= figures["PGD", ""] <= 55 + 1e-6


def test_pec_gets_only_examples_that_fast_lin_does_not_certify():
    model = linear_model(SHAPE, 3)
    batch, far = at_some_distance(model, SHAPE, "Linf")
    threat = ThreatModel("Linf", float(far.sort().values[10:12].mean()))
    calls.clear()
    measure(
        model, Split.of_tensors(batch.x, batch.y), threat, {"fast-lin": Exact(), "pec": Exact()},
        generator=torch.Generator().manual_seed(0), title="linear",
    )  # fmt: skip
    left = (exact_margin(model, batch, threat) <= 0).nonzero().squeeze(1).tolist()
    assert [seen for _, seen, _ in calls] == [list(range(20)), left]


def test_the_exact_certifier_runs_only_if_asked_for():
    model = linear_model(SHAPE, 3)
    batch, far = at_some_distance(model, SHAPE, "Linf")
    eps = float(far.sort().values[10:12].mean())
    certifiers = _certifiers(read_paper_table("thesis-3.6"), 5.0)
    active = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3))  # the same, with a ReLU
    for layer, weight, bias in ((active[1], model[1].weight, 20.0), (active[3], torch.eye(3), -20.0)):
        layer.weight.data, layer.bias.data = weight.detach(), torch.full((3,), bias)
    figures = measure(
        active, Split.of_tensors(batch.x, batch.y), ThreatModel("Linf", eps), certifiers,
        generator=torch.Generator().manual_seed(0), title="linear",
    )  # fmt: skip
    assert (figures["CRE", "exact"], figures["open", "exact"]) == (pytest.approx(55), 0)
    assert list(_certifiers(read_paper_table("thesis-3.7"), 5.0)) == ["ibp", "fast-lin", "pec"]  # the table has no MIP
    tight = "crown:relaxation=tight"
    assert list(_certifiers(read_paper_table("thesis-3.8"), None)) == ["ibp", "fast-lin", "pec", "crown", tight]


def test_a_table_for_programs(folder):
    output = json.loads(ReproduceStudy(**folder, form="json").run())
    figures = {each["figure"]: each for each in output["figures"]}
    assert list(figures) == ["CTE", "PGD", "CRE Lin", "CRE IBP", "ACB Lin", "ACB IBP", "ACB PEC"]  # no MIP unasked
    assert {(each["dataset"], each["model"], each["norm"], each["row"]) for each in output["figures"]} == {
        ("mnist", "fc1", "Linf", "KW")
    }
    assert (figures["CRE Lin"]["paper"], figures["CRE Lin"]["by"]) == (12.91, "fast-lin")
    assert figures["CTE"]["verdict"] == "DIFFERS"
    assert figures["CTE"]["ours"] * N / 100 == pytest.approx(round(figures["CTE"]["ours"] * N / 100))
    assert len(output["not_available"]) == 32
    rows = list(csv.DictReader(io.StringIO(ReproduceStudy(**folder, form="csv").run())))
    assert [float(row["ours"]) for row in rows] == [each["ours"] for each in output["figures"]]  # same seed, same PGD
    assert not list(csv.DictReader(io.StringIO(ReproduceStudy(**folder, table="3.8", form="csv").run())))


def test_under_l2_pec_and_fast_lin_have_a_figure_each(folder):
    output = json.loads(ReproduceStudy(**folder, table="3.7", form="json").run())["figures"]
    by = {(each["figure"], each["by"]): each for each in output}
    assert by["CRE Lin", "pec"]["paper"] == 5.35
    assert by["CRE", "fast-lin"]["paper"] is None
    assert by["CRE Lin", "pec"]["ours"] <= by["CRE", "fast-lin"]["ours"]
    assert "reading: under L2" in by["CRE Lin", "pec"]["notes"]


def test_a_table_for_people(folder):
    report = ReproduceStudy(**folder).run()
    assert "| KW    | CRE Lin  | fast-lin |" in report
    assert "not available (no weights): mnist, fc1, Linf 0.1: plain, AT, IBP, CROWN-IBP, MMR" in report
    assert "KW, IBP, CROWN-IBP" in report.split("mnist, cnn, Linf 0.1: ")[1]  # where kw's is missing too
    other = ReproduceStudy(**folder, only="c-per").run()
    assert "| KW" not in other  # not measured, but there
    assert "mnist, fc1, Linf 0.1: plain, AT, IBP" in other
    few = ReproduceStudy(**folder, n_examples=5).run()
    assert "no verdicts" in few
    assert "DIFFERS" in report
    assert "DIFFERS" not in few


@pytest.fixture
def runs(tmp_path):
    """A folder with a run of l-per on fc1 with seed 3, and one of another eps."""
    record = json.loads((Path(__file__).parents[2] / "leaderboard/results/digits/l-per/0/record.json").read_text())
    record.pop(DIGEST)
    record |= {"dataset": "mnist", "model": "fc1", "seed": 3}
    record["training"]["epochs"] = 25
    for name, eps in (("own", 0.1), ("other", 0.2)):
        run = tmp_path / "runs" / name / "3"
        run.mkdir(parents=True)
        (run / "record.json").write_text(json.dumps(record | {"threat": {"norm": "Linf", "eps": eps}}))
        save_file(fc1((1, 28, 28), 10).state_dict(), run / "weights.safetensors")
    return str(tmp_path / "runs")


def test_runs_are_measured_beside_checkpoints_and_named(folder, runs):
    both = ReproduceStudy(**folder, runs=runs)
    figures = json.loads(replace(both, form="json").run())["figures"]
    of_row = {each["row"]: each for each in figures if each["figure"] == "CRE Lin"}
    assert list(of_row) == ["KW", "L-PER"]  # the run with another eps is of no row
    assert (of_row["KW"]["run"], of_row["KW"]["verdict"]) == (None, "DIFFERS")
    assert (of_row["L-PER"]["run"], of_row["L-PER"]["verdict"]) == ("trained here, 25 of 100 epochs, seed 3", None)
    assert of_row["L-PER"]["paper"] == 11.71
    report = replace(both, checkpoints=None, n_examples=4).run()
    assert "| trained here, 25 of 100 epochs, seed 3 |" in report
    assert "| KW" not in report
    assert "| checkpoint" in both.run()


def test_notes_are_numbered_and_explained():
    reference = read_paper_table("thesis-3.6")
    block = reference.blocks[0]
    cells = {cell.column: cell for cell in reference.cells(block, "I-PER+at")}
    ours = {"CTE": 1.54, "CRE Lin": 13.19}
    figures = [Figure(block, "I-PER+at", name, "", value, cells[name]) for name, value in ours.items()]
    report = Comparison(reference, figures, [], complete=True).as_text("markdown")
    assert "equal [1]" in report
    assert "[1] leaked: the authors' training loop" in report
    assert "-0.77 | misprint (right: 13.19) [2]" in report
    assert "[2] misprint: the published checkpoint" in report


@pytest.mark.slow
def test_table_39_and_its_figure(folder, tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "optima.svg"
    report = ReproduceStudy(**folder, table="3.9", n_examples=4, figure=str(figure)).run()
    assert re.search(r"\| T_Lin +\| +\| +12\.00 \| +12\.00 \| +\+0\.00 \|", report)
    assert figure.read_text().count('<g id="axes_') == 2
    assert f"figure: {figure}" in report


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"table": "3.5"}, "table '3.5' is not one of 3.6, 3.7, 3.8, 3.9"),
        ({"checkpoints": "nowhere"}, "folder nowhere does not exist"),
        ({"checkpoints": None}, "give --checkpoints DIR"),
        ({"n_examples": 0}, "n_examples is 0; mnist has 1 to 12"),
        ({"figure": "a.png"}, "table 3.6 has no figure"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_wrong_use_is_one_line(folder, wrong, words):
    with pytest.raises(UserError, match=words) as error:
        ReproduceStudy(**(folder | wrong)).run()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command(folder, capsys):
    options = ["--checkpoints", folder["checkpoints"], "--data-dir", folder["data_dir"], "--n-examples", "2"]
    main(["study", "reproduce", "--table", "3.9", *options, "--set", "form=json", "--set", "threads=1"])
    output = json.loads(capsys.readouterr().out)["figures"]
    assert [each["row"] for each in output] == ["KW"] * 3 + ["L-PER"] * 3
    for wrong, words in [
        (["--table", "3.6", "--set", "table=3.7"], "given twice"),
        (["--model", "fc1"], "'model'"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["study", "reproduce", *wrong])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
