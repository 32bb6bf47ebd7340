"""A folder of RobustBench's files: each goes to its suite, nothing is lost, and wrong files are named.

The files have the shapes and quirks of RobustBench's, with other names and figures.
"""

import csv
import io
import json

import pytest

from bench.core.config import suites
from bench.core.errors import UserError
from leaderboard.board_tables import render_boards
from leaderboard.build_board import build_board
from leaderboard.model_info import ModelInfo
from leaderboard.reported_folder import import_folder
from tests.end_to_end.command import bench

COMMON = {
    "link": "https://example.org/1", "name": "A Way", "authors": "A. Nobody", "additional_data": False,
    "number_forward_passes": 1, "venue": "Nowhere 2026", "architecture": "WideResNet-28-10",
}  # fmt: skip
FILES = {
    "cifar10/Linf/One2020Way.json": {"eps": "8/255", "clean_acc": "89.1", "reported": "60.00", "autoattack_acc": "59"},
    "cifar10/Linf/Two2020Way_R18.json": {
        "eps": 0.031, "clean_acc": 91.2, "reported": "", "autoattack_acc": "66.5", "external": "64.00",
        "additional_data": True, "unreliable": True, "footnote": "It mixes 50M synthetic images.<br>An ensemble.",
    },
    "cifar10/Linf/Three2020Way.json": {
        "eps": "0.031", "clean_acc": "80", "reported": "55.5", "footnote": "Uses additional 1M DDPM-generated images.",
    },
    "cifar10/L2/One2020Way.json": {"eps": "0.5", "clean_acc": "91", "autoattack_acc": "0.0", "venue": "N/A"},
    "cifar10/corruptions/Aug2020.json": {"eps": None, "clean_acc": "91.15", "reported": "", "corruptions_acc": "77.19"},
    "cifar100/Linf/One2020.json": {"eps": "8/255", "clean_acc": "60", "autoattack_acc": "30.1", "dataset": "cifar100"},
    "cifar100/corruptions/Aug.json": {
        "eps": None, "clean_acc": "70", "corruptions_acc": "50", "corruptions_mce": "44.1", "dataset": "cifar100",
    },
    "imagenet/Linf/Big.json": {"eps": "4/255", "clean_acc": "78.8", "autoattack_acc": "59.1", "dataset": "imagenet"},
    "imagenet/corruptions/Deep.json": {
        "eps": "4/255", "clean_acc": "80.3", "reported": "", "corruptions_acc_2d": "62.8", "corruptions_acc_3d": "64.3",
        "corruptions_mce_2d": "47.1", "corruptions_mce_3d": "100.0", "dataset": "imagenet",
    },
    "imagenet/corruptions/Old.json": {  # a fraction: wrong
        "eps": 0.031, "clean_acc": 0.55, "architecture": None, "corruptions_acc_2d": "21.1", "dataset": "imagenet",
    },
}  # fmt: skip


def write_all(folder, files):
    for name, values in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"dataset": "cifar10"} | COMMON | values, indent=2))
    return folder


@pytest.fixture
def imported(tmp_path):
    return import_folder(write_all(tmp_path / "model_info", FILES), tmp_path / "results")


def place(name):
    """SUITE/ENTRY of a file."""
    data, norm, file = name.split("/")
    suffix = {"Linf": "-linf" if data == "imagenet" else "", "L2": "-l2", "corruptions": "-corruptions"}[norm]
    return f"{data}{suffix}/{file.removesuffix('.json').lower()}"


def test_all_but_the_wrong_file_are_added_to_their_suites(imported, tmp_path):
    found = {home.relative_to(tmp_path / "results").as_posix() for home in imported.added}
    assert found == {place(name) for name in FILES} - {"imagenet-corruptions/old"}
    (refused,) = imported.refused
    assert "Old.json" in refused
    assert "clean_acc 0.55" in refused


