"""Trained classifiers: loading them, labelling images, testing on a split, and what a test says.

Imports `data`, `models` and `utils`; `training`, `analysis` and `sharing` build on it.
"""
