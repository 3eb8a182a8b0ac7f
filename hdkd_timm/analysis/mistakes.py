"""The most confident mistakes of a network, with heat maps of what supported the predicted class."""

import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageOps

from ..data.image_files import split_frame
from ..data.image_io import read_image
from ..data.inspection import inspect_image
from ..evaluation.classifier import Classifier, ModelConfig, load_classifier
from ..evaluation.metrics import format_metric
from ..evaluation.plots import overlay
from ..evaluation.problem import SingleLabel
from ..evaluation.run_results import NetworkResults
from .explain import explain_image
from .image_summary import hash_pixels
from .report_plots import Pictures

PICTURE_SIZE = 224  # largest side in pixels of an image on the page


class Mistake(NamedTuple):
    """A wrong decision of a network.

    Args:
        image: Index of the image.
        label: Index of the class that it was given or, of labels, of the one that it was wrongly given or not given.
        true: What is right.
        predicted: What the network says.
        prob: Probability of the class or label.
    """

    image: int
    label: int
    true: str
    predicted: str
    prob: float


def find_mistakes(network: NetworkResults) -> List[Mistake]:
    """The misclassified images, or wrong labels of images, the most confident first."""
    probs, targets, classes = network.probs, network.targets, network.classes
    predicted = network.problem.predict(probs, network.thresholds)
    if network.problem is SingleLabel:
        found = [
            Mistake(int(i), int(predicted[i]), classes[targets[i]], classes[predicted[i]], float(probs[i].max()))
            for i in np.flatnonzero(predicted != targets)
        ]
        return sorted(found, key=lambda mistake: -mistake.prob)
    found = [
        Mistake(
            int(i),
            int(k),
            classes[k] if targets[i, k] else f'no {classes[k]}',
            classes[k] if predicted[i, k] else f'no {classes[k]}',
            float(probs[i, k]),
        )
        for i, k in zip(*np.nonzero(predicted != targets.astype(bool)))
    ]
    return sorted(found, key=lambda mistake: -abs(mistake.prob - targets[mistake.image, mistake.label]))


def _merge_equal(network: NetworkResults, wrong: Sequence[Mistake], number: int) -> List[Dict[str, Any]]:
    """The first distinct mistakes; 'equal' is the number of further images with the same pixels and label."""
    found: Dict[Tuple[str, str], Dict[str, Any]] = {}
    for mistake in wrong if number else ():
        path = network.names[mistake.image]
        error = inspect_image(path).error
        key = (mistake.true, path if error else hash_pixels(read_image(path)))
        if key in found:
            found[key]['equal'] += 1
        elif len(found) < number:
            found[key] = dict(
                path=path,
                name='/'.join(Path(path).parts[-3:]),
                true=mistake.true,
                predicted=mistake.predicted,
                label=network.classes[mistake.label],
                equal=0,
                prob=format_metric('accuracy', mistake.prob),
            )
            if error:
                found[key]['problem'] = f"Cannot read image '{path}' ({error})."
        else:
            break
    return list(found.values())


def _plot_mistake(classifier: Classifier, item: Dict[str, Any], path: Path) -> str:
    """Write the image and the heat map of the predicted class, or wrong label, side by side. Returns the kind of
    map."""
    found = explain_image(classifier, item['path'], label=item['label'], max_size=2 * PICTURE_SIZE)
    kind = 'Grad-CAM' if 'Grad-CAM' in found.maps else next(iter(found.maps))
    sheet = Image.fromarray(np.concatenate([found.image, overlay(found.image, found.maps[kind])], axis=1))
    ImageOps.contain(sheet, (2 * PICTURE_SIZE, PICTURE_SIZE)).save(path)
    return kind


def show_mistakes(
    network: NetworkResults,
    number: int,
    pictures: Pictures,
    stem: str,
    device: Optional[str],
) -> Dict[str, Any]:
    """Pictures of the most confident mistakes. Images with equal pixels are shown once.

    Args:
        network: The network.
        number: Largest number of mistakes.
        pictures: Where the files are written.
        stem: Start of their names.
        device: Device that the network runs on, the fastest one available by default.

    Returns:
        'total' (number of misclassified images, or wrong labels), 'items' (mistakes with 'true', 'predicted', 'prob',
        'name', 'equal', and a picture or a 'problem') and 'map' (kinds of heat maps); or the 'problem' that prevents
        all.
    """
    if network.probs is None:
        return dict(problem='The predictions are missing.')
    wrong = find_mistakes(network)
    names = [network.names[mistake.image] for mistake in wrong[:number]]
    missing = [name for name in names if not os.path.isfile(split_frame(name)[0])]
    if missing:
        return dict(total=len(wrong), problem=f'The images are not files, or no longer exist ({missing[0]}).')
    items, kinds, classifier = _merge_equal(network, wrong, number), set(), None
    for i, item in enumerate(items, 1):
        if 'problem' in item:
            continue
        file = f'{stem}mistake-{i:02d}.png'
        try:
            classifier = classifier or load_classifier(network.folder / 'best', ModelConfig(device=device))
            kinds.add(_plot_mistake(classifier, item, pictures.folder / file))
        except (OSError, ValueError) as e:  # no such model, or a network without maps
            item['problem'] = str(e)
            continue
        item.update(
            pictures.embed(
                file,
                (
                    f'Image {item["name"]} and a heat map of {network.label} for {item["label"]}: the truth is'
                    f' {item["true"]}, the prediction {item["predicted"]} with {item["prob"]}.'
                ),
            )
        )
    return dict(total=len(wrong), items=items, map=' or '.join(sorted(kinds)))
