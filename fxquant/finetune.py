"""Short fine-tuning of a quantized model towards its float model."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant import checkpoint as store
from fxquant.backends.quantized import QuantizedModule, quantized_module
from fxquant.backends.reference.trainable import WEIGHT_FAKES, freeze, trainable
from fxquant.errors import InputError
from fxquant.fidelity import checked
from fxquant.quant.calibration import LIMIT, Calibration
from fxquant.quant.integer import train

RATE, LEAST_RATE, LARGEST_RATE = 0.3, 0.005, 0.1
FLOAT_STEP = 1e-2  # of a float parameter's own size, where a weight moves by one code


def finetune(
    quantized: QuantizedModule,
    data: Any,
    *,
    teacher: nn.Module,
    epochs: int = 3,
    minutes: float | None = None,
    learning_rate: float | None = None,
    batch: int = 16,
    temperature: float = 10.0,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    limit: int = LIMIT,
    check: int = 256,
    device: str | None = None,
    progress: Literal["auto", "never"] = "auto",
) -> QuantizedModule:
    """``quantized`` trained to give the logits of ``teacher``; never worse than it was.

    Straight-through gradients go through every quantizer and integer operator of
    :func:`trainable`; the loss is the divergence of Kullback and Leibler between the two models'
    classes at ``temperature`` (distillation, no labels; at 10 all logits count, not the first few
    alone, which serves classes that ``data`` lacks [I]). AdamW with a cosine schedule over
    ``epochs``; after each, the loss over the first ``check`` images of ``data`` is measured: where
    it has doubled, training goes back to the best epoch and on at half the rate. In the end the
    best epoch is frozen and measured once more: where it is not below what ``quantized`` had
    on these images, a copy of that comes back.

    ``data``: as for ``quantize``, float32 images, at most ``limit``. ``learning_rate``: how far a
    weight moves per step, in 256ths of what its codes span. By default 0.3 times the noise of the
    logits, as a share of their energy, within 0.005 and 0.1 [I]: Adam's own noise grows with the
    rate, and a model that is nearly right has little to gain from it. ``minutes``: no step begins
    after this time, and the rate has fallen to 0 by then; an epoch that was cut counts for the
    choice, not for a checkpoint. ``checkpoint``: a file written after each epoch, and gone on from
    if there is one. ``device``: ``cuda`` where there is one, else ``cpu``. Raises
    :class:`InputError` for arguments that do not fit each other.
    """
    _check(quantized, teacher, epochs, learning_rate, batch, temperature, check)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    images = _images(quantized, data, limit)
    wanted = _logits(teacher, images, batch)
    view = trainable(quantized)
    seen = images[:check], wanted[:check]
    made = _logits(quantized, seen[0], batch)
    start = float(divergence(seen[1].double(), made.double(), temperature))
    view.to(device)
    tuner = _Tuner(view, images, wanted, temperature, batch, seed, device, minutes)
    # Gradients of masters that count codes are small: the usual 1e-8 would damp every step.
    rate = learning_rate or usual_rate(seen[1], made)
    optimizer = torch.optim.AdamW(_groups(view, rate), weight_decay=0.0, eps=1e-15)
    run = {
        "learning_rate": rate,
        "batch": batch,
        "temperature": temperature,
        "epochs": epochs,
        "seed": seed,
        "check": check,
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
    }
    path = None if checkpoint is None else Path(checkpoint)
    reached = store.Progress(start=start, best=start)
    parameters = {name: p.data for name, p in view.named_parameters()}
    begun = _copied(parameters)
    if path is not None and path.exists():
        reached = store.load(path, run, parameters, optimizer)
    with _bar(progress) as bar:
        task = bar.add_task("fine-tuning", total=epochs * tuner.steps, completed=0, loss="")
        for epoch in range(reached.epochs, epochs):
            bar.update(task, completed=epoch * tuner.steps, loss=f"objective {reached.best:.4f}")
            share = 0.5**reached.retreats
            taken = tuner.epoch(optimizer, epoch, epochs, share, lambda: bar.advance(task))
            if not taken:
                break
            found = tuner.objective(*seen)
            reached.history.append(found)
            if found < reached.best:
                reached.best = found
                reached.best_state = _copied(parameters)
            elif reached.spoilt(found):
                _put(reached.best_state or begun, parameters)
                optimizer.state.clear()
            if taken < tuner.steps:
                break
            reached.epochs = epoch + 1
            if path is not None:
                store.save(path, run, reached, parameters, optimizer)
    return _best(quantized, view.cpu(), reached, *seen, temperature, batch, trained=len(images))


class _Tuner:
    """Steps over the images in an order that depends on seed and epoch alone."""

    def __init__(
        self,
        view: GraphModule,
        images: Tensor,
        wanted: Tensor,
        temperature: float,
        batch: int,
        seed: int,
        device: str,
        minutes: float | None,
    ) -> None:
        self.view, self.images, self.wanted = view, images, wanted
        self.temperature, self.batch, self.seed, self.device = temperature, batch, seed, device
        self.steps = -(-len(images) // batch)
        self.began, self.minutes = time.perf_counter(), minutes

    def elapsed(self) -> float:
        """Share of the time there is that has gone by."""
        if self.minutes is None:
            return 0.0
        gone = time.perf_counter() - self.began
        return gone / (60 * self.minutes) if self.minutes > 0 else 1.0

    def epoch(
        self,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        epochs: int,
        rate: float,
        done: Callable[[], None],
    ) -> int:
        """All images once, or as many as the time allows, at ``rate`` times the rate; the number
        of steps taken."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        for step, chosen in enumerate(order.split(self.batch)):
            if self.elapsed() >= 1.0:
                return step
            share = max((epoch * self.steps + step) / (epochs * self.steps), self.elapsed())
            for group in optimizer.param_groups:
                group["lr"] = group["most"] * rate * 0.5 * (1.0 + math.cos(math.pi * share))
            optimizer.zero_grad()
            logits = self.view(self.images[chosen].to(self.device))
            loss = divergence(self.wanted[chosen].to(self.device), logits, self.temperature)
            loss.backward()
            optimizer.step()
            done()
        return self.steps

    def objective(self, images: Tensor, wanted: Tensor) -> float:
        """The loss over some images."""

        def here(x: Tensor) -> Tensor:
            made: Tensor = self.view(x.to(self.device)).cpu()
            return made

        return _objective(here, images, wanted, self.temperature, self.batch)


