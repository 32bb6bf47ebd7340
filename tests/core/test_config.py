import dataclasses
import json
from pathlib import Path

import pytest

from bench.core import config, registry
from bench.core.config import CORRUPTIONS, RunConfig, TrainingConfig, as_json, get_suite, make_config, suites
from bench.core.errors import UserError
from bench.core.specs import OfEps, in_units, parse_spec
from bench.core.threat import ThreatModel
from bench.datasets.filters import parse_filtered

RUN = RunConfig(
    suite="digits", dataset="digits", data_hash="ab", model="cnn", defense="pgd-at", checkpoint=None, norm="Linf",
    eps=0.2, attacks=("pgd-10", "fgsm"), n_examples=100, eval_batch=50, training={"epochs": 3, "lr": 0.1},
)  # fmt: skip
SUITE = 'summary = "s"\ndataset = "digits"\nmodel = "cnn"\nnorm = "Linf"\neps = "8/255"\nattacks = ["pgd-10"]\n'


def test_later_layers_are_stronger():
    found = make_config(TrainingConfig, "it", {"epochs": 5, "lr": 0.2}, {}, {"lr": "1/2", "milestones": "0.5+0.75"})
    assert found == TrainingConfig(epochs=5, lr=0.5, milestones=(0.5, 0.75))


def test_unknown_key_names_the_nearest_and_all():
    with pytest.raises(UserError, match=r"\A'it' has no setting 'epoch': did you mean 'epochs'.*batch_size.*\Z"):
        make_config(TrainingConfig, "it", {"epoch": 3})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0), ("batch_size", 0), ("lr", 0), ("lr", -1), ("momentum", 1), ("momentum", -0.1),
        ("weight_decay", -1e-9), ("milestones", (0.5, 1.1)), ("milestones", (-0.1,)), ("peak", 0), ("peak", 1),
        ("crop", -1), ("validation", 1), ("validation", -0.1), ("ema", 1), ("ema", -0.1), ("clip_grad", -1),
        ("probe_every", -1), ("probe_examples", 0), ("epochs", "many"), ("epochs", 1.5), ("optimizer", "lion"),
        ("schedule", "step"), ("select", "first"), ("flip", "maybe"), ("amp", "on"), ("lr", "nan"), ("lr", "inf"),
    ],
)  # fmt: skip
def test_value_out_of_range_is_a_user_error(key, value):
    with pytest.raises(UserError, match=rf"\A.*{key}.*\Z"):
        make_config(TrainingConfig, "it", {key: value})


def test_select_best_needs_a_validation_split():
    with pytest.raises(UserError, match=r"\Aselect is best.*validation split.*\Z"):
        make_config(TrainingConfig, "it", {"select": "best"})
    assert make_config(TrainingConfig, "it", {"select": "best", "validation": 0.1}).validation == 0.1


@pytest.mark.parametrize("name", registry.defense.names())
def test_config_survives_json(name):
    config_class = registry.defense.get(name).config_class
    for settings in ({}, {"epochs": 7, "milestones": (1 / 3, 2 / 3), "lr": 1 / 7}):
        before = config_class(**settings)
        plain = json.loads(json.dumps(as_json(before)))
        assert make_config(config_class, name, plain) == before


def test_a_length_in_units_of_eps_survives_json():
    config_class = registry.defense.get("pgd-at").config_class
    before = config_class(alpha=OfEps(1 / 3))
    assert make_config(config_class, "pgd-at", as_json(before)) == before


@pytest.mark.parametrize("name", suites())
def test_suite_names_what_exists(name):
    suite = get_suite(name)
    if suite.norm == CORRUPTIONS:
        assert not suite.attacks
    else:
        ThreatModel(suite.norm, suite.eps)
    assert parse_filtered(suite.dataset, registry.dataset)[0].text == suite.dataset
    parse_spec(suite.model, registry.model)
    for spec in suite.attacks:
        assert parse_spec(spec, registry.attack).text == spec
    assert set(suite.defenses) <= set(registry.defense.names())
    assert suite.eval_batch >= 1
    assert suite.summary


@pytest.mark.parametrize("name", suites())
def test_suite_makes_a_valid_config_of_every_defense(name):
    suite = get_suite(name)
    for defense in registry.defense.names():
        special = dict(suite.defenses.get(defense, {}))
        parse_spec(special.pop("model", suite.model), registry.model)  # a defense may need another model
        made = make_config(registry.defense.get(defense).config_class, defense, suite.training, special)
        for key, value in (suite.training | special).items():
            assert as_json(made)[key] == value


