"""Distilling a frozen teacher into a student: the losses, the training task, and what a task sees of a network.

Works on any timm networks and imports nothing of this package: `training` picks the networks and the settings.
"""
