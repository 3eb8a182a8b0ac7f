"""Training: settings and recipes, builders, the loop of one network, distillation of two, and the folder of a run.

May import evaluation and all below it; not analysis or sharing.
"""