def test_suite_values():
    digits, cifar10 = get_suite("digits"), get_suite("cifar10")
    assert (digits.dataset, digits.norm, digits.eps) == ("digits", "Linf", 0.2)
    assert cifar10.eps == 8 / 255
    assert cifar10.attacks == ("pgd-10", "pgd-50", "autoattack")


def test_unknown_suite_names_the_nearest():
    with pytest.raises(UserError, match=r"\Aunknown suite 'digit': did you mean 'digits'.*\Z"):
        get_suite("digit")


@pytest.fixture
def read_suite(tmp_path, monkeypatch):
    def read(text):
        (tmp_path / "suites").mkdir()
        (tmp_path / "suites" / "mine.toml").write_text(text)
        monkeypatch.setattr(config, "SUITES", tmp_path / "suites")
        return suites.__wrapped__()["mine"]

    return read


def test_suite_file_is_typed(read_suite):
    suite = read_suite(SUITE + "[training]\nepochs = 3\n[defenses.trades]\nbeta = 1")
    assert (suite.name, suite.eps, suite.attacks) == ("mine", 8 / 255, ("pgd-10",))
    assert (suite.training, suite.defenses) == ({"epochs": 3}, {"trades": {"beta": 1}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("summary = ", "not valid TOML"),
        (SUITE + "epsilon = 3", "no setting 'epsilon': did you mean 'eps'"),
        (SUITE + 'name = "x"', "no setting 'name'"),
        (SUITE.replace("8/255", "eight"), "eps takes a number, not 'eight'"),
        (SUITE.replace("dataset", "# dataset"), "dataset"),
    ],
)
def test_malformed_suite_is_a_user_error_that_names_it(read_suite, text, said):
    with pytest.raises(UserError, match=rf"\A.*suite mine.*{said}.*\Z"):
        read_suite(text)


def test_content_hash_does_not_depend_on_the_order_of_keys():
    assert dataclasses.replace(RUN, training={"lr": 0.1, "epochs": 3}).content_hash == RUN.content_hash
    assert len(RUN.content_hash) == 12


OTHER = {
    "suite": None, "dataset": "mnist", "data_hash": "cd", "model": "fc1", "defense": None, "checkpoint": "ef",
    "norm": "L2", "eps": 0.2 + 1e-12, "attacks": ("fgsm", "pgd-10"), "n_examples": 101, "eval_batch": 51,
    "training": {"epochs": 4, "lr": 0.1}, "code": ("ab",), "certifiers": ("ibp",), "budget": 60,
    "time_limit": 60.0, "bracket": 60.0, "box": False, "corruptions": ("fog",),
    "state_dict": "ema",
}  # fmt: skip


def test_content_hash_changes_with_each_field():
    assert set(OTHER) == {field.name for field in dataclasses.fields(RunConfig)}
    hashes = [RUN.content_hash, *(dataclasses.replace(RUN, **{k: v}).content_hash for k, v in OTHER.items())]
    assert len(set(hashes)) == len(hashes)


ROOT = Path(__file__).parents[2]
PUBLISHED = [*ROOT.glob("leaderboard/results/*/*/*/record.json"), *ROOT.glob(".ci/baseline/*/*/record.json")]


def test_published_hashes_are_computed_again():
    hashes = []
    for path in PUBLISHED:
        record = json.loads(path.read_bytes())
        config = RunConfig(**record["config"])
        hashes.append(config.content_hash)
        assert hashes[-1] == record["config_hash"], path
        assert config.as_json() == record["config"], path
    assert len(set(hashes)) > 15


def test_published_entries_have_the_settings_of_their_suite():
    """An entry is never edited: it holds all its settings, and a changed recipe is published under another name."""
    for path in ROOT.glob("leaderboard/results/*/*/*/record.json"):
        record = json.loads(path.read_bytes())
        if record["config"]["defense"] is not None and record["suite"] is not None:
            suite, name, published = get_suite(record["suite"]), record["defense"], record["config"]["training"]
            special = {key: value for key, value in suite.defenses.get(name, {}).items() if key != "model"}
            config_class = registry.defense.get(name).config_class
            today = as_json(make_config(config_class, name, suite.training, special, {"epochs": published["epochs"]}))
            assert today == published, path
            assert as_json(make_config(config_class, name, published)) == published  # it can still be made again


