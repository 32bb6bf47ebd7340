"""The coverage of `recipe_interval` in simulations: python -m tests.leaderboard.recipe_simulation.

A seed's true accuracy is normal around the mean, clipped to [0, 1]. Every two seeds agree on each example with the
given correlation: each seed takes the example's own uniform number with probability sqrt(correlation), and a number of
its own otherwise, and is correct if the number is below its accuracy.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import special

from bench.core import clopper_pearson
from leaderboard.render import render
from leaderboard.significance import recipe_interval

MEANS = (0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
SPREADS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1)
SEEDS, EXAMPLES, CORRELATIONS = (3, 5, 10), (360, 1000), (0.0, 0.5, 0.9)
DRAWS = 10_000


@dataclass(frozen=True)
class Cell:
    mean: float
    spread: float
    seeds: int
    n: int
    correlation: float

    @property
    def symmetric(self):
        """Are (almost) no seeds clipped at 100 %?"""
        return self.mean + 2 * self.spread <= 1

    @property
    def expected(self):
        """The mean of the clipped normal distribution."""
        if not self.spread:
            return self.mean
        low, high = -self.mean / self.spread, (1 - self.mean) / self.spread
        inside = self.mean * (special.ndtr(high) - special.ndtr(low)) + self.spread * (_density(low) - _density(high))
        return inside + special.ndtr(-high)


def _density(z):
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def draw(cell, draws, generator):
    """The measured accuracies, (draws, seeds)."""
    p = np.sort(np.clip(generator.normal(cell.mean, cell.spread, (draws, cell.seeds)), 0, 1), axis=1)
    own = 1 - np.sqrt(cell.correlation)
    below, above, before = np.zeros((draws, cell.seeds), dtype=int), np.full(draws, cell.n), np.zeros(draws)
    for j in range(cell.seeds):  # the examples whose number lies between the accuracies of two seeds
        between = generator.binomial(above, np.clip((p[:, j] - before) / np.maximum(1 - before, 1e-15), 0, 1))
        above = above - between
        below[:, j], before = cell.n - above, p[:, j]
    hits = generator.binomial(below, 1 - own + own * p) + generator.binomial(cell.n - below, own * p)
    return hits / cell.n


def simulate(cell, draws, generator):
    """(coverage, mean width) of the interval of the recipe, and of Clopper-Pearson's at the mean."""
    measured = draw(cell, draws, generator)
    of_examples = clopper_pearson.interval(measured.mean(axis=1) * cell.n, cell.n)
    found = []
    for low, high in (recipe_interval(measured, cell.n), of_examples):
        found += [float(((low <= cell.expected) & (cell.expected <= high)).mean()), float((high - low).mean())]
    return tuple(found)


def main():
    generator = np.random.default_rng(0)
    cells = [Cell(*values) for values in product(MEANS, SPREADS, SEEDS, EXAMPLES, CORRELATIONS)]
    rows = {cell: simulate(cell, DRAWS, generator) for cell in cells}
    for symmetric in (True, False):
        chosen = {cell: row for cell, row in rows.items() if cell.symmetric == symmetric}
        coverage, width, of_examples, examples_width = np.array(list(chosen.values())).T
        print(
            f"mean + 2 spreads {'at most' if symmetric else 'above'} 1: {len(chosen)} cells, coverage at least "
            f"{100 * coverage.min():.1f} %, {int((coverage < 0.94).sum())} cells below 94 %; Clopper-Pearson at the "
            f"mean alone: at least {100 * of_examples.min():.1f} %. Mean width {100 * width.mean():.1f} points "
            f"beside {100 * examples_width.mean():.1f}."
        )
    lines = [
        [cell.mean, cell.spread, cell.seeds, cell.n, cell.correlation, *(f"{100 * value:.1f}" for value in row)]
        for cell, row in rows.items()
    ]
    headers = ["mean", "spread", "seeds", "n", "correlation", "coverage %", "width", "examples only %", "width"]
    print("\n", render(headers, lines), sep="")


if __name__ == "__main__":
    main()
