"""How likely a false claim survives a submission, and an honest run is refused: `python -m tests.publish.chances`.

A claim of k broken examples that are said to be robust survives if the attack of the verification breaks none of them.
The power of that attack is measured on broken examples of published networks, with fresh seeds. An honest run has drawn
its errors at random, and is as good on training images as on test images; the checks that compare shares may refuse it
by chance. Not counted: seeds of one entry far from one another, for which a reason is asked for, not a refusal.
"""

import sys
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import hypergeom

from bench.core.attack_specs import make_attacks
from bench.core.example_table import survivors
from bench.core.files import read_arrays
from bench.core.record_files import TABLE, WEIGHTS, read_record
from bench.datasets.digits import digits
from bench.datasets.split import Split
from bench.verify.attack_again import SAMPLE, WHOLE, attack_again
from bench.verify.inputs import load_model, make_context, settings
from bench.verify.leakage import check_leakage
from bench.verify.memorised import CERTIFIED, IMAGES, STRONG, better
from leaderboard.published_results import results_folder

ENTRIES, SEEDS, DRAWS = ("pgd-at", "trades", "fgsm-rs"), 3, 10_000
SIZES, ACCURACIES = (360, 1000), (0.7, 0.9, 0.98)


def power(name, seeds):
    """How often each broken example of a published network falls again, over fresh seeds of the verification's attack.

    Those are left out that are misclassified without an attack.
    """
    chosen, data = settings(threads=1, device="cpu"), digits(None)
    run = results_folder() / "digits" / name / "0"
    record, table = read_record(run), read_arrays(run / TABLE)
    context = make_context(
        load_model(run / WEIGHTS, record, data, chosen), Split.test(data, torch.device("cpu")), record, chosen
    )
    hidden = np.flatnonzero(table["clean"] & ~survivors(table))
    claim = {key: table[key] for key in ("index", "label", "prediction", "clean")}
    claim["robust/pgd-10"] = np.isin(table["index"], hidden)
    ((_, planned),) = make_attacks([chosen.attack], context.threat).items()
    found = np.zeros(len(hidden))
    for seed in range(seeds):
        _, fell = attack_again(replace(context, seed=1000 + seed), claim, {chosen.attack: planned.attack}, {})
        found += np.isin(hidden, list(fell.points))
    return found / seeds


def survival(miss, k, examples):
    """The chance that k false claims all survive, of `examples` that are claimed robust.

    miss: the chance that an attacked one does. Of more than WHOLE claims a sample is attacked: it holds j of the k by
    the hypergeometric formula.
    """
    if examples <= WHOLE:
        return miss**k
    j = np.arange(k + 1)
    return float((hypergeom.pmf(j, examples, k, SAMPLE) * miss**j).sum())


def refused(draws, n, accuracy, rng):
    """The share of honest runs that a check of shares refuses."""
    labels = rng.integers(10, size=n)
    count = 0
    for _ in range(draws):
        test, train = rng.random(n) < accuracy, rng.random(IMAGES) < accuracy
        few = better(test[:CERTIFIED], train[:CERTIFIED]) < STRONG
        outcomes = [each.outcome for each in check_leakage({"clean": test, "label": labels}, n)]
        count += few or better(test, train) < STRONG or "failed" in outcomes
    return count / draws


if __name__ == "__main__":
    torch.set_num_threads(1)
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    for n in SIZES:
        for accuracy in ACCURACIES:
            each = -(-draws // (len(SIZES) * len(ACCURACIES)))
            share = refused(each, n, accuracy, np.random.default_rng(n))
            print(f"honest runs refused, {n} examples, accuracy {accuracy}: {share:.2%} of {each}", flush=True)
    for name in ENTRIES:
        chances = power(name, SEEDS)
        print(f"{name}: {len(chances)} broken examples, power {chances.mean():.4f}, the weakest {np.sort(chances)[:6]}")
        for k, examples in ((4, 360), (10, 1000), (100, 10_000)):
            by_chance, weakest = 1 - float(chances.mean()), 1 - float(np.sort(chances)[:k].mean())
            both = (
                f"{survival(by_chance, k, examples):.1e}, the {k} that fall least {survival(weakest, k, examples):.1e}"
            )
            print(f"  {k} of {examples} survive with a chance of {both}", flush=True)
