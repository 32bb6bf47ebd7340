"""Boards of made-up entries, for tests of what shows them."""

import hashlib
import random

from leaderboard.board_data import (
    Board,
    Certificates,
    Cost,
    Curve,
    Measured,
    PassesCurve,
    Row,
    Seed,
    StageMeans,
)
from leaderboard.estimates import Estimate

HOSTILE = (
    "<script>window.broken = 1</script>",
    "</script><script>window.broken = 2</script>",
    "<!-- <script>",
    '"><img src=x onerror="window.broken = 3">',
    "' onmouseover='window.broken = 4' x='",
    "javascript:window.broken=5",
    "${window.broken = 6}{{7*7}}$boards",
    "abc\u202egnp.exe",
    "line\u2028paragraph\u2029end\x00\x1b[31m",
    "&lt;b&gt;&amp;",
)
RECIPES = (
    "pgd-at", "trades", "atas", "r-pgd", "per", "binary-subnet", "i-per-at", "mart", "awp", "free-at", "fast-at",
    "l-per",
)  # fmt: skip
MODELS = ("small-cnn", "fc1:activation=tanh", "resnet18", "small-cnn:width=24:hidden=256:batchnorm=true", "wrn-28-10")
RULE = (
    "An entry's rank is 1 + the number of entries that are significantly better. Two networks with fixed weights are "
    "compared by McNemar's exact test on the same examples, two recipes by Welch's test over their seeds.\n"
    "The false discoveries among all pairs of the suite are held at 5 % (Benjamini and Hochberg)."
)
HARDWARE = "AMD EPYC, 1 thread"
PASSES = (1, 3, 10, 30, 100)
EPS = tuple(0.025 * k for k in range(17))


def estimate(acc, width=0.03, spread=None):
    interval_of = None if not width else "weights" if spread is None else "recipe"
    new_seed = None if spread is None else (max(0.0, acc - 5 * spread), min(1.0, acc + 5 * spread))
    low, high = max(0.0, acc - width), min(1.0, acc + width)
    return Estimate(acc=acc, low=low, high=high, interval_of=interval_of, spread=spread, new_seed=new_seed)


def measured(spec, acc, forwards=None, backwards=None, seconds=0.3):
    spread = None if forwards is None else 0.007
    return Measured(
        spec=spec, accuracy=estimate(acc, spread=spread), forwards=forwards, backwards=backwards, seconds=seconds
    )


def cost(passes):
    return Cost(
        training_epochs=30.0,
        training_seconds=passes / 40_000,
        training_passes=passes,
        evaluation_passes=6_450.0,
        hardware=HARDWARE,
    )


def run(seed):
    return Seed(
        seed=seed, config_hash="aa0fc6ac77bd", n_examples=360, clean=0.983, attacked=0.65 + 0.007 * seed,
        certified=0.382, weights=hashlib.sha256(bytes([seed])).hexdigest(),
        weights_url=None if seed else "https://example.org/weights.safetensors",
        status="not re-checkable" if seed else "re-checkable",
        provenance={"commit": "2eb1e54", "torch": "2.11.0", "hardware": HARDWARE, "finished": "2026-01-02"},
    )  # fmt: skip


def decided(stage, tried, certified, broken, **work):
    work = {"forwards": 2.0 * tried, "backwards": 1.0 * tried, "seconds": tried / 100} | work
    return StageMeans(stage=stage, tried=tried, certified=certified, broken=broken, **work)


DECIDED = (
    decided("clean", 360.0, 0.0, 6.0),
    decided("crown", 354.0, 130.7, 0.0),
    decided("exact", 103.3, 7.0, 0.0, seconds=7300.0, nodes=51_300.0, proofs=6.3),
)


def row(**changes):
    """One entry, with all there is to say of one."""
    known = {
        "name": "pgd-at", "title": "PGD adversarial training", "kind": "recipe", "status": "re-checkable",
        "dataset": "digits", "norm": "Linf", "eps": 0.2, "threat": "Linf 0.2", "architecture": "small-cnn",
        "parameters": 23_978, "extra_data": False, "clean": estimate(0.983, 0.015, 0.004),
        "attacked": estimate(0.65, 0.05, 0.007), "attacked_by": ("autoattack", "bracket"), "open": 96.3,
        "truncated": True, "certified": estimate(0.382, 0.05), "trained": "reproduced",
        "certificates": Certificates(proven=130.7, again=0.0, solver=7.0, open=0.0, unchecked=0.0), "rank": 1,
        "rank_low": 1, "decided": DECIDED, "rank_high": 3, "verdict": "no-warnings", "cost": cost(172_440.0),
        "attacks": (
            measured("pgd-10", 0.722, 9.6, 8.6), measured("pgd-50", 0.7, 17.0, 16.1),
            measured("autoattack", 0.65, 5153, 1278, 25.8),
        ),
        "certifiers": (measured("crown", 0.382, seconds=4.2),),
        "curves": (Curve(norm="Linf", label="pgd-50", eps=EPS, acc=tuple(0.983 - 2 * e * e - 0.4 * e for e in EPS)),),
        "passes_curves": tuple(
            PassesCurve(label=label, passes=PASSES, acc=tuple(0.98 - 0.07 * i for i in range(5)))
            for label in ("autoattack", "pgd-50")
        ),
        "seeds": (run(0), run(1), run(2)),
        "command": "bench run --defense pgd-at --suite digits --seeds 0,1,2 --certifiers crown",
        "paper": "Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018",
        "url": "https://arxiv.org/abs/1706.06083", "code": "https://example.org/code", "licence": "MIT",
    }  # fmt: skip
    return Row(**(known | changes))