def _copied(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in parameters.items()}


def _put(values: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    for name, value in parameters.items():
        value.copy_(values[name])


def divergence(wanted: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(wanted / T) || softmax(logits / T))``, a mean over images; a scalar."""
    target = F.log_softmax(wanted / temperature, -1)
    made = F.log_softmax(logits / temperature, -1)
    return F.kl_div(made, target, reduction="batchmean", log_target=True) * temperature**2


@torch.no_grad()
def _objective(model: Any, images: Tensor, wanted: Tensor, temperature: float, batch: int) -> float:
    parts = zip(images.split(batch), wanted.split(batch), strict=True)
    losses = ((len(x), divergence(w.double(), model(x).double(), temperature)) for x, w in parts)
    return sum(count * float(loss) for count, loss in losses) / len(images)


def usual_rate(wanted: Tensor, logits: Tensor) -> float:
    """The learning rate for logits that should be ``wanted``, in proportion to what is wrong."""
    noise = (logits - wanted).double().square().sum()
    share = float(noise / wanted.double().square().sum())
    return min(max(RATE * share, LEAST_RATE), LARGEST_RATE)


def _groups(view: GraphModule, rate: float) -> list[dict[str, Any]]:
    """One group per parameter: ``most`` is the rate in the parameter's own units."""
    units = dict(_units(view))
    groups = []
    for name, parameter in view.named_parameters():
        unit = units.get(name, float(parameter.detach().abs().mean()) * FLOAT_STEP)
        groups.append({"params": [parameter], "lr": rate * unit, "most": rate * unit})
    return groups


def _units(view: GraphModule) -> Iterator[tuple[str, float]]:
    """A 256th of the codes of every master: in values, or in codes where the master counts those.

    A bias counts in units of what one code of its weight moves a sum by, and moves with it.
    """
    for node in view.graph.nodes:
        if node.target is train.int_linear:
            unit = (node.args[4] + 1) / 128
            yield str(node.args[1].target), unit
            yield str(node.args[2].target), unit
        elif node.target in WEIGHT_FAKES and node.args[0].op == "get_attr":
            scale, (low, high) = node.args[1], node.args[-2:]
            held = view.get_buffer(str(scale.target)) if isinstance(scale, torch.fx.Node) else scale
            step = float(torch.as_tensor(held).abs().mean())
            yield str(node.args[0].target), step * (high - low + 1) / 256


def _best(
    quantized: QuantizedModule,
    view: GraphModule,
    reached: store.Progress,
    images: Tensor,
    wanted: Tensor,
    temperature: float,
    batch: int,
    *,
    trained: int,
) -> QuantizedModule:
    """The best epoch in integers, or a copy of the start where that is better."""
    chosen, final = quantized, reached.start
    if reached.best_state:
        _put(reached.best_state, {name: p.data for name, p in view.named_parameters()})
        frozen = freeze(view)
        found = _objective(frozen, images, wanted, temperature, batch)
        if found < reached.start:
            chosen, final = frozen, found
    told = (
        f"fine-tuned for {reached.epochs} epochs on {trained} images: divergence from the teacher "
        f"on {len(images)} of them {reached.start:.5f} -> {final:.5f}"
    )
    report = replace(chosen.report, notes=(*chosen.report.notes, ("", told)), output_sqnr_db=None)
    extra = {"pipeline": chosen.pipeline_text, "diffs": chosen.diffs}
    return quantized_module(chosen, chosen.plan, report, **extra)


def _check(
    quantized: Any,
    teacher: nn.Module,
    epochs: int,
    learning_rate: float | None,
    batch: int,
    temperature: float,
    check: int,
) -> None:
    if not isinstance(quantized, QuantizedModule):
        raise InputError(
            f"finetune takes a quantized model, not {type(quantized).__name__}",
            fix="pass the result of fxquant.quantize, or lowered.reference",
        )
    if teacher.training:
        raise InputError("the teacher is in training mode", fix="call teacher.eval()")
    sound = temperature > 0 and (learning_rate is None or learning_rate > 0)
    if min(epochs, batch, check) < 1 or not sound:
        raise InputError(
            f"cannot train for {epochs} epochs with batch {batch}, learning rate {learning_rate} "
            f"and temperature {temperature}, checked on {check} images",
            fix="all of them are positive",
        )


def _images(quantized: QuantizedModule, data: Any, limit: int) -> Tensor:
    inputs = [node for node in quantized.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or inputs[0].meta["val"].dtype is not torch.float32:
        raise InputError(
            "only models that take one tensor of float32 images are fine-tuned",
            fix="quantize with entry='float32'; raw pixels can be made of the result's plan",
        )
    shape = tuple(int(size) for size in inputs[0].meta["val"].shape[1:])
    batches = Calibration(data, (str(inputs[0].target),), (shape,), limit=limit).batches()
    return torch.cat([leaves[0] for leaves in batches])


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    return torch.cat([checked(model(x)) for x in images.split(batch)])


def _bar(progress: str) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    hidden = progress == "never" or not console.is_terminal
    loss = TextColumn("{task.fields[loss]}")
    return Progress(*columns, loss, console=console, transient=True, disable=hidden)
