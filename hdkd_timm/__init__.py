"""HDKD (arXiv 2407.07516) for timm: importing this package registers its models with `timm.create_model`."""
from importlib import import_module
from typing import Any

from . import models
from .version import __version__

# loaded on first use, so that registering the models costs nothing beside `import timm`
_LAZY = {
    'HDKDTask': 'distillation.task',
    'hdkd_loss': 'distillation.losses',
    'TrainConfig': 'training.config',
    'DistillConfig': 'training.config',
    'train': 'training.train',
    'distill': 'training.distill',
    'EvalConfig': 'evaluation.evaluate',
    'evaluate_model': 'evaluation.evaluate',
    'predict': 'evaluation.predict',
    'export_model': 'sharing.export',
}

__all__ = ['models', '__version__', *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_LAZY[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
