"""Evidence lines in docstrings and in the README follow from the published results."""

import shutil

import msgspec
import pytest

from bench.core.record_files import read_record
from leaderboard import evidence
from leaderboard.published_results import results_folder

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
    return [read_record(results_folder() / "digits" / "atas" / str(seed)) for seed in range(3)]


def test_published_results_are_grouped_by_defense_and_suite(atas):
    by_defense = evidence.published(results_folder())
    seeds = [record.seed for record in by_defense["atas"]["digits"]]
    assert seeds == sorted(int(path.parent.name) for path in (results_folder() / "digits/atas").glob("*/record.json"))
    assert by_defense["atas"]["digits"][:3] == atas
    assert set(by_defense["atas"]) == {"digits"}


def test_an_entry_of_another_name_is_a_changed_recipe_and_no_evidence(tmp_path):
    for entry in ("atas", "atas-2"):
        shutil.copytree(results_folder() / "digits" / "atas" / "0", tmp_path / "digits" / entry / "0")
    assert {name: len(suites["digits"]) for name, suites in evidence.published(tmp_path).items()} == {"atas": 1}


def test_a_sentence_gives_means_and_spreads_over_seeds(atas):
    records = [
        msgspec.structs.replace(record, worst=msgspec.structs.replace(record.worst, robust_acc=acc), bracket=None)
        for record, acc in zip(atas, (0.5, 0.6, 0.7), strict=True)
    ]
    text = evidence.evidence({"digits": records})
    assert "attacked 60.0 +- 10.0." in text
    assert "3 seeds" in text
    assert "certified 0.0 +- 0.0" in text
    assert f"clean {evidence.mean([record.clean.acc for record in atas])}," in text


def test_the_bracket_counts_as_an_attack():
    ibp = read_record(results_folder() / "digits" / "ibp" / "0")
    lower = msgspec.structs.replace(ibp.bracket, robust_acc=0.25)
    assert evidence.attacked(msgspec.structs.replace(ibp, bracket=lower)) == 0.25


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
