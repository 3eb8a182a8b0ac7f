"""What setup.cfg cannot express: the description for a package index is README.md without links and pictures of the
repository, which would lead nowhere there."""
import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / 'README.md').read_text(encoding='utf-8')
without_pictures = re.sub(r'<img src="(?!https:)[^>]*>\n+', '', readme)
setup(
    long_description=re.sub(r'\[([^\]]+)\]\((?!https:)[^)]+\)', r'\1', without_pictures),
    long_description_content_type='text/markdown')
