"""The command line, a file per command: parse, call, print. The work is done in the rooms below."""

from .main import main

__all__ = ['main']
