"""Where a network looks: Grad-CAM of a convolutional stage, and attention rollout from the tokens of a transformer."""
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import nn

from ..data.image_io import read_image
from ..evaluation.inference import Classifier, ModelConfig, OnnxModel, drop_bad_images, find_images, load_classifier
from ..evaluation.metrics import format_metric
from ..evaluation.plots import overlay, plot_images, shorten
from ..evaluation.temperature import scale
from ..utils.files import PathLike, new_folder

SHEET_SIZE = 300  # pixels of an image on a sheet


class NoMaps(ValueError):
    """A network has no layers of the kind that is looked at."""


def _find_maps(
        model: nn.Module,
        outputs: Dict[str, Any],
        channels: Dict[str, int],
) -> Tuple[torch.Tensor, bool]:
    """The output of the last stage that has maps, with four dimensions, and whether its channels come last.

    Args:
        model: The network, to name it.
        outputs: Of its stages.
        channels: How many they have, as far as timm tells.
    """
    for name, output in reversed(outputs.items()):
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            first, last = (output.shape[axis] == channels.get(name) for axis in (1, 3))
            is_last = last if first != last else getattr(model, 'output_fmt', 'NCHW') == 'NHWC'
            return output, is_last
    raise NoMaps(
        f'{type(model).__name__} has no stage of maps (looked at {", ".join(outputs) or "none"}): name a layer with an'
        ' output (B, K, h, w).')


@torch.enable_grad()
def grad_cam(
        model: nn.Module,
        images: torch.Tensor,
        targets: Optional[torch.Tensor] = None,
        layer: Optional[str] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1 and 2): which parts of an image speak for a class.

    Args:
        model: A timm model, as it is for inference.
        images: (B, C, H, W), normalised.
        targets: Class index of each image, (B,); the predicted one by default.
        layer: Module whose output (B, K, h, w) is looked at; by default the last stage that has maps, stage 3 of ours.

    Returns:
        Maps (B, H, W), 0 to 1 with 1 at the strongest place of each, 0 everywhere where nothing speaks for the class;
        and the logits (B, classes).

    Raises:
        ValueError: if there is no such layer; `NoMaps` if none has maps.
    """
    infos = [] if layer else getattr(model, 'feature_info', [])
    channels = {info['module']: info.get('num_chs', 0) for info in infos}
    names = [layer] if layer else list(channels)
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if layer and unknown:
        raise ValueError(f"{type(model).__name__} has no layer '{layer}': choose one of its named_modules().")
    outputs: Dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            outputs[name] = output
        return hook

    with ExitStack() as stack:
        for name in names:
            if name in modules:
                handle = modules[name].register_forward_hook(keep(name))
                stack.callback(handle.remove)
        logits = model(images.detach().requires_grad_())  # of a frozen network too there is a gradient
    maps, channels_last = _find_maps(model, outputs, channels)
    if targets is None:
        targets = logits.argmax(dim=1)
    score = logits.gather(1, targets[:, None]).sum()  # images do not touch each other in evaluation
    gradient, = torch.autograd.grad(score, maps)
    if channels_last:
        maps, gradient = maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps).sum(dim=1, keepdim=True).relu().detach().float()
    cam = F.interpolate(cam, size=images.shape[-2:], mode='bilinear', align_corners=False)[:, 0]
    return cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny), logits.detach()


@torch.inference_mode()
def attention_rollout(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): from which patches a token has what it knows.

    The attention of each block, mean of its heads, and the residual around it, half each, are multiplied through.

    Args:
        model: A timm model with `blocks` of attention, such as our students and vision transformers.
        images: (B, C, H, W), normalised.

    Returns:
        Maps (B, tokens, H, W) of each token that is no patch (class, then distillation), 0 to 1 with 1 at the
        strongest place of each.

    Raises:
        NoMaps: if the model has no such blocks or tokens.
    """
    layers = [getattr(block, 'attn', None) for block in getattr(model, 'blocks', ())]
    layers = [layer for layer in layers if hasattr(layer, 'attn_drop') and hasattr(layer, 'fused_attn')]
    prefix = getattr(model, 'num_prefix_tokens', 0)
    find_grid = getattr(model, '_get_grid_size', None) or getattr(
        getattr(model, 'patch_embed', None), 'dynamic_feat_size', None)
    reduction = model.feature_info[-1].get('reduction') if getattr(model, 'feature_info', None) else None
    if not layers or not prefix or find_grid is None or reduction is None:
        raise NoMaps(f'{type(model).__name__} has no blocks of attention with a class token.')
    attentions: List[torch.Tensor] = []
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.attn_drop.register_forward_pre_hook(lambda module, args: attentions.append(args[0]))
            stack.callback(handle.remove)
            stack.callback(setattr, layer, 'fused_attn', layer.fused_attn)
            layer.fused_attn = False  # the fused kernel never has the whole matrix
        model(images)
    rollout = None
    for attention in attentions:
        mixed = attention.float().mean(dim=1)
        mixed = (mixed + torch.eye(mixed.shape[-1], device=mixed.device)) / 2
        rollout = mixed if rollout is None else mixed @ rollout
    height, width = images.shape[-2:]
    maps = rollout[:, :prefix, prefix:].unflatten(2, find_grid((height, width)))  # (B, tokens, rows, columns)
    size = (maps.shape[2] * reduction, maps.shape[3] * reduction)  # may reach over the edge, or leave one out
    maps = F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
    maps = F.pad(maps, (0, max(0, width - size[1]), 0, max(0, height - size[0])))[..., :height, :width]
    return maps / maps.amax(dim=(2, 3), keepdim=True)