def test_the_cnns_of_mnist_have_the_settings_of_table_3_5():
    for suite in (get_suite("mnist"), get_suite("fashion-mnist")):
        for name in ("l-per", "l-per-at", "i-per", "i-per-at"):
            config_class = registry.defense.get(name).config_class
            config = make_config(config_class, name, suite.training, suite.defenses[name])
            assert (config.beta, config.subsample) == (0.03 if name.endswith("-at") else 0.3, 20)
            assert (config.eps_schedule, config.alpha, config.nearest) == ("constant", OfEps(1.5), 4)
            assert (config.optimizer, config.lr, config.batch_size) == ("adam", 1e-3, 100)
            assert (config.schedule, config.milestones, config.decay) == ("piecewise", (0.9,), 0.1)
            assert 0 < config.warm_up < 1


TABLE_3_5 = {  # the paper's: alpha, beta of PER, beta of PER+at, the first eps (that of the threat if constant), B'
    "mnist-fc1": (0.15, 0.1, 0.1, 0.0064, None),
    "cifar10-cnn": (0.1, 0.0003, 0.001, 2 / 255, 10),
    "mnist-fc1-l2": (0.45, 1.0, 1.0, 0.02, None),
    "mnist-cnn-l2": (0.45, 1.0, 1.0, 0.3, 20),
    "cifar10-cnn-l2": (0.15, 0.3, 1.0, 0.1, 10),
}


@pytest.mark.parametrize("suite", TABLE_3_5)
@pytest.mark.parametrize("name", ["l-per", "l-per-at", "i-per", "i-per-at"])
def test_suites_of_table_3_5(suite, name):
    alpha, beta, beta_at, first_eps, subsample = TABLE_3_5[suite]
    rules = get_suite(suite)
    config = make_config(registry.defense.get(name).config_class, name, rules.training, rules.defenses[name])
    assert in_units(config.alpha, rules.eps) == pytest.approx(alpha)
    assert config.beta == (beta_at if name.endswith("-at") else beta)
    start = in_units(config.eps_start, rules.eps) if config.eps_schedule == "paper" else rules.eps
    assert start == pytest.approx(first_eps)
    assert config.subsample == subsample
    assert (config.optimizer, config.lr, config.batch_size, config.epochs) == ("adam", 1e-3, 100, 100)
    assert (config.milestones == (0.9,) and config.schedule == "piecewise") == ("cnn" in suite)
    assert (config.warm_up > 0) == ("cnn" in suite)


def test_run_as_json_is_plain():
    plain = dataclasses.replace(RUN, training={"alpha": OfEps(0.25)}).as_json()
    assert plain["attacks"] == ["pgd-10", "fgsm"]
    assert plain["training"] == {"alpha": "0.25eps"}
    assert json.loads(json.dumps(plain)) == plain


OWN = 'summary = "Mine"\ndataset = "digits"\nmodel = "small-cnn"\nnorm = "Linf"\neps = 0.1\nattacks = ["pgd-10"]\n'


def test_a_suite_of_ones_own_is_found_by_its_file_and_then_by_its_name(tmp_path):
    path = tmp_path / "digits-of-a-test.toml"
    path.write_text(OWN)
    assert get_suite(str(path)).eps == 0.1
    assert get_suite("digits-of-a-test") == get_suite(str(path))
    path.write_text(OWN.replace("0.1", "0.2"))
    with pytest.raises(UserError, match="differs from the suite digits-of-a-test that is there already"):
        get_suite(str(path))
    with pytest.raises(UserError, match=r"none.toml does not exist; give an existing"):
        get_suite(str(tmp_path / "none.toml"))
    suites().pop("digits-of-a-test")


@pytest.mark.parametrize(("defense", "setting", "said"), [
    ("trades", "beta=-1", "beta is -1.0; it must be not negative"),
    ("kw", "clip_grad=-1", "clip_grad is -1.0; it must be not negative"),
    ("atas", "c=0", "c is 0.0; it must be positive"),
    ("atas", "warm_up=1.5", "warm_up is 1.5; it must be a fraction of the training"),
])  # fmt: skip
def test_settings_outside_their_range_are_refused(defense, setting, said):
    name, value = setting.split("=")
    with pytest.raises(UserError, match=said):
        make_config(registry.defense.get(defense).config_class, defense, {name: value})
