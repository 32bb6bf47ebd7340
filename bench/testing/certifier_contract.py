"""The contract of certifiers: the tests that a registered certifier must pass, as a class that a plugin inherits."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.losses import TargetedLoss
from bench.core import registry, seeds
from bench.core.contracts import Batch, Certificate, Certifier
from bench.core.errors import UserError
from bench.core.layers import Residual
from bench.core.specs import parse_spec
from bench.core.threat import NORMS, Norm, ThreatModel, parse_norm
from bench.testing.contracts import CPU, batch_of, fingerprint, same

SHAPE, CLASSES = (1, 4, 4), 3  # small enough for a complete certifier


class CertifierContract:
    """No point that is tried contradicts a certificate, and the certifier leaves the model unchanged.

    A probabilistic certifier may certify another classifier (Certificate.prediction), which is not attacked here.
    """

    def each_norm(self, name: str, *, deterministic: bool = False) -> Iterator[tuple[Certifier, Norm]]:
        """The certifier and each norm that it supports; none if only deterministic ones are wanted and it is not."""
        certifier: Certifier = parse_spec(name, registry.certifier).make()
        assert certifier.norms
        if certifier.kind == "deterministic" or not deterministic:
            for norm in certifier.norms:
                yield certifier, parse_norm(norm)

    def test_leaves_the_model_unchanged(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch = conv_net(), batch_of(conv_net(), SHAPE, 4)
            model(batch.x).sum().backward()
            model.train()
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
            next(model.parameters()).requires_grad_(False)
            before = fingerprint(model)
            certify(certifier, model, batch, ThreatModel(norm, 0.01))
            assert same(before, fingerprint(model))

    def test_depends_on_its_seed_only(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch = dense_net(), batch_of(dense_net(), SHAPE, 4)
            certificates: list[Certificate] = []
            for global_seed in (1, 2):
                torch.manual_seed(global_seed)
                certificates.append(certify(certifier, model, batch, ThreatModel(norm, 0.01)))
            assert torch.equal(certificates[0].radius, certificates[1].radius)
            assert torch.equal(certificates[0].certified, certificates[1].certified)

    def test_does_not_depend_on_the_rest_of_the_batch(self, name: str) -> None:
        for certifier, norm in self.each_norm(name, deterministic=True):
            model, batch, threat = conv_net(), batch_of(conv_net(), SHAPE, 4), ThreatModel(norm, 0.05)
            whole = certify(certifier, model, batch, threat)
            for k in range(len(batch)):
                alone = certify(certifier, model, Batch(batch.x[[k]], batch.y[[k]], batch.index[[k]]), threat)
                assert torch.equal(alone.certified, whole.certified[[k]])
                assert torch.allclose(alone.radius, whole.radius[[k]], rtol=1e-4, atol=1e-6)

    def test_no_point_that_is_tried_contradicts_a_certificate(self, name: str) -> None:
        for certifier, norm in self.each_norm(name, deterministic=True):
            for model in (dense_net(), conv_net()):
                batch = batch_of(model, SHAPE, 4)
                shares = []
                for eps in (0.002, 0.05, 0.3):
                    certificate = certify(certifier, model, batch, ThreatModel(norm, eps))
                    shares.append(certificate.certified.float().mean().item())
                    assert_consistent(certificate, eps)
                    assert_not_contradicted(certificate, model, batch, ThreatModel(norm, eps))
                assert shares[0] > 0
                assert shares == sorted(shares, reverse=True)

    def test_takes_a_batch_of_one(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            certificate = certify(certifier, conv_net(), batch_of(conv_net(), SHAPE, 1), ThreatModel(norm, 0.01))
            assert certificate.radius.shape == certificate.certified.shape == (1,)
            assert len(certificate.status) == 1

    def test_certifies_no_more_than_the_distance_of_a_linear_model(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            for eps in (distance.median().item(), distance.max().item(), 2 * distance.max().item()):
                certificate = certify(certifier, model, batch, ThreatModel(norm, eps))
                assert_consistent(certificate, eps)
                assert (certificate.radius <= distance * (1 + 1e-5)).all()

    def test_certifies_a_linear_model_well_within_its_distance(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            for eps in (distance.min().item() / 10, distance / 10):
                certificate = certify(certifier, model, batch, ThreatModel(norm, eps))
                assert_consistent(certificate, eps)
                assert certificate.certified.all()

    def test_never_certifies_a_misclassified_example(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            misclassified = Batch(batch.x, 1 - batch.y, batch.index)
            certificate = certify(certifier, model, misclassified, ThreatModel(norm, distance.min().item() / 10))
            assert not certificate.certified.any()
            assert (certificate.radius == 0).all()

    def test_does_not_trust_the_worst_points(self, name: str) -> None:
        for certifier, norm in self.each_norm(name):
            model, batch, distance = linear_case(norm)
            threat = ThreatModel(norm, distance.median().item() / 2)
            misled = replace(batch, worst_points=batch.x.flip(0))
            certified = certify(certifier, model, batch, threat).certified
            assert torch.equal(certify(certifier, model, misled, threat).certified, certified)

    def test_refuses_a_norm_that_it_does_not_support(self, name: str) -> None:
        certifier: Certifier = parse_spec(name, registry.certifier).make()
        for norm in set(NORMS) - set(certifier.norms):
            assert norm in refusal(certifier, dense_net(), ThreatModel(norm, 0.1))

    def test_names_a_layer_that_it_cannot_bound(self, name: str) -> None:
        for certifier, norm in self.each_norm(name, deterministic=True):  # probabilistic: any model will do
            model = dense_net()
            model.insert(2, nn.Hardshrink())  # discontinuous
            assert "Hardshrink" in refusal(certifier, model, ThreatModel(norm, 0.1))

    def test_has_a_docstring(self, name: str) -> None:
        assert parse_spec(name, registry.certifier).target.__doc__


def certify(certifier: Certifier, model: nn.Module, batch: Batch, threat: ThreatModel) -> Certificate:
    return certifier(model, batch, threat, generator=seeds.generator(CPU, 0))


def assert_consistent(certificate: Certificate, eps: float | Tensor) -> None:
    """An example is certified if and only if its radius is eps, up to the rounding of float32."""
    assert certificate.certified.dtype == torch.bool
    assert certificate.radius.isfinite().all()
    assert (certificate.radius >= 0).all()
    assert (certificate.radius >= eps * (1 - 1e-6))[certificate.certified].all()
    assert certificate.certified[certificate.radius >= eps * (1 + 1e-6)].all()


def assert_not_contradicted(certificate: Certificate, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
    """No point that is tried within a radius is misclassified, and none within the threat model has a lower margin."""
    rows = (certificate.radius > 0).nonzero().squeeze(1)
    inner = Batch(batch.x[rows], batch.y[rows], rows)
    for x_adv in points(model, inner, ThreatModel(threat.norm, certificate.radius[rows].double())):
        assert torch.equal(model(x_adv).argmax(dim=1), inner.y)
    if certificate.margins is not None:
        others = batch.y[:, None] != torch.arange(certificate.margins.shape[1])
        for x_adv in points(model, batch, threat):
            logits = model(x_adv).detach()
            margins = logits.gather(1, batch.y[:, None]) - logits
            assert (margins >= certificate.margins - 1e-5)[others].all()


def points(model: nn.Module, batch: Batch, threat: ThreatModel) -> Iterator[Tensor]:
    """Points of a threat model: random ones, and the ends of a few gradient steps towards each class."""
    generator = seeds.generator(CPU, 0)
    for _ in range(4):
        yield threat.random_start(batch.x, generator)
    for j in range(CLASSES):
        alpha = threat.eps_like(batch.x).flatten() / 2
        loss = TargetedLoss(torch.full_like(batch.y, j))
        yield ascend(model, batch.x, batch.y, threat=threat, steps=4, alpha=alpha, start=batch.x, loss=loss)


def dense_net() -> nn.Sequential:
    """Two hidden layers, with random weights."""
    layers = [nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, CLASSES)]
    return randomized(nn.Sequential(nn.Flatten(), *layers))


def conv_net() -> nn.Sequential:
    """A convolution, batch norm, a residual block, average pooling and a linear layer, with random weights."""
    block = Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)))
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), block, nn.ReLU(), nn.AvgPool2d(2)]
    return randomized(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, CLASSES)))


def randomized(model: nn.Sequential) -> nn.Sequential:
    """The model in eval mode, with weights so large that its prediction depends on the image; all logits 0 at grey."""
    generator = torch.Generator().manual_seed(0)
    for value in (*model.parameters(), *model.buffers()):
        if value.dim() > 1:
            nn.init.kaiming_normal_(value, generator=generator)
        elif value.dim() == 1:  # a bias, or of batch norm
            nn.init.uniform_(value, 0.1, 0.5, generator=generator)
    *_, bias = model.parameters()
    with torch.no_grad():
        bias.sub_(model.eval()(torch.full((1, *SHAPE), 0.5))[0])
    return model


def linear_case(norm: Norm) -> tuple[nn.Sequential, Batch, Tensor]:
    """A linear model of two classes, correctly classified images, and their distances in `norm` from its boundary.

    The nearest point of the boundary is inside the box.
    """
    generator = torch.Generator().manual_seed(2)
    last = nn.Linear(16, 2)
    with torch.no_grad():
        weight = last.weight.copy_(torch.randn((2, 16), generator=generator))
        last.bias.copy_(-0.5 * weight.sum(dim=1))  # all logits 0 at grey
        gradient = weight[0] - weight[1]
    distance = torch.tensor([0.1, -0.15, 0.2, -0.25])
    parallel = 0.1 * torch.randn((4, 16), generator=generator)  # to the boundary
    parallel -= (parallel @ gradient)[:, None] * gradient / gradient.square().sum()
    x = 0.5 + distance[:, None] * ThreatModel(norm, 1.0).steepest(gradient[None]) + parallel
    batch = Batch(x.reshape(4, *SHAPE), (distance < 0).long(), torch.arange(4))
    return nn.Sequential(nn.Flatten(), last), batch, distance.abs()


def refusal(certifier: Certifier, model: nn.Module, threat: ThreatModel) -> str:
    """The messages of the UserErrors that check_fits, which runs before the training, and certify must raise."""
    messages = []
    for refuse in (
        lambda: certifier.check_fits(model, SHAPE, threat),
        lambda: certify(certifier, model, batch_of(model, SHAPE, 4), threat),
    ):
        try:
            refuse()
        except UserError as error:
            messages.append(str(error))
    assert len(messages) == 2, "there was no UserError"
    return " ".join(set(messages))
