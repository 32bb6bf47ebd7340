"""Bounds of the contracts' tiny network (one hidden layer of ReLUs) from their formulas, with dense matrices."""

import torch

from bench.core.threat import TOLERANCE


class OneHiddenLayer:
    """Margins z_y - z_j over the Linf ball in the box, (B,K), 0 at the label; batch norm in eval mode, in float64."""

    def __init__(self, model, x, y, eps):
        self.x, self.y = x.flatten(1), y
        convolution, norm = model[0], model[1]
        scale = norm.weight / (norm.running_var.clone() + norm.eps).sqrt()  # cloned: the step changes them later
        shift = norm.bias - norm.running_mean.clone() * scale

        def first(images):
            images = convolution(images.view(-1, *x.shape[1:]))
            return (images * scale[:, None, None] + shift[:, None, None]).flatten(1)

        pixels = self.x.shape[1]
        self.bias = first(torch.zeros_like(x[:1]))[0]
        self.weight = (first(torch.eye(pixels, dtype=x.dtype)) - self.bias).T  # (units, pixels)
        eps = eps * (1 + TOLERANCE)
        low, high = (self.x - eps).clamp(0, 1), (self.x + eps).clamp(0, 1)
        self.center, self.radius = (low + high) / 2, (high - low) / 2
        middle, half = self.center @ self.weight.T + self.bias, self.radius @ self.weight.abs().T
        self.low, self.high = middle - half, middle + half  # of the units
        last = model[-1]
        self.slopes = last.weight[y][:, None] - last.weight  # (B,K,units)
        self.constants = last.bias[y][:, None] - last.bias

    def interval(self):
        low, high = self.low.relu(), self.high.relu()
        middle, half = (low + high)[:, None] / 2, (high - low)[:, None] / 2
        return (self.slopes * middle - self.slopes.abs() * half).sum(dim=2) + self.constants

    def linear(self, adaptive):
        """With the chord above, and below it its parallel through 0 or the piece on the longer side."""
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        chord = high / (high - low)
        below = (high > -low).to(low.dtype) if adaptive else chord
        positive, negative = self.slopes.clamp(min=0), self.slopes.clamp(max=0)
        units = positive * below[:, None] + negative * chord[:, None]
        shift = (negative * (-chord * low)[:, None]).sum(dim=2)
        pixels = units @ self.weight
        value = (pixels * self.center[:, None] - pixels.abs() * self.radius[:, None]).sum(dim=2)
        return value + units @ self.bias + shift + self.constants
