from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.core.errors import UserError
from bench.core.record_files import WEIGHTS
from bench.datasets.load import load_arrays
from bench.runs.compatibility import check_distinct_names, check_rebuilt
from bench.runs.evaluate import evaluate
from bench.runs.plan import make_plan
from bench.runs.request import Request
from bench.runs.sources import Sources
from bench.training.checkpoints import save_weights

QUICK = Request(defense="atas", attacks=["fgsm"])


def test_a_run_belongs_to_the_suite_only_under_its_threat_model():
    assert make_plan(QUICK).config.suite == "digits"
    other = make_plan(replace(QUICK, eps=(0.1,))).config
    assert other.suite is None
    assert other.dataset == "digits"


def test_the_default_is_the_digits_suite_with_all_its_test_examples():
    config = make_plan(Request(defense="atas")).config
    assert (config.norm, config.eps, config.n_examples, config.model) == ("Linf", 0.2, 360, "small-cnn")
    assert config.attacks == ("pgd-10", "pgd-50", "autoattack")


def test_later_layers_of_settings_take_precedence():
    training = make_plan(QUICK).config.training
    assert training["crop"] == 0  # the suite's, not the paper's
    assert training["c"] == 0.01  # the paper's
    assert make_plan(replace(QUICK, overrides={"crop": "2"})).config.training["crop"] == 2


def test_a_suite_gives_a_defense_its_own_model_unless_the_user_gives_one():
    subnet = Request(defense="binary-subnet", attacks=["fgsm"])
    assert "batchnorm" in make_plan(subnet).config.model
    assert make_plan(replace(subnet, model="small-cnn")).config.model == "small-cnn"


def test_the_folder_depends_on_the_options_that_change_the_result():
    same = replace(QUICK, threads=1, device="cpu", out=Path("elsewhere"))
    assert make_plan(same).config.content_hash == make_plan(QUICK).config.content_hash
    for change in ({"eps": (0.1,)}, {"n_examples": 9}, {"overrides": {"lr": "0.2"}}, {"model": "fc1"}):
        assert make_plan(replace(QUICK, **change)).config.content_hash != make_plan(QUICK).config.content_hash
    assert make_plan(QUICK).folder(0) != make_plan(QUICK).folder(1)


