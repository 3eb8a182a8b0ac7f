"""The demo page, started as a user would and driven by a real browser."""
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
from conftest import BROWSER, TINY_STUDENT, write_images

import hdkd_timm  # noqa: F401
from hdkd_timm.checkpoint import save_model

APP = Path(__file__).parents[1] / 'examples' / 'space' / 'app.py'


@contextmanager
def app(*models):
    """Address of the page."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, GRADIO_SERVER_PORT=str(port), HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES='')
    process = subprocess.Popen([sys.executable, str(APP), *models], env=env)
    address = f'http://127.0.0.1:{port}'
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
def test_upload_answer_picture(tmp_path):
    pytest.importorskip('gradio')
    playwright = pytest.importorskip('playwright.sync_api')
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    labels = [f'kind {i}' for i in range(TINY_STUDENT['num_classes'])]
    save_model(model, tmp_path / 'model', labels, TINY_STUDENT, (3, 32, 32))
    write_images(tmp_path / 'images', classes=['a'], number=1)
    with app(str(tmp_path / 'model')) as address, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        page = browser.new_page()
        asked = []
        page.on('request', lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_text('Not a medical device').wait_for(timeout=60_000)
        page.get_by_role('button', name='Classify').click()
        page.get_by_text('Upload an image first').wait_for(timeout=60_000)
        page.set_input_files('input[type=file]', tmp_path / 'images' / 'a' / '0.png')
        page.locator('img').first.wait_for(timeout=60_000)
        page.get_by_role('button', name='Classify').click()
        page.get_by_text('Grad-CAM for kind').wait_for(timeout=60_000)
        text = page.inner_text('body')
        assert all(label in text for label in labels)
        assert 'rollout, distillation token' in text
        assert page.locator('img').count() >= 5
        browser.close()
    assert all(url.startswith((address, 'data:', 'blob:')) for url in asked), asked
