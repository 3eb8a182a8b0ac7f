"""What setup.cfg cannot express: packages are found, except weights/, which lies beside the code in the repository and
whose scripts are for maintainers; and the description for a package index is README.md without links and pictures that
lead nowhere outside the repository."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

WEIGHTS = 'hdkd_timm.weights'


class BuildWithoutScripts(build_py):
    """Packages hold modules, but weights/ only files."""

    def find_package_modules(self, package, package_dir):
        return [] if package == WEIGHTS else super().find_package_modules(package, package_dir)


readme = (Path(__file__).parent / 'README.md').read_text(encoding='utf-8')
without_pictures = re.sub(r'<img src="(?!https:)[^>]*>\n+', '', readme)
setup(
    packages=[*find_packages(include=['hdkd_timm', 'hdkd_timm.*'], exclude=[WEIGHTS]), WEIGHTS],
    package_dir={WEIGHTS: 'weights'},
    cmdclass={'build_py': BuildWithoutScripts},
    long_description=re.sub(r'\[([^\]]+)\]\((?!https:)[^)]+\)', r'\1', without_pictures),
    long_description_content_type='text/markdown',
)
