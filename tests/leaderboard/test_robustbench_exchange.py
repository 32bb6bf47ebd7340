"""RobustBench's model_info: reading, refusing what is malformed, importing and exporting."""

import json

import pytest

from bench.core.errors import UserError
from leaderboard.model_info import ModelInfo
from leaderboard.published_results import About, Contest, add_contest, read_entry
from leaderboard.robustbench_exchange import export_model_info, import_model_info
from tests.publish.published import flags, publish, table_of

INFO = {
    "link": "https://example.org/abs/1", "name": "A Way\nto Be Robust\n", "authors": "A. Nobody, B. Else",
    "additional_data": True, "number_forward_passes": 1, "dataset": "cifar10", "venue": "Nowhere 2026",
    "architecture": "WideResNet-1-1", "eps": "8/255", "clean_acc": "93.68", "reported": "73.71",
    "autoattack_acc": "71.70", "footnote": "See <a href=\"x\">here</a>.<br>&amp; there", "unreliable": False,
}  # fmt: skip


def written(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps({key: value for key, value in (INFO | changes).items() if value != "absent"}))
    return path


def test_accuracies_are_fractions_and_the_lowest_that_is_known_counts(tmp_path):
    info = ModelInfo.read(written(tmp_path))
    assert (info.clean, info.attacked, info.threat_eps) == (0.9368, 0.717, 8 / 255)
    assert ModelInfo.read(written(tmp_path, external="64.20")).attacked == pytest.approx(0.642)
    assert ModelInfo.read(written(tmp_path, external="99")).attacked == 0.717
    assert info.note == "See here.; & there"


@pytest.mark.parametrize(("changes", "clean", "attacked", "eps"), [
    ({"clean_acc": 93.68, "autoattack_acc": 71, "eps": 0.5}, 0.9368, 0.71, 0.5),
    ({"autoattack_acc": "absent", "external": "absent"}, 0.9368, 0.7371, 8 / 255),
    ({"autoattack_acc": None, "reported": ""}, 0.9368, None, 8 / 255),
    ({"autoattack_acc": "0.0", "eps": "0.031"}, 0.9368, 0.0, 0.031),
    ({"eps": None, "architecture": None, "footnote": None, "corruptions_acc": "77.19"}, 0.9368, 0.717, None),
    ({"unreliable": "absent", "link": "absent", "venue": "absent", "authors": ""}, 0.9368, 0.717, 8 / 255),
])  # fmt: skip
def test_files_as_they_are_found(changes, clean, attacked, eps, tmp_path):
    info = ModelInfo.read(written(tmp_path, **changes))
    assert (info.clean, info.attacked, info.threat_eps) == (clean, attacked, eps)


@pytest.mark.parametrize("changes", [
    {"clean_acc": "NaN"}, {"clean_acc": "-1"}, {"clean_acc": "100.01"}, {"clean_acc": ""}, {"clean_acc": None},
    {"clean_acc": 0.5538}, {"clean_acc": "\u0669\u0663"}, {"clean_acc": True}, {"autoattack_acc": "nan"},
    {"autoattack_acc": -0.1}, {"autoattack_acc": "1e2"}, {"external": "inf"}, {"reported": "n/a"}, {"reported": [70]},
    {"eps": "8/0"}, {"eps": "eight"}, {"eps": "nan"}, {"eps": "-8/255"}, {"eps": "1/8/255"}, {"name": "absent"},
    {"dataset": 10}, {"additional_data": "yes"}, {"number_forward_passes": 0.5},
])  # fmt: skip
def test_what_is_no_accuracy_or_eps_is_refused_in_a_line(changes, tmp_path):
    with pytest.raises(UserError) as caught:
        ModelInfo.read(written(tmp_path, **changes))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"clean_acc": NaN}', b"[" * 50_000, b" " * 70_000])