def test_changing_a_model_file_changes_the_folder(tmp_path):
    code = (
        "from torch import nn\ndef build(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    file = tmp_path / "mine.py"
    hashes = []
    for text in (code, f"{code}# another\n"):
        file.write_text(text)
        hashes.append(make_plan(replace(QUICK, model=f"{file}:build")).config.content_hash)
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(("change", "hint"), [
    ({"defense": "pgd-at", "norm": "L2"}, "give --eps for L2"),
    ({"norm": "L2", "eps": (0.5,)}, "not L2"),
    ({"suite": "digits", "norm": "L2"}, "suite 'digits' has norm Linf"),
    ({"device": "cuda"}, "no GPU"),
    ({"eps": (2.0,)}, "images are in"),
])  # fmt: skip
def test_requests_that_contradict_themselves_are_refused(change, hint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=hint):
        make_plan(replace(QUICK, **change))


def test_a_function_in_a_file_is_a_data_set(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom bench.api import Arrays\ndef make(data_dir=None, *, n: int = 8):\n"
        "    x, y = np.zeros((n, 8, 8, 1), np.uint8), np.arange(n) % 2\n    return Arrays('mine', x, y, x, y)\n"
    )
    asked = Request(defense="standard", dataset=f"{file}:make:n=6", eps=(0.1,), model="mlp", attacks=["fgsm"])
    made = make_plan(asked)
    assert (len(made.arrays.y_test), made.config.dataset) == (6, f"{file}:make:n=6")
    file.write_text(file.read_text().replace("zeros", "ones"))
    assert make_plan(asked).config.content_hash != made.config.content_hash


def test_the_initial_weights_depend_on_the_seed_only():
    made = make_plan(QUICK)
    torch.manual_seed(1)
    first = made.new_model(0).stem.weight
    torch.manual_seed(2)
    assert torch.equal(first, made.new_model(0).stem.weight)
    assert not torch.equal(first, made.new_model(1).stem.weight)


def test_the_hash_of_a_run_without_certifiers_is_the_published_one():
    config = make_plan(Request(defense="atas")).config
    assert {"certifiers", "bracket"} & set(config.as_json()) == set()
    assert config.content_hash == "aa0fc6ac77bd"  # the README's first run


@pytest.mark.slow
def test_certifiers_and_the_bracket_are_part_of_the_hash():
    asked = [{"certifiers": ["ibp"]}, {"certifiers": ["ibp", "crown"]}, {"budget": 60}, {"budget": 90}]
    asked.append({"budget": 60, "time_limit": 90.0})
    configs = [make_plan(replace(QUICK, **each)).config for each in asked]
    assert len({config.content_hash for config in [make_plan(QUICK).config, *configs]}) == 6
    assert configs[1].as_json()["certifiers"] == ["ibp", "crown"]
    assert configs[2].as_json()["budget"] == 60


@pytest.mark.slow
def test_a_bracket_runs_only_its_own_attacks_by_default():
    assert make_plan(Request(defense="atas", budget=60)).attacks == {}
    assert list(make_plan(Request(defense="atas", budget=60, attacks=["fgsm"])).attacks) == ["fgsm"]
    names = [stage.name for stage in make_plan(Request(defense="atas", budget=60)).bracket.stages]
    assert names[:4] == ["fgsm", "ibp", "fast-lin", "crown"]
    assert "malt" in names
    assert names.index("malt") < names.index("bab")
    assert make_plan(QUICK).bracket is None


def test_a_bracket_does_not_repeat_the_attacks_and_certifiers_of_the_run():
    bracket = make_plan(Request(defense="atas", budget=60, attacks=["fgsm"], certifiers=["crown"])).bracket
    assert [stage.name for stage in bracket.stages][:2] == ["ibp", "fast-lin"]
    assert "crown" not in [stage.name for stage in bracket.stages]


def test_an_attack_and_a_certifier_with_the_same_name_are_refused():
    check_distinct_names({"fgsm": None}, {"ibp": None})
    for attacks, certifiers in (({"a": None}, {"a": None}), ({"bracket": None}, {}), ({}, {"bracket": None})):
        with pytest.raises(UserError, match="names two things of one run"):
            check_distinct_names(attacks, certifiers)


class Sketch(nn.Module):
    """With random features in a buffer, or outside of the weights, or of a random number."""

    def __init__(self, kind):
        super().__init__()
        features = torch.randn(64, torch.randint(5, 1000, ()) if kind == "shape" else 5)
        if kind == "buffer":
            self.register_buffer("features", features)
        else:
            self.features = features if kind == "attribute" else nn.Parameter(features)

    def forward(self, x):
        return (x.flatten(1) @ self.features)[:, :5]


@pytest.mark.parametrize(("kind", "said"), [
    ("buffer", None),
    ("attribute", r"\Amodel 'it' cannot be rebuilt from its weights: .*register_buffer\Z"),
    ("shape", r"\Amodel 'it' has other weights each time it is built.*\Z"),
])  # fmt: skip
def test_a_model_whose_weights_are_not_all_of_it_is_refused(kind, said):
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        check_rebuilt(Sketch(kind), Sketch(kind), load_arrays("digits", None), "it")


def test_partial_results_of_other_source_are_not_used(monkeypatch, tmp_path):
    folders = []

    def stop(context, *_, **__):
        folders.append(context.partial_results)
        raise UserError("stopped")

    monkeypatch.setattr("bench.runs.evaluate.evaluate_split", stop)
    plan = make_plan(replace(QUICK, n_examples=10))
    model = plan.new_model(0)
    save_weights(tmp_path / WEIGHTS, model, plan.spec)
    for source in ("1", "2", "1"):
        with pytest.raises(UserError, match="stopped"):
            evaluate(replace(plan, sources=Sources(evaluation={"attacks/pgd.py": source})), 0, tmp_path, model, None)
    assert folders[0] == folders[2] != folders[1]
