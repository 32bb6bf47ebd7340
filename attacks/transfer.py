"""Replaying the adversarial examples that another run found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts import Attack, Batch
from bench.core.errors import UserError
from bench.core.example_table import threat_of
from bench.core.files import read_arrays
from bench.core.record_files import WITNESSES, read_run
from bench.core.threat import ThreatModel, checked_norm


@registry.attack("transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """The adversarial examples of another run of the same images: `transfer:from=RUN`, a finished run's folder.

    An image of which the other run has none stays as it is; where it has several, under different threat models, the
    nearest is taken. The points are moved into this threat model. UserError where the folder is no finished run, or one
    of other images.
    """

    norms = ("Linf", "L2", "L1")

    from_: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.from_:
            raise UserError("transfer needs a run to take adversarial examples from: transfer:from=RUN_FOLDER")
        _ = self.theirs  # a wrong folder is found out now, and not after the attacks before this one

    @cached_property
    def theirs(self) -> list[tuple[ThreatModel, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """For each threat model of the other run: whom it broke there, index (M,), and by what, x_adv (M,C,H,W)."""
        folder = Path(self.from_)
        record, found = read_run(folder), read_arrays(folder / WITNESSES)
        claims = [threat_of(spec, record.threat) for spec in found["attack"].tolist()]
        return [
            (ThreatModel(checked_norm(claim.norm), claim.eps), found["index"][rows], found["x_adv"][rows])
            for claim in dict.fromkeys(claims)
            for rows in [[row for row, other in enumerate(claims) if other == claim]]
        ]

    def perturb(self, model: nn.Module, batch: Batch, *, generator: torch.Generator) -> Tensor:
        x_adv = batch.x.clone()
        nearest = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=batch.x.device)
        for threat, index, points in self.theirs:
            _, common, found = np.intersect1d(batch.index.cpu().numpy(), index, return_indices=True)
            rows = torch.from_numpy(common).to(batch.x.device)
            there, here = torch.from_numpy(points[found]).to(batch.x), batch.x[rows]
            if there.shape != here.shape or not threat.contains(there, here).all():
                raise UserError(
                    f"run {self.from_} is of other images: its adversarial examples are not within its own eps of "
                    "these; give a run of the same data set"
                )
            distance = self.threat.distance(there, here)
            nearer = distance < nearest[rows]
            x_adv[rows[nearer]], nearest[rows[nearer]] = there[nearer], distance[nearer]
        return x_adv
