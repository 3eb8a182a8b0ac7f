"""The most confident mistakes of a network, with heat maps of what supported the predicted class."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image, ImageOps

from ..data.image_io import read_image
from ..evaluation.classifier import Classifier, ModelConfig, load_classifier
from ..evaluation.metrics import format_metric
from ..evaluation.plots import overlay
from ..evaluation.run_results import NetworkResults
from .explain import explain
from .image_summary import hash_pixels
from .report_plots import Pictures

PICTURE_SIZE = 224  # largest side in pixels of an image on the page


def find_mistakes(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Indices of the misclassified images, the most confident first.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
    """
    wrong = np.flatnonzero(probs.argmax(1) != targets)
    return wrong[np.argsort(-probs[wrong].max(1), kind='stable')]


def _hash_image(path: str) -> str:
    """`hash_pixels` of an image file, or its path if it cannot be read."""
    try:
        return hash_pixels(read_image(path))
    except (OSError, ValueError):
        return path


def _merge_equal(network: NetworkResults, wrong: np.ndarray, number: int) -> List[Dict[str, Any]]:
    """The first distinct mistakes; 'equal' is the number of further images with the same pixels and label."""
    found: Dict[Tuple[str, str], Dict[str, Any]] = {}
    for i in wrong if number else ():
        path, probs = network.names[i], network.probs[i]
        true, predicted = (network.classes[k] for k in (network.targets[i], probs.argmax()))
        key = (true, _hash_image(path))
        if key in found:
            found[key]['equal'] += 1
        elif len(found) < number:
            found[key] = dict(
                path=path,
                name='/'.join(Path(path).parts[-3:]),
                true=true,
                predicted=predicted,
                equal=0,
                prob=format_metric('accuracy', float(probs.max())),
            )
        else:
            break
    return list(found.values())


def _plot_mistake(classifier: Classifier, item: Dict[str, Any], path: Path) -> str:
    """Write the image and the heat map of the predicted class side by side. Returns the kind of map."""
    (found,) = explain(classifier, [item['path']], label=item['predicted'], max_size=2 * PICTURE_SIZE)
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
        'total' (number of misclassified images), 'items' (mistakes with 'true', 'predicted', 'prob', 'name', 'equal',
        and a picture or a 'problem') and 'map' (kinds of heat maps); or the 'problem' that prevents all.
    """
    if network.probs is None:
        return dict(problem='The predictions are missing.')
    wrong = find_mistakes(network.probs, network.targets)
    missing = [network.names[i] for i in wrong[:number] if not Path(network.names[i]).is_file()]
    if missing:
        return dict(total=len(wrong), problem=f'The images are not files, or no longer exist ({missing[0]}).')
    items, kinds, classifier = _merge_equal(network, wrong, number), set(), None
    for i, item in enumerate(items, 1):
        file = f'{stem}mistake-{i:02d}.png'
        try:
            classifier = classifier or load_classifier(network.folder / 'best', ModelConfig(device=device))
            kinds.add(_plot_mistake(classifier, item, pictures.folder / file))
        except (OSError, ValueError) as e:  # an unreadable image, or a network without maps
            item['problem'] = str(e)
            continue
        item.update(
            pictures.embed(
                file,
                (
                    f'Image {item["name"]} and a heat map of {network.label}: the true class is {item["true"]}, the'
                    f' predicted class {item["predicted"]} with {item["prob"]}.'
                ),
            )
        )
    return dict(total=len(wrong), items=items, map=' or '.join(sorted(kinds)))
