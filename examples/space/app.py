"""A demo page: upload an image, see what a network says and where it looks.

    pip install --editable '.[plots]' -r examples/space/requirements.txt
    python examples/space/app.py                    # released weights
    python examples/space/app.py runs/NAME/student  # a model of your own

It opens on http://127.0.0.1:7860. Behind a name of its own (GRADIO_SERVER_NAME=0.0.0.0, a proxy),
HDKD_DEMO_HOSTS=name.example.org lets that name in. The folder has what a Hugging Face Space needs, see its README.md.
"""
import functools
import ipaddress
import os
import sys
from typing import Any, Dict, List, Tuple

import gradio as gr
import timm
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

import hdkd_timm  # noqa: F401
from hdkd_timm.analysis.explain import explain
from hdkd_timm.data.image_io import image_size
from hdkd_timm.evaluation.classifier import load_classifier
from hdkd_timm.evaluation.plots import overlay
from hdkd_timm.models.pretrained import RELEASES

MODELS = sys.argv[1:] or sorted(RELEASES)  # students first
load_classifier = functools.lru_cache(load_classifier)
NOT_A_DEVICE = """**For research and teaching. Not a medical device:** not tested, approved or meant for diagnosis,
triage or treatment. The network knows its own classes and no others: any image gets one of them, a healthy, a foreign
one, a photograph of a cat."""
KEPT_SECONDS = 600  # then uploads are deleted
MAX_UPLOAD = '20mb'
MAX_PIXELS = 50_000_000  # of an upload; a small file can hold many
SHOWN_SIZE = 768  # longest side of the pictures of the answer
OWN_NAMES = {'localhost', *filter(None, (
    os.environ.get('GRADIO_SERVER_NAME', ''), os.environ.get('SPACE_HOST', ''),
    *os.environ.get('HDKD_DEMO_HOSTS', '').replace(' ', '').split(',')))}


def describe(model: str) -> str:
    """What the page tells of a network, Markdown."""
    if model not in RELEASES:
        return f'`{model}`'
    cfg = timm.get_pretrained_cfg(model)
    return (
        f"`{model}` tells {', '.join(cfg.label_names)} apart. It was trained on {RELEASES[model].data}. Licence of the"
        f' weights: {cfg.license}.')


def look(path: str, model: str) -> Tuple[Dict[str, float], List[Tuple[Image.Image, str]]]:
    """Class -> probability, and the image with where the network looked, with captions."""
    if not path:
        raise gr.Error('Upload an image first.')
    try:
        width, height = image_size(path)
        if width * height > MAX_PIXELS:
            raise ValueError(
                f'The image has {width} x {height} pixels, at most {MAX_PIXELS // 10**6} million are taken: shrink it.')
        found, = explain(load_classifier(model), [path], max_size=SHOWN_SIZE)
    except (ValueError, OSError) as e:
        raise gr.Error(str(e)) from e
    pictures = [(Image.fromarray(found.image), 'image')]
    for name, heat in found.maps.items():
        what = f'for {found.label}' if name == 'Grad-CAM' else ''
        pictures.append((Image.fromarray(overlay(found.image, heat)), f'{name} {what}'.strip()))
    return found.probs, pictures


def create_page() -> gr.Blocks:
    with gr.Blocks(title='HDKD', analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown('# HDKD: small networks for medical images\n' + NOT_A_DEVICE)
        with gr.Row():
            with gr.Column():
                image = gr.Image(  # its mode as it is: gradio would clip 16 bits to 8
                    type='filepath', image_mode=None, label=f'Image (at most {MAX_UPLOAD.upper()},'
                    f' {MAX_PIXELS // 10**6} million pixels)', sources=['upload', 'clipboard'], height=320)
                model = gr.Dropdown(MODELS, value=MODELS[0], label='Network')
                about = gr.Markdown(describe(MODELS[0]))
                button = gr.Button('Classify', variant='primary')
            with gr.Column():
                label = gr.Label(label='Probabilities', num_top_classes=10)
                pictures = gr.Gallery(
                    label='Where it looks: brighter is stronger', columns=2, height='max-content', object_fit='contain')
        gr.Markdown(
            'Grad-CAM shows what speaks for the predicted class in the last convolutional stage; attention rollout'
            ' from which patches the tokens of the transformer take what they know. Images stay on the machine that'
            f' runs this page and are deleted after {KEPT_SECONDS // 60} minutes.')
        asked: Dict[str, Any] = dict(fn=look, inputs=[image, model], outputs=[label, pictures], api_name='classify')
        button.click(**asked)
        model.change(describe, model, about, api_visibility='private')
    return page


def is_own(host: str) -> bool:
    """Does a Host header name this page? A page elsewhere whose name was made to lead here (DNS rebinding) has its own
    name there. It cannot have an address."""
    name = host.rpartition(':')[0] if host.rpartition(':')[2].isdigit() and not host.endswith(']') else host
    try:
        ipaddress.ip_address(name.strip('[]'))
    except ValueError:
        return name.lower() in OWN_NAMES
    return True


class OwnHosts:
    """ASGI middleware that answers only requests to hosts that are the page's own."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        hosts = [value.decode('latin-1') for name, value in scope.get('headers', ()) if name == b'host']
        if scope['type'] in ('http', 'websocket') and not (len(hosts) == 1 and is_own(hosts[0])):
            told = repr(', '.join(hosts)) if hosts else 'without a name'
            answer = PlainTextResponse(f'This page has no host {told}: HDKD_DEMO_HOSTS lets a name in.\n', 421)
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)


if __name__ == '__main__':
    create_page().launch(max_file_size=MAX_UPLOAD, app_kwargs=dict(middleware=[Middleware(OwnHosts)]))
