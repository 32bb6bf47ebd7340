"""`bench ranks`: tables of every form, and ranks that chance does not make."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from bench.cli import main
from bench.core.errors import UserError
from leaderboard.published_results import read_entries, results_folder
from leaderboard.ranks import ALPHA, rank, ranks_from_p_values
from leaderboard.score_tables import ScoreTable, read_scores
from leaderboard.score_tests import compare_pairs, grain, needed
from leaderboard.significance import benjamini_hochberg, mcnemar, seeds_difference
from leaderboard.table_ranks import rank_table


def table(scores, rows="examples", n_examples=None):
    values = np.asarray(scores, dtype=float)
    return ScoreTable(tuple("abcdefgh"[: len(values)]), values, rows, n_examples)


def written(path, text):
    path.write_text(text)
    return path


WIDE = "example,a,b\n1,1,0\n2,1,\n3,true,false\n"
LONG = "entry,example,score\na,1,1\na,2,1\na,3,1\nb,1,0\nb,3,0\n"


def records(model, scores, name="task", hashes=None):
    return "".join(
        json.dumps({
            "model_id": model, "evaluation_name": name, "sample_id": str(i),
            "evaluation": {"score": score, "is_correct": bool(score)}, "sample_hash": hashes and hashes[i],
        }) + "\n"
        for i, score in scores.items()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", WIDE),
        ("t.csv", LONG),
        ("t.jsonl", '{"example": 1, "a": 1, "b": 0}\n{"example": 2, "a": true}\n{"example": 3, "a": 1, "b": 0}\n'),
        ("t.jsonl", records("a", {1: 1, 2: 1, 3: 1}) + records("b", {1: 0.0, 3: 0.0})),
    ],
)
def test_all_forms_are_one_table(name, text, tmp_path):
    found = read_scores([written(tmp_path / name, text)])
    assert (found.entries, found.rows) == (("a", "b"), "examples")
    np.testing.assert_array_equal(found.scores, [[1, 1, 1], [0, np.nan, 0]])


def test_files_of_one_model_each_are_one_board(tmp_path):
    a = written(tmp_path / "a.jsonl", records("a", {1: 1, 2: 0}) + records("a", {1: 1}, name="other"))
    b = written(tmp_path / "b.jsonl", records("b", {2: 1, 1: 0}))
    np.testing.assert_array_equal(read_scores([a, b]).scores, [[1, 0, 1], [0, 1, np.nan]])


def test_seeds_of_examples_become_means(tmp_path):
    lines = ["entry,seed,example,score", *(f"a,{s},{e},{int(e < 3 + s)}" for s in (0, 1) for e in range(10))]
    found = read_scores([written(tmp_path / "t.csv", "\n".join(lines))])
    assert (found.rows, found.n_examples, grain(found)) == ("seeds", 10, 0.1)
    np.testing.assert_allclose(found.scores, [[0.3, 0.4]])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is empty"),
        ("example,a,b\n1,1,x\n", "t.csv:2: the score of b is 'x'"),
        ("example,a,b\n1,1,nan\n", "the score of b is 'nan'"),
        ("example,a,b\n1,1\n", "t.csv:2 has 2 cells, the header has 3"),
        ("example,a,a\n1,1,1\n", "two columns are called 'a'"),
        ("example,a,\n1,1,0\n", "t.csv:2: the entry of a score has no name"),
        ("a,b\n1,0\n1,1\n", "t.csv:3: the first column, 'a', names the row"),
        ("entry,score\na,1\n", "neither an example nor a seed"),
        ("entry,example,score\na,1,1\na,1,0\n", "t.csv:3: a has two scores of '1'"),
        ("entry,seed,example,score\na,0,1,1\nb,,1,1\n", "some scores have a seed and some have none"),
        ("entry,seed,example,score\na,0,1,1\nb,0,,1\n", "some scores have an example and some have none"),
        ("entry,seed,example,score\na,0,1,1\na,0,2,1\nb,0,1,1\n", "seed 0 of b lacks scores"),
    ],
)
def test_a_malformed_table_is_refused_by_its_line(text, wrong, tmp_path):
    with pytest.raises(UserError) as error:
        read_scores([written(tmp_path / "t.csv", text)])
    assert wrong in str(error.value)
    assert "\n" not in str(error.value)


def test_lines_of_another_encoding_are_refused(tmp_path):
    (tmp_path / "t.jsonl").write_bytes('{"example": 1, "a": 1}\n'.encode("utf-16"))
    with pytest.raises(UserError, match=r"t\.jsonl is not UTF-8 text"):
        read_scores([tmp_path / "t.jsonl"])


def test_one_name_for_two_examples_is_refused(tmp_path):
    files = [
        written(tmp_path / f"{name}.jsonl", records(name, {1: 1}, hashes={1: key}))
        for name, key in (("a", "x"), ("b", "y"))
    ]
    with pytest.raises(UserError, match=r"example 'task/1' of b differs from that of a \(sample_hash\)"):
        read_scores(files)


def test_zeros_and_ones_are_compared_by_mcnemar_on_common_examples():
    rng = np.random.default_rng(0)
    scores = (rng.uniform(size=(4, 300)) < [[0.9], [0.8], [0.8], [0.5]]).astype(float)
    scores[1, 200:] = np.nan
    found, (p, ahead) = rank_table(table(scores)), compare_pairs(table(scores))
    for i, j in ((0, 1), (0, 2), (1, 3)):
        both = np.isfinite(scores[i] + scores[j])
        a, b = scores[i, both], scores[j, both]
        assert p[i, j] == p[j, i] == pytest.approx(float(mcnemar((a > b).sum(), (a < b).sum())))
        assert ahead[i, j] == -ahead[j, i] == pytest.approx(a.mean() - b.mean())
    assert found.told_apart == int((benjamini_hochberg(p[np.triu_indices(4, k=1)]) <= ALPHA).sum())


def test_other_scores_are_compared_by_a_paired_t_test():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=200)
    scores = np.stack([base + rng.normal(0.02, 0.1, 200), base, base])
    p, _ = compare_pairs(table(scores))
    assert p[0, 1] == pytest.approx(stats.ttest_rel(scores[0], scores[1]).pvalue, rel=1e-6)
    assert p[1, 2] == 1.0


def test_a_constant_lead_on_few_examples_is_not_certain():
    p, _ = compare_pairs(table([[0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5]]))
    assert p[0, 1] == 2.0**-3


def test_seeds_are_compared_as_recipes_are():
    a, b, c = [0.8, 0.82, 0.84], [0.5, 0.52, np.nan], [0.9, np.nan, np.nan]
    found, (p, _) = rank_table(table([a, b, c], "seeds", 50)), compare_pairs(table([a, b, c], "seeds", 50))
    assert p[0, 1] == pytest.approx(seeds_difference(np.array(a), np.array(b[:2]), 1 / 50).p)
    assert np.isnan(p[0, 2])
    assert {entry.name: entry.rank_low for entry in found.entries}["c"] is None


def test_without_a_number_of_examples_the_grain_is_the_smallest_difference():
    assert grain(table([[0.5, 0.5], [0.52, 0.6]], "seeds")) == pytest.approx(0.02)


def test_errors_are_better_if_they_are_lower():
    scores = np.array([[1.0] * 40 + [0.0] * 60, [1.0] * 10 + [0.0] * 90])
    best = [rank_table(table(scores), lower_is_better=lower).entries[0] for lower in (False, True)]
    assert [(entry.name, entry.mean, entry.next.difference) for entry in best] == [
        ("a", 0.4, pytest.approx(0.3)), ("b", 0.1, pytest.approx(0.3)),
    ]  # fmt: skip
    assert [(entry.better_than, entry.rank_low, entry.rank_high) for entry in best] == [(("b",), 1, 1), (("a",), 1, 1)]


def test_what_is_needed_is_for_the_next_claim_of_the_board():
    """One claim more than it makes already, at Benjamini and Hochberg's level for that many."""
    scores = np.zeros((4, 200))
    for entry, right in enumerate((180, 100, 96, 90)):
        scores[entry, :right] = 1
    scores[2, :6], scores[3, 3:10] = 0, 0
    ranked = rank_table(table(scores))
    assert (ranked.pairs, ranked.told_apart) == (6, 5)
    (pair,) = [(entry.name, entry.next.needed) for entry in ranked.entries if entry.next and entry.next.needed]
    assert pair == ("c", needed(table(scores), 2, 3, ALPHA))
    alone = rank_table(table(scores[2:]))  # one pair, no claim
    assert alone.entries[0].next.needed == pair[1]
    more = rank_table(table(np.concatenate([scores[2:], scores[3:]])))  # three pairs, no claim
    assert more.entries[0].next.needed == needed(table(scores), 2, 3, ALPHA / 3) > pair[1]


