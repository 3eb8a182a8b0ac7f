import dataclasses

import pytest

from hdkd_timm.analysis.data_check import CheckConfig
from hdkd_timm.data.config import DataConfig
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.training.config import DistillConfig, TrainConfig

CONFIGS = (DataConfig, CheckConfig, EvalConfig, TrainConfig, DistillConfig)


@pytest.mark.parametrize('config_cls', CONFIGS)
@pytest.mark.parametrize('source', [dict(data_dir='folder'), dict(dataset='hfds/name')])
@pytest.mark.parametrize(
    ('name', 'value', 'shown'),
    [
        ('group_column', 'patient', 'patient'),
        ('split_column', 'use', 'use'),
        ('path_column', 'file', 'file'),
        ('label_column', ('MEL', 'NV'), 'MEL NV'),
    ],
)
def test_columns_need_a_table(config_cls, source, name, value, shown):
    flag = '--' + name.replace('_', '-')
    with pytest.raises(ValueError, match=f"{flag} '{shown}' has no effect without a table: give the .*--data-csv FILE"):
        config_cls(**source, **{name: value})


@pytest.mark.parametrize('config_cls', CONFIGS)
def test_columns_of_a_table_and_defaults_are_fine(config_cls):
    """Defaults are no settings of the user's: the config.yaml of a run on class folders holds them."""
    assert config_cls(data_csv='table.csv', data_dir='folder', group_column='patient').group_column == 'patient'
    defaults = dict(path_column='path', label_column=('label',), split_column='split', group_column=None)
    config_cls(data_dir='folder', **defaults)
    no_source = config_cls(group_column='patient')  # the commands check and calibrate add the source afterwards
    with pytest.raises(ValueError, match='has no effect without a table'):
        dataclasses.replace(no_source, data_dir='folder')
