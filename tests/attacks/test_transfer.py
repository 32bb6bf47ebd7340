import numpy as np
import pytest
import torch

from attacks.transfer import Transfer
from bench.core import files, record_files, registry, seeds
from bench.core.contracts import Batch
from bench.core.errors import CheckError, UserError
from bench.core.passes import Passes, count_passes
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from bench.testing.contracts import SHAPE, AttackContract, tiny_batch, tiny_model
from tests.core.test_records import make_record, make_table

THEIRS = ThreatModel("Linf", 0.2)


def points(batch, rows, eps=0.2):
    """Images of a batch at the corners of a ball of theirs."""
    return THEIRS.project(batch.x + eps, batch.x)[rows]


@pytest.fixture
def run_folder(tmp_path):
    """A finished run whose adversarial examples are of the images 1 and 4 of the tiny batch."""

    def finish(index=(1, 4), x_adv=None, attack="fgsm"):
        x_adv = points(tiny_batch(), list(index)).numpy() if x_adv is None else x_adv
        witnesses = {"index": np.array(index, np.int64), "x_adv": x_adv, "attack": np.full(len(index), attack)}
        files.write_arrays(tmp_path / record_files.WITNESSES, witnesses)
        files.write_arrays(tmp_path / record_files.TABLE, make_table())
        artifacts = {"witnesses": record_files.artifact(tmp_path / record_files.WITNESSES)}
        record_files.write_record(tmp_path, make_record(artifacts=artifacts))
        return tmp_path

    return finish


def run(folder, batch, threat=THEIRS, model=None):
    attack = Transfer(from_=str(folder))
    return attack(model or tiny_model(), batch, threat, generator=seeds.generator(torch.device("cpu"), 0))


def test_points_are_replayed_exactly_and_other_images_stay(run_folder):
    batch = tiny_batch()
    x_adv = run(run_folder(), batch)
    assert torch.equal(x_adv[[1, 4]], points(batch, [1, 4]))
    assert torch.equal(x_adv[[0, 2, 3, 5]], batch.x[[0, 2, 3, 5]])


def test_points_go_by_the_index_of_an_image_and_not_by_its_place(run_folder):
    whole, rows = tiny_batch(), torch.tensor([4, 0, 1])
    x_adv = run(run_folder(), Batch(whole.x[rows], whole.y[rows], whole.index[rows]))
    assert torch.equal(x_adv, torch.stack([points(whole, 4), whole.x[0], points(whole, 1)]))


def test_it_takes_no_pass(run_folder):
    model = tiny_model()
    with count_passes(model, Passes()) as passes:
        run(run_folder(), tiny_batch(), model=model)
    assert passes.forwards == 0


def test_points_are_moved_into_a_smaller_ball_and_another_norm(run_folder):
    folder, batch = run_folder(), tiny_batch()
    for threat in (ThreatModel("Linf", 0.05), ThreatModel("L2", 0.1), ThreatModel("L1", 0.3)):
        x_adv = run(folder, batch, threat)
        assert torch.equal(x_adv[[1, 4]], threat.project(points(batch, slice(None)), batch.x)[[1, 4]])


def test_of_several_points_the_nearest_is_taken(run_folder):
    """The other run broke the image 4 under Linf and, at one pixel, under L2."""
    batch = tiny_batch()
    wide, sharp = points(batch, 4), batch.x[4].clone()
    sharp.view(-1)[sharp.argmin()] += 0.5
    folder = run_folder((4, 4), torch.stack([wide, sharp]).numpy(), ["fgsm", "fgsm:norm=L2:eps=0.5"])
    for threat, expected in [(THEIRS, wide), (ThreatModel("L2", 0.5), sharp), (ThreatModel("L1", 1.0), sharp)]:
        assert torch.allclose(run(folder, batch, threat)[4], expected, atol=1e-6)


def test_a_run_that_broke_nothing_changes_nothing(run_folder):
    batch = tiny_batch()
    assert torch.equal(run(run_folder((), np.zeros(0, np.float32)), batch), batch.x)


@pytest.mark.parametrize("other", ["farther", "shape"])
def test_a_run_of_other_images_is_a_user_error(run_folder, other):
    batch = tiny_batch()
    if other == "farther":
        folder = run_folder(x_adv=points(batch, [2, 3]).numpy())
    else:
        folder = run_folder(x_adv=np.zeros((2, 3, 32, 32), np.float32))
    with pytest.raises(UserError, match=r"\Arun .* is of other images.*\Z"):
        run(folder, batch)


def test_an_unfinished_run_is_refused_when_the_attack_is_created(tmp_path):
    with pytest.raises(UserError, match=r"\A.* has no record.json; a finished run folder has one\Z"):
        Transfer(from_=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="transfer:from=RUN_FOLDER"):
        Transfer()


def test_a_run_whose_points_were_changed_is_refused(run_folder):
    folder = run_folder()
    files.write_arrays(folder / record_files.WITNESSES, {"index": np.array([1]), "x_adv": np.zeros((1, *SHAPE))})
    with pytest.raises(CheckError, match="witnesses"):
        Transfer(from_=str(folder))


def test_the_run_is_named_by_the_spec(run_folder):
    folder = run_folder()
    assert parse_spec(f"transfer:from={folder}", registry.attack).text == f"transfer:from={folder}"


class TestContract(AttackContract):
    @pytest.fixture
    def name(self, run_folder):
        return f"transfer:from={run_folder()}"