def board(n=12, suite="digits", seed=0):
    """`n` entries of all kinds, the best first."""
    rng = random.Random(seed)
    attacked = sorted((rng.uniform(0.35, 0.72) for _ in range(n)), reverse=True)
    rows = tuple(_drawn(rng, place, acc, n) for place, acc in enumerate(attacked, 1))
    summary = "8x8 handwritten digits, Linf eps 0.2: embedded, a minute on a CPU"
    return Board(suite=suite, summary=summary, rule=RULE, rows=rows)


def _drawn(rng, place, attacked, n):
    name = RECIPES[(place - 1) % len(RECIPES)] + (f"-{place}" if place > len(RECIPES) else "")
    kind = rng.choices(("recipe", "weights", "reported"), (8, 3, 2))[0]
    clean = min(0.995, attacked + rng.uniform(0.15, 0.4))
    rank = 1 if place <= 3 else place - rng.randrange(3)
    certified = attacked * rng.uniform(0.3, 0.95) if rng.random() < 0.5 else None
    verdict = rng.choices(("no-warnings", "suspect", "unreliable"), (8, 2, 1))[0]
    shape = rng.uniform(1.2, 3)
    acc = tuple(clean * max(0.0, 1 - (e / 0.2) ** shape * (1 - attacked / clean)) for e in EPS)
    spread = 0.004 if kind == "recipe" else None
    changes = {
        "name": name, "title": name, "kind": kind, "architecture": rng.choice(MODELS),
        "clean": estimate(clean, 0.015, spread), "attacked": estimate(attacked, 0.04, spread),
        "certified": certified and estimate(certified, 0.04), "rank": rank, "rank_low": rank,
        "rank_high": min(n, rank + 2), "verdict": verdict, "extra_data": rng.random() < 0.2,
        "reasons": () if verdict == "no-warnings" else ("square 61.0 % is below pgd-50 70.2 %",),
        "status": "re-checkable" if rng.random() < 0.8 else "not re-checkable", "cost": cost(10 ** rng.uniform(4, 8)),
        "curves": (Curve(norm="Linf", label="pgd-50", eps=EPS, acc=acc),),
        "paper": f"Author{place} et al., A paper on robust training, 20{10 + place % 16}",
    }  # fmt: skip
    if kind == "weights":
        changes["seeds"] = (run(0),)
    if kind == "reported":
        changes |= {
            "status": "reported, not verified", "verdict": "unchecked", "reasons": (), "rank": None, "rank_low": None,
            "rank_high": None, "attacked_by": ("AutoAttack",), "open": None, "truncated": False, "certified": None,
            "cost": None,
            "certificates": None, "trained": None,
            "position": place, "data": ("none", "synthetic, 50M", "real")[place % 3], "passes_curves": (),
            "attacks": (), "certifiers": (), "curves": (), "seeds": (), "command": None, "decided": (),
            "parameters": None, "clean": estimate(clean, 0),
            "attacked": estimate(attacked, 0),
        }  # fmt: skip
    return row(**changes)


def hostile():
    """A board whose every string attacks the page, and whose numbers are none."""
    nothing = float("nan")
    rows = tuple(
        row(
            name=f"entry-{i}", title=text, architecture=text, threat=text, norm=text, verdict=text, paper=text,
            code=text, data=text, url=text, licence=text, note=text, command=text, status=text, dataset=text,
            reasons=(text,), cost=None, clean=estimate(nothing) if i % 2 else estimate(-5.0), attacked=estimate(1e300),
            attacks=(measured(text, nothing, seconds=nothing),), open=nothing, truncated=bool(i % 2), budget=7,
            decided=(decided(text, nothing, -1.0, 1e300, nodes=nothing, proofs=nothing),),
            curves=(Curve(norm=text, label=text, eps=(0.0, 0.1), acc=(1.0, nothing)),),
            passes_curves=(PassesCurve(label=text, passes=(0, -1), acc=(nothing, 2.0)),),
            seeds=(
                Seed(
                    seed=i, config_hash=text, n_examples=-1, clean=nothing, attacked=None, certified=None,
                    weights=text, weights_url=text, status="re-checkable", provenance={text: text},
                ),
            ),
        )
        for i, text in enumerate(HOSTILE)
    )  # fmt: skip
    return Board(suite="hostile", summary=HOSTILE[0], rule=HOSTILE[1], rows=rows, left_out=HOSTILE)
