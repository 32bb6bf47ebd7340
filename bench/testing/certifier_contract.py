"""The tests that every registered certifier must pass: as bench/testing/contracts.py, a class that a plugin inherits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from attacks.pgd import ascend
from bench.core import registry, seeds
from bench.core.contracts import Batch, Certificate, Certifier
from bench.core.errors import UserError
from bench.core.layers import Residual
from bench.core.specs import parse_spec
from bench.core.threat import NORMS, Norm, ThreatModel, parse_norm
from bench.testing.contracts import CPU, fingerprint, registry_target, same

GREY, GREY_CLASSES = (1, 4, 4), 3  # small enough for a complete certifier


class CertifierContract:
    """What a certifier claims is so, whatever is tried on it; and it leaves the model alone.

    A probabilistic certifier may speak of another classifier (Certificate.prediction), which nothing here attacks.
    """

    def make(self, name: str) -> Certifier:
        certifier: Certifier = parse_spec(name, registry.certifier).make()
        return certifier

    def each_norm(self, name: str) -> Iterator[tuple[Certifier, Norm]]:
        certifier = self.make(name)
        assert certifier.norms
        for norm in certifier.norms:
            yield certifier, parse_norm(norm)

    def test_leaves_the_model_as_it_was(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch = conv_net(), grey_batch(conv_net())
            model(batch.x).sum().backward()
            model.train()
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
            next(model.parameters()).requires_grad_(False)
            before = fingerprint(model)
            certify(certifier, model, batch, ThreatModel(norm, 0.01))
            assert same(before, fingerprint(model))

    def test_depends_on_its_seed_only(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            runs: list[Certificate] = []
            for noise in (1, 2):
                torch.manual_seed(noise)  # the global generator must not matter
                runs.append(certify(certifier, dense_net(), grey_batch(dense_net()), ThreatModel(norm, 0.01)))
            assert torch.equal(runs[0].radius, runs[1].radius)
            assert torch.equal(runs[0].certified, runs[1].certified)

    def test_does_not_depend_on_the_rest_of_the_batch(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            if certifier.kind == "probabilistic":
                continue
            model, batch, threat = conv_net(), grey_batch(conv_net()), ThreatModel(norm, 0.05)
            whole = certify(certifier, model, batch, threat)
            for k in range(len(batch)):
                alone = certify(certifier, model, Batch(batch.x[[k]], batch.y[[k]], batch.index[[k]]), threat)
                assert torch.equal(alone.certified, whole.certified[[k]])
                assert torch.allclose(alone.radius, whole.radius[[k]], rtol=1e-4, atol=1e-6)

    def test_no_point_that_is_tried_breaks_a_certificate(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            if certifier.kind == "probabilistic":
                continue
            for model in (dense_net(), conv_net()):
                batch = grey_batch(model)
                shares = []
                for eps in (0.002, 0.05, 0.3):
                    found = certify(certifier, model, batch, ThreatModel(norm, eps))
                    shares.append(found.certified.float().mean().item())
                    assert_consistent(found, eps)
                    assert_survives(found, model, batch, ThreatModel(norm, eps))
                assert shares[0] > 0
                assert shares == sorted(shares, reverse=True)

    def test_takes_a_batch_of_one(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            found = certify(certifier, conv_net(), grey_batch(conv_net(), 1), ThreatModel(norm, 0.01))
            assert found.radius.shape == found.certified.shape == (1,)
            assert len(found.status) == 1

    def test_certifies_no_more_than_the_distance_of_a_linear_model(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            for eps in (distance.median().item(), distance.max().item(), 2 * distance.max().item()):
                found = certify(certifier, model, batch, ThreatModel(norm, eps))
                assert_consistent(found, eps)
                assert (found.radius <= distance * (1 + 1e-5)).all()

    def test_certifies_a_linear_model_well_within_its_distance(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            for eps in (distance.min().item() / 10, distance / 10):
                found = certify(certifier, model, batch, ThreatModel(norm, eps))
                assert_consistent(found, eps)
                assert found.certified.all()

    def test_never_certifies_a_wrong_answer(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            wrong = Batch(batch.x, 1 - batch.y, batch.index)
            found = certify(certifier, model, wrong, ThreatModel(norm, distance.min().item() / 10))
            assert not found.certified.any()
            assert (found.radius == 0).all()

    def test_a_hint_is_not_believed(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            threat = ThreatModel(norm, distance.median().item() / 2)
            misled = replace(batch, worst_points=batch.x.flip(0))
            found = certify(certifier, model, misled, threat)
            assert torch.equal(found.certified, certify(certifier, model, batch, threat).certified)

    def test_refuses_a_norm_that_it_does_not_have(self, name: str) -> None:
        certifier = self.make(name)
        for norm in NORMS:
            if norm not in certifier.norms:
                assert norm in refusal(certifier, dense_net(), ThreatModel(norm, 0.1))

    def test_names_a_layer_that_it_cannot_bound(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            if certifier.kind == "probabilistic":  # which asks the model for answers only
                continue
            model = dense_net()
            model.insert(2, nn.Hardshrink())  # jumps
            assert "Hardshrink" in refusal(certifier, model, ThreatModel(norm, 0.1))

    def test_says_what_it_is(self, name: str) -> None:
        assert registry_target(registry.certifier, name).__doc__


def certify(certifier: Certifier, model: nn.Module, batch: Batch, threat: ThreatModel) -> Certificate:
    return certifier(model, batch, threat, generator=seeds.generator(CPU, 0))


def assert_consistent(found: Certificate, eps: float | Tensor) -> None:
    """Certified is what has a radius of eps, give or take the rounding of float32."""
    assert found.certified.dtype == torch.bool
    assert found.radius.isfinite().all()
    assert (found.radius >= 0).all()
    assert (found.radius >= eps * (1 - 1e-6))[found.certified].all()
    assert found.certified[found.radius >= eps * (1 + 1e-6)].all()


def assert_survives(found: Certificate, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
    """No point that is tried within a radius is wrong, and none within the threat model has a lower margin."""
    held = (found.radius > 0).nonzero().squeeze(1)
    inner = Batch(batch.x[held], batch.y[held], held)
    for x_adv in tried(model, inner, ThreatModel(threat.norm, found.radius[held].double())):
        assert torch.equal(model(x_adv).argmax(dim=1), inner.y)
    if found.margins is not None:
        others = batch.y[:, None] != torch.arange(found.margins.shape[1])
        for x_adv in tried(model, batch, threat):
            logits = model(x_adv).detach()
            gaps = logits.gather(1, batch.y[:, None]) - logits
            assert (gaps >= found.margins - 1e-5)[others].all()


def tried(model: nn.Module, batch: Batch, threat: ThreatModel) -> Iterator[Tensor]:
    """Points of a threat model: random ones, and where steps up one class's lead over the label end."""
    generator = seeds.generator(CPU, 0)
    for _ in range(4):
        yield threat.random_start(batch.x, generator)
    for j in range(GREY_CLASSES):
        alpha = threat.eps_like(batch.x).flatten() / 2
        loss = partial(lead, j)
        yield ascend(model, batch.x, batch.y, threat=threat, steps=4, alpha=alpha, start=batch.x, loss=loss)[0]


