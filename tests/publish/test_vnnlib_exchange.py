"""`bench export` and `bench import-verdicts`: ONNX computes what the model does, and a tool's answers are checked."""

import gzip
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bench.core import files
from bench.core.errors import UserError
from bench.core.example_table import Threat
from bench.core.layers import Normalize, Residual
from bench.core.modes import frozen
from bench.core.package_origins import ROOT
from bench.core.record_files import read_record
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.publish import onnx_network, verdicts, vnnlib_export
from bench.publish.onnx_network import onnx_bytes, onnx_logits
from bench.publish.vnnlib_export import instance_name, property_text
from certifiers.network_description import described_network
from tests.end_to_end.command import bench
from tests.networks import drawn_weights

SHAPE = (2, 6, 6)


def nets():
    convs = nn.Sequential(
        Normalize([0.4, 0.5], [0.3, 0.2]), nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    branch = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    residual = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), Residual(branch), nn.PReLU(4), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip
    upsampled = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(432, 3, bias=False),
    )  # fmt: skip
    return {"convs": convs, "residual": residual, "upsampled": upsampled}


@pytest.mark.parametrize("name", ["convs", "residual", "upsampled"])
@pytest.mark.filterwarnings("ignore")
def test_onnx_computes_what_the_model_does(name):
    pytest.importorskip("onnx")
    model = drawn_weights(nets()[name].eval(), seed=1, gain=1.0).float()
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    with frozen(model), torch.no_grad():
        wanted, description = model(images).numpy(), described_network(model, images[:1])
    network = onnx_bytes(description, {key: value.numpy() for key, value in model.state_dict().items()})
    np.testing.assert_allclose(onnx_logits(network, images.numpy()), wanted, rtol=1e-5, atol=1e-5)
    session = pytest.importorskip("onnxruntime").InferenceSession(network)
    found = [session.run(None, {"X": image[None]})[0][0] for image in images.numpy()]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_property_is_read_back_by_the_package_of_the_standard():
    vnnlib = pytest.importorskip("vnnlib")
    compat = pytest.importorskip("vnnlib.compat")
    image = np.array([0.0, 1.0, 0.5, 3e-6], dtype=np.float32).reshape(1, 2, 2)
    (case,) = compat.transform(vnnlib.parse_query_string(property_text(image, 1, 3, Threat("Linf", 0.1))))
    wanted = [(0.0, 0.1), (0.9, 1.0), (0.4, 0.6), (0.0, float(image[0, 1, 1]) + 0.1)]
    np.testing.assert_allclose(case.input_box, wanted, atol=1e-15, rtol=0)
    assert len(case.output_constraints) == 2


def test_bounds_are_written_in_full_without_exponents():
    text = property_text(np.full((1, 1, 1), 2e-7, dtype=np.float32), 0, 2, Threat("Linf", 1e-7))
    low, high = (line.split()[-1].rstrip(")") for line in text.splitlines() if "X[" in line)
    assert (float(low), float(high)) == (float(np.float32(2e-7)) - 1e-7, float(np.float32(2e-7)) + 1e-7)
    assert "e" not in low + high


def test_without_a_box_the_bounds_are_those_of_the_ball():
    text = property_text(np.full((1, 1, 1), 0.0, dtype=np.float32), 0, 2, Threat("Linf", 0.25, box=False))
    assert "(assert (>= X[0, 0, 0, 0] -0.25))" in text


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'robust-bracket\[onnx\]'"):
        onnx_network.onnx_module()


INSTANCES = {"abc-0-example-1": 1, "abc-0-example-10": 10, "abc-0-example-2": 2}


@pytest.mark.parametrize(
    "text",
    [
        "abc-0-example-1.vnnlib,unsat\nabc-0-example-10.vnnlib,sat\n",
        "network,property,result,seconds\nn.onnx,abc-0-example-1.vnnlib,holds,1\nn.onnx,abc-0-example-10.vnnlib,violated,2\n",
        "cat,onnx/n.onnx,vnnlib/abc-0-example-1.vnnlib.gz,0.1,UNSAT,3\ncat,n.onnx,abc-0-example-10.vnnlib,0.1,sat,3\n",
    ],
)
def test_results_are_read_in_the_forms_of_the_tools(text, tmp_path):
    (tmp_path / "r.csv").write_text(text)
    assert verdicts.read_results(tmp_path / "r.csv", INSTANCES) == {1: "holds", 10: "broken"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("abc-0-example-3.vnnlib,unsat\n", "names 0 properties of this run and 1 answers"),
        (
            "abc-0-example-1.vnnlib,unsat\nabc-0-example-2.vnnlib,maybe\n",
            "r.csv:2 names 1 properties of this run and 0",
        ),
        ("abc-0-example-1.vnnlib,unsat\nabc-0-example-1.vnnlib,sat\n", "answers test example 1 a second time"),
        ("property,result\n", "has no answers"),
    ],
)
def test_other_results_are_refused_by_their_line(text, wrong, tmp_path):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(UserError, match=wrong):
        verdicts.read_results(tmp_path / "r.csv", INSTANCES)