def _seen_box(size: Tuple[int, int], data_config: Dict[str, Any]) -> Tuple[float, float, float, float]:
    """Part of an image, (height, width), that the evaluation transform shows to the network: top, left, height, width
    in pixels. It may reach over the image's edges, into a border."""
    wanted = data_config['input_size'][-2:]
    if data_config['crop_mode'] == 'squash':
        seen = tuple(s * data_config['crop_pct'] for s in size)
    else:
        choose = max if data_config['crop_mode'] == 'border' else min
        factor = choose(s * data_config['crop_pct'] / w for s, w in zip(size, wanted))
        seen = tuple(w * factor for w in wanted)
    return (size[0] - seen[0]) / 2, (size[1] - seen[1]) / 2, *seen


def to_image_coordinates(
        maps: torch.Tensor,
        size: Tuple[int, int],
        data_config: Dict[str, Any],
) -> np.ndarray:
    """Maps over what the network saw as maps over the image that it was made from.

    Args:
        maps: (N, H, W), of the network's input.
        size: Height and width of the image.
        data_config: Of the evaluation transform, as timm's `resolve_data_config` returns it.

    Returns:
        (N, height, width); 0 where the network did not see the image.
    """
    top, left, height, width = _seen_box(size, data_config)
    ys = (torch.arange(size[0]) + 0.5 - top) / height * 2 - 1
    xs = (torch.arange(size[1]) + 0.5 - left) / width * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]), dim=-1)[None]
    inside = (grid.abs() <= 1).all(dim=-1)[0]
    sampled = F.grid_sample(maps[None].float().cpu(), grid, mode='bilinear', padding_mode='border', align_corners=False)
    return (sampled[0] * inside).numpy()


