"""The evaluation of a run: its table, witnesses and record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from bench.core import files, record_checks, record_files, seeds
from bench.core.classifier import as_classifier
from bench.core.example_table import Threat, accuracy, corrupted, mean_accuracy, union, worst, worst_by
from bench.core.network_format import write_description
from bench.core.proof_format import proof_arrays
from bench.core.record_files import WEIGHTS
from bench.core.records import SCHEMA, Record
from bench.core.source_code import combined
from bench.evaluate.context import EvalContext
from bench.evaluate.corrupted import measure_corruptions
from bench.evaluate.evaluation import evaluate_clean, evaluate_shard, evaluate_split
from bench.evaluate.partial_results import PartialResults
from bench.training.model_size import size_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from bench.core.records import Training
    from bench.evaluate.context import Shard
    from bench.runs.plan import Plan

PARTS = "parts"  # folder of the partial results of an unfinished evaluation


def evaluate(plan: Plan, seed: int, folder: Path, model: nn.Module, cost: Training | None) -> Record:
    """Evaluate the model whose weights are in `folder`, and write table and witnesses there."""
    config, sources = plan.config, plan.sources
    weights = record_files.artifact(folder / WEIGHTS)
    test, parts = plan.test_split(), _parts(plan, seed, folder)
    if plan.ball is None:
        result = evaluate_clean(model, test, seed=seed, batch_size=config.eval_batch)
    else:
        context = _context(plan, seed, parts, model)
        result = evaluate_split(context, plan.attacks, certifiers=plan.certifiers, bracket=plan.bracket)
    columns, corruptions = measure_corruptions(
        as_classifier(model), test, plan.corruptions, n_test=len(plan.arrays.y_test), batch_size=config.eval_batch,
        finished=parts, show=True,
    )  # fmt: skip
    table = result.table | columns
    files.write_arrays(folder / record_files.TABLE, table)
    files.write_arrays(folder / record_files.WITNESSES, result.witnesses)
    paths = {"examples": record_files.TABLE, "witnesses": record_files.WITNESSES}
    if result.proofs is not None and result.proofs.network is not None:
        files.write_arrays(folder / record_files.PROOFS, proof_arrays(result.proofs.of_example))
        write_description(folder / record_files.NETWORK, result.proofs.network)
        paths |= {"proofs": record_files.PROOFS, "network": record_files.NETWORK}
    else:  # an unfinished run of other code may have left them
        for name in (record_files.PROOFS, record_files.NETWORK):
            (folder / name).unlink(missing_ok=True)
    record = Record(
        schema=SCHEMA, suite=config.suite, dataset=config.dataset, model=config.model,
        parameters=sum(p.numel() for p in model.parameters()), size=size_of(model, plan.spec), defense=plan.name,
        seed=seed, threat=Threat(config.norm, config.eps, config.box), config=config.as_json(),
        config_hash=config.content_hash,
        n_examples=config.n_examples, clean=accuracy(table["clean"]), attacks=result.attacks,
        worst=worst(table), worst_by=worst_by(table), union=union(table), certifiers=result.certifiers,
        bracket=result.bracket, corruptions=corruptions,
        corrupted=mean_accuracy(np.stack(list(corrupted(columns).values()))) if corruptions else None,
        audited=result.audited, training=cost, sanity=result.sanity,
        proofs=None if result.proofs is None else result.proofs.summary,
        artifacts={"weights": weights} | {key: record_files.artifact(folder / name) for key, name in paths.items()},
        provenance=seeds.fingerprint(plan.device, plan.threads)
        | {
            "data_hash": config.data_hash,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": plan.command_line(seed),
            **({} if plan.request.origin is None else {"checkpoint": plan.request.origin}),
            "source": combined(sources.all),
            "source_files": sources.all,
        },
    )  # fmt: skip
    record_checks.check_record(record, table)
    return record


def evaluate_shard_of_run(plan: Plan, seed: int, folder: Path, model: nn.Module, shard: Shard) -> bool:
    """Store partial results of a shard of the evaluation, like `evaluate_shard`; whether nothing was missing."""
    if plan.ball is None:  # only clean images and corruptions, which are not divided
        return True
    context = _context(plan, seed, _parts(plan, seed, folder), model, shard)
    return evaluate_shard(context, plan.attacks, certifiers=plan.certifiers, bracket=plan.bracket)


def _context(plan: Plan, seed: int, parts: PartialResults, model: nn.Module, shard: Shard | None = None) -> EvalContext:
    return EvalContext(
        model=model, test=plan.test_split(), threat=plan.threat, batch_size=plan.config.eval_batch, seed=seed,
        partial_results=parts, show_progress=True, shard=shard,
    )  # fmt: skip


def _parts(plan: Plan, seed: int, folder: Path) -> PartialResults:
    """The partial results of these weights and this code."""
    weights = files.sha256(folder / WEIGHTS)
    parts = folder / PARTS / f"{weights[:16]}-{combined(plan.sources.evaluation)}"
    parts.mkdir(parents=True, exist_ok=True)
    return PartialResults(parts, f"{plan.config.content_hash}/{seed}/{parts.name}")
