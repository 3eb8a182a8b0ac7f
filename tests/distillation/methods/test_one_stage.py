import pytest
from map_helpers import describe_pair

from hdkd_timm.distillation.methods.one_stage import match_one_stage

PAIR = describe_pair(dict(stages=[(4, 8), (6, 4), (8, 2)]), dict(stages=[(5, 8), (7, 4)]))


def test_last_stages():
    assert match_one_stage(PAIR, 'ickd') == (3, 2)
    assert match_one_stage(PAIR, 'mgd', same_stride=True) == (2, 2)


def test_named_stages():
    assert match_one_stage(PAIR, 'ickd', ['2:1']) == (2, 1)
    assert match_one_stage(PAIR, 'mgd', ['1'], same_stride=True) == (1, 1)
    with pytest.raises(ValueError, match=r"ickd\.stages must name one stage of each network, .* got \['1:1', '2:2'\]"):
        match_one_stage(PAIR, 'ickd', ['1:1', '2:2'])
    with pytest.raises(ValueError, match='teacher has stages 1 to 2 .* not a stage 3'):
        match_one_stage(PAIR, 'ickd', ['3'])


def test_networks_without_stages():
    with pytest.raises(ValueError, match='teacher has no stages to take a map of: choose a method of the logits'):
        match_one_stage(describe_pair(dict(stages=[(4, 8)]), dict()), 'ickd')
