"""HDKD (arXiv 2407.07516) for timm: importing this package registers its models with `timm.create_model`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models
from .version import __version__

if TYPE_CHECKING:
    from .distillation.hdkd_task import HDKDTask
    from .distillation.losses import hdkd_loss
    from .distillation.task import DistillationTask
    from .evaluation.evaluate import EvalConfig, evaluate_model
    from .evaluation.predict import predict
    from .sharing.export import export_model
    from .training.config import DistillConfig, TrainConfig
    from .training.distill import distill
    from .training.train import train

# loaded on first use, so that registering the models costs nothing beside `import timm`
_LAZY = {
    'DistillationTask': 'distillation.task',
    'HDKDTask': 'distillation.hdkd_task',
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

__all__ = [
    'models',
    '__version__',
    'DistillationTask',
    'HDKDTask',
    'hdkd_loss',
    'TrainConfig',
    'DistillConfig',
    'train',
    'distill',
    'EvalConfig',
    'evaluate_model',
    'predict',
    'export_model',
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_LAZY[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