def test_counterexamples_are_read_in_both_forms(tmp_path):
    flat = "sat\n(" + " ".join(f"(X_{i} {i / 8})" for i in range(8)) + "\n(Y_0 1.0))"
    (tmp_path / "net_abc-0-example-1.counterexample.gz").write_bytes(gzip.compress(flat.encode()))
    placed = "\n".join(f"(X[0, {c}, {h}, {w}] {c + h + w}e-1)" for c in range(2) for h in range(2) for w in range(2))
    (tmp_path / "abc-0-example-10.txt").write_text(placed)
    found = verdicts.read_counterexamples(tmp_path, INSTANCES, (2, 2, 2))
    np.testing.assert_array_equal(found[1].ravel(), np.arange(8, dtype=np.float32) / 8)
    assert found[10][1, 1, 0] == np.float32(0.2)
    (tmp_path / "abc-0-example-2.txt").write_text("(X_0 0.5)")
    with pytest.raises(UserError, match="has 1 of the 8 values of X"):
        verdicts.read_counterexamples(tmp_path, INSTANCES, (2, 2, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run that an attack breaks on some examples and not on all."""
    home = tmp_path_factory.mktemp("run")
    words = ("--epochs", "2", "--n-examples", "40", "--set", "probe_every=0", "--threads", "1", "--quiet")
    done = bench(home, "run", "--defense", "standard", "--eps", "0.1", "--attacks", "pgd-10", *words)
    assert done.returncode == 0, done.stderr
    return next(home.glob("runs/*/0"))


def test_answers_of_a_tool_are_checked_and_shown(run, tmp_path):
    table = files.read_arrays(run / "examples.npz")
    record = json.loads((run / "record.json").read_text())
    witnesses = files.read_arrays(run / "witnesses.npz")
    broken, safe = witnesses["index"].tolist(), np.flatnonzero(table["robust/pgd-10"]).tolist()
    assert len(broken) >= 2
    assert len(safe) >= 2

    def name(i):
        return f"{record['config_hash']}-0-example-{i}"

    answers = {broken[0]: "unsat", broken[1]: "sat", safe[0]: "unsat", safe[1]: "sat"}
    (tmp_path / "r.csv").write_text("".join(f"{name(i)}.vnnlib,{said}\n" for i, said in answers.items()))
    found = tmp_path / "found"
    found.mkdir()
    for i, image in ((broken[1], witnesses["x_adv"][1]), (safe[1], np.zeros(64))):  # the second is none
        values = " ".join(f"(X_{k} {value!r})" for k, value in enumerate(image.ravel().tolist()))
        (found / f"{name(i)}.txt").write_text(f"sat\n({values})")
    done = bench(tmp_path, "import-verdicts", str(run), "r.csv", "--by", "tool", "--counterexamples", "found")
    assert done.returncode == 1
    assert "tool: 2 holds (its claim), 1 broken (confirmed), 1 broken, not confirmed" in done.stdout
    line = (
        f"CONTRADICTED: test example {broken[0]}: it says that the property holds, and the witness of pgd-10 breaks it"
    )
    assert line in done.stdout
    assert line in bench(tmp_path, "show", str(run)).stdout
    (stored,) = json.loads(bench(tmp_path, "show", str(run), "--json").stdout)["verdicts"]
    assert stored["said"][str(safe[1])] == "broken, not confirmed"


def test_a_witness_at_a_larger_eps_hides_none_within_eps(run, tmp_path):
    words = ("--dataset", "digits", "--eps", "0.1,0.2", "--attacks", "pgd-10", "--n-examples", "40", "--quiet")
    done = bench(tmp_path, "eval", "--checkpoint", str(run / "weights.safetensors"), *words)
    assert done.returncode == 0, done.stderr
    both = next(tmp_path.glob("runs/*/0"))
    table = files.read_arrays(both / "examples.npz")
    broken = np.flatnonzero(table["clean"] & ~table["robust/pgd-10"]).tolist()
    assert len(broken) >= 2
    instances = [instance_name(read_record(both), example) for example in broken]
    (tmp_path / "r.csv").write_text("".join(f"{name},unsat\n" for name in instances))
    done = bench(tmp_path, "import-verdicts", str(both), "r.csv", "--by", "tool")
    assert done.stdout.count("CONTRADICTED") == len(broken)


def test_the_instances_of_a_published_network_are_what_torch_computes(tmp_path):
    """onnxruntime's logits of each image, and the box of each property as the standard's package reads it."""
    runtime, vnnlib = pytest.importorskip("onnxruntime"), pytest.importorskip("vnnlib")
    compat = pytest.importorskip("vnnlib.compat")
    entry = ROOT / "leaderboard/results/digits/pgd-at/0"
    done = bench(tmp_path, "export", str(entry), "--vnnlib", "out", "--threads", "1")
    assert done.returncode == 0, done.stderr
    session = runtime.InferenceSession(tmp_path / "out/network.onnx")
    model = build_model("small-cnn", (1, 8, 8), 10)
    model.load_state_dict(safetensors.torch.load_file(entry / "weights.safetensors"))
    digits = Split.test(load_arrays("digits", None), "cpu")
    for line in (tmp_path / "out/instances.csv").read_text().splitlines()[:40]:
        name = line.split(",")[1]
        image = digits.take(torch.tensor([int(name.removesuffix(".vnnlib").rpartition("-")[2])])).x
        (case,) = compat.transform(vnnlib.parse_query_string((tmp_path / "out" / name).read_text()))
        pixels = image.double().numpy().ravel()
        box = np.stack([np.maximum(0, pixels - 0.2), np.minimum(1, pixels + 0.2)], axis=1)
        np.testing.assert_allclose(case.input_box, box, atol=1e-15, rtol=0)
        with frozen(model), torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"X": image.numpy()})[0], model(image), rtol=0, atol=1e-5)


def test_a_run_is_exported_with_a_property_for_each_correct_example(run, tmp_path):
    pytest.importorskip("onnx")
    done = bench(tmp_path, "export", str(run), "--vnnlib", "out", "--threads", "1")
    assert done.returncode == 0, done.stderr
    clean = files.read_arrays(run / "examples.npz")["clean"]
    lines = (tmp_path / "out" / "instances.csv").read_text().splitlines()
    assert len(lines) == clean.sum()
    assert {(tmp_path / "out" / line.split(",")[1]).is_file() for line in lines} == {True}
    (tmp_path / "r.csv").write_text("".join(f"{line.split(',')[1]},unknown\n" for line in lines))
    assert bench(tmp_path, "import-verdicts", str(run), "r.csv", "--by", "other").returncode == 0


def test_a_network_that_computes_something_else_is_not_written(run, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(vnnlib_export, "onnx_logits", lambda *given: onnx_logits(*given) + 1e-3)
    done = bench(tmp_path, "export", str(run), "--vnnlib", "out", "--threads", "1")
    assert done.returncode == 1
    assert "the ONNX network differs from the model by " in done.stderr
    assert "; it was not written" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_counterexample_to_a_certificate_is_the_worst_contradiction(run, tmp_path, monkeypatch):
    """The run's certificates are made up here: a sound certifier has none that a point breaks."""
    monkeypatch.setattr(verdicts, "certified", lambda table: table["clean"])
    record, witnesses = read_record(run), files.read_arrays(run / "witnesses.npz")
    clean = files.read_arrays(run / "examples.npz")["clean"]
    row = next(row for row, example in enumerate(witnesses["index"].tolist()) if clean[example])
    example, name = witnesses["index"][row], instance_name(record, witnesses["index"][row])
    (tmp_path / "r.csv").write_text(f"{name}.vnnlib,sat\n")
    (tmp_path / "found").mkdir()
    values = " ".join(f"(X_{k} {value!r})" for k, value in enumerate(witnesses["x_adv"][row].ravel().tolist()))
    (tmp_path / "found" / f"{name}.txt").write_text(values)
    done = bench(tmp_path, "import-verdicts", str(run), "r.csv", "--by", "third", "--counterexamples", "found")
    assert done.returncode == 1
    assert f"CERTIFICATE REFUTED: test example {example} has a confirmed counterexample" in done.stdout
