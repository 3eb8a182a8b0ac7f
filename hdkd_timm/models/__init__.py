"""The networks and what is saved of them: registers the models with timm, and imports `layers` and `utils` only."""

from .hdkd import *
