"""The contract suite over everything that is registered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.core import registry
from bench.core.contracts import Defense
from bench.testing import AttackContract, CertifierContract, DatasetContract, DefenseContract, ModelContract
from bench.testing.contracts import tiny_model
from tests.attacks.short_autoattack import shorten_autoattack

SMALL = {name: f"{name}:widen=1" for name in ("wrn-28-10", "wrn-34-10")} | {
    name: f"{name}:width=8"
    for name in ("resnet18", "resnet34", "preact-resnet18", "lenet", "imagenet-resnet18", "imagenet-resnet50")
}
SHAPES = {"mnist": (28, 28), "fashion-mnist": (28, 28), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)} | {
    "svhn": (32, 32, 3)
}


SMALL_ATTACKS = {
    "cw": "cw:steps=20:search_steps=3:largest_c=1",
    "fab": "fab:steps=5",
    "fmn": "fmn:steps=10",
    "deepfool": "deepfool:steps=5",
    "square": "square:queries=50",
    "universal": "universal:steps=10",
    "apgd-ce": "apgd-ce:steps=10",
    "apgd-dlr": "apgd-dlr:steps=10",
    "apgd-t": "apgd-t:steps=10:targets=3",
}
ATTACKS = [SMALL_ATTACKS.get(name, name) for name in registry.attack.names() if name != "transfer"]  # that needs a run


@pytest.mark.parametrize("name", ATTACKS)
class TestAttack(AttackContract):
    @pytest.fixture(autouse=True)
    def _short_autoattack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shorten_autoattack(monkeypatch)

    @pytest.mark.slow
    def test_does_not_change_the_model(self, name: str) -> None:
        super().test_does_not_change_the_model(name)

    @pytest.mark.slow
    def test_depends_only_on_its_seed(self, name: str) -> None:
        super().test_depends_only_on_its_seed(name)

    @pytest.mark.slow
    def test_accepts_a_batch_of_one(self, name: str) -> None:
        super().test_accepts_a_batch_of_one(name)


SMALL_CERTIFIERS = {
    "eps-search": "eps-search:precision=0.001",
    "non-uniform": "non-uniform:steps=2:inner=2:shrink=0.9",
    "smoothing": "smoothing:n=1000",
}


SLOW_CERTIFIERS = {"alpha-crown", "crown", "crown-ibp", "eps-search", "exact", "non-uniform", "pec"}
CERTIFIERS = [
    pytest.param(SMALL_CERTIFIERS.get(name, name), marks=[pytest.mark.slow] * (name in SLOW_CERTIFIERS))
    for name in registry.certifier.names()
]


@pytest.mark.parametrize("name", CERTIFIERS)
class TestCertifier(CertifierContract): ...


FILES = {"finetune": ("checkpoint",), "kd-swa": ("robust_teacher", "standard_teacher")}  # settings that name weights


@pytest.mark.parametrize("name", registry.defense.names())
class TestDefense(DefenseContract):
    @pytest.fixture(autouse=True)
    def _weights(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.weights = tmp_path_factory.getbasetemp() / "weights.pt"
        if not self.weights.exists():
            torch.save(tiny_model().state_dict(), self.weights)

    def make(self, name: str, **settings: Any) -> Defense[Any]:
        return super().make(name, **dict.fromkeys(FILES.get(name, ()), str(self.weights)) | settings)

    @pytest.mark.slow
    def test_trains_under_each_of_its_norms(self, name: str) -> None:
        super().test_trains_under_each_of_its_norms(name)

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_weights(self, name: str) -> None:
        super().test_the_same_seed_gives_the_same_weights(name)

    @pytest.mark.slow
    def test_resumes_from_a_checkpoint_bit_for_bit(self, name: str, tmp_path: Path) -> None:
        super().test_resumes_from_a_checkpoint_bit_for_bit(name, tmp_path)

    @pytest.mark.slow
    def test_predictor_is_rebuilt_from_its_weights(self, name: str) -> None:
        super().test_predictor_is_rebuilt_from_its_weights(name)

    @pytest.mark.slow
    def test_leaves_no_weight_gradients(self, name: str) -> None:
        super().test_leaves_no_weight_gradients(name)


@pytest.mark.parametrize("name", [SMALL.get(name, name) for name in registry.model.names()])
class TestModel(ModelContract): ...


@pytest.mark.parametrize("name", registry.dataset.names())
class TestDataset(DatasetContract):
    """The sets that would be downloaded are stood in for by files of their shape, as a user's --data-dir holds them."""

    @pytest.fixture(autouse=True)
    def _folder(self, name: str, tmp_path: Path) -> None:
        self.data_dir = tmp_path
        if name in ("image-folder", "imagenet"):
            for folder in (f"{split}/{label}" for split in ("train", "val") for label in "ab"):
                path = tmp_path / ("imagenet" if name == "imagenet" else "images") / folder
                path.mkdir(parents=True)
                Image.new("RGB", (9, 7)).save(path / "it.png")
        if name in SHAPES:
            classes = 100 if name == "cifar100" else 10
            x, y = np.zeros((classes, *SHAPES[name]), np.uint8), np.arange(classes)
            np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
