import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import softmax

from attacks.losses import best_other_class, cross_entropy, kl, kl_from, margin, reflected


def logits_and_labels(classes):
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn((8, classes), generator=generator), torch.randint(classes, (8,), generator=generator)


def test_reflected_loss_of_two_classes_is_the_papers():
    logits, y = logits_and_labels(2)
    z = margin(logits, y)
    assert torch.allclose(reflected(logits, y), -torch.log1p(z.exp()), atol=1e-6)
    # l_-(z) = -l(-z)
    assert torch.allclose(reflected(logits, y), -cross_entropy(logits.flip(1), y), atol=1e-6)


def test_reflected_loss_of_many_classes_is_the_likelihood_of_the_best_wrong_one():
    logits, y = logits_and_labels(5)
    p = softmax(logits, dim=1)
    p[torch.arange(8), y] = 0
    assert torch.allclose(reflected(logits, y), p.max(dim=1).values.log(), atol=1e-6)


def test_the_greedy_target_is_the_papers_counterexample():
    # W = [2 e1, e1, 10 e2] at x = (1, 0): greedy climbs class 2, which can never win, and not class 3, which can
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert best_other_class(logits, torch.tensor([0])).indices.item() == 1


def test_margin_is_negative_exactly_where_another_class_wins():
    logits, y = logits_and_labels(4)
    assert torch.equal(margin(logits, y) < 0, logits.argmax(dim=1) != y)


def test_cross_entropy_is_per_example():
    logits, y = logits_and_labels(4)
    assert torch.allclose(cross_entropy(logits, y).mean(), torch_cross_entropy(logits, y))


def test_kl_is_zero_at_itself_and_agrees_with_its_definition():
    (p, y), q = logits_and_labels(4), 2 * logits_and_labels(4)[0].flip(0)
    assert torch.allclose(kl(p, p), torch.zeros(8), atol=1e-6)
    by_hand = (softmax(p, dim=1) * (softmax(p, dim=1).log() - softmax(q, dim=1).log())).sum(dim=1)
    assert torch.allclose(kl_from(p)(q, y), by_hand, atol=1e-5)