@pytest.mark.parametrize("graded", [False, True])
def test_as_many_examples_as_it_says_tell_two_entries_apart_four_times_of_five(graded):
    rng = np.random.default_rng(0)
    shares = np.array([[0.7], [0.62]])

    def drawn(n):
        return shares + rng.normal(0, 0.4, (2, n)) if graded else (rng.uniform(size=(2, n)) < shares).astype(float)

    n = needed(table(drawn(200_000)), 0, 1, ALPHA)
    found = np.mean([compare_pairs(table(drawn(n)))[0][0, 1] <= ALPHA for _ in range(400)])
    assert found == pytest.approx(0.8, abs=0.06)


def test_our_own_board_has_the_same_ranks(tmp_path):
    entries = [entry for entry in read_entries(results_folder(), "digits")[0] if entry.measured]
    lines = [
        f"{entry.name},{run.record.seed},{i},{int(robust)}"
        for entry in entries for run in entry.runs for i, robust in enumerate(run.robust)
    ]  # fmt: skip
    found = rank_table(read_scores([written(tmp_path / "t.csv", "\n".join(["entry,seed,example,score", *lines]))]))
    wanted = rank(entries)
    assert {entry.name: (entry.rank_low, entry.rank_high) for entry in found.entries} == {
        entry.name: (wanted.low[i], wanted.high[i]) if wanted.ranked[i] else (None, None)
        for i, entry in enumerate(entries)
    }


