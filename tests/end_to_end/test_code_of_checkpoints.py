"""`bench eval` imports no file that only the header of the checkpoint names."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.training.checkpoints import HEADER, BuildSpec, save_weights
from tests.end_to_end.command import bench

CODE = """
from pathlib import Path
from torch import nn

Path(r"{folder}/canary").touch()


def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def attack(model, x, y):
    return x
"""
EVAL = ("eval", "--checkpoint", "net.safetensors", "--attacks", "none", "--n-examples", "5", "--threads", "1")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "code.py").write_text(CODE.format(folder=tmp_path))
    (tmp_path / "pgd.py").write_text(CODE.format(folder=tmp_path))
    return tmp_path


def write(folder, *, model="fc1", defense=None, **training):
    spec = BuildSpec(model=model, shape=(1, 8, 8), classes=10, defense=defense, training=training)
    save_weights(folder / "net.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), spec)


@pytest.mark.parametrize(("spec", "words", "hint"), [
    ({"model": "code.py:build"}, (), "give --trust-code code.py"),
    ({"model": "code.py:build"}, ("--model", "pgd.py:build"), "leave out --model"),
    ({"model": "../{name}/code.py:build"}, (), "give --trust-code ../"),
    ({"model": "pgd.py:build"}, ("--attacks", "pgd"), "give --trust-code pgd.py"),
    ({"defense": "at", "attack": "code.py:attack"}, (), "does not fit"),
    ({"defense": "at", "attack": "universal:attack=code.py:attack"}, (), "does not fit"),
])  # fmt: skip
def test_code_that_only_the_header_names_is_not_imported(spec, words, hint, folder):
    write(folder, **{key: text.format(name=folder.name) for key, text in spec.items()})
    done = bench(folder, *EVAL, *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "canary").exists()
    assert hint in done.stderr


@pytest.mark.parametrize("words", [("--trust-code", "code.py"), ("--model", "code.py:build")])
def test_code_that_the_user_names_is(words, folder):
    write(folder, model="code.py:build")
    done = bench(folder, *EVAL, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert (folder / "canary").exists()
    (record,) = json.loads(done.stdout)
    assert words[0] in record["provenance"]["command"]
    assert len(record["config"]["code"]) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": ' + "[" * 90_000, "null", '{"model": 3}'])
def test_other_build_specs_are_one_line(text, folder):
    save_file({"weight": torch.zeros(2)}, folder / "net.safetensors", metadata={HEADER: text})
    done = bench(folder, *EVAL)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
