"""Compares a record's claims with values derived from its config, its table and its artifacts.

bench/core/record_checks.py compares the accuracies; this module compares everything else that can be derived.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.core import registry
from bench.core.config import BoundsConfig, RunConfig, TrainingConfig, as_json, content_hash, make_config
from bench.core.errors import UserError
from bench.core.example_table import Table, attacked, certified
from bench.core.proof_format import proofs_from
from bench.core.record_verdict import SERIOUS
from bench.core.records import VERDICTS, Record, Sanity, StageResult, Training
from bench.evaluate.certificate_audit import sample_size
from bench.training.checkpoints import BuildSpec
from bench.verify.report import Finding

CLAIMS = "claims"
PASSES_OF_AN_EPOCH = 0.9  # least forward passes per training image and epoch: last batches of one are dropped
FLOPS, LONGEST = 1e16, 1e8  # operations per second that no training machine reaches; three years in seconds
CALL = 5e-6  # least seconds for a pass of one batch, however small the network
PRECISIONS, TF32, PROCESSES = ("float32", "bfloat16"), {"convolutions", "products"}, 4096
WARNING = r"[ -~]{1,500}"
HUB = r"hf:[\w.-]+/[\w.-]+/[ -?A-~]{1,200}@[0-9a-f]{40}"  # see bench/runs/hub.py
HASH, DATE = r"[0-9a-f]{64}", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
PROVENANCE: Mapping[str, Callable[[Any], bool]] = {
    "versions": lambda v: isinstance(v, dict) and all(isinstance(x, str | None) for x in v.values()),
    "git_commit": lambda v: v is None or _is_text(v, r"[0-9a-f]{40}(-dirty)?"),
    "platform": lambda v: _is_text(v, r"[ -~]{0,200}"),
    "hardware": lambda v: _is_text(v, r"[ -~]{0,200}"),
    "device": lambda v: v in ("cpu", "cuda"),
    "threads": lambda v: isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 1024,
    "data_hash": lambda v: _is_text(v, HASH),
    "finished": lambda v: _is_text(v, DATE),
    "checkpoint": lambda v: _is_text(v, HUB),
    "command": lambda v: _is_text(v, r"bench [ -~]+"),
    "source": lambda v: _is_text(v, r"[0-9a-f]{8,64}"),
    "source_files": lambda v: isinstance(v, dict) and all(_is_text(x, r"[ -~]{0,80}") for x in v.values()),
}


def check_claims(
    record: Record, table: Table, *, n_train: int, proofs: Table | None = None, spec: BuildSpec | None = None
) -> Finding:
    """Compare a record with all values that can be derived.

    n_train: the number of training images of its data set. proofs: the arrays of its proofs. spec: the header of its
    weights.
    """
    found = [*_differences(derived(record, table, proofs)), *_implausible(record, table, n_train, spec)]
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        return Finding(CLAIMS, "failed", f"{'; '.join(found[:3])}{more}")
    return Finding(CLAIMS, "passed", "config, costs, verdict and provenance follow from config, table and files")


def derived(record: Record, table: Table, proofs: Table | None = None) -> dict[str, tuple[object, object]]:
    """Field -> (what the record says, what follows from its config, its table and its proofs)."""
    config, bracket = record.config, record.bracket
    both: dict[str, tuple[object, object]] = {
        name: (getattr(record, name), config.get(name)) for name in ("suite", "dataset", "model", "n_examples")
    }
    both |= {
        "config_hash": (record.config_hash, content_hash(config)),
        "norm": (record.threat.norm, config.get("norm")),
        "eps": (record.threat.eps, config.get("eps")),
        "box": (record.threat.box, config.get("box", True)),
        "attacks": (list(record.attacks), list(config.get("attacks", ()))),
        "certifiers": (list(record.certifiers), list(config.get("certifiers", ()))),
        "corruptions": (
            [
                name if each.file is None else f"{name}:file={each.file[:12]}"
                for name, each in record.corruptions.items()
            ],
            list(config.get("corruptions", ())),
        ),
        "budget": (None if bracket is None else bracket.budget, config.get("budget")),
        "time_limit": (None if bracket is None else bracket.time_limit, config.get("time_limit")),
        "bracket in seconds": (None if bracket is None else bracket.budget_seconds, config.get("bracket")),
        "trained here": (record.training is not None, config.get("defense") is not None),
        "a checkpoint": (config.get("checkpoint") is not None, config.get("defense") is None),
        "audited": (record.audited, sample_size(int(certified(table).sum()))),
    }
    if config.get("defense") is not None:
        both["defense"] = (record.defense, config["defense"])
    if record.training is not None:
        both["epochs"] = (record.training.epochs, config.get("training", {}).get("epochs"))
    if proofs is not None and record.proofs is not None:
        both["proofs"] = (record.proofs.count, len(proofs_from(proofs)))
    if record.sanity.checks:
        verdict, reasons = _verdict(record.sanity, attacked(table))
        both["verdict"] = (record.sanity.verdict, verdict)
        both["reasons of the verdict"] = (sorted(record.sanity.reasons), sorted(reasons))
    return both


def _differences(both: Mapping[str, tuple[object, object]]) -> Iterator[str]:
    for name, (claimed, follows) in both.items():
        if claimed != follows:
            yield f"{name} is {str(claimed)[:80]} in the record and {str(follows)[:80]} by its config and files"


def _verdict(sanity: Sanity, was_attacked: bool) -> tuple[str, list[str]]:
    """The verdict and the reasons that follow from the checks."""
    alarms = [check for check in sanity.checks if check.outcome in SERIOUS]
    quiet = "no-warnings" if was_attacked else "not-attacked"
    worst = max((check.outcome for check in alarms), key=list(VERDICTS).index, default=quiet)
    return worst, [f"{check.name}: {check.evidence}" for check in alarms]


def _implausible(record: Record, table: Table, n_train: int, spec: BuildSpec | None) -> Iterator[str]:
    if unknown := record.config.keys() - set(RunConfig.__dataclass_fields__):
        yield f"its config has '{min(unknown)}', which is no setting of a run"
    yield from _of_training(record, n_train, spec)
    for name, attack in record.attacks.items():
        robust, passes = table[f"robust/{name}"], table.get(f"passes/{name}")
        yield from _of_stages(name, attack.stages, [attack.forwards, attack.backwards], table["clean"] & ~robust)
        if passes is not None and int(passes.sum()) > attack.forwards + attack.backwards:
            yield f"{name} made {attack.forwards + attack.backwards} passes, its table counts {int(passes.sum())}"
        yield from _too_fast(name, attack.forwards + attack.backwards, attack.seconds, record.parameters)
    for name, found in record.certifiers.items():
        if found.seconds > LONGEST:
            yield f"{name} took {found.seconds} s, which is not valid"
    results = [*record.attacks.values(), *record.certifiers.values(), record.bracket, record.training]
    for warning in (text for each in results if each is not None for text in each.warnings):
        if not _is_text(warning, WARNING):
            yield f"it has the warning {warning[:40]!a}, which is not one line of at most 500 characters"
    for key, value in record.provenance.items():
        if key not in PROVENANCE or not PROVENANCE[key](value):
            yield f"its provenance has {key} {str(value)[:40]!a}, which is not valid"


def _of_training(record: Record, n_train: int, spec: BuildSpec | None) -> Iterator[str]:
    """Check the training settings against the defense, the weights' header and the training's cost."""
    settings, training = record.config.get("training") or {}, record.training
    if spec is not None and training is not None and spec.training != settings:
        yield "the training settings in the header of the weights differ from its config"
    if training is None:
        return
    config: TrainingConfig | None = None
    try:
        config = make_config(registry.defense.get(record.defense).config_class, record.defense, settings)
    except UserError as error:
        if not record.config.get("code"):  # a missing plugin is not a contradiction
            yield f"its training settings are not valid ({error})"
    again = settings if config is None else as_json(config)
    if changed := [key for key in settings if key in again and again[key] != settings[key]]:
        yield f"its training setting {changed[0]} is {str(settings[changed[0]])[:40]}, and {again[changed[0]]} as read"
    images = n_train * (1 - float(settings.get("validation") or 0.0))
    if isinstance(config, BoundsConfig):
        images = 0  # bounds make no passes
    yield from _cost(training, images, record.parameters)
    calls = (training.forwards + training.backwards) / max(1, int(settings.get("batch_size") or n_train))
    if training.seconds < CALL * calls:
        yield f"the training took {training.seconds} s for {calls:.0f} passes of a batch, which is not plausible"
    if (how := training.computation) is not None and not (
        how.device in ("cpu", "cuda")
        and 1 <= how.processes <= PROCESSES
        and how.precision in PRECISIONS
        and set(how.tf32) <= TF32
    ):
        yield f"its computation is {how}, which is not valid"


def _cost(training: Training, images: float, parameters: int | None) -> Iterator[str]:
    """Check the cost of a training. images: the least number that an epoch passes through the network."""
    if training.forwards < PASSES_OF_AN_EPOCH * training.epochs * images:
        yield f"{training.forwards} forward passes are too few for {training.epochs} epochs of {images:.0f} images"
    yield from _too_fast("the training", training.forwards + training.backwards, training.seconds, parameters)


def _too_fast(what: str, passes: int, seconds: float, parameters: int | None) -> Iterator[str]:
    """A pass costs at least two operations per parameter of a linear layer, and more in other layers."""
    if not (math.isfinite(seconds) and seconds <= LONGEST) or 2 * passes * (parameters or 0) > FLOPS * (seconds + 1e-3):
        yield f"{what} took {seconds} s for {passes} passes, which is not plausible"


def _of_stages(
    name: str, stages: Mapping[str, StageResult], passes: list[int], broken: "np.typing.NDArray[np.bool_]"
) -> Iterator[str]:
    if not stages:
        return
    if [sum(stage.forwards for stage in stages.values()), sum(s.backwards for s in stages.values())] != passes:
        yield f"the passes of {name} are not the sum of those of its stages"
    if sum(stage.broken for stage in stages.values()) != int(broken.sum()):
        yield f"the stages of {name} broke different numbers of examples from its table"


def _is_text(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def read_proofs(folder: Path, record: Record, read: Callable[[Path], Table]) -> Table | None:
    """The arrays of a run's proofs; None if it has none, or if they are published elsewhere."""
    file = record.artifacts.get("proofs")
    return None if file is None or file.path is None else read(folder / Path(file.path).name)
