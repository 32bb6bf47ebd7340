"""The figures of docs/scale.md: `python docs/scale.py` prints its tables. Change an input, and print them again."""

from dataclasses import dataclass

from bench.core.record_files import read_record
from leaderboard.published_results import results_folder

# Measured: passes of one example, forward and backward. For each example and epoch of a training, and for each test
# example of bracket-attack: in the published records of digits. Of autoattack: `bench run --defense pgd-at --suite
# digits --attacks autoattack` (seed 0).
RECORDS = {name: read_record(results_folder() / "digits" / name / "0") for name in ("atas", "pgd-at")}
TRAINING_IMAGES_OF_DIGITS = 1437
AUTOATTACK = {"forwards": 1_938_342, "backwards": 482_187, "examples": 360}
FORWARD_SHARE = {"training": 0.5, "attack": AUTOATTACK["forwards"] / (AUTOATTACK["forwards"] + AUTOATTACK["backwards"])}

# Known: multiply-adds of a forward pass, and bytes of the weights in float32.
GMACS = {"CIFAR-10, ResNet-18": 0.56, "ImageNet, ResNet-18": 1.82, "ImageNet, ResNet-50": 4.09}
WEIGHTS_GB = {"CIFAR-10, ResNet-18": 0.045, "ImageNet, ResNet-18": 0.047, "ImageNet, ResNet-50": 0.102}
IMAGE_VALUES = {"CIFAR-10": 3 * 32 * 32, "ImageNet": 3 * 224 * 224}
TRAINING_IMAGES = {"CIFAR-10": 50_000, "ImageNet": 1_281_167}

# Assumed, not measured here: replace them by what `bench study speed` says of your GPU, and by your prices.
TERAFLOPS = {"training": 80.0, "attack": 40.0}  # that a GPU of the H100 class reaches: bfloat16, and TF32
DOLLARS_AN_HOUR, DOLLARS_A_GB_MONTH = 2.50, 0.023
BROKEN = 0.55  # of the examples: each has a witness


def training_passes(method: str) -> float:
    """For each example and epoch."""
    training = RECORDS[method].training
    assert training is not None
    return (training.forwards + training.backwards) / training.epochs / TRAINING_IMAGES_OF_DIGITS


def attack_passes(attack: str) -> float:
    """For each test example."""
    if attack == "autoattack":
        return (AUTOATTACK["forwards"] + AUTOATTACK["backwards"]) / AUTOATTACK["examples"]
    record = RECORDS["pgd-at"]
    return (record.attacks[attack].forwards + record.attacks[attack].backwards) / record.n_examples


@dataclass(frozen=True)
class Row:
    """What is computed: examples are those of the evaluation, entries have `seeds` runs each."""

    what: str
    network: str
    method: str
    epochs: int
    examples: int
    attack: str
    entries: int = 1
    seeds: int = 1


ROWS = [
    Row("Table 5.11c, ATAS", "ImageNet, ResNet-18", "atas", 90, 50_000, "autoattack"),
    Row("Table 5.11c, ATAS", "ImageNet, ResNet-50", "atas", 90, 50_000, "autoattack"),
    Row("Table 5.11c, PGD-10", "ImageNet, ResNet-50", "pgd-at", 90, 50_000, "autoattack"),
    Row("the same, first 5,000", "ImageNet, ResNet-50", "pgd-at", 90, 5_000, "autoattack"),
    Row("board, AutoAttack", "CIFAR-10, ResNet-18", "pgd-at", 30, 10_000, "autoattack", 1_000, 1),
    Row("board, bracket-attack", "CIFAR-10, ResNet-18", "pgd-at", 30, 10_000, "bracket-attack", 1_000, 1),
    Row("board of recipes", "CIFAR-10, ResNet-18", "pgd-at", 30, 10_000, "bracket-attack", 1_000, 3),
]


def gpu_hours(passes: float, kind: str, network: str) -> float:
    """A forward pass has two operations a multiply-add; a backward pass counts as two forward passes."""
    share = FORWARD_SHARE[kind]
    operations = passes * (share + 2 * (1 - share)) * 2e9 * GMACS[network]
    return operations / (TERAFLOPS[kind] * 1e12) / 3600


def cells(row: Row) -> list[str]:
    data, runs = row.network.partition(",")[0], row.entries * row.seeds
    training = runs * row.epochs * TRAINING_IMAGES[data] * training_passes(row.method)
    attack = runs * row.examples * attack_passes(row.attack)
    hours = gpu_hours(training, "training", row.network), gpu_hours(attack, "attack", row.network)
    witnesses = runs * row.examples * BROKEN * IMAGE_VALUES[data] * 4 / 1e9
    stored = runs * WEIGHTS_GB[row.network] + witnesses
    figures = [training / 1e9, attack / 1e9, *hours, stored, sum(hours) * DOLLARS_AN_HOUR, stored * DOLLARS_A_GB_MONTH]
    return [
        row.what,
        row.network,
        f"{runs:,}",
        *(f"{figure:,.2f}" if figure < 10 else f"{figure:,.0f}" for figure in figures),
    ]


def table() -> str:
    head = [
        "what", "network", "runs", "training, G passes", "attacks, G passes", "training, GPU h", "attacks, GPU h",
        "stored, GB", "computing, $", "storing, $ a month",
    ]  # fmt: skip
    rows = [head, ["---"] * len(head), *map(cells, ROWS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
