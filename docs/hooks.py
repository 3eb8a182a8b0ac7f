"""Hook of MkDocs: links out of docs/, to examples/ or CONTRIBUTING.md, lead nowhere on the site.

They go to the repository if `repo_url` is set, and become plain text otherwise. If the target does not exist, the build
fails.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r'\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)')


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **kwargs: object) -> str:
    docs = Path(config.docs_dir)
    root = docs.parent

    def replace(match: re.Match) -> str:
        text, target, anchor = match.groups()
        path = (docs / page.file.src_uri).parent.joinpath(target).resolve()
        if path.is_relative_to(docs):  # a page in another folder, which MkDocs checks
            return match[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: '{target}' does not exist.")
        if not config.repo_url:
            return text
        kind = 'tree' if path.is_dir() else 'blob'
        return f'[{text}]({config.repo_url.rstrip("/")}/{kind}/main/{path.relative_to(root).as_posix()}{anchor or ""})'

    return OUTSIDE.sub(replace, markdown)
