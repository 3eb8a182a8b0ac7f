"""Students as backbones: `features_only` by each of timm's extractors."""

import pytest
import timm
import torch
from helpers import TINY_STUDENT

import hdkd_timm  # noqa: F401


@pytest.fixture(scope='module')
def student():
    return timm.create_model('hdkd_student', **TINY_STUDENT).eval()


def extract(student, **kwargs):
    """The same network by an extractor."""
    features = timm.create_model('hdkd_student', **TINY_STUDENT, features_only=True, **kwargs).eval()
    features.model.load_state_dict(student.state_dict(), strict=False)
    return features


@pytest.mark.parametrize('feature_cls', ['list', 'hook', 'fx', 'getter'])
@pytest.mark.parametrize('out_indices', [None, (1, 3), (-1,)])
def test_patch_tokens_are_a_map(student, feature_cls, out_indices, caplog):
    x = torch.randn(2, 3, 32, 32)
    caplog.set_level('INFO')
    kwargs = {} if out_indices is None else dict(out_indices=out_indices)
    features = extract(student, feature_cls=feature_cls, **kwargs)
    expected = student.forward_intermediates(x, out_indices, intermediates_only=True)
    actual = features(x)
    assert [o.shape[1] for o in actual] == features.feature_info.channels()
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e)
    assert (f"feature_cls '{feature_cls}' of a student" in caplog.text) == (feature_cls != 'getter')


def test_dictionary_of_maps(student):
    x = torch.randn(2, 3, 32, 32)
    actual = extract(student, feature_cls='dict', out_indices=(0, 3))(x)
    assert list(actual) == ['0', '3']
    for a, e in zip(actual.values(), student.forward_intermediates(x, [0, 3], intermediates_only=True)):
        torch.testing.assert_close(a, e)
    stages = timm.create_model(
        'hdkd_student', **TINY_STUDENT, features_only=True, feature_cls='dict', out_indices=(0, 2)
    )
    assert list(stages(x)) == ['0', '2']
