"""What is in a data set, where a network looks, and the report of a run.

Imports `evaluation`, `data`, `models` and `utils`; independent of `training` and `sharing`.
"""
