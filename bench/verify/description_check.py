"""Checks that network.json describes the model of a run's weights."""

from collections.abc import Callable, Iterable
from pathlib import Path

from bench.core.contracts import Certifier
from bench.core.example_table import Table
from bench.core.network_format import read_description
from bench.core.record_files import NETWORK
from bench.core.records import Record
from bench.evaluate.context import EvalContext
from bench.evaluate.proofs import describe_network
from bench.verify.report import Finding

DESCRIPTION = "description of the network"


def check_description(
    folder: Path, record: Record, certifiers: Callable[[], Iterable[Certifier]], context: EvalContext, table: Table
) -> Finding:
    """Check that network.json is what the first certifier that can describe the model returns for it."""
    claimed = read_description(folder / NETWORK)
    found = describe_network(context, certifiers())
    if found is None:
        return Finding(DESCRIPTION, "not checkable", "no certifier of the run describes the network")
    same, count = found == claimed, len(found.layers)
    evidence = f"{count} layers of the model {'are' if same else 'are not'} those of {NETWORK}"
    return Finding(DESCRIPTION, "passed" if same else "failed", evidence)
