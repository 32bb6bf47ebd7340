"""Trainings on one process or several of this machine, in float64, where several differ from one by rounding only."""

import contextlib
import os
from pathlib import Path

import torch
from torch import multiprocessing, nn

from bench.core import registry, shares
from bench.core.config import get_suite, make_config
from bench.core.errors import CheckError, UserError
from bench.core.threat import ThreatModel
from bench.datasets import split as splits
from bench.datasets.split import Split
from bench.models.build import build_model
from bench.testing.contracts import (
    CLASSES,
    CPU,
    EPS,
    DefenseContract,
    Stopped,
    stop_in_second_epoch,
    tiny_model,
    tiny_split,
)
from bench.training import checks_before_training
from bench.training.architecture import build_network
from bench.training.loop import Loop


def results(count, function, folder, *arguments):
    """What function(*arguments) returns in the first of `count` processes, which all call it."""
    place, out = folder / f"place-{len(list(folder.iterdir()))}", folder / "result.pt"
    multiprocessing.spawn(_process, (count, place, out, function, arguments), nprocs=count)
    return torch.load(out, weights_only=False)  # what these processes have just written


def _process(rank, count, place, out, function, arguments):
    torch.set_num_threads(1)
    os.environ.pop("MASTER_ADDR", None)
    with shares.joined("gloo", init_method=f"file://{place}", rank=rank, world_size=count):
        result = function(*arguments)
    running = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in running if "gloo" in name], "threads of the group would abort the process at its end"
    if rank == 0:
        torch.save(result, out)


@contextlib.contextmanager
def in_float64():
    """Images in float64, and models in any precision."""
    before = splits._in_unit_range, checks_before_training.check_precision
    splits._in_unit_range = lambda x: x.double() / 255 if x.dtype == torch.uint8 else x
    checks_before_training.check_precision = lambda _: None
    try:
        yield
    finally:
        splits._in_unit_range, checks_before_training.check_precision = before


def digits_loop(name, seed=0, epochs=1, **settings):
    """A training of the suite `digits`, with batch norm."""
    suite = get_suite("digits")
    target = registry.defense.get(name)
    layers = suite.training, suite.defenses.get(name, {}), {"epochs": epochs} | settings
    defense = target(make_config(target.config_class, name, *layers))
    torch.manual_seed(seed)
    model = build_model("small-cnn:width=4:hidden=16:batchnorm=true", (1, 8, 8), 10)
    data = registry.dataset.get("digits")()
    split = Split(data.x_train[:600], data.y_train[:600], CPU)
    return Loop(model.double(), defense, split, ThreatModel("Linf", suite.eps), seed=seed)


def weights_after_an_epoch(names, **settings):
    """By name: the weights and the passes of the training of the suite `digits`."""
    with in_float64():
        loops = {name: digits_loop(name, **settings) for name in names}
        for loop in loops.values():
            loop.run_epoch()
    return {name: (loop.model.state_dict(), loop.passes) for name, loop in loops.items()}


class InFloat64(DefenseContract):
    """The trainings of the contracts."""

    def __init__(self, weights):
        self.weights = weights

    def make(self, name, **settings):
        files = {"finetune": ("checkpoint",), "kd-swa": ("robust_teacher", "standard_teacher")}
        return super().make(name, **dict.fromkeys(files.get(name, ()), str(self.weights)) | settings)

    def trained(self, name):
        defense = self.make(name)
        torch.manual_seed(0)
        model, norm = build_network(defense, tiny_model(), CLASSES).double(), defense.norms[0]
        loop = Loop(model, defense, tiny_split(crop=1), ThreatModel(norm, EPS[norm]), seed=0)
        loop.bank = {k: v.double() if "_teacher." in k and v.is_floating_point() else v for k, v in loop.bank.items()}
        loop.run_epoch()
        return loop.model.state_dict(), loop.passes


def contracts_after_an_epoch(names, weights):
    with in_float64():
        return {name: InFloat64(weights).trained(name) for name in names}


def whole_and_resumed(name, folder):
    """The weights of a training in float32 of 2 epochs, and of one that was interrupted in the second epoch."""
    whole = DefenseContract().loop(name, epochs=2).run()[0].state_dict()
    with contextlib.suppress(Stopped):
        DefenseContract().loop(name, epochs=2).run(folder, stop_in_second_epoch)
    return whole, DefenseContract().loop(name, epochs=2).run(folder)[0].state_dict()


def refusals():
    """Why trainings are refused, by the reason."""
    with_dropout = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))
    standard = DefenseContract().make("standard")
    threat = ThreatModel("Linf", 0.1)
    return {
        "hooks": message(lambda: DefenseContract().loop("yopo")),
        "dropout": message(lambda: Loop(with_dropout, standard, tiny_split(), threat, seed=0)),
        "shares": message(lambda: DefenseContract().loop("standard", norm_shares=3)),
        "compiled": message(lambda: Loop(torch.jit.script(with_dropout), standard, tiny_split(), threat, seed=0)),
    }


def message(act):
    try:
        act()
    except UserError as error:
        return str(error)
    return ""


def all_of_two(names, folder):
    """By subject; the processes start once, because that takes longer than all of this."""
    return {
        "whole": weights_after_an_epoch(names),
        "shares": weights_after_an_epoch(["pgd-at"], norm_shares=2),
        "resumed": whole_and_resumed("atas", folder),
        "refused": refusals(),
        "parted": parted(),
    }


def parted():
    """The error of processes whose weights are not the same."""
    loop = DefenseContract().loop("standard")
    if not shares.is_first():
        with torch.no_grad():
            next(loop.model.parameters()).flatten()[0] += 1e-7
    try:
        loop.run_epoch()
    except CheckError as error:
        return str(error)
    return ""


def largest_difference(a, b):
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)
