"""Keys and titles that imitate another entry's are refused; others are not."""

import pytest

from bench.core.errors import UserError
from bench.publish.imitated_names import check_contest_author, check_names
from leaderboard.published_results import About
from leaderboard.publishing import add_runs
from tests.publish.published import flags, table_of, write_run


def about(title, *maintainers):
    return About(title=title, paper="Nobody (2026)", licence="MIT", maintainers=maintainers)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The entries pgd-at, trades, l-per and fgsm-rs of three owners."""
    home = tmp_path_factory.mktemp("world")
    theirs = {
        "pgd-at": ("PGD-AT", "ann"),
        "trades": ("TRADES", "bea"),
        "l-per": ("L-PER", "cy"),
        "fgsm-rs": ("RS", "cy"),
    }
    for name, (title, owner) in theirs.items():
        run = write_run(home / name, table_of(flags(10, 5)), weights=name, defense=name)
        add_runs(home / "results", name, about(title, owner), [run])
    return home / "results"


@pytest.mark.parametrize(("entry", "title", "reason"), [
    ("mine", "PGD-AT", "is that of entry 'pgd-at'"),
    ("mine", "pgd at", "is that of entry 'pgd-at'"),
    ("mine", "P.G.D. (AT)", "is that of entry 'pgd-at'"),
    ("mine", "TRADES", "is that of entry 'trades'"),
    ("mine", "Tr\u00e4des", "is that of entry 'trades'"),
    ("mine", "L-PER", "is that of entry 'l-per'"),
    ("mine", "fgsm rs", "is that of entry 'fgsm-rs'"),
    ("mine", "\u1d18\u0262\u1d05-\u1d00\u1d1b", "U+1D18"),
    ("mine", "\u0280obust", "U+0280"),
    ("mine", "***", "has no letters"),
    ("mine", "TRADES, corrected", "looks like a version of entry 'trades'"),
    ("mine", "TRADES (official)", "looks like a version of entry 'trades'"),
    ("mine", "trades v2", "looks like a version of entry 'trades'"),
    ("trades-2", "Something else", "looks like a version of 'trades'"),
    ("trades-corrected", "Something else", "looks like a version of 'trades'"),
    ("pgdat", "Something else", "looks like 'pgd-at'"),
    ("pgd.at", "Something else", "looks like 'pgd-at'"),
    ("p-g-d-a-t", "Something else", "looks like 'pgd-at'"),
    ("1-per", "Something else", "looks like 'l-per'"),
    ("con", "Something else", "on every system"),
    ("nul.txt", "Something else", "on every system"),
    ("com1", "Something else", "on every system"),
    ("mine.", "Something else", "on every system"),
])  # fmt: skip
def test_an_imitation_is_refused(entry, title, reason, results):
    with pytest.raises(UserError, match=r"^[ -~]*$") as caught:
        check_names(results, "digits", entry, about(title, "eve"))
    assert reason in str(caught.value)


@pytest.mark.parametrize(("entry", "title", "owner"), [
    ("pgd-at-wa", "PGD-AT with averaged weights", "eve"),
    ("l-per-at", "L-PER+at", "eve"),
    ("i-per", "I-PER", "eve"),
    ("mart", "MART: a better TRADES", "eve"),
    ("fgsm-rs", "RS", "cy"),
    ("trades-2", "TRADES, corrected", "bea"),
    ("resnet", "Madry's \u00e9tude", "eve"),
    ("console", "A console", "eve"),
])  # fmt: skip
def test_a_name_of_its_own_passes(entry, title, owner, results):
    check_names(results, "digits", entry, about(title, owner))


@pytest.mark.parametrize(("entry", "title"), [("trades-2", "Something else"), ("mine", "TRADES, corrected")])
def test_only_the_author_of_a_pull_request_counts_as_a_maintainer(entry, title, results):
    """Anybody can name the maintainers of another entry beside oneself."""
    with pytest.raises(UserError, match="a version of"):
        check_names(results, "digits", entry, about(title, "eve", "bea"), "eve")
    check_names(results, "digits", entry, about(title, "eve", "bea"), "bea")


@pytest.mark.parametrize("name", ["bench submit", "Bench-Submit", "BENCH  SUBMIT"])
def test_nobody_contests_in_the_name_of_the_verification(name):
    with pytest.raises(UserError, match="the verification's own"):
        check_contest_author(name)
    check_contest_author("Ann Bench")
