"""Moving a shift and a scale per channel from an activation into the weights around it."""

from fxquant.passes.folding.sites import FoldSite, Reader, fold_sites
from fxquant.passes.folding.values import ValueSite, value_sites

__all__ = ["FoldSite", "Reader", "ValueSite", "fold_sites", "value_sites"]
