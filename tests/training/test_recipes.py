"""The recipes hold the values they are named for."""

import pytest

from hdkd_timm.training.config import DistillConfig, read_recipe, recipe_names
from hdkd_timm.utils.config import check_settings


def recipe(name):
    return check_settings(read_recipe(name), [DistillConfig], name)


def test_recipes():
    assert recipe_names() == ['default', 'paper', 'paper-teacher']
    with pytest.raises(ValueError, match="Unknown recipe 'papre', choose from default, paper, paper-teacher"):
        read_recipe('papre')
    for name in recipe_names():
        DistillConfig(**recipe(name))  # in range


def test_recipe_default_is_the_defaults():
    settings, defaults = recipe('default'), vars(DistillConfig())
    assert settings == {name: defaults[name] for name in settings}
    # what another recipe sets can be read here too
    for name in recipe_names():
        assert set(read_recipe(name)) <= set(settings), name


def test_recipe_paper():
    """The values of the paper and its code."""
    assert recipe('paper') == dict(
        img_size=224,
        epochs=200,
        batch_size=16,
        opt='adamw',
        lr=5e-5,
        weight_decay=0.05,
        decay_tokens=True,
        sched='cosine',
        warmup_epochs=5,
        warmup_lr=2e-5,
        min_lr=2e-5,
        teacher_opt='adam',
        teacher_lr=1e-3,
        teacher_weight_decay=0.0,
        teacher_sched='none',
        kd_type='soft',
        alpha=0.5,
        tau=1.0,
        reduction='mean',
        feature_weight=10.0,
        stages=(1, 2, 3),
        stage_exponent=1.0,
        aug='paper',
    )
    config = DistillConfig(**recipe('paper'))
    # and what the paper does without
    assert (config.amp, config.model_ema, config.sched_on_updates) == (False, False, False)
    assert (config.drop, config.drop_path, config.clip_grad, config.smoothing) == (None, None, None, 0)
    assert (config.teacher_epochs, config.grad_accum_steps) == (None, 1)


def test_recipe_of_the_papers_teacher():
    student, teacher = recipe('paper'), recipe('paper-teacher')
    for name in ('opt', 'lr', 'weight_decay', 'sched'):
        assert teacher[name] == student[f'teacher_{name}']
    for name in ('img_size', 'epochs', 'batch_size', 'aug'):
        assert teacher[name] == student[name]
