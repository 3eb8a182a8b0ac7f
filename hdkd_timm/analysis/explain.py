"""`hdkd explain`: heat maps of where a saved model looks, over the original images."""

import itertools
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import nn

from ..data.image_files import split_frame, split_suffix
from ..data.image_io import read_image
from ..evaluation.classifier import Classifier, ModelConfig, load_classifier
from ..evaluation.exported import ExportedModel
from ..evaluation.metrics import format_metric
from ..evaluation.plots import overlay, plot_images, shorten
from ..evaluation.predict import drop_bad_images, find_images
from ..utils.files import PathLike, new_folder
from .grad_cam import NoMapsError, grad_cam
from .rollout import attention_rollout

SHEET_SIZE = 300  # largest side in pixels of an image on a sheet


def _visible_box(size: Tuple[int, int], data_config: Dict[str, Any]) -> Tuple[float, float, float, float]:
    """Part of an image, (height, width), that remains after the evaluation transform: top, left, height, width.

    In pixels; it may extend beyond the edges of the image, into a border.
    """
    input_size = data_config['input_size'][-2:]
    if data_config['crop_mode'] == 'squash':
        box = tuple(s * data_config['crop_pct'] for s in size)
    else:
        choose = max if data_config['crop_mode'] == 'border' else min
        factor = choose(s * data_config['crop_pct'] / i for s, i in zip(size, input_size))
        box = tuple(i * factor for i in input_size)
    return (size[0] - box[0]) / 2, (size[1] - box[1]) / 2, *box


def to_image_coordinates(
    maps: torch.Tensor,
    size: Tuple[int, int],
    data_config: Dict[str, Any],
) -> np.ndarray:
    """Map heat maps from the network's input back to the original image.

    Args:
        maps: (N, H, W), in coordinates of the network's input.
        size: Height and width of the image.
        data_config: Of the evaluation transform, as returned by timm's `resolve_data_config`.

    Returns:
        (N, height, width); 0 where the network did not see the image.
    """
    top, left, height, width = _visible_box(size, data_config)
    ys = (torch.arange(size[0]) + 0.5 - top) / height * 2 - 1
    xs = (torch.arange(size[1]) + 0.5 - left) / width * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]), dim=-1)[None]  # (1, height, width, 2)
    inside = (grid.abs() <= 1).all(dim=-1)[0]
    sampled = F.grid_sample(maps[None].float().cpu(), grid, mode='bilinear', padding_mode='border', align_corners=False)
    return (sampled[0] * inside).numpy()


class Explanation(NamedTuple):
    """Heat maps of an image, (h, w) pixels.

    Args:
        path: Image file.
        image: The original image, or a smaller version if requested, (h, w, 3) bytes.
        label: Class that is explained.
        probs: Class -> probability, for all classes.
        maps: Name ('Grad-CAM', 'rollout, class token', 'rollout, distillation token') -> heat map, (h, w), 0 to 1.
    """

    path: str
    image: np.ndarray
    label: str
    probs: Dict[str, float]
    maps: Dict[str, np.ndarray]


def explain(
    model: Union[PathLike, Classifier],
    paths: Sequence[PathLike],
    config: Optional[ModelConfig] = None,
    label: Optional[str] = None,
    layer: Optional[str] = None,
    on_bad_image: str = 'error',
    max_size: Optional[int] = None,
) -> Iterator[Explanation]:
    """Grad-CAM of the predicted class, and attention rollout of networks with tokens, over the original images.

    Args:
        model: A classifier, or a model as accepted by `load_classifier`, but no exported file.
        paths: Image files, and folders to search for them. All are read once before the first one is explained.
        config: Device and image size.
        label: Class to explain instead of the predicted one.
        layer: As in `grad_cam`.
        on_bad_image: What to do with images that cannot be read, 'error' or 'skip'.
        max_size: Largest side, in pixels, of the returned images and maps; larger ones are shrunk, because maps of 36
            megapixels take 400 MB. The input of the network is not affected.

    Returns:
        Explanations, computed lazily.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier` and `find_images`; if there is no such class or layer, or an
            image cannot be read; `NoMapsError` if the network supports neither method.
    """
    classifier = model if isinstance(model, Classifier) else load_classifier(model, config)
    if isinstance(classifier.model, ExportedModel):
        raise ValueError('Exported files have no gradients: use the model that the file was exported from.')
    names = _name_classes(classifier)
    if label is not None and label not in names:
        raise ValueError(f"The model has no class '{label}' (classes: {', '.join(names)}).")
    files = drop_bad_images(find_images(paths, on_bad_image), classifier.img_mode, on_bad_image)
    return (explain_image(classifier, path, label, layer, max_size) for path in files)


def _name_classes(classifier: Classifier) -> List[str]:
    return classifier.classes or [str(i) for i in range(classifier.model.num_classes)]


