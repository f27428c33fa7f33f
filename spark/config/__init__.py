"""Recipes: YAML over dataclasses, and what of them decides a result."""
