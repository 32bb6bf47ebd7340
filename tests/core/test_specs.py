from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core import registry
from bench.core.errors import UserError
from bench.core.specs import OfEps, Spec, check_counts_and_lengths, in_units, options_of, parse_spec, parse_value

quick = settings(deadline=None, derandomize=True, max_examples=40)
BUILD = """
def build(shape, classes, *, width: int = 4, scale: tuple[float, ...] = (0.5, 0.5), bias: bool = True,
          activation: str | None = None):
    return (shape, classes, width, scale, bias, activation)

size = 3
"""


def attack(text):
    return parse_spec(text, registry.attack)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("pgd", "pgd"),
        ("pgd-50", "pgd-50"),
        ("pgd-10", "pgd-10"),
        ("pgd-50:restarts=5", "pgd-50:restarts=5"),
        ("pgd:restarts=5:steps=40", "pgd:steps=40:restarts=5"),
        ("pgd:steps=10", "pgd"),
        ("pgd:alpha=0.25eps:step=auto", "pgd"),
        ("pgd:random_start=no", "pgd:random_start=false"),
        ("pgd:random_start=True", "pgd"),
        ("pgd:alpha=0.1eps", "pgd:alpha=0.1eps"),
        ("pgd:alpha=0.10*eps", "pgd:alpha=0.1eps"),
        ("pgd:alpha=eps", "pgd:alpha=1.0eps"),
        ("pgd:alpha=8/255", f"pgd:alpha={8 / 255}"),
        ("pgd:alpha=2", "pgd:alpha=2"),
    ],
)
def test_canonical_text(written, canonical):
    assert attack(written).text == canonical
    assert attack(canonical).text == canonical


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("pgd", {}),
        ("pgd-50", {"steps": 50}),
        ("pgd:steps=40:restarts=5", {"steps": 40, "restarts": 5}),
        ("pgd:alpha=0.1eps", {"alpha": OfEps(0.1)}),
        ("pgd:alpha=8/255", {"alpha": 8 / 255}),
        ("pgd:random_start=off:step=raw", {"random_start": False, "step": "raw"}),
    ],
)
def test_options_are_typed(text, options):
    found = attack(text).options
    assert found == options
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in options.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pgd:stepz=3", "no option 'stepz'.*steps, restarts"),
        ("pgd:threat=3", "no option 'threat'"),
        ("pgd:steps=many", "'steps' takes a whole number, not 'many'"),
        ("pgd:steps=1.5", "'steps' takes a whole number"),
        ("pgd:steps=", "'steps' takes a whole number"),
        ("pgd:alpha=nan", "'alpha' takes a number or a multiple of eps"),
        ("pgd:alpha=1/0", "'alpha' takes"),
        ("pgd:alpha=infeps", "'alpha' takes"),
        ("pgd:random_start=maybe", "'random_start' takes true or false"),
        ("pgd:step=40", "not '40'; did you mean 'steps'?"),
        ("pgd:step=up", "'step' takes auto, sign, l2, raw, not 'up'"),
        ("pgd:steps=3:steps=4", "'steps' is given twice"),
        ("pgd-50:steps=40", "'steps' is given twice"),
        ("pgd:steps", "'steps' should be option=value"),
        ("pgd:=3", "'=3' should be option=value"),
        ("pgd:", "should be option=value"),
        ("pdg", "did you mean 'pgd'"),
        ("fgsm-10", "unknown attack 'fgsm-10'"),
        ("", "unknown attack ''"),
    ],
)
def test_bad_spec_is_a_user_error_in_one_line(text, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        attack(text)


def test_make_gives_the_options():
    made = attack("pgd:steps=3:alpha=0.5eps").make()
    assert (made.steps, made.restarts, made.alpha) == (3, 1, OfEps(0.5))


lengths = st.floats(1e-6, 1e6) | st.builds(OfEps, st.floats(1e-6, 1e6))
pgd_options = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 2000),
        "restarts": st.integers(1, 50),
        "alpha": lengths,
        "random_start": st.booleans(),
        "step": st.sampled_from(["auto", "sign", "l2", "raw"]),
    },
)


def written(value):
    return f"{value.factor!r}eps" if isinstance(value, OfEps) else str(value)


@quick
@given(pgd_options, st.randoms(use_true_random=False))
def test_canonical_text_is_a_fixed_point_that_means_the_same(options, random):
    items = [f"{key}={written(value)}" for key, value in options.items()]
    random.shuffle(items)
    spec = attack(":".join(["pgd", *items]))
    again = attack(spec.text)
    assert again.text == spec.text
    assert again.make() == spec.make()
    assert spec.options == options


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    return "mine.py"


