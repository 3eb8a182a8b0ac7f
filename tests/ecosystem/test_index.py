"""The table of docs/ecosystem/index.md: every page and version is in it, and each package is installed and as new."""

import configparser
import re
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from snippets import ECOSYSTEM, ROOT, read_pages

TEXTS = {path.rpartition('/')[2]: text for path, text in read_pages(ECOSYSTEM.glob('*.md')).items()}
ROWS = re.findall(r'(?m)^\| \[.+?\]\(([\w-]+\.md).*?\) \| `([\w-]+)` \| (\S+) \|', TEXTS['index.md'])


def test_every_page_is_in_the_table():
    assert {page for page, *_ in ROWS} == set(TEXTS) - {'index.md'}
    assert len(ROWS) == TEXTS['index.md'].count('\n| [')


@pytest.mark.parametrize(('package', 'tried'), sorted({row[1:] for row in ROWS}))
def test_version(package, tried):
    assert Version(version(package)) >= Version(tried)


def test_pages_and_table_name_the_same_versions():
    for page, text in TEXTS.items():
        for package, tried in re.findall(r'Tried with ([\w-]+) ([\d.]+\d)', text):
            assert (page, package, tried) in ROWS
    named = {
        (page, *tried) for page, text in TEXTS.items() for tried in re.findall(r'Tried with ([\w-]+) ([\d.]+\d)', text)
    }
    assert set(ROWS) <= named


def test_extra_has_all_packages():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')

    def names(text):
        return {Requirement(line).name.replace('_', '-') for line in text.split('\n') if line}

    extras = config['options.extras_require']
    installed = names(extras['ecosystem']) | names(extras['onnx']) | names(config['options']['install_requires'])
    assert {package.replace('_', '-') for _, package, _ in ROWS} <= installed | {'torchvision'}  # timm needs it
