"""The pass on whole models: the function stays, choices are kept, nothing is added or changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxquant
from fxquant.errors import CalibrationError, PipelineError, PlanError
from fxquant.graph.text import print_graph
from fxquant.passes import Annotate
from fxquant.passes.folding.migration import Migration, unchanged
from fxquant.passes.running import Runner
from fxquant.passes.smooth import Smooth
from fxquant.pipeline.pipeline import Pipeline, make_pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, State
from fxquant.quant.metrics import sqnr_db
from fxquant.quant.scheme import Scheme
from tests.backends.tiny import Gmlp, Vit, fingerprint, images, tensor
from tests.graph.models import Classifier, Merging, MixerBlock, ResMlpBlock
from tests.graph.test_golden import compare, rounded
from tests.passes.running import start
from tests.passes.smoothing import (
    DIM,
    Attention,
    Normed,
    PostNorm,
    Through,
    data,
    difference,
    randomized,
    smoothed,
    tensors_of,
)

SMALL: dict[str, Any] = {"img_size": 32, "num_classes": 7}
VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2, **SMALL}
SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "window_size": 4, **SMALL}
BUILT: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", VIT, 3),
    "vit with mean pooling": ("vit_tiny_patch16_224", VIT | {"global_pool": "avg"}, 3),
    "deit with two heads": ("deit_tiny_distilled_patch16_224", VIT, 3),
    "deit with layer scale": ("deit3_small_patch16_224", VIT, 3),
    "cait": ("cait_xxs24_224", VIT, 7),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 8),
    "swin v2": ("swinv2_tiny_window8_256", SWIN, 1),
}


def from_timm(name: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = pytest.importorskip("timm").create_model(name, **options)
    return model


def mixer(**options: Any) -> nn.Module:
    module = pytest.importorskip("timm.models.mlp_mixer")
    kinds = {key: getattr(module, value) for key, value in options.items()}
    sizes = {"patch_size": 16, "embed_dim": 16, "num_blocks": 1} | SMALL
    if kinds:
        sizes["mlp_ratio"] = 4
    model: nn.Module = module.MlpMixer(**sizes, **kinds)
    return model


def torchvision(name: str, **options: Any) -> nn.Module:
    model: nn.Module = getattr(pytest.importorskip("torchvision.models"), name)(**options)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{key: (partial(from_timm, n, options), folds) for key, (n, options, folds) in BUILT.items()},
    "mixer": (mixer, 2),
    "resmlp": (partial(mixer, block_layer="ResBlock", norm_layer="Affine"), 2),
    "gmlp": (Gmlp, 1),
    "torchvision's vit": (
        partial(torchvision, "VisionTransformer", image_size=32, patch_size=16, num_layers=1,
                num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=7),
        3,
    ),
    "torchvision's swin": (
        partial(torchvision, "SwinTransformer", patch_size=[4, 4], embed_dim=16, depths=[1, 2],
                num_heads=[2, 2], window_size=[4, 4], num_classes=7),
        8,
    ),
}  # fmt: skip


def calls(graph: GraphModule) -> Counter[str]:
    return Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_function")


def folded(state: State) -> list[str]:
    """Layers whose choice moved something."""
    chosen = state.plan.choices
    return [
        key.removeprefix("smooth@")
        for key, value in chosen.items()
        if value.get("choose", "none") != "none"
    ]


@pytest.mark.parametrize("options", [{}, {"choose": "searched", "value": "scale"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_compute_the_same(name: str, options: dict[str, Any]) -> None:
    build, count = MODELS[name]
    torch.manual_seed(0)
    side = 16 if build is Gmlp else 32
    model, x = randomized(build()), tensor(4, 3, side, side)
    before = start(model, x)
    printed, bytes_before = print_graph(before.graph), fingerprint(model)
    state = Pipeline((Annotate(), Smooth(**options))).run(before)
    assert difference(model, state, tensor(3, 3, side, side, seed=1)) < 1e-5
    assert calls(state.graph) == calls(before.graph)  # no kernel is added
    assert print_graph(before.graph) == printed
    assert fingerprint(model) == bytes_before
    assert state.float_graph is state.graph
    nodes = {node.name for node in state.graph.graph.nodes}
    assert all(layer.node in nodes for layer in state.layers)
    names = [layer.name for layer in state.layers]
    assert names == [layer.name for layer in Annotate().run(before).layers]
    attention = [la.name for la in state.layers if la.role in {"attention", "attention_av"}]
    moved = folded(state)
    if options:
        assert set(attention) <= set(moved)
    else:
        assert len(moved) == count
    assert {note.layer for note in state.log} == {
        key.removeprefix("smooth@")
        for key, value in state.plan.choices.items()
        if value.get("declined")
    }
    assert all(note.text.startswith("not smoothed: ") for note in state.log)


def test_swin_with_padding_declines_the_shift_and_takes_a_scale() -> None:
    model = randomized(from_timm(BUILT["swin"][0], SWIN | {"img_size": 40}))
    x = tensor(4, 3, 40, 40)
    captured = start(model, x)
    padded = [f"layers.{i}.blocks.{j}.norm1" for i, j in ((0, 0), (1, 0), (1, 1))]
    for options in ({}, {"choose": "repq"}, {"choose": "osplus"}, {"center": "midrange"}):
        state = smoothed(captured, x, **options)
        assert difference(model, state, x) < 1e-5
        notes = {note.layer: note.text for note in state.log}
        for layer in padded:
            assert "zeros are padded in after the norm" in notes[layer]
            assert state.plan.choice("smooth", layer)["declined"] is True  # type: ignore[index]
    for options in ({"center": "none"}, {"choose": "searched"}):
        state = smoothed(captured, x, **options)
        assert difference(model, state, x) < 1e-5
        assert set(padded) <= set(folded(state))
        for layer in padded:
            assert state.plan.choice("smooth", layer)["center"] == "none"  # type: ignore[index]


@cache
def mixer_block() -> tuple[nn.Module, Tensor, State]:
    """A small model, its data and its captured state; nothing changes them."""
    model, x = randomized(MixerBlock()), tensor(8, 6, 8)
    return model, x, start(model, x)


def test_post_norm_is_left_as_it_is_but_for_the_head() -> None:
    model = randomized(PostNorm())
    state = smoothed(model, data())
    assert folded(state) == ["norm2"]
    assert [note.layer for note in state.log] == ["norm0", "norm1"]
    assert all("post-norm" in note.text for note in state.log)
    assert difference(model, state, data(seed=1)) < 1e-5


def test_patch_merging_gets_a_bias_where_there_is_a_shift() -> None:
    model, x = randomized(Merging(by_slices=False)), tensor(8, 4, 4, 8)
    for center, tensors in (("mean", 2), ("none", 1)):
        state = smoothed(model, x, center=center)
        assert difference(model, state, x) < 1e-5
        assert len(tensors_of(state.graph, "reduction")) == tensors


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, False)], ids=str)
def test_a_norm_gets_the_parameters_it_lacks(affine: tuple[bool, bool]) -> None:
    norm = nn.LayerNorm(DIM, elementwise_affine=affine[0], bias=affine[1])
    model = randomized(Normed(norm, head=Through(lambda x: x)))
    for options in ({}, {"choose": "repq"}, {"center": "none"}):
        state = smoothed(model, data(), **options)
        assert difference(model, state, data(seed=1)) < 1e-5
        expected = 1 if options == {"center": "none"} and not affine[1] else 2
        assert len(tensors_of(state.graph, "norm")) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_affine_norms_fold_exactly(*, fused: bool) -> None:
    model, x = randomized(ResMlpBlock(fused=fused)), tensor(8, 6, 8)
    for options in ({}, {"choose": "repq"}, {"choose": "searched"}):
        state = smoothed(model, x, **options)
        assert folded(state) == ["norm2"]
        assert difference(model, state, tensor(4, 6, 8, seed=1)) < 1e-6


class SharedAffine(nn.Module):
    """One vector is scale and shift, and serves another map that is not folded."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused, self.alpha, self.fc = fused, nn.Parameter(torch.ones(DIM)), nn.Linear(DIM, DIM)

    def affine(self, x: Tensor) -> Tensor:
        return (
            torch.addcmul(self.alpha, self.alpha, x) if self.fused else self.alpha + x * self.alpha
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x) + self.fc(self.affine(torch.tanh(x)))