@pytest.mark.parametrize(
    ("options", "canonical", "values"),
    [
        ("", "", (4, (0.5, 0.5), True, None)),
        (":bias=0:width=8", ":width=8:bias=false", (8, (0.5, 0.5), False, None)),
        (":scale=1+0.25", ":scale=1+0.25", (4, (1.0, 0.25), True, None)),
        (":scale=1e20+2", ":scale=1e+20+2", (4, (1e20, 2.0), True, None)),
        (":scale=1,0.25", ":scale=1+0.25", (4, (1.0, 0.25), True, None)),
        (":activation=relu", ":activation=relu", (4, (0.5, 0.5), True, "relu")),
        (":activation=none", "", (4, (0.5, 0.5), True, None)),
    ],
)
def test_model_from_a_file(model_file, options, canonical, values):
    spec = parse_spec(f"{model_file}:build{options}", registry.model)
    assert spec.text == f"mine.py:build{canonical}"
    assert parse_spec(spec.text, registry.model).text == spec.text
    assert spec.make((1, 8, 8), 10) == ((1, 8, 8), 10, *values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine.py", "name the function in the file, as in mine.py:build"),
        ("mine.py:make", "has no function 'make'"),
        ("mine.py:size", "has no function 'size'"),
        ("other.py:build", "other.py does not exist"),
        ("mine.py:build:depth=3", "no option 'depth'.*width, scale, bias, activation"),
        ("mine.py:build:scale=a", "'scale' takes a number, not 'a'"),
    ],
)
def test_bad_model_file_is_a_user_error_in_one_line(model_file, text, said):
    with pytest.raises(UserError, match=rf"\A.*{said}.*\Z"):
        parse_spec(text, registry.model)


def test_model_file_that_fails_to_import_is_a_user_error(model_file, tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_thing")
    with pytest.raises(UserError, match=r"\A.*bad.py fails to import \(ModuleNotFoundError.*\Z"):
        parse_spec("bad.py:build", registry.model)


def test_model_file_that_registers_its_model_may_be_read_twice(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(registry.model, "_plugins", {})
    (tmp_path / "own.py").write_text(
        'from bench.core import registry\n\n@registry.model("own")\ndef build(shape, classes):\n    return shape\n'
    )
    for _ in range(2):
        assert parse_spec("own.py:build", registry.model).make((1, 8, 8), 10) == (1, 8, 8)
    assert "own" in registry.model


def test_options_are_keyword_only_parameters_with_a_default():
    def thing(a, b=1, *, c, d: int = 2, e: float = 3.0):
        return a, b, c, d, e

    assert options_of(thing) == {"d": (int, 2), "e": (float, 3.0)}


def test_an_option_may_be_called_what_python_does_not_let_a_parameter_be_called():
    def thing(*, from_: str = "here", last_: int = 0):
        return from_, last_

    assert options_of(thing) == {"from": (str, "here"), "last_": (int, 0)}
    assert Spec("thing", thing, {"from": "there", "last_": 1}).make() == ("there", 1)


def test_a_count_or_length_that_is_left_open_is_not_checked():
    check_counts_and_lengths(SimpleNamespace(restarts=None, alpha=None))
    with pytest.raises(UserError, match="restarts is 0"):
        check_counts_and_lengths(SimpleNamespace(alpha=None, restarts=0))


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("8/255", float, 8 / 255),
        (3, float, 3.0),
        ("1e-3", float, 1e-3),
        ("-7", int, -7),
        ("on", bool, True),
        (False, bool, False),
        ([1, "1/2"], tuple[float, ...], (1.0, 0.5)),
        ("1+2", tuple[int, ...], (1, 2)),
        ("None", int | None, None),
        ("12", int | str, 12),
        ("twelve", int | str, "twelve"),
    ],
)
def test_parse_value(value, hint, expected):
    found = parse_value(value, hint, "it")
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (True, float),
        (1.5, int),
        (2, bool),
        (3, str),
        (3, tuple[int, ...]),
        ("x", int | None),
        ([1], float),
    ],
)
def test_parse_value_refuses_another_type(value, hint):
    with pytest.raises(UserError, match=r"\Ait takes .*\Z"):
        parse_value(value, hint, "it")


def test_in_units():
    assert in_units(OfEps(0.5), 0.2) == 0.1
    assert in_units(0.3, 0.2) == 0.3
    assert torch.equal(in_units(OfEps(2), torch.tensor([1.0, 3.0])), torch.tensor([2.0, 6.0]))
