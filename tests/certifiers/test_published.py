"""The figures of the thesis' tables 3.6 and 3.7, on the published networks and all of MNIST's test set."""

import os
from pathlib import Path

import pytest
import torch

from bench.core import registry
from bench.core.contracts import Batch
from bench.core.threat import ThreatModel
from bench.datasets.load import load_arrays
from bench.models.mlp import fc1
from bench.training.foreign_checkpoints import load_foreign

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
DATA = os.environ.get("BENCH_DATA", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED.is_dir() and Path(DATA, "mnist.npz").is_file()),
        reason="needs the published checkpoints and BENCH_DATA",
    ),
]


@pytest.mark.parametrize(
    ("file", "norm", "eps", "certifier", "error", "radius"),
    [
        ("mnist_fc1_l1_kw", "Linf", 0.1, "fast-lin", 12.91, 0.0871),
        ("mnist_fc1_l1_kw", "Linf", 0.1, "ibp", 69.20, 0.0308),
        ("mnist_fc1_l1_kw", "Linf", 0.1, "pec", 12.91, 0.0928),
        ("mnist_fc1_l1_kw", "Linf", 0.1, "crown", 12.22, None),
        ("mnist_fc1_l1_ibp", "Linf", 0.1, "ibp", 15.20, 0.0848),
        ("mnist_fc1_l1_ibp", "Linf", 0.1, "pec", 87.27, 0.0705),
        ("mnist_fc1_l2_c-per", "L2", 0.3, "pec", 5.35, 0.2888),
        ("mnist_fc1_l2_c-per", "L2", 0.3, "fast-lin", 5.97, 0.2821),
        ("mnist_fc1_l2_c-per", "L2", 0.3, "ibp", 59.17, 0.1225),
    ],
)
def test_the_printed_figures(file, norm, eps, certifier, error, radius):
    arrays = load_arrays("mnist", Path(DATA))
    x = torch.from_numpy(arrays.x_test).permute(0, 3, 1, 2).float() / 255
    batch = Batch(x, torch.from_numpy(arrays.y_test), torch.arange(len(x)))
    model = fc1((1, 28, 28), 10).eval()
    load_foreign(model, SHARED / f"{file}.ckpt")
    certificate = registry.certifier.get(certifier)()(model, batch, ThreatModel(norm, eps), generator=torch.Generator())
    assert 100 * (~certificate.certified).float().mean().item() == pytest.approx(error, abs=0.005)
    if radius is not None:
        assert certificate.radius.mean().item() == pytest.approx(radius, abs=5e-5)