@pytest.mark.parametrize("fused", [True, False])
def test_a_vector_that_others_read_too_stays_for_them(*, fused: bool) -> None:
    model = randomized(SharedAffine(fused=fused))
    state = smoothed(model, data())
    assert len(folded(state)) == 1
    assert difference(model, state, data(seed=1)) < 1e-6


def test_all_readers_of_a_norm_move_together_and_a_tied_weight_stays_one() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(DIM)
            self.a, self.b = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM)
            self.c, self.head = nn.Linear(DIM, 3), nn.Linear(DIM, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.norm(x)
            return self.a(y), self.b(y), self.c(y[:, 0]), self.head(y.mean(1))

    model = randomized(Three())
    state = smoothed(model, data())
    assert difference(model, state, data(seed=1)) < 1e-5
    assert state.plan.choice("smooth", "norm")["reason"].count("of 4 linears") == 1  # type: ignore[index]
    assert tensors_of(state.graph, "b")[0] is tensors_of(state.graph, "b@2")[0]
    with torch.no_grad():
        weights = [tensors_of(state.graph, name)[0] for name in ("b", "c", "head")]
        start = smoothed(model, data(), alpha=0.0, center="none")
        even = [tensors_of(start.graph, name)[0] for name in ("b", "c", "head")]
        assert len({w.data_ptr() for w in weights}) == 3
        reach = torch.stack([w.abs().amax(0) for w in even]).amax(0)
        torch.testing.assert_close(reach, torch.ones(DIM))


def test_a_selected_token_decides_alone_where_only_it_is_read() -> None:
    """Ranges come from what the readers see, not from all rows of the norm."""
    model, x = randomized(Normed(head=Through(lambda y: y[:, 0]))), data(16)
    state = smoothed(model, x, alpha=1.0, center="midrange")
    with torch.no_grad():
        graph_norm = next(n for n in state.graph.graph.nodes if "layer_norm" in str(n.target))
        seen: list[Tensor] = []
        Runner(state.graph, outputs={graph_norm.name: seen.append})((x,))
    tokens = seen[0].abs().amax(0)
    torch.testing.assert_close(tokens[0], torch.ones(DIM), rtol=1e-4, atol=1e-4)
    assert float(tokens[1:].max()) > 1.1


def bits(state: State) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.graph.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {"alphas": (0.2, 0.8)},
        {"choose": "repq"},
        {"choose": "osplus"},
        {"choose": "searched", "value": "scale"},
    ],
    ids=str,
)
def test_a_recorded_plan_gives_the_same_bits_without_searching(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = randomized(Classifier()), tensor(8, 3, 8, 8)
    first = smoothed(model, x, **options)
    plan = Plan.from_json(first.plan.to_json())
    monkeypatch.setattr(Smooth, "_decide", None)
    again = smoothed(model, x, plan=plan, **options)
    assert again.plan.choices == first.plan.choices
    assert [note.text for note in again.log] == [note.text for note in first.log]
    one, two = bits(first), bits(again)
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_choice_in_the_plan_wins_over_the_options() -> None:
    model, x, captured = mixer_block()
    fresh = smoothed(captured, x).plan
    edited = fresh.with_choice("smooth", "norm2", {"declined": True, "reason": "by hand"})
    state = smoothed(captured, x, plan=edited)
    assert folded(state) == []
    assert ("norm2", "not smoothed: by hand") in [(n.layer, n.text) for n in state.log]
    edited = fresh.with_choice(
        "smooth", "norm2", {"choose": "sqb", "alpha": 1.0, "center": "none", "reason": "by hand"}
    )
    other = smoothed(captured, x, plan=edited)
    torch.testing.assert_close(bits(other), bits(smoothed(captured, x, alpha=1.0, center="none")))
    nothing = fresh.with_choice("smooth", "norm2", {"choose": "none", "reason": "by hand"})
    assert difference(model, smoothed(captured, x, plan=nothing), x) == 0.0


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "illegal here": ("norm1", {"choose": "repq", "bits": 8}, "mixes tokens"),
    "unknown method": ("norm2", {"choose": "magic"}, "unknown method 'magic'"),
    "no method": ("norm2", {"reason": "?"}, "unknown method None"),
    "alpha too large": ("norm2", {"choose": "sqb", "alpha": 2.0, "center": "none"}, "alpha"),
    "alpha missing": ("norm2", {"choose": "sqb", "center": "none"}, "alpha cannot be None"),
    "alpha of the wrong type": (
        "norm2",
        {"choose": "sqb", "alpha": True, "center": "none"},
        "True",
    ),
    "unknown center": ("norm2", {"choose": "sqb", "alpha": 0.5, "center": "left"}, "'left'"),
    "bits": ("norm2", {"choose": "repq", "bits": 8.5}, "bits cannot be 8.5"),
    "threshold": ("norm2", {"choose": "osplus", "threshold": 0.0}, "threshold"),
}


