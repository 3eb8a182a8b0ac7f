"""The demo page, started as a user would and driven by a real browser."""

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
from helpers import BROWSER, TINY_STUDENT, write_images
from PIL import Image
from processes import PACKAGES, start

import hdkd_timm  # noqa: F401
from hdkd_timm.evaluation.classifier import InferenceConfig
from hdkd_timm.evaluation.predict import predict
from hdkd_timm.models.checkpoint import save_model

APP = Path(__file__).parents[2] / 'examples' / 'space' / 'app.py'


@contextmanager
def app(*models):
    """Address of the page."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, GRADIO_SERVER_PORT=str(port), HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES='')
    process = start(APP, *models, env=env, modules=PACKAGES)
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
        process.send_signal(signal.SIGTERM)
        process.wait(30)


LABELS = [f'kind {i}' for i in range(TINY_STUDENT['num_classes'])]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """Address of a page of two networks, of colour and of grey images, and the name of the latter."""
    pytest.importorskip('gradio')
    folder = tmp_path_factory.mktemp('models')
    for name, in_chans in (('colour', 3), ('grey', 1)):
        settings = dict(TINY_STUDENT, in_chans=in_chans)
        model = timm.create_model('hdkd_student', **settings)
        save_model(model, folder / name, LABELS, settings, (in_chans, 32, 32))
    with app(str(folder / 'colour'), str(folder / 'grey')) as address:
        yield address, str(folder / 'grey')


@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
def test_upload_answer_picture(page, tmp_path):
    playwright = pytest.importorskip('playwright.sync_api')
    write_images(tmp_path / 'images', classes=['a'], number=1)
    address, _ = page
    with playwright.sync_playwright() as p:
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
        assert all(label in text for label in LABELS)
        assert 'rollout, distillation token' in text
        assert page.locator('img').count() >= 5
        browser.close()
    assert all(url.startswith((address, 'data:', 'blob:')) for url in asked), asked


def ask(page, path):
    """What the page answers to an image: class -> probability, and the pictures' files."""
    from gradio_client import Client, handle_file

    address, model = page
    label, pictures = Client(address, verbose=False).predict(handle_file(path), model, api_name='/classify')
    return {row['label']: row['confidence'] for row in label['confidences']}, [p['image'] for p in pictures]


def test_large_image_is_shown_small(page, tmp_path):
    """The network sees it as it is, all 16 bits of it; the pictures of the answer have a size for a page."""
    pixels = np.linspace(0, 65535, 3000, dtype=np.uint16)[None].repeat(2000, axis=0)
    Image.fromarray(pixels).save(tmp_path / 'large.png')
    probs, pictures = ask(page, tmp_path / 'large.png')
    files, expected, classes = predict(page[1], [str(tmp_path / 'large.png')], InferenceConfig(device='cpu', workers=0))
    assert probs == pytest.approx(dict(zip(classes, expected[0])), abs=1e-5)
    assert len(pictures) == 4
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (768, 512)


def test_image_of_too_many_pixels(page, tmp_path):
    Image.new('1', (10_000, 5_001)).save(tmp_path / 'bomb.png')
    assert (tmp_path / 'bomb.png').stat().st_size < 100_000
    with pytest.raises(Exception, match='The image has 10000 x 5001 pixels, more than the 50 million allowed'):
        ask(page, tmp_path / 'bomb.png')


def test_file_that_is_too_large(page, tmp_path):
    (tmp_path / 'large.png').write_bytes(bytes(20 * 1024**2 + 1))
    with pytest.raises(Exception, match='(?i)file size|413|exceed'):
        ask(page, tmp_path / 'large.png')


@pytest.mark.parametrize(
    ('host', 'status'),
    [
        ('127.0.0.1:{port}', 200),
        ('localhost:{port}', 200),
        ('LOCALHOST', 200),
        ('[::1]:{port}', 200),
        ('192.168.0.7:80', 200),
        ('evil.example', 421),
        ('evil.example:{port}', 421),
        ('localhost.evil.example', 421),
        ('127.0.0.1.evil.example:{port}', 421),
        ('', 421),
    ],
)
def test_hosts(page, host, status):
    """A page elsewhere whose name was made to lead here gets nothing (DNS rebinding)."""
    address, port = page[0], page[0].rpartition(':')[2]
    for place in ('/', '/config', '/gradio_api/info'):
        request = urllib.request.Request(address + place, headers={'Host': host.format(port=port)})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found, text = answer.status, ''
        except urllib.error.HTTPError as e:
            found, text = e.code, e.read().decode()
        assert found == status, place
        assert ('HDKD_DEMO_HOSTS allows further names' in text) == (status == 421)
