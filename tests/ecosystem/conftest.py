"""Fixtures of the tests of other libraries."""

import pytest
import timm
from timm.data.readers import get_img_extensions, set_img_extensions


@pytest.fixture(autouse=True)
def _settings_of_timm():
    """Snippets change them, as the code of a user does."""
    fused, extensions = timm.layers.use_fused_attn(), get_img_extensions()
    yield
    timm.layers.set_fused_attn(bool(fused))
    set_img_extensions(extensions)
