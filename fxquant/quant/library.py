"""The ``fxquant`` operator namespace.

All its operators are composite: fake tensors, autograd and Inductor see plain ATen inside.
"""

from __future__ import annotations

import torch

library = torch.library.Library("fxquant", "DEF")
