"""Train the quick-start model and write its weights: ``python benchmarks/train_digits.py``.

Takes a few minutes on two CPU cores. The held-out images only score the final weights: the
settings below were chosen by cross-validation within the train images.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fxquant.quickstart.digits import load_split
from fxquant.quickstart.model import WEIGHTS_FILE, DigitsViT

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "fxquant" / "quickstart" / WEIGHTS_FILE

THREADS = 2
SEED = 0
BATCH = 64
PEAK_LR = 2e-3
WEIGHT_DECAY = 0.05
WARMUP_EPOCHS = 5
LABEL_SMOOTHING = 0.05
# Small, because a digit fills its 8x8 image: what is shifted out is lost.
MAX_ROTATION = math.radians(8)
MAX_SCALE = 0.05
MAX_SHIFT_PIXELS = 0.25


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random small rotation, scaling and shift of each image: float32 [B, 1, 8, 8], same out."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    angle, scale = uniform(MAX_ROTATION), 1 + uniform(MAX_SCALE)
    # affine_grid counts from -1 to 1, so one pixel is 2 / width.
    shift_x = uniform(MAX_SHIFT_PIXELS * 2 / images.shape[-1])
    shift_y = uniform(MAX_SHIFT_PIXELS * 2 / images.shape[-2])
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, shift_x], dim=1), torch.stack([sin, cos, shift_y], dim=1)], dim=1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@torch.inference_mode()
def accuracy(model: DigitsViT, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    predicted: Tensor = model.eval()(images).argmax(dim=1)
    return 100.0 * (predicted == labels).float().mean().item()


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a half cosine to zero; as a fraction of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(epochs: int) -> DigitsViT:
    """The trained model in eval mode; the same seed gives the same schedule and batches."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    split = load_split()
    images, labels = split.train_images, split.train_labels
    model = DigitsViT().train()
    # Biases, norms, the class token and position embeddings are not decayed, as usual for ViTs.
    decayed = [p for p in model.parameters() if p.ndim in (2, 4)]
    others = [p for p in model.parameters() if p.ndim not in (2, 4)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        lr=PEAK_LR,
    )
    per_epoch = len(images) // BATCH
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate(step, epochs * per_epoch, WARMUP_EPOCHS * per_epoch),
    )
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for rows in order[: per_epoch * BATCH].view(per_epoch, BATCH):
            logits = model(augment(images[rows], generator))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            seconds = time.perf_counter() - start
            mean = total / per_epoch
            print(f"epoch {epoch + 1:4d}  loss {mean:.4f}  {seconds:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    """Train, score the held-out images once, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = train(options.epochs)
    split = load_split()
    print(f"train    {accuracy(model, split.train_images, split.train_labels):.2f} %")
    print(f"held out {accuracy(model, split.held_out_images, split.held_out_labels):.2f} %")
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, options.out)
    print(f"{options.out.name}: {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
