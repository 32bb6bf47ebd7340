import torch

from bench.training.weight_balls import farthest_neuron, project_layers, project_neurons


def test_each_layer_is_moved_to_the_nearest_point_of_its_ball():
    start = [torch.ones(2, 2), torch.zeros(1, 2)]
    weights = [torch.ones(2, 2) + torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.3, 0.4]])]
    project_layers(weights, start, radius=1.0)
    assert torch.allclose(weights[0], torch.tensor([[1.6, 1.0], [1.0, 1.8]]))
    assert torch.equal(weights[1], torch.tensor([[0.3, 0.4]]))


def test_each_neuron_has_its_own_ball():
    start, weight = torch.zeros(3, 2), torch.tensor([[3.0, 4.0], [0.0, 0.1], [0.0, 0.0]])
    assert farthest_neuron(weight, start) == 5.0
    project_neurons(weight, start, radius=0.5)
    assert torch.allclose(weight, torch.tensor([[0.3, 0.4], [0.0, 0.1], [0.0, 0.0]]))
    assert farthest_neuron(weight, start) <= 0.5 + 1e-6
