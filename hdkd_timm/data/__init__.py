"""Labelled images: where they come from, how they are split, decoded, augmented, cached and batched.

Imports only `utils`. `config`: settings; `datasets`: `create_datasets`; `loader`: batches on the device.
"""
