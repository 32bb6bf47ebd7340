from pathlib import Path

import pytest

from bench.core.errors import UserError
from bench.studies.reproduction.checkpoint_names import CheckpointKey, checkpoint_key, find_checkpoints, method_of
from bench.studies.reproduction.paper_tables import paper_table_names, read_paper_table


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mnist_fc1_l1_at.ckpt", ("mnist", "fc1", "Linf", "at")),
        ("mnist_fc1_l2_c-per.ckpt", ("mnist", "fc1", "L2", "l-per")),
        ("cifar_cnn_l1_c-ibp.ckpt", ("cifar10", "cnn", "Linf", "crown-ibp")),
        ("cifar10_cnn_linf_mmr+at.pt", ("cifar10", "cnn", "Linf", "mmr-at")),
        ("mnist_cnn_l1_i-perat.ckpt", ("mnist", "cnn", "Linf", "i-per-at")),
        ("mnist_fc1_sigmoid_l1_at.ckpt", ("mnist", "fc1:activation=sigmoid", "Linf", "at")),
        ("mnist_fc1-tanh_l2_ibp.ckpt", ("mnist", "fc1:activation=tanh", "L2", "ibp")),
        ("tanh_linf/mnist_fc1/tanh_c-per+at.ckpt", ("mnist", "fc1:activation=tanh", "Linf", "l-per-at")),
        ("relu_l2/mnist_fc1/mnist_fc1_l2_kw.ckpt", ("mnist", "fc1", "L2", "kw")),
        ("L1/mnist_fc1_l2_kw.ckpt", ("mnist", "fc1", "L2", "kw")),  # the file's own name counts more
        ("mnist_fc1_at.ckpt", None),  # no norm
        ("mnist_fc1_l2.ckpt", None),  # no training
    ],
)
def test_the_key_of_a_file_name(name, key):
    assert checkpoint_key(Path(name)) == (key and CheckpointKey(*key))


def test_rows_of_a_block_have_distinct_keys_spelt_as_in_file_names():
    for name in paper_table_names():
        for block in read_paper_table(name).blocks:
            assert len({method_of(row) for row in block.rows}) == len(block.rows)
    assert [method_of(row) for row in ("AT", "C-IBP", "CROWN-IBP", "MMR+at", "L-PER+at", "I-PER")] == [
        "at", "crown-ibp", "crown-ibp", "mmr-at", "l-per-at", "i-per",
    ]  # fmt: skip


def test_a_folder_and_files_of_other_names(tmp_path):
    (tmp_path / "all" / "deep").mkdir(parents=True)
    for name in ("all/mnist_fc1_l1_kw.ckpt", "all/deep/mnist_cnn_l1_kw.pt", "all/README.md", "all/x.ckpt", "own.pt"):
        (tmp_path / name).touch()
    checkpoints = find_checkpoints(tmp_path / "all", [f"{tmp_path / 'own.pt'}=mnist_fc1_l2_at"])
    assert {(key.model, key.norm, key.method, path.name) for key, path in checkpoints.items()} == {
        ("fc1", "Linf", "kw", "mnist_fc1_l1_kw.ckpt"),
        ("cnn", "Linf", "kw", "mnist_cnn_l1_kw.pt"),
        ("fc1", "L2", "at", "own.pt"),
    }


def test_wrong_use_is_one_line(tmp_path):
    file = tmp_path / "own.pt"
    file.touch()
    for folder, named, words in [
        (tmp_path / "none", [], "none does not exist"),
        (tmp_path, [f"{file}"], "write FILE=NAME"),
        (tmp_path, [f"{file}=mnist"], "write FILE=NAME"),
        (tmp_path, [f"{tmp_path / 'lost.pt'}=mnist_fc1_l1_kw"], "lost.pt does not exist"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            find_checkpoints(folder, named)
        assert "\n" not in str(error.value)
    for name in ("mnist_fc1_l1_kw.pt", "mnist_fc1_linf_kw.pt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"are both .* by their names"):
        find_checkpoints(tmp_path)
