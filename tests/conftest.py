import torch

torch.set_num_threads(1)  # small models, and several tests at once