def test_a_file_that_is_none_is_refused_in_a_line(text, tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(text)
    with pytest.raises(UserError) as caught:
        ModelInfo.read(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError):
        ModelInfo.read(tmp_path / "none.json")


def test_an_entry_of_robustbench_is_read_back_as_reported(tmp_path):
    path = written(tmp_path, unreliable=True, venue="Nowhere 2026", further="unknown")
    home = import_model_info(path, tmp_path / "results", "cifar10", "nobody-1", "Linf")
    entry = read_entry(home, "cifar10")
    assert entry.runs == ()
    assert entry.reported.attacked == 0.717
    assert entry.about.title == "A Way to Be Robust"
    assert entry.about.paper == "A. Nobody, B. Else, Nowhere 2026"
    assert entry.about.licence == "not stated"
    assert entry.about.note.endswith("unreliable.")
    assert entry.about.extra_data
    again = export_model_info(entry)
    assert {key: again[key] for key in ("clean_acc", "eps", "name")} == {
        k: INFO[k] for k in ("clean_acc", "eps", "name")
    }
    assert "further" not in again


@pytest.mark.parametrize(("changes", "suite", "norm", "says"), [
    ({"dataset": "imagenet"}, "cifar10", "Linf", "is for imagenet"),
    ({}, "cifar10", "L2", "cifar10, L2"),
    ({"eps": "4/255"}, "cifar10", "Linf", "eps 4/255"),
    ({"eps": None}, "cifar10", "Linf", "eps None"),
    ({"autoattack_acc": None, "reported": None}, "cifar10", "Linf", "no accuracy under attack"),
    ({}, "cifar11", "Linf", "unknown suite"),
])  # fmt: skip
def test_what_a_suite_does_not_list_is_refused(changes, suite, norm, says, tmp_path):
    with pytest.raises(UserError, match=says):
        import_model_info(written(tmp_path, **changes), tmp_path / "results", suite, "nobody", norm)
    assert not (tmp_path / "results").exists()


def test_an_entry_that_is_there_is_left_alone_and_its_name_is_one(tmp_path):
    path = written(tmp_path, eps="0.031")
    import_model_info(path, tmp_path / "results", "cifar10", "nobody", "Linf")
    for name, says in (("nobody", "exists already"), ("../nobody", "is not valid"), ("Nobody2026", "is not valid")):
        with pytest.raises(UserError, match=says):
            import_model_info(path, tmp_path / "results", "cifar10", name, "Linf")


def test_ours_is_written_as_robustbench_writes(tmp_path):
    about = About(title="Mine", paper="Nobody (2026)", licence="MIT", url="https://example.org", note="A note.")
    tables = [
        table_of(flags(40, hits), clean=flags(40, 39)) | {"robust/autoattack": flags(40, hits)} for hits in (20, 22)
    ]
    entry = read_entry(publish(tmp_path / "results", "mine", tables, about=about), "digits")
    info = export_model_info(entry)
    assert info["clean_acc"] == "97.50"
    assert info["reported"] == info["autoattack_acc"] == "52.50"
    assert info["eps"] == "0.2"
    assert info["architecture"] == "small-cnn"
    spreads = "with standard deviations of 0.00 (clean) and 3.54 (attacked) points"
    assert info["footnote"] == f"A note. Mean over 2 seeds, {spreads}."
    assert "external" not in info
    (tmp_path / "back.json").write_text(json.dumps(info))
    assert ModelInfo.read(tmp_path / "back.json").clean == 0.975


def test_what_lowers_autoattack_is_external(tmp_path):
    table = table_of(flags(40, 30)) | {"robust/autoattack": flags(40, 30)}
    home = publish(tmp_path / "results", "mine", [table])
    witnesses = read_entry(home, "digits").runs[0].record.artifacts["witnesses"]
    contest = Contest(by="N", broken=[0, 1, 2, 3, 4], witnesses=witnesses, finished="now")
    add_contest(tmp_path / "results", "digits", "mine", 0, contest)
    info = export_model_info(read_entry(home, "digits"))
    assert (info["autoattack_acc"], info["external"]) == ("75.00", "62.50")
    assert info["reported"] == info["external"]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"name": "PGD\x1b[2J"}, "title holds the character U\\+001B"),
    ({"name": "abc\u202egnp"}, "title holds the character U\\+202E"),
    ({"name": "\u0420GD"}, "title holds the character U\\+0420"),
    ({"architecture": "Wide\nResNet"}, "architecture holds the character U\\+000A"),
    ({"authors": "A\x07"}, "holds the character U\\+0007"),
    ({"footnote": "\u2066hidden"}, "note holds the character U\\+2066"),
    ({"clean_acc": "60", "autoattack_acc": "71.7"}, "71.70% under attack and 60.00% without one"),
])  # fmt: skip
def test_what_would_deceive_a_reader_is_refused(changes, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        import_model_info(written(tmp_path, **changes), tmp_path / "results", "cifar10", "nobody", "Linf")
    assert not (tmp_path / "results").exists()


def test_typographic_quotes_and_dashes_are_written_in_ascii(tmp_path):
    path = written(tmp_path, name="Who\u2019s \u201crobust\u201d \u2013 \u2113\u221e")
    home = import_model_info(path, tmp_path / "results", "cifar10", "nobody", "Linf")
    assert read_entry(home, "cifar10").about.title == 'Who\'s "robust" - Linf'
