"""One step of a defense in float64, beside a copy of its model for the reference of a test."""

import copy
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from bench.core.contracts import Batch
from bench.testing.contracts import DefenseContract

PLAIN = {"lr": 1.0, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}  # the update is minus the gradient


class Step:
    """A loop in float64 before a step, and a copy of its model and generator for the reference."""

    def __init__(self, name, **settings):
        self.loop = DefenseContract().loop(name, **(PLAIN | settings))
        self.loop.model.double().train()
        self.loop.bank = {key: bank.double() for key, bank in self.loop.bank.items()}
        batch = next(self.loop.shuffled())
        self.batch = Batch(batch.x.double(), batch.y, batch.index, batch.view)
        self.model = copy.deepcopy(self.loop.model)
        self.generator = torch.Generator()
        self.generator.set_state(self.loop.generator.get_state())
        self.eps, self.x, self.y = self.loop.eps, self.batch.x, self.batch.y

    def uniform(self):
        """The next uniform draw in [-1, 1] of the training's generator."""
        return 2 * torch.rand(self.x.shape, generator=self.generator) - 1

    def start(self):
        return self.loop.threat.random_start(self.x, self.generator)

    def clip(self, x_adv):
        return torch.maximum(torch.minimum(x_adv, self.x + self.eps), self.x - self.eps).clamp(0, 1)

    def gradient(self, x, training=True, loss=None):
        """Of the cross entropy, or of a loss (x) -> number, in train or eval mode."""
        self.model.train(training)
        x = x.detach().requires_grad_()
        value = cross_entropy(self.model(x), self.y) if loss is None else loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        self.model.train()
        return gradient

    def in_eval_mode(self, x):
        """Logits without a gradient."""
        self.model.eval()
        with torch.no_grad():
            logits = self.model(x)
        self.model.train()
        return logits

    def label_by_prediction(self):
        """So that the model resists some attacks; the labels of the tiny data set are random."""
        self.y = self.in_eval_mode(self.x).argmax(dim=1)
        self.batch = replace(self.batch, y=self.y)

    def noisy(self, std=0.001):
        return self.clip(self.x + std * torch.randn(self.x.shape, generator=self.generator))

    def pgd(self, x_adv, steps, loss=None):
        """Steps of eps / 4 in eval mode."""
        for _ in range(steps):
            x_adv = self.clip(x_adv + self.eps / 4 * self.gradient(x_adv, training=False, loss=loss).sign())
        return x_adv

    def probability(self, logits):
        """Of the label, (B,)."""
        return logits.detach().softmax(dim=1)[torch.arange(len(self.y)), self.y]

    def check(self, loss):
        """The step of the defense moves the weights along minus the gradient of this loss."""
        wanted = torch.autograd.grad(loss, list(self.model.parameters()))
        before = [p.detach().clone() for p in self.loop.model.parameters()]
        self.loop.defense.train_step(self.batch, self.loop)
        for old, new, gradient in zip(before, self.loop.model.parameters(), wanted, strict=True):
            assert torch.allclose(old - new, gradient, rtol=1e-6, atol=1e-9)
        with torch.no_grad():  # what the reference needs for another step
            for own, trained in zip(self.model.parameters(), self.loop.model.parameters(), strict=True):
                own.copy_(trained)
