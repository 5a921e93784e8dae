"""Recipes: YAML to criteria, criteria to a plan of stages and gates."""
