import pytest
from helpers import TINY_STUDENT

from hdkd_timm import DistillConfig, TrainConfig
from hdkd_timm.cli import main
from hdkd_timm.utils.config import to_yaml


def test_teacher_is_a_run_folder(run_of_a_student, tmp_path, capsys):
    sizes = [f'{name}={value}' for name, value in TINY_STUDENT.items() if name not in ('img_size', 'num_classes')]
    assert (
        main(
            [
                'train',
                '--config',
                str(run_of_a_student / 'config.yaml'),
                '--model-kwargs',
                *sizes,
                '--epochs',
                '1',
                '--teacher-checkpoint',
                str(run_of_a_student),
                '--output',
                str(tmp_path),
                '--experiment',
                'next',
            ]
        )
        == 0
    )
    assert (tmp_path / 'next' / 'best' / 'model.safetensors').is_file()


@pytest.mark.parametrize('args', [['--alpha', '0.5'], ['--tau', '2'], ['--teacher-label-names', 'a', 'b']])
def test_flags_without_effect_are_refused(args, trained, capsys):
    assert main(['train', '--data-dir', 'd', *args]) == 1
    assert f'{args[0]} is only used with --teacher-checkpoint: drop it.' in capsys.readouterr().err
    assert trained == []
    assert main(['train', '--data-dir', 'd', '--teacher-checkpoint', 't', *args]) == 0
    assert len(trained) == 1


def test_settings_without_effect_may_stand_in_a_file(tmp_path, trained):
    """The config.yaml of a run holds all settings."""
    config = TrainConfig(data_dir='d', alpha=0.9, tau=4.0)
    (tmp_path / 'config.yaml').write_text(to_yaml(config))
    assert main(['train', '--config', str(tmp_path / 'config.yaml'), '--resume']) == 0
    assert trained == [config]


def test_file_of_a_distillation_is_refused(tmp_path, trained, capsys):
    (tmp_path / 'config.yaml').write_text(to_yaml(DistillConfig(data_dir='d')))
    assert main(['train', '--config', str(tmp_path / 'config.yaml')]) == 1
    assert "config.yaml' has settings of hdkd distill, such as 'ce_weight'" in capsys.readouterr().err
    assert trained == []


@pytest.mark.parametrize(
    ('args', 'reason', 'used_with'),
    [
        (['--hflip', '0'], 'is a part of --aug timm, not of --aug paper', ['--aug', 'timm']),
        (['--color-jitter', '0.1'], 'is a part of --aug timm, not of --aug none', ['--aug', 'timm']),
        (['--color-jitter', '0.1', '--aa', 'v0'], 'is replaced by --aa', None),
        (['--recount', '2'], 'is only used with --reprob', ['--reprob', '0.2']),
        (['--mixup-off-epoch', '2'], 'is only used with --mixup or --cutmix', ['--cutmix', '1']),
        (['--mixup-switch-prob', '0.2'], 'is only used with both', ['--cutmix', '1', '--mixup', '0.2']),
        (['--amp-dtype', 'bfloat16'], 'is only used with --amp', ['--amp']),
        (['--clip-mode', 'agc'], 'is only used with --clip-grad', ['--clip-grad', '0.01']),
        (['--model-ema-decay', '0.99'], 'is only used with --model-ema', ['--model-ema']),
        (['--min-lr', '1e-6'], 'has no effect with --sched none', ['--sched', 'cosine']),
        (['--decay-rate', '0.5'], 'is for --sched step, multistep or plateau', ['--sched', 'step']),
        (['--decay-epochs', '2'], 'is for --sched step', ['--sched', 'step']),
        (['--patience-epochs', '2'], 'is for --sched plateau', ['--sched', 'plateau']),
    ],
)
@pytest.mark.parametrize('command', ['train', 'distill'])
def test_flags_that_need_another_one(command, args, reason, used_with, trained, capsys):
    alone = args
    if '--aug' in reason:
        alone = [*args, '--aug', reason.split()[-1]]
    elif '--sched none' in reason:
        alone = [*args, '--sched', 'none', *(['--teacher-sched', 'none'] if command == 'distill' else [])]
    assert main([command, '--data-dir', 'd', *alone]) == 1
    assert f'{args[0]} {reason}' in capsys.readouterr().err
    assert trained == []
    if used_with:
        assert main([command, '--data-dir', 'd', *args, *used_with]) == 0
        assert len(trained) == 1
