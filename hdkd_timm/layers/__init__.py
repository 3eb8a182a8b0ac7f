"""The parts that the networks are built of, one idea a file. Imports nothing of this package; only `models` uses it."""
