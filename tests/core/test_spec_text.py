import pytest

from bench.core.errors import UserError
from bench.core.spec_text import SpecText, join_spec, join_specs, split_options, split_spec, split_specs, split_steps


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("pgd", "pgd", {}),
        ("pgd-50", "pgd-50", {}),
        ("pgd:steps=40:eps=8/255", "pgd", {"steps": "40", "eps": "8/255"}),
        ("thing:a=b=c:empty=", "thing", {"a": "b=c", "empty": ""}),
        ("torchattacks.PGD:steps=3", "torchattacks.PGD", {"steps": "3"}),
        ("some/mine.py:build:width=3", "some/mine.py:build", {"width": "3"}),
        ("mine.py", "mine.py", {}),
        (r"transfer:from=C:\runs\a:eps=0.1", "transfer", {"from": r"C:\runs\a", "eps": "0.1"}),
        (r"C:\models\a,b.py:build:width=3", r"C:\models\a,b.py:build", {"width": "3"}),
        ("C:/models/mine.py:build", "C:/models/mine.py:build", {}),
    ],
)
def test_split_and_join(text, name, options):
    assert split_spec(text) == SpecText(name, options)
    assert list(split_spec(text).options) == list(options)
    assert join_spec(name, options) == text


@pytest.mark.parametrize("text", ["pgd:steps", "pgd:=3", "pgd:", "mine.py:build:wide", "pgd:steps=3:steps=3"])
def test_bad_text_is_a_user_error_that_quotes_it(text):
    with pytest.raises(UserError, match=rf"\A.*'{text}'.*\Z"):
        split_spec(text)


@pytest.mark.parametrize(
    ("name", "short", "steps"), [("pgd-50", "pgd", 50), ("mi-fgsm", "mi-fgsm", None), ("apgd-t-9", "apgd-t", 9)]
)
def test_split_steps(name, short, steps):
    assert split_steps(name) == (short, steps)


@pytest.mark.parametrize("words", [["lr"], ["=3"], [""], ["lr=1", "lr=2"]])
def test_bad_options_are_user_errors_that_name_their_source(words):
    with pytest.raises(UserError, match=r"\A--set.*\Z"):
        split_options(words, "--set")


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("pgd-10", ["pgd-10"]),
        ("pgd-10, fgsm", ["pgd-10", "fgsm"]),
        ("pgd-10,'transfer:from=runs/a,b',fgsm", ["pgd-10", "transfer:from=runs/a,b", "fgsm"]),
        ("pgd-10,,fgsm", ["pgd-10", "", "fgsm"]),
        ("", [""]),
    ],
)
def test_specs_are_separated_by_commas_outside_of_quotes(text, specs):
    assert split_specs(text) == specs
    assert split_specs(join_specs(specs)) == specs
