import pytest
from map_helpers import describe_pair
from method_helpers import create_pair

from hdkd_timm.distillation.methods.pooled import pooled_dims


def test_lengths_of_the_networks():
    assert pooled_dims(create_pair(), 'crd') == (32, 128)


@pytest.mark.parametrize('teacher', [dict(stages=[(4, 8)]), dict(pooled_dim=7)])
def test_networks_that_do_not_return_them(teacher):
    with pytest.raises(ValueError, match="Method 'crd' for .*: teacher does not return the features before its"):
        pooled_dims(describe_pair(dict(stages=[(4, 8)], pooled_dim=5), teacher), 'crd')
