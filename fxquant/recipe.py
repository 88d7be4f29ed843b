"""Recipes: a pipeline with a name, as YAML and in Python."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from fxquant.errors import FxquantError, PipelineError, RecipeError, SchemeError
from fxquant.passes import BUILTIN, Assign, Override
from fxquant.pipeline.options import changed_fields, from_plain
from fxquant.pipeline.pipeline import Pipeline, make_pass

_KEYS = ("name", "description", "passes", "overrides")
DYNAMIC = "w8a8-dynamic"  # what a call without calibration data uses


@dataclass(frozen=True)
class Recipe:
    """A named pipeline. ``override`` adds decisions for sites; ``to_yaml`` prints what
    :func:`recipe` reads."""

    name: str
    pipeline: Pipeline
    description: str = ""

    def override(self, scheme: str, *, sites: str = "*", role: str = "*") -> Recipe:
        """A recipe that decides the matching sites anew: ``float``, ``bfloat16`` or a scheme."""
        try:
            added = Override(scheme=scheme, sites=sites, role=role)
        except SchemeError as error:
            raise RecipeError(error.what, where=f"override {sites}", fix=error.fix) from error
        return self._with_overrides((added,))

    def _with_overrides(self, added: tuple[Override, ...]) -> Recipe:
        assign = self.pipeline["assign"]
        assert isinstance(assign, Assign)
        changed = replace(assign, overrides=assign.overrides + added)
        return replace(self, pipeline=self.pipeline.replace("assign", changed))

    def to_yaml(self) -> str:
        """Text that :func:`recipe` reads back."""
        passes: list[Any] = []
        for step in self.pipeline.passes:
            options = changed_fields(step)
            passes.append({step.name: options} if options else step.name)
        data = {"name": self.name, "description": self.description, "passes": passes}
        return yaml.safe_dump(data, sort_keys=False)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with fxquant."""
    folder = files("fxquant.recipes")
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def recipe(name: str | Path | Recipe) -> Recipe:
    """A recipe by name, or read from a YAML file; raises :class:`RecipeError`.

    An unknown name or key is answered with the nearest known one.
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, (str, Path)):
        raise RecipeError(
            f"a recipe is a name, a YAML file or a Recipe, not {type(name).__name__}",
            where="argument recipe",
        )
    if str(name) in recipe_names():
        text = (files("fxquant.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_recipe(text, where=str(name))
    if Path(name).suffix in {".yaml", ".yml"}:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError("cannot read the recipe", where=str(name), why=str(error)) from error
        return parse_recipe(text, where=str(name))
    near = difflib.get_close_matches(str(name), recipe_names(), n=1, cutoff=0.4)
    raise RecipeError(
        f"unknown recipe {str(name)!r}",
        where="argument recipe",
        fix=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(recipe_names())}",
    )


def parse_recipe(text: str, *, where: str = "recipe") -> Recipe:
    """A recipe from YAML text."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError("the recipe is not YAML", where=where, why=str(error)) from error
    if not isinstance(data, dict) or not isinstance(data.get("passes"), list):
        raise RecipeError(
            "a recipe is a mapping with a list of passes",
            where=where,
            fix="start from fxquant.recipe('w8a8').to_yaml()",
        )
    for key in data:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise RecipeError(
                f"unknown recipe key {key!r}",
                where=where,
                fix=f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(_KEYS)}",
            )
    try:
        pipeline = Pipeline(tuple(_pass(entry) for entry in data["passes"]))
        texts = {"name": data.get("name", where), "description": data.get("description", "")}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise RecipeError(f"{key} must be text, not {value!r}")
        made = Recipe(texts["name"], pipeline, texts["description"])
        overrides = data.get("overrides", [])
        if not isinstance(overrides, list):
            raise RecipeError("overrides must be a list")
        added = tuple(from_plain(Override, entry, where="overrides") for entry in overrides)
        return made._with_overrides(added) if added else made
    except FxquantError as error:
        place = f"{where}: {error.where}" if error.where else where
        raise RecipeError(error.what, where=place, why=error.why, fix=error.fix) from error


def _pass(entry: Any) -> Any:
    if isinstance(entry, str):
        return make_pass(entry, {}, BUILTIN)
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, options),) = entry.items()
        return make_pass(str(name), {} if options is None else options, BUILTIN)
    raise PipelineError(f"a pass is a name or a mapping of one name to options, not {entry!r}")