class Explanation(NamedTuple):
    """Where a network looked in one image, (h, w) pixels.

    Args:
        path: Image file.
        image: The image as it is, or shrunk if that was asked for, (h, w, 3) bytes.
        label: Class that is explained.
        probs: Class -> probability, of all.
        maps: Name ('Grad-CAM', 'rollout, class token', 'rollout, distillation token') -> map over the image, (h, w),
            0 to 1.
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
    """Grad-CAM of the predicted class, and attention rollout of networks with tokens, over images as they are.

    Args:
        model: As `load_classifier` takes it or returns it, no ONNX file.
        paths: Image files, and folders that are searched for them. All are read once before the first is explained.
        config: Device and image size.
        label: Class to explain instead of the predicted one.
        layer: As `grad_cam` takes it.
        on_bad_image: What becomes of images that cannot be read: 'error' or 'skip'.
        max_size: Longest side, in pixels, of the images and maps that come back, larger ones are shrunk for it: at 36
            megapixels maps take 400 MB. The network sees the image as it is.

    Returns:
        An explanation after the other, as they are asked for.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier` and `find_images`; if there is no such class or layer, or an
            image cannot be read; `NoMaps` if the network has none of both.
    """
    classifier = model if isinstance(model, Classifier) else load_classifier(model, config)
    if isinstance(classifier.model, OnnxModel):
        raise ValueError('ONNX files have no gradients: take the model that it was exported from.')
    names = classifier.classes or [str(i) for i in range(classifier.model.num_classes)]
    if label is not None and label not in names:
        raise ValueError(f"The model has no class '{label}' (classes: {', '.join(names)}).")
    files = drop_bad_images(find_images(paths, on_bad_image), classifier.img_mode, on_bad_image)
    return (_explain_image(classifier, path, names, label, layer, max_size) for path in files)


def _explain_image(
        classifier: Classifier,
        path: PathLike,
        names: List[str],
        label: Optional[str],
        layer: Optional[str],
        max_size: Optional[int],
) -> Explanation:
    image = read_image(path, classifier.img_mode)
    batch = create_transform(**classifier.data_config)(image)[None].to(classifier.device)
    with torch.inference_mode():
        probs = classifier.model(batch).float().softmax(1).double().cpu().numpy()
    if classifier.temperature is not None:
        probs = scale(probs, classifier.temperature)
    index = int(probs[0].argmax()) if label is None else names.index(label)
    maps = _find_all_maps(classifier.model, batch, torch.tensor([index], device=classifier.device), layer)
    if max_size is not None and max(image.size) > max_size:
        image = ImageOps.contain(image, (max_size, max_size))
    over = to_image_coordinates(torch.stack(list(maps.values())), image.size[::-1], classifier.data_config)
    return Explanation(
        str(path), np.asarray(image.convert('RGB')), names[index], dict(zip(names, probs[0].tolist())),
        dict(zip(maps, over)))


def _name_tokens(model: nn.Module) -> List[str]:
    """What the tokens in front of the patches are, as far as a model tells."""
    prefix = model.num_prefix_tokens
    names = ['class token'] if getattr(model, 'cls_token', None) is not None else []
    names += ['distillation token'] if getattr(model, 'dist_token', None) is not None else []
    names += [f'register {i + 1}' for i in range(getattr(model, 'num_reg_tokens', 0))]
    return names if len(names) == prefix else [f'token {i + 1}' for i in range(prefix)]


def _find_all_maps(
        model: nn.Module,
        batch: torch.Tensor,
        target: torch.Tensor,
        layer: Optional[str],
) -> Dict[str, torch.Tensor]:
    """The maps that a network has: Grad-CAM of stages, rollout of its class and distillation tokens, (H, W) each."""
    found: Dict[str, torch.Tensor] = {}
    try:
        found['Grad-CAM'] = grad_cam(model, batch, target, layer)[0][0]
    except NoMaps:
        if layer is not None:
            raise
    try:
        rollout = attention_rollout(model, batch)[0]
        found.update({
            f'rollout, {name}': heat for name, heat in zip(_name_tokens(model), rollout)
            if not name.startswith('register')})
    except NoMaps:
        pass
    if not found:
        raise NoMaps(f'{type(model).__name__} has neither stages of maps nor attention from tokens: name a layer.')
    return found


def write_explanations(explained: Iterable[Explanation], folder: PathLike, sheet_rows: int = 40) -> int:
    """Write the overlay of each map over each image, NUMBER-NAME-MAP.png, and sheets of them, so many images on each:
    sheet.png, sheet-2.png, ... Returns the number of images.

    Raises:
        FileExistsError: if the folder holds something.
        ImportError: without matplotlib.
    """
    number, sheets = 0, 0
    rows: List[List[np.ndarray]] = []
    labels: List[str] = []
    heads: List[str] = []

    def write_sheet(out: Path) -> None:
        nonlocal sheets
        sheets += 1
        plot_images(rows, heads, labels, out / ('sheet.png' if sheets == 1 else f'sheet-{sheets}.png'))
        rows.clear()
        labels.clear()

    with new_folder(folder) as out:
        for number, e in enumerate(explained, 1):
            pictures = [Image.fromarray(e.image), *(
                Image.fromarray(overlay(e.image, heat)) for heat in e.maps.values())]
            stem = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in Path(e.path).stem)[:60]
            for name, picture in zip(e.maps, pictures[1:]):
                words = name.lower().replace(',', '').replace(' ', '-')
                picture.save(out / f'{number:03d}-{stem}-{words}.png')
            heads = ['image', *e.maps]
            rows.append([np.asarray(ImageOps.contain(picture, (SHEET_SIZE, SHEET_SIZE))) for picture in pictures])
            prob = format_metric('accuracy', e.probs[e.label])
            labels.append(f'{shorten(Path(e.path).name, 24)}\n{shorten(e.label, 18)} {prob}')
            if len(rows) == sheet_rows:
                write_sheet(out)
        if rows:
            write_sheet(out)
    return number
