"""Recipes that ship with fxquant, one YAML file each."""