def test_every_format_has_every_entry(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [f"{i},{','.join(map(str, (rng.uniform(size=3) < (0.9, 0.85, 0.2)).astype(int)))}" for i in range(50)]
    path = written(tmp_path / "t.csv", "\n".join(["example,a<b,b;=1,c|d", *rows]))
    said = {}
    for form in ("markdown", "csv", "latex", "json", "html"):
        main(["ranks", str(path), "--format", form])
        said[form] = capsys.readouterr().out
    assert [entry["rank_high"] for entry in json.loads(said["json"])["entries"]] == [2, 2, 3]
    assert [row["name"] for row in csv.DictReader(io.StringIO(said["csv"]))] == ["a<b", "b;'=1", "c|d"]
    assert "c\\|d" in said["markdown"]
    assert "a\\<b" in said["markdown"]
    assert "[" in said["markdown"]
    assert "\\[" not in said["markdown"]  # of an interval
    assert "\\midrule" in said["latex"]
    assert "a&lt;b" in said["html"]
    assert said["html"].count('<tr class="group">') == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right", "graded", "seeds"])
def test_equal_entries_are_hardly_ever_told_apart(kind):
    """On 1,000 boards of equal entries, claims are made on at most 5 %, but for Monte Carlo's error."""
    rng, boards, alarms = np.random.default_rng(0), 1000, 0
    for _ in range(boards):
        hard = rng.beta(2, 1, 100)
        scores = {
            "right": lambda hard=hard: (rng.uniform(size=(8, 100)) < hard).astype(float),
            "graded": lambda hard=hard: np.clip(hard + rng.normal(0, 0.3, (8, 100)), 0, 1),
            "seeds": lambda hard=hard: (rng.uniform(size=(8, 3, 100)) < hard).mean(axis=2),
        }[kind]()
        p, ahead = compare_pairs(table(scores, "seeds" if kind == "seeds" else "examples"))
        alarms += ranks_from_p_values(p, ahead, np.ones(8, dtype=bool)).better.any()
    assert alarms / boards <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / boards)
