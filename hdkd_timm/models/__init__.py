from .hdkd import *
