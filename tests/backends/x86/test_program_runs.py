"""One program gives the same bits in any batch, order, thread, copy, file or memory layout."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.backends.x86.native import lower_native
from fxquant.backends.x86.program.run import execute, run_program
from fxquant.graph.tensors import tensor_at
from tests.backends.x86.program_models import MODELS, batch_for, lowered, quantized, results


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Every test may set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def program_of(model: Any) -> tuple[Tensor, Tensor, list[int], str]:
    """Program, constants, shapes of results, level: what the model's one call is given."""
    (node,) = (n for n in model.graph_module.graph.nodes if n.target is run_program)
    program, constants = (tensor_at(model.graph_module, str(n.target)) for n in node.args[:2])
    return program, constants, list(node.args[3]), node.args[4]


@pytest.mark.parametrize("name", MODELS)
def test_an_image_gives_the_same_bits_in_any_batch_and_with_any_threads(name: str) -> None:
    model, x = lowered(name), batch_for(name, 7, seed=3)
    torch.set_num_threads(1)
    expected = results(model, x)
    per_image = [len(part) // 7 for part in expected]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in (1, 2, 7):
            for first in range(0, 8 - count, 3):
                found = results(model, x[first : first + count])
                for part, whole, rows in zip(found, expected, per_image, strict=True):
                    assert torch.equal(part, whole[first * rows : (first + count) * rows])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_images_that_go_through_the_steps_together_give_the_same_bits(
    name: str, threads: int
) -> None:
    model, x = lowered(name), batch_for(name, 7, seed=3)
    torch.set_num_threads(threads)
    expected = results(model, x)
    program, constants, shapes, level = program_of(model)
    for micro in (1, 2, 4, 9):
        for count in (1, 2, 7):
            found = execute(program, constants, [x[:count]], shapes, level, micro)
            cut = [part[: len(part) * count // 7] for part in expected]
            assert same(found, cut), (micro, count)


@pytest.mark.parametrize("micro", [2, 4])
def test_a_program_may_be_lowered_for_several_images_at_once(micro: int, tmp_path: Path) -> None:
    made, x = lower_native(quantized("vit")[1], micro=micro), batch_for("vit", 7, seed=3)
    (node,) = (n for n in made.graph_module.graph.nodes if n.target is run_program)
    assert node.args[5] == made.micro_batch == micro
    expected = results(lowered("vit"), x)
    assert same(results(made.graph_module, x), expected)
    model = lowered("vit").with_micro_batch(micro)
    model.save(tmp_path / "model.fxq")
    for other in (model, copy.deepcopy(model), fxquant.load(tmp_path / "model.fxq")):
        assert other.native.micro_batch == micro
        assert same(results(other, x), expected)


@pytest.mark.parametrize("name", ["vit", "windows", "two results"])
def test_a_compiled_model_gives_the_same_bits(name: str) -> None:
    model = lowered(name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for count in (2, 5):
        x = batch_for(name, count, seed=count)
        assert same(results(compiled, x), results(model, x))


def test_inductor_around_a_program_gives_the_same_bits() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = lowered("mixer")

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x * 0.5).softmax(-1)
            return out

    around, x = Around(), batch_for("mixer", 3, seed=1)
    ours, expected = results(torch.compile(around, fullgraph=True), x), results(around, x)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["vit", "mixer", "gmlp", "windows", "two results"])
def test_copies_and_files_give_the_same_bits(name: str, tmp_path: Path) -> None:
    model, x = lowered(name), batch_for(name, 3, seed=4)
    expected = results(model, x)
    duplicate = copy.deepcopy(model)
    assert duplicate.native is not None
    assert same(results(duplicate, x), expected)
    model.save(tmp_path / "model.fxq")
    again = fxquant.load(tmp_path / "model.fxq")
    assert again.native is not None
    assert again.int8_kernels == model.int8_kernels
    assert same(results(again, x), expected)


@pytest.mark.parametrize("name", ["vit", "gmlp"])
def test_images_may_lie_in_memory_in_any_way(name: str) -> None:
    model, x = lowered(name), batch_for(name, 6, seed=5)
    expected = results(model, x)[0]
    channels_last = x.to(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(x, (3, 2))[..., 3:-2]
    for other in (channels_last, padded):
        assert not other.is_contiguous()
        assert torch.equal(results(model, other)[0], expected)
    assert torch.equal(results(model, x[::2])[0], expected[::2])
    assert torch.equal(results(model, x[1:])[0], expected[1:])
    same_image = results(model, x[:1].expand(4, -1, -1, -1))[0]
    assert torch.equal(same_image, expected[:1].expand_as(same_image))


def test_threads_that_call_one_model_at_once_do_not_disturb_each_other() -> None:
    model = lowered("vit")
    given = [batch_for("vit", 5, seed=seed) for seed in range(4)]
    expected = [results(model, x) for x in given]
    wrong: list[int] = []
    start = threading.Barrier(len(given))

    def call(number: int) -> None:
        start.wait()
        for _ in range(20):
            if not same(results(model, given[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["vit", "two results", "windows"])
def test_an_empty_batch_gives_empty_results(name: str) -> None:
    found = results(lowered(name), batch_for(name, 0, seed=0))
    full = results(lowered(name), batch_for(name, 1, seed=0))
    assert [tuple(part.shape) for part in found] == [(0, *part.shape[1:]) for part in full]


def test_a_program_takes_time_by_step_and_leaves_its_inputs_alone() -> None:
    model, x = lowered("vit"), batch_for("vit", 3, seed=1)
    before, expected = x.clone(), results(model, x)
    program, constants, shapes, level = program_of(model)
    held = program.clone(), constants.clone()
    profile = torch.zeros(len(model.native.steps), dtype=torch.int64)
    assert same(execute(program, constants, [x], shapes, level, 1, profile), expected)
    assert (profile > 0).all()
    assert torch.equal(x, before)
    assert torch.equal(program, held[0])
    assert torch.equal(constants, held[1])
