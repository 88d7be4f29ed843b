"""Observers: what is remembered of a tensor during calibration, in constant memory."""

from fxquant.quant.observers.base import Observer
from fxquant.quant.observers.factory import make_observer

__all__ = ["Observer", "make_observer"]
