"""Random weights at the scale of trained ones.

timm starts some heads at zero and some branches at 1e-4 of their size, which hides every error
that quantization makes in them.
"""

import timm
import torch
from torch import nn

LAYER_SCALES = ("gamma", "gamma_1", "gamma_2", "ls1", "ls2")
SHORT = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "mixer_b16": "mixer_b16_224",
    "resmlp_12": "resmlp_12_224",
    "gmlp_s16": "gmlp_s16_224",
}


def random_model(name: str, *, seed: int = 0) -> nn.Module:
    """A timm model in eval mode with random weights, by its own name or a short one."""
    torch.manual_seed(seed)  # what is not drawn below, such as position embeddings, is timm's
    model: nn.Module = timm.create_model(SHORT.get(name, name)).eval()
    randomize(model, seed=seed)
    return model


@torch.no_grad()
def randomize(model: nn.Module, *, seed: int = 0) -> None:
    """Draw anew: linear and convolution weights ``N(0, 1 / fan_in)``, biases ``N(0, 0.1^2)``,
    LayerNorm weights ``exp(N(0, 0.4^2))``; layer scales become 0.3."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        return deviation * torch.randn(tensor.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.weight.copy_(normal(module.weight, module.weight[0].numel() ** -0.5))
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            module.weight.copy_(normal(module.weight, 0.4).exp())
        else:
            continue
        if module.bias is not None:
            module.bias.copy_(normal(module.bias, 0.1))
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in LAYER_SCALES:
            parameter.fill_(0.3)