@pytest.mark.parametrize("name", WRONG)
def test_choices_that_cannot_be_raise(name: str) -> None:
    layer, chosen, message = WRONG[name]
    _, x, captured = mixer_block()
    plan = smoothed(captured, x).plan.with_choice("smooth", layer, chosen)
    with pytest.raises(PlanError, match=message) as caught:
        smoothed(captured, x, plan=plan)
    assert f"smooth@{layer}" in str(caught.value)


def test_a_recorded_shift_where_only_a_scale_may_move_raises() -> None:
    model = randomized(Normed(fc=Through(lambda x: nn.functional.pad(x, (0, 0, 0, 1)))))
    plan = smoothed(model, data(), center="none").plan
    assert folded(smoothed(model, data(), plan=plan)) == ["norm"]
    shifting = plan.with_choice("smooth", "norm", {"choose": "osplus", "threshold": 1.0})
    with pytest.raises(PlanError, match="zeros are padded in"):
        smoothed(model, data(), plan=shifting)


def test_a_search_is_never_worse_than_leaving_it_and_records_both_errors() -> None:
    x = tensor(16, 3, 8, 8)
    model = start(randomized(Classifier()), x)
    for activation, methods in (
        ("s6/tensor/minmax", ("sqb", "repq", "osplus")),
        ("a4/tensor/mse", ("sqb",)),
        ("a8/token/dynamic", ()),
    ):
        scheme = Scheme.parse(activation)
        found = {
            method: smoothed(model, x, choose=method, activation=scheme, value="scale").plan.choices
            for method in ("searched", *methods)
        }
        for key, chosen in found["searched"].items():
            if chosen.get("declined"):
                continue
            assert chosen["error_after"] <= chosen["error_before"]
            assert f"{chosen['error_before']:.3g} before" in chosen["reason"]
            for method in methods:
                assert chosen["error_after"] <= found[method][key]["error_after"]
                assert chosen["error_before"] == found[method][key]["error_before"]


