"""Reads the inputs of a verification: its settings, and the table, the data set and the model of a run."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.core import files, record_files, registry
from bench.core.config import Suite
from bench.core.devices import choose_device, choose_threads
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Table, check_columns
from bench.core.records import Record
from bench.core.specs import parse_spec
from bench.core.threat import ThreatModel
from bench.datasets.arrays import Arrays, data_folder
from bench.datasets.load import load_arrays
from bench.datasets.split import Split
from bench.evaluate.context import EvalContext
from bench.training.checkpoints import BuildSpec, read_spec
from bench.training.rebuild import load_weights, new_model
from bench.verify.trusted_code import check_trusted

ATTACK = "bracket-attack"  # the default of --attack

load_once = lru_cache(maxsize=1)(load_arrays)  # most runs of a folder share a data set


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The device, the data folder, the trusted code, and how to attack again.

    sample: the maximum number of claimed robust examples to attack; 0 repeats neither attacks nor certifiers; None
    attacks all of them, or a large sample if there are very many (bench/verify/attack_again.py).
    """

    attack: str  # canonical spec
    sample: int | None
    seed: int
    device: torch.device
    threads: int | None = None
    data_dir: Path | None = None
    trusted: Mapping[Path, str] = field(default_factory=dict)  # code files that the user named -> SHA-256
    every_certificate: bool = False  # certify all claims again, not a sample


def settings(
    *, attack: str | None = None, sample: int | None = None, seed: int | None = None, device: str = "auto",
    threads: int | None = None, data_dir: Path | None = None, plugins: Sequence[Path] = (),
) -> Settings:  # fmt: skip
    """Build the settings from the command's options, and import the plugins; UserError if an option is invalid.

    The default seed is random, so that nobody can prepare a run for it.
    """
    if data_dir is not None:
        data_folder(data_dir)  # UserError if it does not exist
    for path in plugins:
        registry.import_file(path, what="plugin")
    return Settings(
        attack=parse_spec(attack or ATTACK, registry.attack).text,
        sample=sample,
        seed=secrets.randbits(31) if seed is None else seed,
        device=choose_device(device),
        threads=threads,
        data_dir=data_dir,
        trusted={path.resolve(): files.sha256(path) for path in plugins},
    )


def read_table(folder: Path) -> Table:
    """Read the table and check its columns; CheckError if its rows are not the first examples of the test order."""
    table = files.read_arrays(folder / record_files.TABLE)
    check_columns(table)
    if not np.array_equal(table["index"], np.arange(len(table["index"]))):
        raise CheckError("column 'index' does not count the first examples of the test order")
    return table


def load_data(record: Record, table: Table | None, settings: Settings) -> Arrays:
    """The data set of a run. UserError if it is not available; CheckError if it is smaller than the table."""
    check_trusted(record.dataset, settings.trusted)
    data = load_once(record.dataset, settings.data_dir)
    if table is not None and len(table["index"]) > len(data.y_test):
        raise CheckError(f"the table has {len(table['index'])} examples, {data.name} only {len(data.y_test)}")
    return data


def spec_of(path: Path) -> BuildSpec:
    """The build spec in the header of a run's weights; CheckError if there is none."""
    spec = read_spec(path)
    if spec is None:
        raise CheckError(f"{path.name} has no build spec in its header")
    return spec


def load_model(path: Path, record: Record, data: Arrays, settings: Settings) -> nn.Module:
    """The run's model, from the build spec of its weights; a code file is run only if the user named it."""
    spec = spec_of(path)
    if (spec.model, spec.defense or record.defense) != (record.model, record.defense):
        raise CheckError(f"{path.name} holds {spec.model} of {spec.defense}, not {record.model} of {record.defense}")
    if (spec.shape, spec.classes) != (data.shape, data.classes):
        raise CheckError(f"{path.name} is for images {spec.shape} and {spec.classes} classes, unlike {data.name}")
    check_trusted(spec.model, settings.trusted)
    model = new_model(spec)
    try:
        load_weights(model, path)
    except UserError as error:
        raise CheckError(str(error)) from error
    torch.set_num_threads(settings.threads or choose_threads(model, data.shape))
    return model.to(settings.device)


def make_context(model: nn.Module, test: Split, record: Record, settings: Settings) -> EvalContext:
    """The context in which a run is evaluated again: the record's threat model and batch size, the settings' seed."""
    return EvalContext(
        model=model, test=test, threat=ThreatModel.from_record(record.threat), batch_size=eval_batch(record),
        seed=settings.seed,
    )  # fmt: skip


def eval_batch(record: Record) -> int:
    size = record.config.get("eval_batch")
    return size if isinstance(size, int) and size >= 1 else Suite.eval_batch
