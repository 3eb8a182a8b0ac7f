"""How fast the networks are, next to the obvious alternatives: a file per thing that is measured.

It may import every other room, because it measures them; only the command line imports it.
"""
