"""The snippets of docs/ecosystem run, and print what they show."""

import pytest
from helpers import write_images
from snippets import ECOSYSTEM, check_snippet, find_blocks, name_snippets, read_pages

TEXTS = read_pages(ECOSYSTEM.glob('*.md'))
SNIPPETS = find_blocks(TEXTS, 'python')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with an image folder `data`."""
    folder = tmp_path_factory.mktemp('work')
    write_images(folder / 'data' / 'train', number=4)
    write_images(folder / 'data' / 'test', number=2, seed=1)
    return folder


def test_every_page_has_a_snippet():
    assert {page for page, _ in SNIPPETS} == set(TEXTS) - {'docs/ecosystem/index.md'}


@pytest.mark.parametrize(('page', 'snippet'), SNIPPETS, ids=name_snippets(SNIPPETS))
def test_snippet(page, snippet, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    check_snippet(page, snippet, capsys)
