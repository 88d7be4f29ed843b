"""The verbs: quantize, lower, compile, load, trainable, freeze."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.backends.base import Executor, default_backend, get_backend
from fxquant.backends.frozen import Frozen
from fxquant.backends.quantized import QuantizedModule, quantized_module
from fxquant.capture import capture
from fxquant.entry import Entry, Normalization, with_entry
from fxquant.errors import BackendError, CaptureError, InputError, PipelineError, RecipeError
from fxquant.graph.shapes import shape_of
from fxquant.models.example import Preprocessing, example_for, preprocessing_of
from fxquant.models.images import ImageFolder
from fxquant.passes import BUILTIN, UsePlan
from fxquant.pipeline.observers import GraphDiffs, Timing
from fxquant.pipeline.pipeline import PassObserver, Pipeline
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import AT_START, Fact, State
from fxquant.quant.calibration import LIMIT, Calibration, first_batch
from fxquant.recipe import DYNAMIC, Recipe, recipe
from fxquant.report import Report
from fxquant.report.build import (
    build_rows,
    build_sensitivities,
    integer_kernels,
    multiplies_integers,
)

logger = logging.getLogger("fxquant")


def quantize(
    model: nn.Module,
    *,
    calibration: Any = None,
    recipe: str | Path | Recipe | None = None,
    pipeline: Pipeline | None = None,
    plan: Plan | None = None,
    example: Any = None,
    backend: str | None = None,
    limit: int = LIMIT,
    input_normalization: Normalization | None = None,
    entry: Entry = "float32",
    observers: Iterable[PassObserver] = (),
) -> QuantizedModule:
    """A portable quantized graph of ``model``, which is left as it was.

    ``model``: ``nn.Module`` or symbolically traced ``GraphModule``, eval mode, float32, CPU.
    ``calibration``: tensor ``[N, ...]``, list of batches, DataLoader of ``x`` or ``(x, y)``, or a
    folder of images; at most ``limit`` samples are read. Without it activation ranges are found
    per token while the model runs. ``recipe``: name, YAML file or :class:`Recipe` (``w8a8``).
    ``pipeline``: passes in place of the recipe's. ``plan``: decisions made before, carried out by
    the pipeline that made them (or by ``pipeline=``, where that had passes of your own); with the
    same data it gives the same bits. ``example``: input to capture with, else calibration data,
    else the model's own configuration. ``backend``: whose machine facts guide the plan; x86 where
    this machine can run it, else the reference.

    ``input_normalization``: the ``(mean, std)`` per channel that 8-bit images were normalised
    with, ``x = (p / 255 - mean) / std``; the first quantizer then loses nothing. ``entry``:
    ``float32`` takes what the float model takes, ``uint8`` raw pixels ``[N, C, H, W]`` without any
    normalization; calibration data is normalised floats either way.
    """
    if isinstance(model, Frozen):
        raise CaptureError(
            "the model is quantized already",
            where="argument model",
            fix="quantize the float model again, or edit the plan and pass plan=",
        )
    chosen, steps = _passes(recipe, pipeline, plan, calibrated=calibration is not None)
    steps = with_entry(steps, input_normalization, entry)
    source = _source(model, calibration)
    first = None
    if source is not None:
        first, source = first_batch(source)
    float_graph = capture(model, _example(model, example, first))
    inputs = [node for node in float_graph.graph.nodes if node.op == "placeholder"]
    data = None
    if source is not None:
        names = tuple(str(node.target) for node in inputs)
        shapes = tuple(shape_of(node)[1:] for node in inputs)
        data = Calibration(source, names, shapes, limit=limit)
    target = get_backend(backend or default_backend()).target()
    facts: dict[Fact, Any] = {
        Fact.GRAPH: float_graph,
        Fact.FLOAT_GRAPH: float_graph,
        Fact.CALIBRATION: data,
        Fact.TARGET: target,
        Fact.PLAN: Plan({}, target, choices=plan.choices if plan is not None else {}),
    }
    assert set(facts) == AT_START
    timing, diffs = Timing(), [o for o in observers if isinstance(o, GraphDiffs)]
    state = steps.run(State(facts), (timing, *observers))
    if not state.facts.get(Fact.QUANTIZED):
        raise PipelineError(
            "the pipeline never applied its plan", fix="end it with the pass 'apply'"
        )
    report = _report(model, chosen, state, timing)
    made = replace(state.plan, recipe=chosen.name, pipeline=str(steps))
    return quantized_module(
        state.graph,
        made if plan is None else plan,
        report,
        pipeline=str(steps) if plan is None else "plan",
        diffs=diffs[0].diffs if diffs else {},
    )


def lower(
    quantized: QuantizedModule,
    *,
    backend: str = "x86",
    strict: bool = False,
    executor: Executor = "native",
) -> Any:
    """Kernels for a quantized graph: an ``nn.Module`` with ``plan``, ``report`` and ``save``.

    ``strict``: raise where a layer planned in int8 gets no int8 kernel (otherwise a warning names
    it). ``executor``: ``native`` runs the whole graph as one program of C++ kernels, built at
    first use and cached; where it lacks an operation, or there is no compiler, ``inductor`` takes
    its place and the report says why. ``inductor`` compiles what lies between oneDNN kernels on
    first call; ``eager`` calls operator by operator.
    """
    if not isinstance(quantized, QuantizedModule):
        raise InputError(
            f"lower takes a quantized model, not {type(quantized).__name__}",
            fix="call fxquant.quantize first, or fxquant.compile for both",
        )
    if executor not in get_args(Executor):
        known = ", ".join(repr(name) for name in get_args(Executor))
        raise InputError(f"unknown executor {executor!r}", fix=f"use one of {known}")
    return get_backend(backend).lower(quantized, strict=strict, executor=executor)


def compile(
    model: nn.Module,
    *,
    calibration: Any = None,
    recipe: str | Path | Recipe | None = None,
    backend: str = "x86",
    strict: bool = False,
    executor: Executor = "native",
    **options: Any,
) -> Any:
    """``model`` in int8 on this CPU: :func:`quantize` and :func:`lower` in a row.

    ``options`` are those of :func:`quantize`. The model is left as it was; the result is an
    ``nn.Module`` for any batch size.
    """
    quantized = quantize(model, calibration=calibration, recipe=recipe, backend=backend, **options)
    return lower(quantized, backend=backend, strict=strict, executor=executor)


def _micro_batch(extra: dict[str, Any], path: str | Path) -> int | None:
    from fxquant.errors import ArtifactError

    images = extra.get("micro_batch")
    if images is not None and (type(images) is not int or not 1 <= images <= 1024):
        raise ArtifactError(
            f"the file asks for micro-batches of {str(images)[:40]!r}",
            where=str(path),
            fix="do not run this file; write a new one from the model",
        )
    return images


def load(path: str | Path, *, executor: Executor = "native", strict: bool = False) -> Any:
    """Read a ``.fxq`` file; a lowered model is lowered again for this machine, never re-planned.

    Raises :class:`~fxquant.errors.ArtifactError` for anything but a sound artifact.
    """
    from fxquant.artifact import read
    from fxquant.errors import ArtifactError

    if not isinstance(path, (str, Path)):
        raise ArtifactError(
            f"{type(path).__name__} is no path", where="argument path", fix="name a .fxq file"
        )
    stored = read(path)
    extra = stored.manifest.get("extra", {})
    quantized = quantized_module(
        stored.graph_module,
        stored.plan,
        stored.report,
        pipeline=str(extra.get("pipeline", "")),
        micro_batch=_micro_batch(extra, path),
    )
    backend = str(stored.manifest["backend"])
    try:
        return lower(quantized, backend=backend, strict=strict, executor=executor)
    except BackendError as error:
        raise ArtifactError(
            f"the artifact cannot run here: {error.what}",
            where=str(path),
            why=error.why,
            fix=error.fix,
        ) from error


def _passes(
    chosen: str | Path | Recipe | None,
    pipeline: Pipeline | None,
    plan: Plan | None,
    *,
    calibrated: bool,
) -> tuple[Recipe, Pipeline]:
    if plan is not None and chosen is not None:
        raise RecipeError("a plan replaces the recipe", fix="pass only one of them")
    if pipeline is not None and chosen is not None:
        raise RecipeError("a pipeline replaces the recipe", fix="pass only one of them")
    if pipeline is not None and not isinstance(pipeline, Pipeline):
        raise PipelineError(
            f"{type(pipeline).__name__} is not a Pipeline",
            where="argument pipeline",
            fix="change fxquant.recipe('w8a8').pipeline, or build fxquant.Pipeline((...))",
        )
    if chosen is None and pipeline is None and plan is None and not calibrated:
        logger.warning(
            "no calibration data: activation ranges are found per token while the model runs, "
            "which costs speed; pass calibration= for static ranges"
        )
        chosen = DYNAMIC
    if plan is None:
        made = recipe("w8a8" if chosen is None else chosen)
        return made, pipeline or made.pipeline
    if not isinstance(plan, Plan):
        raise InputError(f"{type(plan).__name__} is not a Plan", fix="read it with Plan.load")
    text = plan.pipeline or str(recipe("w8a8").pipeline)
    steps = pipeline or Pipeline.parse(text, BUILTIN)
    steps = steps.replace("assign", UsePlan(plan))
    if any(step.name == "plan" for step in steps.passes):
        steps = steps.without("plan")  # it would decide anew
    return Recipe(plan.recipe or "plan", steps), steps


def _source(model: nn.Module, calibration: Any) -> Any:
    if isinstance(calibration, (str, Path)):
        return ImageFolder(calibration, preprocessing_of(model) or Preprocessing())
    return calibration


def _example(model: nn.Module, example: Any, first: Any) -> Any:
    if example is not None:
        return example
    if first is None:
        return example_for(model)
    if isinstance(first, (tuple, list)):
        # (x, y): whatever follows the images and is no image itself is a label
        inputs = tuple(itertools.takewhile(_is_input, first))
        return inputs[0] if len(inputs) == 1 else inputs
    if isinstance(first, dict):
        return {name: value for name, value in first.items() if _is_input(value)}
    return first


def _is_input(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1


def _report(model: nn.Module, chosen: Recipe, state: State, timing: Timing) -> Report:
    measured = state.facts.get(Fact.MEASUREMENTS, {})
    notes = [(note.layer, note.text) for note in state.log]
    if state.calibration is None:
        notes.append(("", "no calibration data: ranges are found while the model runs"))
    kind = getattr(model, "default_cfg", None)
    name = kind.get("architecture") if isinstance(kind, dict) else None
    integers = integer_kernels(state.graph, state.layers)
    return Report(
        model=str(name or type(model).__name__),
        recipe=chosen.name,
        backend="reference",
        machine=state.target.machine,
        simulated=not multiplies_integers(integers),
        rows=build_rows(state.layers, state.plan, measured, integers),
        output_sqnr_db=measured.get("(output)"),
        timings=tuple(timing.seconds),
        notes=tuple(notes),
        sensitivities=build_sensitivities(state.plan),
    )


__all__ = ["GraphModule", "compile", "load", "lower", "quantize"]
