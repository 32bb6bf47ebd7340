"""A model that has memorised its test set is better on test images than on training images; honest ones are not."""

import numpy as np
import pytest
import torch
from torch import nn

from attacks.pgd import PGD
from bench.core import registry
from bench.core.example_table import Table
from bench.core.threat import ThreatModel
from bench.datasets.digits import digits
from bench.datasets.split import Split
from bench.evaluate.context import EvalContext
from bench.models.build import build_model
from bench.verify.memorised import TEST_ABOVE_TRAIN, better, check_memorised
from tests.certifying import Liar

N, THREAT = 200, ThreatModel("Linf", 0.2)
DATA = digits(None)
TEST = Split.test(DATA, torch.device("cpu"), N)
TRAIN = next(Split(DATA.x_train, DATA.y_train, torch.device("cpu")).in_order(len(DATA.y_train)))


class Balls(nn.Module):
    """A unit for each image that it knows, positive in its ball; class 0 elsewhere."""

    def __init__(self, x, y):
        super().__init__()
        self.register_buffer("x", x.flatten(1))
        self.register_buffer("votes", nn.functional.one_hot(y, 10).float())

    def forward(self, x):
        distance = (x.flatten(1)[:, None] - self.x[None]).abs().amax(dim=2)
        logits = (0.3 - distance).relu() @ self.votes
        return logits + 0.001 * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10)


def judged(model, robust=None, certifiers=None, **columns):
    context = EvalContext(model=model, test=TEST, threat=THREAT, batch_size=100, seed=0)
    with torch.no_grad():
        prediction = model(next(TEST.in_order(N)).x).argmax(dim=1).numpy()
    label = TEST.y.numpy()
    clean = prediction == label
    table: Table = {
        "index": np.arange(N), "label": label, "prediction": prediction, "clean": clean,
        "robust/pgd-10": clean if robust is None else clean & robust, **columns,
    }  # fmt: skip
    found = check_memorised(context, table, DATA, PGD(steps=2, restarts=1), certifiers or {})
    return {each.name: each.outcome for each in found}


def of_test():
    batch = next(TEST.in_order(N))
    return Balls(batch.x, batch.y)


def memoriser(x, y, r=0.21, steep=1000.0):
    """A plain mlp of ball-membership units around the images, in addition to a linear classifier of all others.

    Each unit of the first layer is how far a pixel is above or below what the ball of an image allows; a unit of the
    second is 1 in the ball. Gradients of the other classifier reach through, so that no check finds them masked.
    """
    x = x.flatten(1)
    ends = [(i, s, float(c) * s + r) for i in range(64) for s in (1, -1) for c in x[:, i].unique()]
    at = {(i, s, round(b, 4)): row for row, (i, s, b) in enumerate(ends)}
    least = torch.linalg.lstsq(TRAIN.x.flatten(1), nn.functional.one_hot(TRAIN.y, 10).float()).solution.T
    first, n = len(ends), len(x)
    model = build_model(f"mlp:hidden={first + 64},{n + 10}", (1, 8, 8), 10)
    for parameter in model.parameters():
        parameter.data.zero_()
    for row, (i, s, b) in enumerate(ends):
        model.stem.weight.data[row, i], model.stem.bias.data[row] = s, -b
    model.stem.weight.data[first:] = torch.eye(64)
    for unit, image in enumerate(x.tolist()):
        for i, c in enumerate(image):
            for s in (1, -1):
                model.fc2.weight.data[unit, at[i, s, round(c * s + r, 4)]] = -steep
    model.fc2.bias.data[:n] = 1
    model.fc2.weight.data[n:, first:], model.fc2.bias.data[n:] = least, 5
    model.output.weight.data = torch.cat([60 * nn.functional.one_hot(y, 10).float().T, torch.eye(10)], dim=1)
    return model


CLEAN, ROBUST, CERTIFIED = TEST_ABOVE_TRAIN


def test_units_around_the_test_images_are_found():
    found = judged(of_test())
    assert found == {CLEAN: "failed", ROBUST: "failed"}


def test_a_plain_mlp_of_balls_that_is_certified_everywhere_is_found():
    """The memoriser of a past board: 100 % clean, attacked and certified, without a sign in the verdict."""
    batch, ibp = next(TEST.in_order(N)), registry.certifier.get("ibp")()
    model = memoriser(batch.x, batch.y)
    certificate = ibp(model, batch, THREAT, generator=torch.Generator())
    certified = {"certified/ibp": certificate.certified.numpy(), "radius/ibp": certificate.radius.numpy()}
    assert certified["certified/ibp"].all()
    found = judged(model, certifiers={"ibp": ibp}, **certified)
    assert (found[ROBUST], found[CERTIFIED]) == ("failed", "failed")


def test_certificates_of_memorised_images_are_found():
    certified = {"certified/liar": np.ones(N, np.bool_), "radius/liar": np.full(N, 0.2, np.float32)}
    assert judged(of_test(), certifiers={"liar": Liar()}, **certified)[CERTIFIED] == "failed"


def test_a_model_that_knows_the_training_images_better_passes():
    """One-sided: overfitting is no sign, whatever its size."""
    rows = torch.arange(0, len(DATA.y_train), 3)
    train = Split(DATA.x_train, DATA.y_train, torch.device("cpu")).take(rows)
    assert set(judged(Balls(train.x, train.y)).values()) == {"passed"}


@pytest.mark.parametrize(("test", "train", "n"), [(180, 170, 200), (200, 190, 200), (72, 78, 100)])
def test_differences_of_chance_are_none(test, train, n):
    assert better(np.arange(n) < test, np.arange(n) < train) > 1e-4


def test_the_test_is_fishers():
    from scipy.stats import fisher_exact

    p = better(np.arange(50) < 40, np.arange(80) < 50)
    assert p == pytest.approx(fisher_exact([[40, 10], [50, 30]], alternative="greater").pvalue, rel=1e-9)
