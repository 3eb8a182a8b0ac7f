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
