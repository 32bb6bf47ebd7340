"""Randomised smoothing (Cohen, Rosenfeld and Kolter, 2019): a certificate for the model under Gaussian noise."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench.core import registry
from bench.core.clopper_pearson import lower_bound
from bench.core.contracts import Batch, Certificate, Certifier
from bench.core.errors import UserError
from bench.core.threat import ThreatModel

ABSTAIN = -1


@registry.certifier("smoothing")
@dataclass(frozen=True, kw_only=True)
class Smoothing(Certifier):
    """Randomised smoothing: the most likely class under Gaussian noise, certified in an L2 ball, probabilistically.

    Cohen, Rosenfeld and Kolter (2019), "Certified Adversarial Robustness via Randomized Smoothing", Algorithm 2
    (CERTIFY). It certifies the smoothed classifier g(x) = argmax_c P(model(x + sigma N(0, I)) = c), not the model:
    `prediction` is g's answer, -1 if it abstains. radius = sigma Phi^-1(p_A) with the Clopper-Pearson lower bound p_A,
    independent of eps; 0 if g is wrong or abstains. Each example's certificate is wrong with a probability of at most
    alpha, over the generator's draws.

    As in the paper the noise is not clamped to [0, 1]; the ball is not clamped to the range of pixels either. The noise
    is treated as exactly Gaussian, though it is drawn in float32.
    """

    norms = ("L2",)
    kind = "probabilistic"

    sigma: float = 0.25  # standard deviation of the noise, in the scale of pixels
    n0: int = 100  # samples to guess the class
    n: int = 10_000  # samples to bound its probability (the paper: 100,000)
    alpha: float = 0.001  # probability that a certificate is false
    batch: int = 1000  # noisy images per forward pass

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma", "n0", "n", "batch"):
            if getattr(self, name) <= 0:
                raise UserError(f"smoothing: {name} is {getattr(self, name)}; it must be positive")
        if self.alpha >= 1:
            raise UserError(f"smoothing: alpha is {self.alpha}; it is a probability of error and must be below 1")

    def certify(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Certificate:
        classes = model(batch.x[:1]).shape[1]
        guess = self.sample_under_noise(model, batch.x, self.n0, classes, generator).argmax(dim=1)
        counts = self.sample_under_noise(model, batch.x, self.n, classes, generator)
        hits = counts.gather(1, guess[:, None]).squeeze(1)
        p_a = torch.from_numpy(lower_bound(hits.cpu().numpy(), self.n, self.alpha)).to(hits.device)
        prediction = torch.where(p_a > 0.5, guess, ABSTAIN)
        radius = torch.where(prediction == batch.y, self.sigma * torch.special.ndtri(p_a), 0.0)
        return Certificate(radius, radius >= threat.eps_like(radius), prediction=prediction)

    def sample_under_noise(self, model: nn.Module, x: Tensor, n: int, classes: int, generator: Generator) -> Tensor:
        """Count how often each class is predicted for images x (B,C,H,W) under n draws of noise each: (B,K) int64."""
        counts = torch.zeros((len(x), classes), dtype=torch.int64, device=x.device)
        for start in range(0, len(x) * n, self.batch):
            rows = torch.arange(start, min(start + self.batch, len(x) * n), device=x.device) // n
            noise = torch.randn((len(rows), *x.shape[1:]), generator=generator, device=x.device)
            answers = model(x[rows] + self.sigma * noise).argmax(dim=1)
            counts.index_put_((rows, answers), torch.ones_like(rows), accumulate=True)
        return counts
