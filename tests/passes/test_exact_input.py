"""Patch embeddings that read pixels: the same function and a quantizer without error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import Fact, Pipeline, State
from fxquant.errors import FxquantError, InputError, PipelineError, PlanError
from fxquant.passes import Annotate, ExactInput
from fxquant.passes.running import Runner
from fxquant.pipeline.plan import Plan
from fxquant.quant import ops
from fxquant.quant.metrics import EXACT_DB, sqnr_db
from tests.backends.tiny import Vit, fingerprint, images, made, tensor
from tests.passes.running import start
from tests.quant.test_pixels import MEAN, STD, normalised, pixels

P = pixels(6)
X = normalised(P, MEAN, STD)


class LinearPatches(nn.Module):
    """A linear over patches whose features are ordered as ``order`` says."""

    def __init__(self, order: tuple[int, ...] = (0, 2, 4, 1, 3, 5)) -> None:
        super().__init__()
        self.order, self.embed, self.head = order, nn.Linear(48, 20), nn.Linear(20, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 3, 4, 4, 4, 4).permute(self.order).reshape(x.shape[0], 16, 48)
        out: Tensor = self.head(F.gelu(self.embed(x)).mean(1))
        return out


class Stem(nn.Module):
    """A convolution of any kind before a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 18, 4, **options)
        self.head = nn.Linear(18, 17)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).mean((2, 3)))
        return out


