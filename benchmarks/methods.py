"""What the accuracy table measures: recipes, and each pass with and without."""

from __future__ import annotations

from dataclasses import dataclass, replace

import fxquant
from fxquant.passes import (
    BUILTIN,
    Assign,
    Noise,
    Nonlinear,
    Override,
    RegionScales,
    Residual,
    Smooth,
)
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant.scheme import Scheme

# The plain linear quantizers that the papers start from: symmetric, one clipping range per tensor
# found by search, everything that the literature quantizes.
LINEAR = (
    'annotate; open_attention{{"simulate": "ask"}}; '
    'assign{{"weight": "s{bits}/channel/minmax", "activation": "s{bits}/tensor/mse", '
    '"matmul": "s{bits}/head/minmax", "simulate": "ask", "by_role": ['
    '{{"scheme": "s8/channel/minmax", "sites": "*:weight", "role": "patch_embed"}}, '
    '{{"scheme": "a8/tensor/minmax", "sites": "*:input", "role": "patch_embed"}}, '
    '{{"scheme": "a{bits}/head/minmax", "sites": "*:lhs", "role": "attention_av"}}]}}; '
    "calibrate; apply; measure"
)


@dataclass(frozen=True)
class Method:
    """A row of the table. ``runs_as``: ``reference`` (simulated) or ``x86`` (int8 kernels).

    ``off`` names the pass that the row leaves out of, or has more than, the row called ``base``.
    ``minutes``: of fine-tuning on all 1000 calibration images.
    """

    name: str
    pipeline: Pipeline
    runs_as: str = "reference"
    base: str = ""
    off: str = ""
    minutes: float = 0.0


def recipes() -> list[Method]:
    """One row per recipe, W8A8 on both backends, and with its linears alone in int8."""
    rows = []
    for name in ("w8a8", "w6a6", "w4a8", "w4a4", "noisyquant", "mptq"):
        pipeline = fxquant.recipe(name).pipeline
        if name == "w8a8":
            rows.append(Method(name, pipeline, "x86"))
            fused = pipeline.without("open_attention")
            rows.append(Method(f"{name}, attention in bf16", fused, "x86"))
        rows.append(Method(name, pipeline))
    return rows


def ablations() -> list[Method]:
    """Each recipe without each of its optional passes."""
    optional = ("exact_input", "smooth", "split_outliers", "plan", "ridge", "correct_bias", "noise")
    rows = []
    for name in ("w8a8", "w6a6", "w4a4"):
        pipeline = fxquant.recipe(name).pipeline
        present = {step.name for step in pipeline.passes}
        for step in optional:
            if step in present:
                without = pipeline.without(step)
                rows.append(Method(f"{name} without {step}", without, base=name, off=step))
    return rows


def claims(bits: int = 6) -> list[Method]:
    """Each paper's method alone over the plain linear quantizers."""
    plain = Pipeline.parse(LINEAR.format(bits=bits), BUILTIN)
    name = f"linear w{bits}a{bits}"
    mean = Smooth(choose="sqb", center="mean")
    midrange = Smooth(choose="sqb", center="midrange")
    region = RegionScales(simulate="ask", objective="mse")
    paper, searched = Noise(), Noise(noise="searched", objective="fisher")
    return [
        Method(name, plain),
        Method(f"{name} + SQ-b, mean", plain.before("assign", mean), base=name, off="smooth"),
        Method(f"{name} + SQ-b, midrange", plain.before("assign", midrange), base=name),
        Method(f"{name} + OPT-m", plain.before("apply", region), base=name, off="region"),
        Method(f"{name} + NoisyQuant", plain.after("apply", paper), base=name, off="noise"),
        Method(f"{name} + NoisyQuant, searched", plain.after("apply", searched), base=name),
    ]


def integer() -> list[Method]:
    """Fully quantized, at 8 and 6 bits: each family, its mixes, tables, and float non-linearities;
    the families and the guarded mix once more after up to 20 minutes of fine-tuning."""
    rows = []
    for bits in (8, 6):
        base = _fully_quantized(bits)
        step = base["nonlinear"]
        assert isinstance(step, Nonlinear)
        name = f"integer w{bits}a{bits}"
        columns = {
            "fq-vit": replace(step, method="fq-vit"),
            "i-bert": replace(step, method="i-bert"),
            "i-vit": replace(step, method="i-vit"),
            "raw mix": replace(step, select="raw"),
            "guarded mix": step,
        }
        for column, chosen in columns.items():
            steps = base.replace("nonlinear", chosen)
            rows.append(Method(f"{name}, {column}", steps))
            if column != "raw mix":
                rows.append(Method(f"{name}, {column}, tuned", steps, minutes=20.0))
        tables = base.replace("nonlinear", replace(step, method="lut"))
        rows.append(Method(f"{name}, lut", tables))
        floats = base.replace("nonlinear", replace(step, method="float")).without("integer")
        rows.append(Method(f"{name}, float", floats))
        rows.append(Method(f"{name}, 8-bit residual", base.replace("residual", Residual(bits=8))))
    return rows


def _fully_quantized(bits: int) -> Pipeline:
    """The recipe ``integer-only``, at 6 bits with the patch embedding and the head at 8."""
    found = fxquant.recipe("integer-only").pipeline
    if bits == 8:
        return found
    assign, smooth, nonlinear = found["assign"], found["smooth"], found["nonlinear"]
    assert isinstance(assign, Assign)
    assert isinstance(smooth, Smooth)
    assert isinstance(nonlinear, Nonlinear)
    weight = Scheme.parse(f"s{bits}/channel/mse")
    activation = Scheme.parse(f"a{bits}/tensor/mse")
    pinned = [
        Override(role=role, sites=f"*:{slot}", scheme=scheme)
        for role in ("patch_embed", "head")
        for slot, scheme in (("weight", "s8/channel/minmax"), ("input", "a8/tensor/mse"))
    ]
    shares = Override(role="attention_av", sites="*:lhs", scheme=activation.text())
    changed = replace(
        assign,
        weight=weight,
        activation=activation,
        matmul=Scheme.parse(f"s{bits}/tensor/mse"),
        by_role=(shares, *pinned),
    )
    smoothed = replace(smooth, weight=weight, activation=activation)
    narrow = replace(nonlinear, input_bits=bits)
    steps = found.replace("assign", changed).replace("smooth", smoothed)
    return steps.replace("nonlinear", narrow)