def lead(j: int, logits: Tensor, y: Tensor) -> Tensor:
    return logits[:, j] - logits.gather(1, y[:, None]).squeeze(1)


def dense_net() -> nn.Sequential:
    """Two hidden layers, with random weights."""
    layers = [nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, GREY_CLASSES)]
    return lively(nn.Sequential(nn.Flatten(), *layers))


def conv_net() -> nn.Sequential:
    """A convolution, batch norm, a residual block, average pooling and a linear layer, with random weights."""
    block = Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)))
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), block, nn.ReLU(), nn.AvgPool2d(2)]
    return lively(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, GREY_CLASSES)))


def lively(model: nn.Sequential) -> nn.Sequential:
    """The model in eval mode, with random weights so large that its answer depends on the image; undecided at grey."""
    generator = torch.Generator().manual_seed(0)
    for value in (*model.parameters(), *model.buffers()):
        if value.dim() > 1:
            nn.init.kaiming_normal_(value, generator=generator)
        elif value.dim() == 1:  # a bias, or of batch norm
            nn.init.uniform_(value, 0.1, 0.5, generator=generator)
    *_, bias = model.parameters()
    with torch.no_grad():
        bias.sub_(model.eval()(torch.full((1, *GREY), 0.5))[0])
    return model


def grey_batch(model: nn.Module, n: int = 4) -> Batch:
    """Images of GREY's shape, two of them corners of the box, with the labels that the model gives them."""
    x = torch.rand((n, *GREY), generator=torch.Generator().manual_seed(1))
    x[:1], x[1:2] = 0.0, 1.0
    with torch.no_grad():
        return Batch(x, model(x).argmax(dim=1), torch.arange(n))


def linear_case(norm: Norm) -> tuple[nn.Sequential, Batch, Tensor]:
    """A linear model of two classes, images that it is right about, and how far in `norm` its boundary is from each.

    The nearest point of the boundary is inside the box.
    """
    generator = torch.Generator().manual_seed(2)
    last = nn.Linear(16, 2)
    with torch.no_grad():
        weight = last.weight.copy_(torch.randn((2, 16), generator=generator))
        last.bias.copy_(-0.5 * weight.sum(dim=1))  # undecided about grey
        slope = weight[0] - weight[1]
    steepest = slope.sign() * (slope.abs() == slope.abs().max())
    straight = {"Linf": slope.sign(), "L2": slope / slope.norm(), "L1": steepest}
    along = torch.tensor([0.1, -0.15, 0.2, -0.25])
    sideways = 0.1 * torch.randn((4, 16), generator=generator)
    sideways -= (sideways @ slope)[:, None] * slope / slope.square().sum()
    x = (0.5 + along[:, None] * straight[norm] + sideways).reshape(4, *GREY)
    return nn.Sequential(nn.Flatten(), last), Batch(x, (along < 0).long(), torch.arange(4)), along.abs()


def refusal(certifier: Certifier, model: nn.Module, threat: ThreatModel) -> str:
    """What the UserError says that certifying must end in, and that a run is told before it starts."""
    said = []
    for ask in (
        lambda: certifier.check_fits(model, GREY, threat),
        lambda: certify(certifier, model, grey_batch(model), threat),
    ):
        try:
            ask()
        except UserError as error:
            said.append(str(error))
    assert len(said) == 2, "there was no UserError"
    return " ".join(set(said))
