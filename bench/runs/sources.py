"""Finds the code and files that determine the weights and the evaluation of a plan, besides its config."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.core import files, registry
from bench.core.attack_specs import PlannedAttack
from bench.core.contracts import Certifier, Defense
from bench.core.foreign_attacks import CallableAttack
from bench.core.package_origins import ROOT
from bench.core.records import Record
from bench.core.source_code import closure, files_of_spec, package_version
from bench.core.staged_attack import Stage
from bench.training.checkpoints import BuildSpec

# Imports of these files are not followed: they reach everything, and the plan's own entries are known.
NOT_FOLLOWED = [ROOT / "bench/runs" / name for name in ("plan.py", "run.py")]
TRAINING = [ROOT / "bench/runs/train.py"]
EVALUATION = [ROOT / "bench/runs/evaluate.py"]


@dataclass(frozen=True)
class Sources:
    """Hashes by name: path in the repository, user's file, or name of a package (with its version)."""

    training: dict[str, str] = field(default_factory=dict)  # empty for weights trained elsewhere
    evaluation: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, str]:
        return self.training | self.evaluation

    def changed_since(self, record: Record) -> list[str]:
        """The names whose hash differs from the record's; all names if the record is older than such hashes."""
        recorded = record.provenance.get("source_files", {})
        return sorted({name for name, _ in self.all.items() ^ recorded.items()})


@dataclass(frozen=True, kw_only=True)
class SourceRoots:
    """The parts of a resolved plan that lead to code, and to files that this code reads."""

    spec: BuildSpec
    trains: bool
    dataset: str
    plugins: Sequence[Path]
    defense: Defense[Any] | None
    attacks: Mapping[str, PlannedAttack]
    certifiers: Sequence[Certifier]
    stages: Sequence[Stage[Any]]  # of the bracket
    initial: Mapping[str, Tensor]  # the state of the model with the weights of seed 0
    read_by_model: set[Path]  # data files that building and calling the model has read
    read_by_methods: set[Path]  # data files that making the attacks and certifiers has read

    def sources(self) -> Sources:
        spec, with_model = self.spec, _hashes(self.read_by_model)
        if ".py:" in spec.model:  # its weights may come from a file that compiled code has read
            with_model[f"initial weights of {Path(spec.model.partition(':')[0]).name}"] = _state_hash(self.initial)
        if (library := spec.model.partition(".")[0]) in registry.model_library:
            with_model |= package_version(library)
        built = [
            *_files_of_type(self.defense),
            *files_of_spec(spec.model, registry.model, registry.model_library),
            *files_of_spec(self.dataset, registry.dataset),
        ]
        training: dict[str, str] = {}
        if self.trains:
            roots = [*TRAINING, *built, *_named_in(spec.training.values()), *_plugins_of_training(self.plugins)]
            training = closure(roots, alone=NOT_FOLLOWED) | with_model
        attacks = [planned.attack for planned in self.attacks.values()]
        methods = [*attacks, *self.certifiers, *(stage.method for stage in self.stages)]
        roots = [*EVALUATION, *built, *(path for method in methods for path in _files_of_type(method)), *self.plugins]
        evaluation = closure(roots, alone=NOT_FOLLOWED) | with_model | _hashes(self.read_by_methods)
        for text in self.attacks:
            if (library := text.partition(".")[0]) in registry.library:
                evaluation |= package_version(library)
        return Sources(training, evaluation)


def _files_of_type(thing: Any) -> Iterator[Path]:
    """The files of the classes of an object, or of the function that an attack calls; torch's own are left out."""
    names = {each.__module__ for each in type(thing).__mro__}
    if isinstance(thing, CallableAttack):
        names.add(thing.function.__module__)
    for name in names:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None and name.partition(".")[0] not in (*sys.stdlib_module_names, "torch"):
            yield Path(path)


def _plugins_of_training(plugins: Iterable[Path]) -> Iterator[Path]:
    """The plugins that register more than attacks and certifiers; their imports may take part in a training."""
    for path in plugins:
        module = registry.import_file(path, what="plugin").__name__
        kinds = [kind for kind in registry.KINDS if any(entry.source == module for entry in kind.entries().values())]
        if set(kinds) - {registry.attack, registry.certifier}:
            yield path


def _named_in(values: Iterable[Any]) -> Iterator[Path]:
    """The files of the registered entries that settings of a defense name, for example its attack."""
    for value in values:
        if isinstance(value, str):
            yield from files_of_spec(value, registry.attack, registry.certifier, registry.defense, registry.model)


def _hashes(paths: Iterable[Path]) -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": files.sha256(path)[:12] for path in sorted(paths)}


def _state_hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
