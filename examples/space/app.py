"""A demo page: upload an image, see what a network says and where it looks.

    pip install --editable '.[plots]' -r examples/space/requirements.txt
    python examples/space/app.py                    # released weights
    python examples/space/app.py runs/NAME/student  # a model of your own

It opens on http://127.0.0.1:7860. The folder has what a Hugging Face Space needs, see its README.md.
"""
import functools
import sys
from typing import Any, Dict, List, Tuple

import gradio as gr
import timm
from PIL import Image

import hdkd_timm  # noqa: F401
from hdkd_timm.explain import explain
from hdkd_timm.inference import load_classifier
from hdkd_timm.plots import overlay
from hdkd_timm.released import RELEASES

MODELS = sys.argv[1:] or sorted(RELEASES)  # students first
load_classifier = functools.lru_cache(load_classifier)
NOT_A_DEVICE = """**For research and teaching. Not a medical device:** not tested, approved or meant for diagnosis,
triage or treatment. The network knows its own classes and no others: any image gets one of them, a healthy, a foreign
one, a photograph of a cat."""
KEPT_SECONDS = 600  # then uploads are deleted


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
        found, = explain(load_classifier(model), [path])
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
                image = gr.Image(type='filepath', label='Image', sources=['upload', 'clipboard'], height=320)
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


if __name__ == '__main__':
    create_page().launch()
