"""Training for randomised smoothing (Cohen et al., 2019; Salman et al., 2019)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from attacks.ascent import ascend
from bench.core import registry
from bench.core.config import TrainingConfig
from bench.core.contracts import Batch, Defense, Trainer
from bench.core.rules import fraction_of_training, positive
from bench.core.specs import Length, OfEps, in_units


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    sigma: float = 0.25  # standard deviation of the noise, in the scale of pixels; that of the certifier `smoothing`

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(sigma=positive(self.sigma))


@registry.defense("gaussian")
class Gaussian(Defense[Config]):
    """Gaussian: cross entropy on images with Gaussian noise, for the certifier `smoothing` with the same sigma.

    Cohen, Rosenfeld and Kolter (2019), Section 3.3. One draw for each image; the sum is not clamped to [0, 1].

    Evidence: not yet reproduced.
    """

    config_class = Config
    norms = ("L2",)
    supported_settings = ("awp", "label_smoothing")

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        noise = torch.randn(batch.x.shape, generator=trainer.generator, device=batch.x.device)
        noisy = batch.x + self.config.sigma * noise
        trainer.update(lambda: self.cross_entropy(trainer.model(noisy), batch.y))


@dataclass(frozen=True, kw_only=True)
class SmoothAdvConfig(Config):
    samples: int = 2  # m, the draws of noise for each image
    steps: int = 10  # steps of the attack
    step_size: Length = OfEps(0.2)  # step size of the attack (`alpha` in other defenses): 2 eps / steps
    ramp: float = 0.1  # fraction of the training in which eps rises from 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            ramp=fraction_of_training(self.ramp),
            step_size=positive(self.step_size),
        )


@registry.defense("smooth-adv")
class SmoothAdv(Defense[SmoothAdvConfig]):
    """SmoothAdv: adversarial training of the smoothed network, at points where its probability of the label is least.

    Salman et al. (2019), Algorithm 1 and Eq. 6: PGD maximises -log of the mean probability of the label over `samples`
    draws of Gaussian noise, and the cross entropy at the result is that of the same draws. eps, the radius of the
    attack, is that of the run and rises linearly. Points are in [0, 1] before the noise is added.

    Evidence: not yet reproduced.
    """

    config_class = SmoothAdvConfig
    norms = ("L2",)

    def times(self) -> Mapping[str, Sequence[float]]:
        return {"ramp": (self.config.ramp,)}

    def train_step(self, batch: Batch, trainer: Trainer) -> None:
        config, x, y = self.config, batch.x, batch.y
        size = (config.samples, *x.shape)
        noise = config.sigma * torch.randn(size, generator=trainer.generator, device=x.device)
        rising = min(1.0, trainer.progress / config.ramp) if config.ramp else 1.0
        x_adv = x
        if rising > 0:
            threat = replace(trainer.threat, eps=rising * trainer.eps)
            x_adv = ascend(
                UnderNoise(trainer.model, noise), x, y, threat=threat, steps=config.steps, start=x,
                alpha=in_units(config.step_size, threat.eps), loss=negative_log_likelihood,
            )  # fmt: skip
        noisy = (x_adv + noise).flatten(0, 1)
        trainer.update(cross_entropy(trainer.model(noisy), y.repeat(config.samples)))


class UnderNoise(nn.Module):
    """The logarithm of the mean of a model's probabilities under m draws of noise (m,B,C,H,W)."""

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model((x + self.noise).flatten(0, 1)).unflatten(0, self.noise.shape[:2])
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(self.noise))


def negative_log_likelihood(log_probabilities: Tensor, y: Tensor) -> Tensor:
    return nll_loss(log_probabilities, y, reduction="none")
