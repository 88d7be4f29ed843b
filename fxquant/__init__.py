"""fxquant: one call from a PyTorch vision transformer to an int8 graph that really runs."""

from fxquant.api import compile, load, lower, quantize
from fxquant.backends.reference.trainable import freeze, trainable
from fxquant.capture import capture
from fxquant.errors import FxquantError, FxquantWarning
from fxquant.finetune import finetune
from fxquant.graph.site import Site
from fxquant.models.example import Preprocessing
from fxquant.models.images import ImageFolder
from fxquant.pipeline.base import Pass
from fxquant.pipeline.pipeline import Pipeline
from fxquant.pipeline.plan import Decision, Plan
from fxquant.pipeline.state import Fact, State
from fxquant.quant.scheme import Scheme
from fxquant.recipe import Recipe, recipe, recipe_names
from fxquant.report import Report

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Fact",
    "FxquantError",
    "FxquantWarning",
    "ImageFolder",
    "Pass",
    "Pipeline",
    "Plan",
    "Preprocessing",
    "Recipe",
    "Report",
    "Scheme",
    "Site",
    "State",
    "capture",
    "compile",
    "finetune",
    "freeze",
    "load",
    "lower",
    "quantize",
    "recipe",
    "recipe_names",
    "trainable",
]
