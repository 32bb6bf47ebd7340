"""Evidence lines in docstrings and in the README follow from the published results."""

import dataclasses
import shutil

import numpy as np
import pytest

from leaderboard import evidence
from leaderboard.entry_results import share
from leaderboard.published_results import read_evaluated_run, results_folder

SOURCE = '''
@registry.defense("atas")
class ATAS:
    """ATAS.

    Evidence: old text over
    two lines.
    """


@registry.defense("mine")
class Mine:
    """Mine.

    Evidence: 99.9.

    Another paragraph.
    """
'''


@pytest.fixture(scope="module")
def atas():
    return [read_evaluated_run(results_folder() / "digits" / "atas" / str(seed)) for seed in range(3)]


def test_published_results_are_grouped_by_defense_and_suite(atas):
    by_defense = evidence.published(results_folder())
    seeds = [run.record.seed for run in by_defense["atas"]["digits"]]
    assert seeds == sorted(int(path.parent.name) for path in (results_folder() / "digits/atas").glob("*/record.json"))
    assert by_defense["atas"]["digits"][0].record == atas[0].record
    assert set(by_defense["atas"]) == {"digits"}


def test_an_entry_of_another_name_is_a_changed_recipe_and_no_evidence(tmp_path):
    for entry in ("atas", "atas-2"):
        shutil.copytree(results_folder() / "digits" / "atas" / "0", tmp_path / "digits" / entry / "0")
        shutil.copy(results_folder() / "digits" / "atas" / "about.toml", tmp_path / "digits" / entry)
    assert {name: len(suites["digits"]) for name, suites in evidence.published(tmp_path).items()} == {"atas": 1}


def test_a_sentence_gives_means_and_spreads_over_seeds(atas):
    of_180 = [np.arange(360) < n for n in (180, 216, 252)]
    runs = [dataclasses.replace(run, robust=flags) for run, flags in zip(atas, of_180, strict=True)]
    text = evidence.evidence({"digits": runs})
    assert "attacked 60.0 +- 10.0." in text
    assert "3 seeds" in text
    assert "certified 0.0 +- 0.0" in text
    assert f"clean {evidence.mean(run.clean for run in atas)}," in text


def test_contests_count():
    """The numbers are those of the board: examples that a contest broke are not robust."""
    by_defense = evidence.published(results_folder())
    contested = [suites["digits"] for suites in by_defense.values() if any(run.contests for run in suites["digits"])]
    assert contested
    for runs in contested:
        claimed = [run.record.worst.robust_acc for run in runs if run.record.worst is not None]
        assert sum(claimed) > sum(share(run.robust) for run in runs)
        assert f"attacked {evidence.mean(run.robust for run in runs)}." in evidence.evidence({"digits": runs})


def test_only_the_evidence_paragraph_of_each_defense_is_rewritten(atas):
    written = evidence.with_evidence(SOURCE, {"atas": {"digits": atas}})
    assert "old text" not in written
    assert "two lines" not in written
    assert "Evidence: digits (small-cnn, Linf 0.2, 30 epochs, 3 seeds" in written
    assert "    Evidence: not yet reproduced.\n\n    Another paragraph.\n" in written
    assert evidence.with_evidence(written, {"atas": {"digits": atas}}) == written


def test_the_table_of_the_readme_has_a_row_for_each_defense(atas):
    start, end = evidence.MARKERS
    readme = evidence.with_table(f"before\n{start}\nold\n{end}\nafter", {"atas": {"digits": atas}})
    assert readme.startswith(f"before\n{start}\n|")
    assert readme.endswith(f"|\n{end}\nafter")
    rows = [line for line in readme.splitlines() if line.startswith("| `") and "`--defense`" not in line]
    assert [line.split("`")[1] for line in rows] == list(evidence.registry.defense.entries())
    assert next(line for line in rows if "`standard`" in line).endswith("| not yet reproduced |")


def test_a_file_that_is_out_of_date_fails_the_check(tmp_path, monkeypatch, capsys):
    (tmp_path / "defenses").mkdir()
    (tmp_path / "defenses" / "atas.py").write_text(SOURCE)
    (tmp_path / "README.md").write_text("\n".join(evidence.MARKERS))
    monkeypatch.setattr(evidence, "files", lambda _: tmp_path / "leaderboard")
    assert evidence.main(["--check"]) == 1
    assert "atas.py: out of date" in capsys.readouterr().out
    assert evidence.main([]) == 0
    assert evidence.main(["--check"]) == 0
