"""Detects models that have memorised their test set: they are better on test images than on training images.

A model that has not seen its test images is at least as good on training images. So the tests are one-sided.
"""

from collections.abc import Mapping

import numpy as np
import torch

from bench.core import registry, seeds
from bench.core.contracts import Attack, Certifier, frozen
from bench.core.example_table import Flags, Table, certified, survivors
from bench.datasets.arrays import Arrays
from bench.datasets.split import Split
from bench.evaluate.certified import check_certifier, measure_certifier
from bench.evaluate.clean import measure_clean
from bench.evaluate.context import EvalContext
from bench.verify.report import Finding

TEST_ABOVE_TRAIN = (
    "clean accuracy on test and training images",
    "robust accuracy on test and training images",
    "certified accuracy on test and training images",
)
IMAGES = 500  # of the training set, drawn by the seed; certifiers get CERTIFIED of both sets
CERTIFIED = 100
STRONG = 1e-5  # p-value of each of three tests: at most 3 of 100,000 sound runs are refused
CHEAP = "crown"  # the certifier to use if all certifiers of the run search


def check_memorised(
    context: EvalContext,
    table: Table,
    data: Arrays,
    attack: Attack,
    certifiers: Mapping[str, Certifier],
    fell: Flags | None = None,
) -> list[Finding]:
    """Compare the accuracies on test and training images; the check fails if the test images do better.

    attack: runs on the training images. fell (N,): test examples that it broke, but that the record counts as robust.
    certifiers: those of the run, by spec; the first that does not search certifies images of both sets.
    """
    train = _training_images(data, context)
    clean = measure_clean(context.model, train, context.batch_size)["clean"]
    clean_name, robust_name, certified_name = TEST_ABOVE_TRAIN
    findings = [_compare(clean_name, table["clean"], clean)]
    robust = survivors(table) & ~(np.zeros_like(table["clean"]) if fell is None else fell)
    findings.append(_compare(robust_name, robust, clean & _survives(context, train, clean, attack)))
    if certified(table).any():
        findings.append(_compare(certified_name, *_certified(context, train, table["clean"], clean, certifiers)))
    return findings


def better(test: Flags, train: Flags) -> float:
    """One-sided p-value of Fisher's exact test: the test images do at least this well if both rates are equal."""
    from scipy.stats import hypergeom

    hits, total, n = int(test.sum()), int(test.sum() + train.sum()), len(test) + len(train)
    return float(hypergeom.sf(hits - 1, n, total, len(test)))


def _compare(name: str, test: Flags, train: Flags) -> Finding:
    p = better(test, train)
    evidence = f"{test.mean():.1%} of {len(test)} test images, {train.mean():.1%} of {len(train)} training images"
    if p < STRONG:
        return Finding(name, "failed", f"{evidence} (p = {p:.2g}): the test set has been seen in the training")
    return Finding(name, "passed", evidence)


def _training_images(data: Arrays, context: EvalContext) -> Split:
    rows = np.random.default_rng(context.seed).permutation(len(data.y_train))[:IMAGES]
    return Split(data.x_train[rows], data.y_train[rows], context.test.y.device)


def _survives(context: EvalContext, train: Split, clean: Flags, attack: Attack) -> Flags:
    robust = clean.copy()
    rows = torch.from_numpy(np.flatnonzero(clean)).to(train.y.device)
    for number, index in enumerate(rows.split(context.batch_size)):
        batch = train.take(index)
        generator = seeds.generator(index.device, context.seed, "training images", number)
        x_adv = attack(context.model, batch, context.threat, generator=generator)
        with frozen(context.model), torch.no_grad():
            held = context.model(x_adv).argmax(dim=1) == batch.y
        robust[index.cpu().numpy()] = held.cpu().numpy()
    return robust


def _certified(
    context: EvalContext, train: Split, of_test: Flags, of_train: Flags, certifiers: Mapping[str, Certifier]
) -> tuple[Flags, Flags]:
    """Certify CERTIFIED images of both sets with the first certifier that does not search."""
    quick = {spec: each for spec, each in certifiers.items() if not hasattr(each, "nodes")}
    spec, certifier = next(iter(quick.items()), (CHEAP, registry.certifier.get(CHEAP)()))
    check_certifier(certifier, context.model, context.test.image_shape, context.threat)

    def of(split: Split, clean: Flags) -> Flags:
        chosen = clean & (np.arange(len(clean)) < CERTIFIED)
        own = EvalContext(
            model=context.model, test=split, threat=context.threat, batch_size=context.batch_size, seed=context.seed
        )
        flags: Flags = measure_certifier(own, spec, certifier, chosen).columns[f"certified/{spec}"][:CERTIFIED]
        return flags

    return of(context.test, of_test), of(train, of_train)
