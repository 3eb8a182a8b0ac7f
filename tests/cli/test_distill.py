import pytest
from processes import flags, hdkd

from hdkd_timm.cli import main


def test_distill_command(image_folder, tmp_path):
    """A Python of its own, as a user starts it."""
    settings = dict(img_size=28, epochs=1, batch_size=8, train_fraction=0.99, stages=(2, 3), workers=0, bootstrap=5)
    dims = dict(dims=(8, 16, 24))
    student = dict(depths=(1, 1, 1, 2), embed_dim=32, num_heads=2, head_dim=8, mlp_ratio=2, **dims)
    networks = dict(model_kwargs=student, teacher_kwargs=dict(depths=(1, 1, 2), **dims))
    args = flags(data_dir=image_folder, output=tmp_path / 'runs', experiment='e', **settings, **networks)
    result = hdkd('distill', *args, fresh=True)
    assert result.returncode == 0, result.stderr
    assert 'student  epoch 1/1' in result.stderr
    assert '\r' not in result.stderr  # no bar where there is no terminal
    head = 'network parameters test accuracy balanced accuracy macro AUROC training'
    assert result.stdout.splitlines()[0].split() == head.split()
    assert (tmp_path / 'runs' / 'e' / 'student' / 'best' / 'model.safetensors').is_file()


@pytest.mark.parametrize(
    'args',
    [['--teacher-epochs', '3'], ['--teacher-opt', 'sgd'], ['--no-teacher-pretrained'], ['--teacher-kwargs', 'a=1']],
)
def test_settings_of_a_training_that_does_not_happen_are_refused(args, trained, capsys):
    assert main(['distill', '--data-dir', 'd', '--teacher-checkpoint', 't', *args]) == 1
    name = args[0].replace('--no-', '--')
    assert f'{name} is not used with --teacher-checkpoint, which is a trained teacher' in capsys.readouterr().err
    assert trained == []
    assert main(['distill', '--data-dir', 'd', *args]) == 0
    assert len(trained) == 1


def test_recipe_that_sets_up_a_teacher_works_with_a_checkpoint(trained):
    assert main(['distill', '--data-dir', 'd', '--teacher-checkpoint', 't', '--recipe', 'paper']) == 0
    assert trained[0].teacher_opt == 'adam'


@pytest.mark.parametrize(
    ('args', 'reason'),
    [
        (['--kd-type', 'hard', '--tau', '4'], '--tau is for --kd-type soft, not hard'),
        (['--kd-type', 'none', '--alpha', '0.9'], '--alpha has no effect with --kd-type none'),
        (['--feature-weight', '0', '--stages', '1', '2'], '--stages has no effect with --feature-weight 0'),
        (['--method', 'none', '--teacher-lr', '1e-4'], '--teacher-lr has no effect where no teacher takes part'),
        (['--method', 'none', '--teacher-checkpoint', 'x'], '--teacher-checkpoint has no effect where no teacher'),
        (
            ['--teacher-checkpoint', 'x', '--sched', 'none', '--min-lr', '1e-4'],
            '--min-lr has no effect with --sched none',
        ),
    ],
)
def test_flags_without_effect_on_the_loss_or_without_a_teacher(args, reason, trained, capsys):
    assert main(['distill', '--data-dir', 'd', *args]) == 1
    assert reason in capsys.readouterr().err
    assert trained == []
