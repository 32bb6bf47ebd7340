"""Weights of another training that a training starts from or learns from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from bench.core.errors import UserError
from bench.training.checkpoints import read_state


def read_weights(file: str, setting: str, model: nn.Module) -> dict[str, Tensor]:
    """Read a state to the device of the model that it must fit; UserError if it does not fit, or no file is given."""
    if not file:
        raise UserError(f"the training needs weights of this architecture; give --set {setting}=FILE, of `bench run`")
    if not Path(file).is_file():
        raise UserError(f"{setting} {file} does not exist; give the weights.safetensors of a run")
    with Path(file).open("rb"):  # opened by Python, so that the training's record includes its hash
        state, own = read_state(Path(file)), model.state_dict()
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
        raise UserError(
            f"{setting} {file} holds weights of a different architecture from --model, or of a different defense"
        )
    device = next(iter(own.values())).device
    return {key: value.to(device) for key, value in state.items()}


def store(bank: dict[str, Tensor], prefix: str, state: dict[str, Tensor]) -> None:
    """Keep a state in the bank of a training, and so in its checkpoint."""
    bank.update({f"{prefix}.{key}": value for key, value in state.items()})


@torch.no_grad()
def logits_with(model: nn.Module, bank: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """The logits (B,K) of the model with a stored state. It must be in eval mode."""
    state = {key: bank[f"{prefix}.{key}"] for key in model.state_dict()}
    logits: Tensor = torch.func.functional_call(model, state, (x,))
    return logits
