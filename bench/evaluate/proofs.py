"""The proofs of an evaluation: one for each certified example that has one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from bench.core.contracts import Certifier, frozen
from bench.core.errors import UserError
from bench.core.example_table import Table, certified
from bench.core.network_format import Description
from bench.core.records import ProofSummary
from bench.evaluate.context import EvalContext
from bench.evaluate.witnesses import Measurement, Result


@dataclass(frozen=True)
class Proofs:
    """of_example: by index, in order. network: the layers that they refer to. missing: why there is none, or ""."""

    of_example: Mapping[int, bytes]
    network: Description | None
    missing: str = ""

    @property
    def summary(self) -> ProofSummary:
        return ProofSummary(len(self.of_example), self.missing)


def collect_proofs(
    context: EvalContext, table: Table, measurements: Mapping[str, Measurement[Result]], methods: Iterable[object]
) -> Proofs | None:
    """Keep the shortest proof of each certified example, the first if several are as short; None without a certifier.

    methods: all that took part. The first certifier that can describe the network does so, even if there are no proofs,
    because witnesses can be checked with the description too.
    """
    certifiers = [method for method in methods if isinstance(method, Certifier)]
    if not certifiers:
        return None
    try:
        network = describe_network(context, certifiers)
    except UserError as error:
        return Proofs({}, None, str(error))
    shortest: dict[int, bytes] = {}
    for measurement in measurements.values() if network is not None else ():
        for example, proof in measurement.proofs.items():
            if example not in shortest or len(proof) < len(shortest[example]):
                shortest[example] = proof
    missing = "" if shortest or not certified(table).any() else "no certifier of the run gives proofs for this network"
    return Proofs(dict(sorted(shortest.items())), network, missing)


def describe_network(context: EvalContext, certifiers: Iterable[Certifier]) -> Description | None:
    """The layers of the context's model by the first certifier that can describe them; None if none of them can.

    UserError if the first one that gives proofs cannot describe a layer.
    """
    image = next(context.test.in_order(1)).x
    for certifier in certifiers:
        model = certifier.model_view(context.model)
        with frozen(model), torch.no_grad():
            description = certifier.describe(model, image)
        if description is not None:
            return description
    return None