class Inner(nn.Module):
    """The model normalises by itself, or adds the image to what it makes of it."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.skip, self.conv = skip, nn.Conv2d(3, 16, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.skip:
            return self.conv(x).mean((2, 3)) + x.mean((1, 2, 3))[:, None]
        out: Tensor = self.conv(x * 2.0 - 1.0).mean((2, 3))
        return out


def small() -> nn.Module:
    return Vit(16, 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": small,
    "linear over patches, channels first": LinearPatches,
    "linear over patches, channels last": lambda: LinearPatches((0, 2, 4, 3, 5, 1)),
    "convolution without bias": lambda: Stem(stride=4, bias=False),
    "overlapping convolution": lambda: Stem(stride=2),
    "image read elsewhere too": lambda: Inner(skip=True),
}
ENTRIES = {name: "patch" for name in MODELS} | {
    "linear over patches, channels first": "embed",
    "linear over patches, channels last": "embed",
    "convolution without bias": "conv",
    "overlapping convolution": "conv",
    "image read elsewhere too": "conv",
}


def rewritten(model: nn.Module, data: Tensor = X, **options: Any) -> tuple[State, State]:
    before = start(model, data)
    return before, Pipeline((Annotate(), ExactInput(**options))).run(before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"mean": MEAN, "std": STD}], ids=["found", "given"])
def test_the_function_stays_and_the_layer_reads_whole_numbers(
    name: str, options: dict[str, Any]
) -> None:
    before, after = rewritten(made(MODELS[name]), **options)
    assert torch.allclose(before.graph(X), after.graph(X), rtol=1e-4, atol=1e-4)
    assert after.float_graph is after.graph
    seen: list[Tensor] = []
    layer = next(la for la in after.layers if la.name == ENTRIES[name])
    assert layer.role == "patch_embed"
    Runner(after.graph, inputs={layer.node: seen.append})((X,))
    assert float((seen[0] - seen[0].round()).abs().max()) < 2e-3
    found = seen[0].round().flatten() + 114
    assert torch.equal(found.sort().values, P.flatten().sort().values.float())
    chosen = after.plan.choice("exact_input", layer.name)
    assert chosen is not None
    assert chosen["scale"] == pytest.approx([255 * s for s in STD], rel=1e-5)
    assert chosen["offset"] == pytest.approx([255 * m for m in MEAN], rel=1e-5)


def test_nothing_given_is_changed() -> None:
    model = made(small)
    mark = fingerprint(model)
    before = start(model, X)
    text = str(before.graph.graph)
    Pipeline((Annotate(), ExactInput())).run(before)
    assert str(before.graph.graph) == text
    assert fingerprint(model) == mark


def test_the_first_quantizer_makes_no_error_and_the_weight_all_of_it() -> None:
    q = fxquant.quantize(made(small), calibration=X, input_normalization=(MEAN, STD))
    assert q.plan["patch:input"].scheme.text() == "a8/tensor/pixels@114"
    assert q.report["patch"].input_scheme == "a8/tensor/pixels@114"
    quantizer = next(n for n in q.graph.nodes if n.target is ops.quantize_per_tensor)
    assert quantizer.args[1:] == (1.0, 114, 0, 255, torch.uint8)
    seen: dict[str, Tensor] = {}
    watched = {n.name: (lambda v, k=n.name: seen.__setitem__(k, v)) for n in q.graph.nodes}
    Runner(q, outputs=watched)((X,))
    assert torch.equal(seen[quantizer.name], P)
    conv = next(n for n in q.graph.nodes if "conv2d" in str(n.target))
    x, weight, bias = (seen[a.name] for a in conv.args[:3])
    pixel = P.float() - 114
    assert torch.equal(x, pixel)  # the quantized graph's input of the layer, bit for bit
    _, float_state = rewritten(made(small), mean=MEAN, std=STD)
    exact = {la.name: la for la in float_state.layers}["patch"]
    real = float_state.graph.get_buffer(exact.weight)
    y = F.conv2d(pixel.double(), real.double(), bias.double(), 4)
    by_weight_alone = sqnr_db(y, F.conv2d(pixel.double(), weight.double(), bias.double(), 4))
    assert sqnr_db(y, seen[conv.name]) == pytest.approx(by_weight_alone, abs=1e-3)
    assert sqnr_db(y, F.conv2d(x.double(), real.double(), bias.double(), 4)) == EXACT_DB


def test_a_plain_min_max_quantizer_is_worse() -> None:
    model = made(small)
    pipeline = fxquant.recipe("w8a8").pipeline.without("exact_input")
    plain = fxquant.quantize(model, calibration=X, pipeline=pipeline).report["patch"].sqnr_db
    exact = fxquant.quantize(model, calibration=X, input_normalization=(MEAN, STD))
    assert plain is not None
    assert exact.report["patch"].sqnr_db > plain + 0.5  # type: ignore[operator]


DECLINED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "padding": (lambda: Stem(stride=4, padding=2), X, "pads the image with zeros"),
    "noise": (small, images(6), "not 8-bit"),
    "mixed channels": (
        lambda: LinearPatches((0, 2, 1, 3, 4, 5)),
        X,
        "its features mix the channels",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_a_layer_that_cannot_read_pixels_is_left_alone_with_the_reason(name: str) -> None:
    build, data, reason = DECLINED[name]
    before, after = rewritten(made(build), data)
    (chosen,) = after.plan.choices.values()
    assert chosen["declined"]
    assert reason in chosen["reason"]
    assert [str(n) for n in before.graph.graph.nodes] == [str(n) for n in after.graph.graph.nodes]
    assert torch.equal(before.graph(data), after.graph(data))
    assert not after.log


def test_an_explicit_normalisation_that_does_not_fit_the_data_is_declined_with_a_note() -> None:
    _, after = rewritten(made(small), X, mean=(0.5,) * 3, std=(0.5,) * 3)
    (chosen,) = after.plan.choices.values()
    assert "input_normalization is not what they were made with" in chosen["reason"]
    assert [note.text for note in after.log] == [chosen["reason"]]


def test_images_between_pixels_are_taken_where_the_normalisation_is_given_and_it_is_said() -> None:
    _, after = rewritten(made(small), P / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
    (chosen,) = after.plan.choices.values()
    assert not chosen.get("declined")
    assert "49% of the calibration values lie between pixels" in chosen["reason"]


BROKEN: list[dict[str, Any]] = [
    {"zero_point": 256},
    {"zero_point": 0.5},
    {"scale": [1.0]},
    {"scale": [1.0, 1.0, 0.0]},
    {"offset": "abc"},
    {"offset": None},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_a_choice_that_cannot_be_carried_out_is_refused(change: dict[str, Any]) -> None:
    state, after = rewritten(made(small))
    chosen = {**after.plan.choices["exact_input@patch"], **change}
    plan = state.plan.with_choice("exact_input", "patch", chosen)
    with pytest.raises(PlanError, match="3 scales above 0"):
        Pipeline((Annotate(), ExactInput())).run(state.having(Fact.PLAN, plan))


def test_a_model_that_computes_on_the_image_first_has_no_such_layer() -> None:
    _, after = rewritten(made(lambda: Inner(skip=False)))
    assert not after.plan.choices


def test_seven_bit_machines_decline() -> None:
    state = Pipeline((Annotate(), ExactInput())).run(start(made(small), X, activation_bits=7))
    (chosen,) = state.plan.choices.values()
    assert "cannot hold 8-bit pixels" in chosen["reason"]


def test_a_saved_plan_gives_the_same_bits_without_searching() -> None:
    model = made(small)
    first = fxquant.quantize(model, calibration=X, input_normalization=(MEAN, STD))
    plan = Plan.from_json(first.plan.to_json())
    again = fxquant.quantize(model, calibration=X, plan=plan)
    assert fingerprint(again) == fingerprint(first)
    assert torch.equal(again(X), first(X))
    # The choice is followed even where the data would not show the grid.
    half = fxquant.quantize(model, calibration=normalised(P // 2, MEAN, STD), plan=plan)
    assert half.plan.choice("exact_input", "patch") == first.plan.choice("exact_input", "patch")


def test_without_data_a_given_normalisation_still_makes_the_first_quantizer_exact() -> None:
    q = fxquant.quantize(
        made(small), example=X[:2], recipe="w8a8-dynamic", input_normalization=(MEAN, STD)
    )
    assert q.plan["patch:input"].scheme.text() == "a8/tensor/pixels@114"
    assert q.plan["patch:weight"].scheme is not None


def test_overrides_win_over_pixels_and_recipes_by_role_do_not() -> None:
    recipe = fxquant.recipe("w8a8").override("a8/tensor/minmax", sites="patch:input")
    q = fxquant.quantize(made(small), calibration=X, recipe=recipe, input_normalization=(MEAN, STD))
    assert q.plan["patch:input"].scheme.text() == "a8/tensor/minmax"


# The entry of raw pixels


@pytest.mark.parametrize("name", [n for n in MODELS if n != "image read elsewhere too"])
def test_raw_pixels_give_what_normalised_ones_give(name: str) -> None:
    model = made(MODELS[name])
    by_float = fxquant.quantize(model, calibration=X, input_normalization=(MEAN, STD))
    by_bytes = fxquant.quantize(
        model, calibration=X, input_normalization=(MEAN, STD), entry="uint8"
    )
    assert torch.equal(by_bytes(P), by_float(X))
    text = str(by_bytes.graph)
    assert "pixel_scale" not in text
    assert by_bytes.pipeline_text.endswith("raw_pixels")
    for k in (1, 5):
        torch.testing.assert_close(by_bytes(P[:k]), by_float(X[:k]), rtol=1e-5, atol=1e-5)


def test_the_entry_says_what_it_wants() -> None:
    model = made(small)
    by_bytes = fxquant.quantize(model, calibration=X, entry="uint8")
    with pytest.raises(InputError, match=r"must be uint8.*float32(?s:.*)raw pixels 0\.\.255"):
        by_bytes(X)
    with pytest.raises(InputError, match="does not fit the model"):
        by_bytes(P[:, :, :8])
    with pytest.raises(InputError, match=r"must be float32.*uint8(?s:.*)image / 255"):
        fxquant.quantize(model, calibration=X)(P)


def test_an_image_that_is_read_in_float_elsewhere_cannot_come_as_bytes() -> None:
    with pytest.raises(PipelineError, match="read there in float"):
        fxquant.quantize(made(lambda: Inner(skip=True)), calibration=X, entry="uint8")


REFUSED: dict[str, tuple[dict[str, Any], type[FxquantError], str]] = {
    "an unknown entry": ({"entry": "int8"}, InputError, "unknown entry 'int8'"),
    "two channels": ({"input_normalization": (MEAN[:2], STD[:2])}, InputError, "2 channels"),
    "two means": ({"input_normalization": (MEAN[:2], STD)}, InputError, "2 means and 3"),
    "a std of 0": ({"input_normalization": (MEAN, (0.2, 0.0, 0.2))}, InputError, "cannot undo"),
    "a mean only": ({"input_normalization": MEAN}, InputError, "is no (mean, std)"),
    "nothing": ({"input_normalization": ((), ())}, InputError, "0 means"),
    "a text": ({"input_normalization": "imagenet"}, InputError, "is no (mean, std)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_arguments_are_refused(name: str) -> None:
    options, kind, what = REFUSED[name]
    with pytest.raises(kind) as caught:
        fxquant.quantize(made(small), calibration=X, **options)
    assert what in str(caught.value)


def test_bytes_of_images_that_lie_on_no_grid_are_refused_with_the_reason() -> None:
    with pytest.raises(PipelineError, match="not 8-bit"):
        fxquant.quantize(made(small), calibration=images(6), entry="uint8")
    with pytest.raises(PipelineError, match="no convolution or linear reads an image"):
        fxquant.quantize(made(lambda: nn.Linear(16, 16)), calibration=tensor(4, 16), entry="uint8")


def test_one_channel_may_be_given_as_numbers() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(1, 16, 4, 4), nn.Flatten()))
    p = pixels(4, channels=1)
    x = normalised(p, (0.1307,), (0.3081,))
    q = fxquant.quantize(model, calibration=x, input_normalization=(0.1307, 0.3081), entry="uint8")
    assert torch.equal(q(p), fxquant.quantize(model, calibration=x, entry="uint8")(p)) or (
        sqnr_db(q(p), fxquant.quantize(model, calibration=x, entry="uint8")(p)) > 90.0
    )


def test_generators_are_read_no_more_than_once_too_often() -> None:
    q = fxquant.quantize(made(small), calibration=iter([X]), input_normalization=(MEAN, STD))
    assert q.plan["patch:input"].scheme.text() == "a8/tensor/pixels@114"


def test_a_model_of_raw_pixels_can_be_trained_and_saved(tmp_path: Any) -> None:
    q = fxquant.quantize(made(small), calibration=X, entry="uint8")
    view = fxquant.trainable(q)
    torch.testing.assert_close(view(P), q(P), rtol=1e-4, atol=1e-4)
    assert torch.equal(fxquant.freeze(view)(P), q(P))
    q.save(tmp_path / "model.fxq")
    assert torch.equal(fxquant.load(tmp_path / "model.fxq")(P), q(P))


def test_facts_needed_are_named() -> None:
    assert Fact.LAYERS in ExactInput.needs
    with pytest.raises(PipelineError, match="'exact_input' needs layers"):
        Pipeline((ExactInput(),))
