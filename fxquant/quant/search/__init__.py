"""Parameters of a quantizer, searched on a sample of the tensor it is for."""

from fxquant.quant.search.find import Found, find, search_qparams

__all__ = ["Found", "find", "search_qparams"]
