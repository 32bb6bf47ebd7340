"""Adversarial examples that another run found."""

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
from bench.core.threat import ThreatModel


@registry.attack("transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """The adversarial examples of another run on the same images: `transfer:from=RUN`, a finished run's folder.

    An image without one stays unchanged. If an image has several, from different threat models, the nearest one is
    used. The points are projected into the threat model. UserError if the folder is not a finished run on the same
    images.
    """

    norms = ("Linf", "L2", "L1")

    from_: str = ""  # folder of the finished run

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.from_:
            raise UserError("transfer needs a run to take adversarial examples from: transfer:from=RUN_FOLDER")
        _ = self.points_by_threat  # so that a wrong folder is an error before other attacks run

    @cached_property
    def points_by_threat(self) -> list[tuple[ThreatModel, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """For each threat model of the other run, the examples broken under it: index (M,) and x_adv (M,C,H,W)."""
        folder = Path(self.from_)
        record, witnesses = read_run(folder), read_arrays(folder / WITNESSES)
        threats = [threat_of(spec, record.threat) for spec in witnesses["attack"].tolist()]
        return [
            (ThreatModel.from_record(threat), witnesses["index"][rows], witnesses["x_adv"][rows])
            for threat in dict.fromkeys(threats)
            for rows in [[row for row, other in enumerate(threats) if other == threat]]
        ]

    def perturb(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Tensor:
        x_adv = batch.x.clone()
        nearest = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=batch.x.device)
        for other_threat, index, points in self.points_by_threat:
            _, in_batch, in_run = np.intersect1d(batch.index.cpu().numpy(), index, return_indices=True)
            rows = torch.from_numpy(in_batch).to(batch.x.device)
            x, x_other = batch.x[rows], torch.from_numpy(points[in_run]).to(batch.x)
            if x_other.shape != x.shape or not other_threat.contains(x_other, x).all():
                raise UserError(
                    f"run {self.from_} is of other images: its adversarial examples are not within its own eps of "
                    "these; give a run of the same data set"
                )
            distance = threat.distance(x_other, x)
            nearer = distance < nearest[rows]
            x_adv[rows[nearer]], nearest[rows[nearer]] = x_other[nearer], distance[nearer]
        return x_adv
