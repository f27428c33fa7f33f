"""Checks against numbers that original implementations computed: a module for each kind of case."""
