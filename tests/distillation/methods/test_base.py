import pytest

from hdkd_timm.distillation.methods.base import check_whole_number


def test_whole_numbers():
    for value in (3, 3.0):
        assert check_whole_number('crd', 'k', value, at_least=3) == 3
        assert isinstance(check_whole_number('crd', 'k', value, at_least=3), int)


@pytest.mark.parametrize(
    ('value', 'match'),
    [
        (2, r'crd\.k must be a number at least 3, got 2'),
        (3.5, r'crd\.k must be a whole number, got 3\.5'),
        ('3', r"crd\.k must be a number at least 3, got '3'"),
        (float('inf'), r'crd\.k must be a number at least 3, got inf'),
    ],
)
def test_others(value, match):
    with pytest.raises(ValueError, match=match):
        check_whole_number('crd', 'k', value, at_least=3)
