"""Who runs against whom: fxquant, float, and int8 of other frameworks, each in its fastest form.

A contender is one function: it quantizes the model once, on the images that all are calibrated
with, and gives back a function that makes it ready for the shape of one batch. What lies around a
peer's int8 products runs in bf16 where the framework can do that.
"""

import copy
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant.timing import float_baseline

Call = Callable[[Tensor], Tensor]
Ready = Callable[[Tensor], Call]  # from a batch of the shape that will be timed
LARGEST_BATCH = 256


@dataclass(frozen=True)
class Task:
    """``images``: ``[N, 3, H, W]`` to calibrate with. ``folder``: for files. ``recipe``: ours."""

    model: nn.Module
    images: Tensor
    threads: int
    folder: Path
    recipe: str


@dataclass(frozen=True)
class Contender:
    """``packages``: what must be installed."""

    packages: tuple[str, ...]
    prepare: Callable[[Task], Ready]

    @property
    def absent(self) -> tuple[str, ...]:
        """What is not."""
        return tuple(name for name in self.packages if find_spec(name) is None)

    @property
    def versions(self) -> dict[str, str]:
        """Of its packages, all installed."""
        return {name: version(name) for name in self.packages}


def attempt(make: Callable[[], Any]) -> Any:
    """What ``make`` gives, without progress bars on the screen; or why it failed, as text."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            return make()
    except Exception as error:  # whatever a framework may raise: its reason belongs in the table
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
    finally:
        logging.disable(before)


def ours(task: Task) -> Ready:
    """fxquant: one program for any batch size."""
    made = fxquant.compile(task.model, calibration=task.images, recipe=task.recipe)
    return lambda _: made


def fp32(task: Task) -> Ready:
    """Inductor with constant weights."""
    return lambda x: float_baseline(task.model, x)


def bf16(task: Task) -> Ready:
    """The same with weights and activations in bf16."""
    model = copy.deepcopy(task.model).bfloat16()

    def ready(x: Tensor) -> Call:
        compiled = float_baseline(model, x.bfloat16())
        return lambda x: compiled(x.bfloat16()).float()

    return ready


def torchao(task: Task) -> Ready:
    """PT2E with the quantizer for x86, Inductor with constant weights, bf16 by autocast."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    exported = torch.export.export(task.model, (task.images[:2],), dynamic_shapes=({0: batch},))
    chosen = x86.get_default_x86_inductor_quantization_config()
    prepared = prepare_pt2e(exported.module(), x86.X86InductorQuantizer().set_global(chosen))
    for part in task.images.split(8):
        prepared(part)
    quantized = convert_pt2e(prepared)
    move_exported_model_to_eval(quantized)

    def ready(x: Tensor) -> Call:
        with torch.autocast("cpu", torch.bfloat16):
            compiled = float_baseline(quantized, x)

        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits: Tensor = compiled(x)
            return logits.float()

        return call

    return ready


def openvino(task: Task) -> Ready:
    """NNCF in its mode for transformers; bf16 between int8 products. Its threads stay pinned."""
    from nncf import ModelType

    return _openvino(task, model_type=ModelType.TRANSFORMER)


def openvino_default(task: Task) -> Ready:
    """The same without naming a kind of model: more faithful on Swin and on MLPs."""
    return _openvino(task)


def _openvino(task: Task, **mode: Any) -> Ready:
    import nncf
    import openvino as ov

    images = [image.numpy() for image in task.images.split(1)]  # NNCF advises batches of one
    converted = ov.convert_model(task.model, example_input=task.images[:2])
    quantized = nncf.quantize(converted, nncf.Dataset(images), subset_size=len(images), **mode)
    settings = {"INFERENCE_NUM_THREADS": task.threads, "NUM_STREAMS": 1}
    settings |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}

    def ready(x: Tensor) -> Call:
        fixed = quantized.clone()
        fixed.reshape(list(x.shape))
        request = ov.Core().compile_model(fixed, "CPU", settings).create_infer_request()

        def call(x: Tensor) -> Tensor:
            request.infer([x.numpy()], share_inputs=True)
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

        return call

    return ready


def onnxruntime(task: Task) -> Ready:
    """Static ranges in QDQ form, weights per channel, products with weights only.

    Its threads stop to spin when a run ends: they would slow down whatever is timed next.
    """
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        left = iter(task.images.split(8))

        def get_next(self) -> Any:
            part = next(self.left, None)
            return None if part is None else {"x": part.numpy()}

    plain, mended, int8 = (str(task.folder / f"{name}.onnx") for name in ("f32", "pre", "int8"))
    shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)
    form: dict[str, Any] = {"external_data": False, "input_names": ["x"], "opset_version": 18}
    given = (copy.deepcopy(task.model), (task.images[:2],), plain)
    torch.onnx.export(*given, dynamo=True, dynamic_shapes=shapes, verbose=False, **form)
    quant_pre_process(plain, mended, skip_symbolic_shape=True)
    how: dict[str, Any] = {"op_types_to_quantize": ["MatMul", "Gemm", "Conv"], "per_channel": True}
    how |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(mended, int8, Images(), extra_options={"MatMulConstBOnly": True}, **how)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    return lambda _: lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


PEERS = {
    "torchao": Contender(("torchao",), torchao),
    "openvino": Contender(("openvino", "nncf"), openvino),
    "openvino_default": Contender(("openvino", "nncf"), openvino_default),
    "onnxruntime": Contender(("onnxruntime", "onnx", "onnxscript"), onnxruntime),
}
OURS = {"fxquant": ours, "fp32": fp32, "bf16": bf16}
CONTENDERS = {**{name: Contender((), make) for name, make in OURS.items()}, **PEERS}