def test_no_field_is_lost(imported, tmp_path):
    values = {place(name): {"dataset": "cifar10"} | COMMON | each for name, each in FILES.items()}
    for home in imported.added:
        stored = json.loads((home / "reported.json").read_bytes())
        assert stored == values[home.relative_to(tmp_path / "results").as_posix()]


def test_a_board_shows_positions_data_and_who_broke_it(imported, tmp_path):
    board = build_board(tmp_path / "results", "cifar10")
    facts = [(r.name, r.position, r.rank, r.data, r.attacked_by) for r in board.rows]
    assert facts == [
        ("two2020way_r18", 1, None, "real and synthetic, 50M", ("a third party",)),
        ("one2020way", 2, None, "none", ("AutoAttack",)),
        ("three2020way", 3, None, "synthetic, 1M", ("the authors",)),
    ]
    text = render_boards([board], "markdown")
    assert "(1) | A Way (two2020way\\_r18; data: real and synthetic, 50M)" in text
    assert "it is not a rank" in text
    rows = list(csv.DictReader(io.StringIO(render_boards([board], "csv"))))
    assert [(row["position"], row["rank"], row["data"]) for row in rows][2] == ("3", "", "synthetic, 1M")


def test_corruptions_have_their_own_board(imported, tmp_path):
    (row,) = build_board(tmp_path / "results", "imagenet-corruptions").rows
    assert (row.attacked.acc, row.threat, row.attacked_by) == (pytest.approx(0.628), "corruptions", ("corruptions",))
    assert row.note == "Corruptions: accuracy in 3D 64.3 %, mCE 47.1 %, mCE in 3D 100.0 %."


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("cifar10/Linf/A.json", {"eps": "3/255", "clean_acc": "90", "reported": "80"}, "eps 3/255, and no suite is"),
        ("cifar10/Other/A.json", {"eps": "8/255", "clean_acc": "90", "reported": "80"}, "is in the folder 'Other'"),
        ("cifar10/corruptions/A.json", {"eps": None, "clean_acc": "90"}, "no accuracy under corruptions"),
    ],
)
def test_what_has_no_suite_is_refused_by_its_name(name, values, says, tmp_path):
    done = import_folder(write_all(tmp_path / "model_info", {name: values}), tmp_path / "results")
    assert not done.added
    assert says in done.refused[0]
    assert "A.json" in done.refused[0]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no model_info files"):
        import_folder(tmp_path, tmp_path / "results")


@pytest.mark.parametrize(
    ("footnote", "extra", "data"),
    [
        ("It uses 100M synthetic images in training.", False, "synthetic, 100M"),
        ("Uses a diffusion model.", False, "synthetic"),
        ("Trained with RLAT.", False, "none"),
        (None, True, "real"),
    ],
)
def test_additional_data(footnote, extra, data):
    info = ModelInfo(name="", dataset="cifar10", clean_acc="90", footnote=footnote, additional_data=extra)
    assert info.data == data


OWN = 'summary = "Mine"\ndataset = "cifar10"\nmodel = "cnn"\nnorm = "Linf"\neps = "3/255"\nattacks = ["pgd-10"]\n'


def test_suites_of_ones_own_have_boards(tmp_path):
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "cifar10-own-3.toml").write_text(OWN)
    write_all(tmp_path / "lists", {"x/Linf/Small.json": {"eps": "3/255", "clean_acc": "90", "autoattack_acc": "80"}})
    words = ("leaderboard", "--results", "results", "--suites", "suites")
    assert bench(tmp_path, *words, "--add-reported", "lists").stdout == "cifar10-own-3: 1 added\n"
    again = bench(tmp_path, *words, "--add-reported", "lists")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    shown = bench(tmp_path, "leaderboard", "--results", "results", "--suite", "suites/cifar10-own-3.toml").stdout
    assert "## cifar10-own-3" in shown
    assert "Mine" in shown
    suites().pop("cifar10-own-3")