def test_the_search_may_leave_a_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(_: Any, migrations: list[Migration], *schemes: Scheme) -> float:
        still = unchanged(migrations[0].scale.shape[0])
        return float(not torch.equal(migrations[0].scale, still.scale))

    monkeypatch.setattr("fxquant.passes.smooth.output_error", moved)
    model, x, captured = mixer_block()
    state = smoothed(captured, x, choose="searched", alphas=(0.5,))
    chosen = state.plan.choice("smooth", "norm2")
    assert chosen is not None
    assert chosen["choose"] == "none"
    assert "least of" in chosen["reason"]
    assert difference(model, state, x) == 0.0


def test_alphas_are_searched_at_each_norm() -> None:
    x = tensor(8, 3, 8, 8)
    model = start(randomized(Classifier()), x)
    scheme = Scheme.parse("a4/tensor/minmax")
    state = smoothed(model, x, alphas=(0.1, 0.5, 0.9), center="midrange", activation=scheme)
    kept = {k: v for k, v in state.plan.choices.items() if not v.get("declined")}
    assert len(kept) == 3
    for key, chosen in kept.items():
        single = [
            smoothed(model, x, alpha=a, center="midrange", activation=scheme).plan.choices[key]
            for a in (0.1, 0.5, 0.9)
        ]
        best = min(single, key=lambda c: c["error_after"])
        assert (chosen["alpha"], chosen["error_after"]) == (best["alpha"], best["error_after"])
        assert "least of 3" in chosen["reason"]


