"""Facts of this CPU that planning and lowering depend on."""

from __future__ import annotations

import platform

import torch

from fxquant.backends.base import Support
from fxquant.backends.x86.compiled import compiler, levels
from fxquant.pipeline.target import Target

ROLES = (
    "qkv",
    "proj",
    "fc1",
    "fc2",
    "token_fc1",
    "token_fc2",
    "token_mix",
    "spatial_gate",
    "patch_embed",
    "patch_merging",
    "head",
    "talking_heads",
    "linear",
)
# Region codes where their regions can be aligned in u8; logarithmic codes have no kernel.
KINDS = ("uniform", "region")
# Below this many input or output features a kernel call costs more than the product.
SMALLEST_FEATURES = 16


def available() -> Support:
    """Whether the oneDNN int8 linear exists and this is an x86 CPU."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return Support(ok=False, reason=f"the CPU is {platform.machine()}, not x86-64")
    if not torch.backends.mkldnn.is_available():
        return Support(ok=False, reason="this torch was built without oneDNN")
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return Support(ok=False, reason="this torch has no onednn.qlinear_pointwise")
    return Support(ok=True)


def has_vnni() -> bool:
    """Whether u8 x s8 products accumulate into 32 bits without saturating in 16."""
    cpu = torch.cpu
    return bool(cpu._is_vnni_supported() or cpu._is_amx_tile_supported())


def has_bfloat16() -> bool:
    """Whether bf16 products are native."""
    return bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    )


def activation_bits() -> int:
    """Widest activation codes that cannot saturate: 8 with VNNI, 7 without, since pairs of u8 x s8
    products are then added in 16 bits."""
    return 8 if has_vnni() else 7


def target() -> Target:
    """This machine."""
    capability = torch.backends.cpu.get_cpu_capability()
    features = [capability] + [
        name for name, present in (("VNNI", has_vnni()), ("BF16", has_bfloat16())) if present
    ]
    return Target(
        backend="x86",
        machine="x86-64 " + "+".join(features),
        activation_bits=activation_bits(),
        bfloat16=has_bfloat16(),
        roles=ROLES,
        smallest_features=SMALLEST_FEATURES,
        kinds=KINDS,
        matmul=bool(levels()) and compiler() is not None and activation_bits() == 8,
    )
