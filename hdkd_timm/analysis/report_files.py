"""Replacing a report as a whole: the page and its folder of pictures."""

import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

PAGE, PICTURES = 'report.html', 'report'
GENERATOR = '<meta name="generator" content="hdkd_timm">'
PICTURE_NAME = re.compile(
    r'(\d+-(\w|-)+-)?(curves|confusion|confused|roc-pr|reliability|mistake-\d+)\.png|(\d+-)?classes\.png'
)


def check_destination(out: Path) -> None:
    """Raises FileExistsError if a report would replace anything but a report."""
    page, pictures = out / PAGE, out / PICTURES
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"'{out}' is not a directory: choose another --out.")
    if page.exists() and GENERATOR not in page.read_text(encoding='utf-8', errors='replace')[:5000]:
        raise FileExistsError(f"'{page}' was not written by hdkd_timm: move it, or choose another --out.")
    others = (
        [pictures]
        if pictures.exists() and not pictures.is_dir()
        else [
            file for file in (pictures.iterdir() if pictures.exists() else ()) if not PICTURE_NAME.fullmatch(file.name)
        ]
    )
    if others:
        raise FileExistsError(f"'{others[0]}' is not a picture of a report: move it, or choose another --out.")


@contextmanager
def replace_report(out: Path) -> Iterator[Path]:
    """A temporary folder for a page and its pictures, which replace the previous ones once everything is written.

    After an error or Ctrl-C, the previous report is intact.
    """
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{PICTURES}-', dir=out))
    page, pictures = temporary / PAGE, temporary / PICTURES
    previous, final = temporary / 'previous', out / PICTURES
    try:
        pictures.mkdir()
        yield temporary
        try:
            if final.exists():
                final.rename(previous)
            pictures.rename(final)
            page.replace(out / PAGE)
        except BaseException:
            if page.exists():  # the previous page is still in place, and gets its pictures back
                if not pictures.exists():
                    final.rename(pictures)
                if previous.exists():
                    previous.rename(final)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # not empty: there is a report
            for folder in created:
                folder.rmdir()