def test_only_the_first_images_are_looked_at() -> None:
    model = randomized(MixerBlock())
    x = torch.cat([tensor(4, 6, 8), 100 * tensor(4, 6, 8, seed=1)])
    torch.testing.assert_close(
        bits(smoothed(model, x, images=4)), bits(smoothed(model, x[:4])), rtol=0, atol=0
    )


def test_missing_or_broken_data_says_so() -> None:
    model = randomized(MixerBlock())
    state = Annotate().run(start(model, tensor(8, 6, 8))).having(Fact.CALIBRATION, None)
    with pytest.raises(CalibrationError, match="smoothing needs calibration data"):
        Smooth().run(state)
    blown = MixerBlock().eval()
    with torch.no_grad():
        blown.norm2.weight[0] = float("nan")
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        smoothed(blown, tensor(8, 6, 8))


def test_without_a_place_no_data_is_needed() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(DIM, DIM)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.fc(x))

    state = Annotate().run(start(Bare().eval(), data())).having(Fact.CALIBRATION, None)
    assert not Smooth().run(state).plan.choices


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.5},
        {"alphas": (0.5, -0.1)},
        {"images": 0},
        {"activation": Scheme.parse("a8/channel/minmax")},
    ],
    ids=str,
)
def test_impossible_options_raise(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="pass smooth"):
        Smooth(**options)


def test_options_survive_text() -> None:
    step = Smooth(
        choose="searched", alphas=(0.25, 0.5), activation=Scheme.parse("s6/tensor/mse"), images=8
    )
    known = {"annotate": Annotate, "smooth": Smooth}
    pipeline = Pipeline((Annotate(), step))
    assert Pipeline.parse(str(pipeline), known) == pipeline
    with pytest.raises(PipelineError, match="none of"):
        make_pass("smooth", {"choose": "best"}, known)


def test_a_smoothed_model_lowers_to_the_same_kernels() -> None:
    model, x = randomized(Vit()), images(8)
    plain = fxquant.recipe("w8a8").pipeline
    kernels = []
    for pipeline in (plain, plain.after("annotate", Smooth(value="scale"))):
        quantized = fxquant.quantize(model, calibration=x, pipeline=pipeline)
        lowered = fxquant.lower(quantized, strict=True, executor="eager")
        kernels.append((lowered.int8_kernels, calls(lowered.graph_module)))
        with torch.no_grad():
            assert sqnr_db(model(x), lowered(x)) > 20.0
    assert kernels[0] == kernels[1]


GOLDEN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (Classifier, (3, 8, 8)),
    "merging": (partial(Merging, by_slices=True), (4, 4, 8)),
    "resmlp": (ResMlpBlock, (6, 8)),
    "attention": (partial(Attention, fused=False), (6, 16)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_smoothed_graphs_print_as_stored(name: str, *, update_golden: bool) -> None:
    build, shape = GOLDEN[name]
    torch.manual_seed(0)
    state = smoothed(randomized(build()), tensor(8, *shape), value="scale")
    compare(f"smooth-{name}", rounded(print_graph(state.graph)), update=update_golden)
