"""What setup.cfg cannot express: packages are found, except weights/, which lies beside the code in the repository; and
the description for a package index is README.md without links and pictures that lead nowhere outside the repository."""

import re
from pathlib import Path

from setuptools import find_packages, setup

readme = (Path(__file__).parent / 'README.md').read_text(encoding='utf-8')
without_pictures = re.sub(r'<img src="(?!https:)[^>]*>\n+', '', readme)
setup(
    packages=[*find_packages(include=['hdkd_timm', 'hdkd_timm.*'], exclude=['hdkd_timm.weights']), 'hdkd_timm.weights'],
    package_dir={'hdkd_timm.weights': 'weights'},
    long_description=re.sub(r'\[([^\]]+)\]\((?!https:)[^)]+\)', r'\1', without_pictures),
    long_description_content_type='text/markdown',
)
