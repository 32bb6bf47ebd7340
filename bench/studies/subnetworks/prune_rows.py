"""The trainings behind the cells of the thesis' Tables 5.2 to 5.5 and 5.7 to 5.9, as defenses with settings."""

from __future__ import annotations

import math
from typing import NamedTuple

from bench.studies.reproduction.paper_tables import Block

Settings = dict[str, str]
METHODS = {
    "AT": "pgd-at", "TRADES": "trades", "FlyingBird": "flyingbird", "FlyingBird+": "flyingbird-plus", "BCS": "bcs",
    "RST": "rst", "HYDRA": "hydra", "ATMC": "atmc", "Ours": "binary-subnet", "Ours (fast)": "binary-subnet-fast",
}  # fmt: skip
OF_A_SUBNET = ("binary-subnet", "binary-subnet-fast", "rst")
DENSE = ("pgd-at", "trades")
BEST_RANGE = {"true": "0.001", "false": "0.1"}  # the best a of Table 5.3, by last_norm, for binary weights elsewhere


class Training(NamedTuple):
    """A defense with the settings of one cell."""

    defense: str
    settings: Settings


def training_of(table: str, row: str, column: str, r: float) -> Training | None:
    """The training of a cell; None if it is not available (another network). r: used if the cell does not name one."""
    subnet = {"r": str(r), "gamma": "0.1"}
    match table:
        case "5.2":
            return Training("binary-subnet", {"r": column.removeprefix("r = "), "gamma": row.removeprefix("gamma = ")})
        case "5.3":
            norm = str(row == "LBN").lower()
            return Training("binary-subnet", subnet | {"last_norm": norm, "score_range": column.removeprefix("a = ")})
        case "5.4" | "5.5":
            init, norm = column.split(", ")
            last_norm = str(norm == "LBN").lower()
            settings = subnet | {"gamma": row.removeprefix("gamma = "), "last_norm": last_norm}
            if init == "Kaiming":
                settings |= {"init": "kaiming", "score_start": "fan-in"}
            else:
                settings |= {"score_range": BEST_RANGE[last_norm]}
            return Training("binary-subnet", settings | ({"adversary": "none"} if table == "5.5" else {}))
    return compared_method(row, column == "Binary", r)


def compared_method(row: str, binary: bool, r: float) -> Training | None:
    """Tables 5.7 to 5.9: `method, architecture, pruning strategy`, in full precision or binary."""
    name, architecture, strategy = row.split(", ")
    defense = METHODS[name]
    if not architecture.startswith("RN34"):
        return None
    settings = {} if defense in DENSE else {"r": str(r)}
    if strategy == "global":
        settings["allocation"] = "global"
    elif strategy.startswith("p = "):
        settings |= {"gamma": strategy.removeprefix("p = ")} | ({"allocation": "layer"} if defense == "atmc" else {})
    if defense.startswith("binary-subnet"):
        settings["score_range"] = BEST_RANGE["true"]
    else:
        settings["last_norm"] = str(architecture.endswith("LBN")).lower()
    if binary and defense not in OF_A_SUBNET:
        settings |= {"bits": "1"} if defense == "atmc" else {"binary": "true"}
    if defense == "flyingbird-plus":
        settings |= {"validation": "0.1", "probe_every": "1"}
    return Training(defense, settings)


def cells_of(block: Block, columns: tuple[str, ...]) -> list[tuple[str, str, float]]:
    """(row, column, printed) of each figure of a block, without the cells that the thesis leaves empty."""
    named = {row: dict(zip(columns, values, strict=True)) for row, values in block.rows.items()}
    return [(row, name, v) for row, figures in named.items() for name, v in figures.items() if not math.isnan(v)]
