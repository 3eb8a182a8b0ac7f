"""A demo page: upload an image, see the predicted probabilities and the regions they rest on.

    pip install --editable '.[plots]' -r examples/space/requirements.txt
    python examples/space/app.py                    # released weights
    python examples/space/app.py runs/NAME/student  # your own model

The page opens at http://127.0.0.1:7860. If it is reached under another host name (GRADIO_SERVER_NAME=0.0.0.0, a proxy),
allow that name with HDKD_DEMO_HOSTS=name.example.org. The folder is a complete Hugging Face Space, see its README.md.
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
triage or treatment. The network knows only the classes it was trained on, whatever an image shows: a healthy person,
another organ or a cat."""
KEPT_SECONDS = 600  # before uploads are deleted
MAX_UPLOAD = '20mb'
MAX_PIXELS = 50_000_000  # of an upload: a small file can decode to many
SHOWN_SIZE = 768  # longest side of the resulting pictures
OWN_NAMES = {
    'localhost',
    *filter(
        None,
        (
            os.environ.get('GRADIO_SERVER_NAME', ''),
            os.environ.get('SPACE_HOST', ''),
            *os.environ.get('HDKD_DEMO_HOSTS', '').replace(' ', '').split(','),
        ),
    ),
}


def describe(model: str) -> str:
    """What the page says about a network, as Markdown."""
    if model not in RELEASES:
        return f'`{model}`'
    cfg = timm.get_pretrained_cfg(model)
    return (
        f'`{model}` distinguishes {", ".join(cfg.label_names)}. It was trained on {RELEASES[model].data}. Licence of'
        f' the weights: {cfg.license}.'
    )


def classify(path: str, model: str) -> Tuple[Dict[str, float], List[Tuple[Image.Image, str]]]:
    """Class -> probability, and captioned pictures: the image, and heat maps of what the prediction rests on."""
    if not path:
        raise gr.Error('Upload an image first.')
    try:
        width, height = image_size(path)
        if width * height > MAX_PIXELS:
            raise ValueError(
                f'The image has {width} x {height} pixels, more than the {MAX_PIXELS // 10**6} million allowed:'
                ' shrink it.'
            )
        (found,) = explain(load_classifier(model), [path], max_size=SHOWN_SIZE)
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
                image = gr.Image(  # keeps the mode: gradio would clip 16 bits to 8
                    type='filepath',
                    image_mode=None,
                    label=f'Image (at most {MAX_UPLOAD.upper()}, {MAX_PIXELS // 10**6} million pixels)',
                    sources=['upload', 'clipboard'],
                    height=320,
                )
                model = gr.Dropdown(MODELS, value=MODELS[0], label='Network')
                about = gr.Markdown(describe(MODELS[0]))
                button = gr.Button('Classify', variant='primary')
            with gr.Column():
                label = gr.Label(label='Probabilities', num_top_classes=10)
                pictures = gr.Gallery(
                    label='What the prediction rests on: brighter is stronger',
                    columns=2,
                    height='max-content',
                    object_fit='contain',
                )
        gr.Markdown(
            'Grad-CAM shows the evidence for the predicted class in the last convolutional stage; attention rollout the'
            ' attention flow from patches to the prefix tokens of the transformer. Images stay on the machine that runs'
            f' this page and are deleted after {KEPT_SECONDS // 60} minutes.'
        )
        event: Dict[str, Any] = dict(fn=classify, inputs=[image, model], outputs=[label, pictures], api_name='classify')
        button.click(**event)
        model.change(describe, model, about, api_visibility='private')
    return page


def is_own(host: str) -> bool:
    """Whether a Host header names this page. Under DNS rebinding it holds the name of the attacker's page, never an IP
    address, so that addresses are accepted."""
    name = host.rpartition(':')[0] if host.rpartition(':')[2].isdigit() and not host.endswith(']') else host
    try:
        ipaddress.ip_address(name.strip('[]'))
    except ValueError:
        return name.lower() in OWN_NAMES
    return True


class OwnHosts:
    """ASGI middleware that only answers requests to the page's own host names."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        hosts = [value.decode('latin-1') for name, value in scope.get('headers', ()) if name == b'host']
        if scope['type'] in ('http', 'websocket') and not (len(hosts) == 1 and is_own(hosts[0])):
            shown = repr(', '.join(hosts)) if hosts else 'without a name'
            response = PlainTextResponse(
                f'This page does not serve host {shown}: HDKD_DEMO_HOSTS allows further names.\n', 421
            )
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


if __name__ == '__main__':
    create_page().launch(max_file_size=MAX_UPLOAD, app_kwargs=dict(middleware=[Middleware(OwnHosts)]))
