"""Code in the documentation: where it is, and running it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
ECOSYSTEM = DOCS / 'ecosystem'  # pages of other libraries, whose snippets need these: tests/ecosystem runs them


def read_pages(paths):
    """Path from the root of the repository -> text of the page."""
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8') for path in sorted(paths)}


def find_blocks(texts, language):
    """Page and code of each block of this language."""
    fenced = re.compile(rf'```{language}\n(.*?)```', re.S)
    return [(page, code) for page, text in texts.items() for code in fenced.findall(text)]


def name_snippets(snippets):
    return [f'{Path(page).stem}-{i}' for i, (page, _) in enumerate(snippets)]


def check_snippet(page, snippet, capsys):
    """It runs, and prints what a comment below a print shows."""
    exec(compile(snippet, page, 'exec'), {'__name__': '__main__'})
    printed = capsys.readouterr().out
    for line in re.findall(r'^# ([\[{(].*)$', snippet, re.M):
        assert line in printed