def explain_image(
    classifier: Classifier,
    path: PathLike,
    label: Optional[str] = None,
    layer: Optional[str] = None,
    max_size: Optional[int] = None,
) -> Explanation:
    """As `explain`, for one readable image, without the checks and warnings of a set of images."""
    names = _name_classes(classifier)
    image = read_image(path, classifier.img_mode)
    batch = create_transform(**classifier.data_config)(image)[None].to(classifier.device)
    with torch.inference_mode():
        probs = classifier.problem.to_probs(classifier.model(batch).float()).double().cpu().numpy()
    if classifier.temperature is not None:
        probs = classifier.problem.scale(probs, classifier.temperature)
    index = int(probs[0].argmax()) if label is None else names.index(label)
    maps = _compute_maps(classifier.model, batch, torch.tensor([index], device=classifier.device), layer)
    if max_size is not None and max(image.size) > max_size:
        image = ImageOps.contain(image, (max_size, max_size))
    over = to_image_coordinates(torch.stack(list(maps.values())), image.size[::-1], classifier.data_config)
    return Explanation(
        str(path),
        np.asarray(image.convert('RGB')),
        names[index],
        dict(zip(names, probs[0].tolist())),
        dict(zip(maps, over)),
    )


def _name_tokens(model: nn.Module) -> List[str]:
    """Names of the prefix tokens, numbered if the model does not identify them."""
    prefix = model.num_prefix_tokens
    names = ['class token'] if getattr(model, 'cls_token', None) is not None else []
    names += ['distillation token'] if getattr(model, 'dist_token', None) is not None else []
    names += [f'register {i + 1}' for i in range(getattr(model, 'num_reg_tokens', 0))]
    return names if len(names) == prefix else [f'token {i + 1}' for i in range(prefix)]


def _compute_maps(
    model: nn.Module,
    batch: torch.Tensor,
    target: torch.Tensor,
    layer: Optional[str],
) -> Dict[str, torch.Tensor]:
    """All maps that a network supports: Grad-CAM, and rollout of its class and distillation tokens, (H, W) each."""
    found: Dict[str, torch.Tensor] = {}
    try:
        found['Grad-CAM'] = grad_cam(model, batch, target, layer)[0][0]
    except NoMapsError:
        if layer is not None:
            raise
    try:
        rollout = attention_rollout(model, batch)[0]
        found.update(
            {
                f'rollout, {name}': heat
                for name, heat in zip(_name_tokens(model), rollout)
                if not name.startswith('register')
            }
        )
    except NoMapsError:
        pass
    if not found:
        raise NoMapsError(
            f'{type(model).__name__} has neither a stage with a feature map nor attention of prefix tokens: choose a'
            ' layer.'
        )
    return found


class _SheetRow(NamedTuple):
    """A row of a sheet: the image and its overlays, (h, w, 3) bytes each, their titles, and a label."""

    pictures: List[np.ndarray]
    titles: List[str]
    label: str


def _write_overlays(explanation: Explanation, number: int, folder: Path) -> _SheetRow:
    """Write NUMBER-NAME-MAP.png, the overlay of each map over an image."""
    path, image = Path(explanation.path), Image.fromarray(explanation.image)
    overlays = {name: Image.fromarray(overlay(explanation.image, heat)) for name, heat in explanation.maps.items()}
    name, frame = Path(split_suffix(path)[0]).name, split_frame(path)[1]
    stem = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)[:60]
    stem += '' if frame is None else f'-{frame}'
    for name, picture in overlays.items():
        suffix = name.lower().replace(',', '').replace(' ', '-')
        picture.save(folder / f'{number:03d}-{stem}-{suffix}.png')
    small = [np.asarray(ImageOps.contain(picture, (SHEET_SIZE, SHEET_SIZE))) for picture in (image, *overlays.values())]
    prob = format_metric('accuracy', explanation.probs[explanation.label])
    return _SheetRow(small, ['image', *overlays], f'{shorten(path.name, 24)}\n{shorten(explanation.label, 18)} {prob}')


def write_explanations(explanations: Iterable[Explanation], folder: PathLike, sheet_rows: int = 40) -> int:
    """Write the overlay of each map over each image, and sheets of them: sheet.png, sheet-2.png, ...

    Args:
        explanations: One after the other; only small pictures are kept in memory.
        folder: Folder to write.
        sheet_rows: Number of images per sheet.

    Returns:
        The number of images.

    Raises:
        FileExistsError: if the folder is not empty.
        ImportError: without matplotlib.
    """
    total = 0
    with new_folder(folder) as out:
        rows = (_write_overlays(explanation, number, out) for number, explanation in enumerate(explanations, 1))
        for sheet, chunk in enumerate(iter(lambda: list(itertools.islice(rows, sheet_rows)), []), 1):
            plot_images(
                [row.pictures for row in chunk],
                chunk[0].titles,
                [row.label for row in chunk],
                out / ('sheet.png' if sheet == 1 else f'sheet-{sheet}.png'),
            )
            total += len(chunk)
    return total
