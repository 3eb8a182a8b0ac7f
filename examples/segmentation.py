"""Train a U-Net whose encoder is an HDKD student, on phantom images with the masks of their findings.

    python examples/segmentation.py [--epochs N] [--img-size PX] [--out FOLDER]

It trains two networks on the same images in the same order, one from random weights, one whose encoder has released
weights, and tests both on other images. FOLDER gets dice.csv (the Dice score of each test image), examples.png (images,
masks and predictions) and the networks, which `segmentation_models_pytorch.from_pretrained('FOLDER/released')` loads
after `import hdkd_timm`. Needs segmentation_models_pytorch and matplotlib. For images of your own, write a dataset that
returns what `Phantoms` does.
"""

import argparse
import time
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import scipy.stats
import segmentation_models_pytorch as smp
import torch
from matplotlib.figure import Figure
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hdkd_timm  # noqa: F401, registers the encoder
from hdkd_timm.data.phantoms import KINDS, draw_masked_phantom
from hdkd_timm.utils.csv_files import write_rows

STARTS = ('random', 'released')
ENCODER, DEPTH, STRIDE = 'tu-hdkd_student.brain_mri', 4, 16  # number of maps, and stride of the last one


class Phantoms(Dataset):
    """Normalised images (3, H, W) and masks (1, H, W) of 0 and 1. All kinds are there equally often."""

    def __init__(self, number: int, img_size: int, seed: int, mean: Tuple[float, ...], std: Tuple[float, ...]):
        self.number, self.img_size, self.seed = number, img_size, seed
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return self.number

    def kind(self, index: int) -> str:
        return KINDS[index % len(KINDS)]

    def draw(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Grey image (H, W) of 0 to 255, and mask (H, W) of False and True."""
        return draw_masked_phantom(self.kind(index), np.random.default_rng([self.seed, index]), self.img_size)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, torch.Tensor]:
        image, mask = map(torch.from_numpy, self.draw(index))
        return (image / 255 - self.mean) / self.std, mask[None].float()


def create_unet(start: str) -> nn.Module:
    """Encoder from random or released weights. The decoder's are random."""
    return smp.Unet(
        ENCODER,
        encoder_depth=DEPTH,
        encoder_weights=True if start == 'released' else None,
        decoder_channels=(128, 64, 32, 16),
        dynamic_img_size=True,
    )


def train(model: nn.Module, dataset: Dataset, args: argparse.Namespace, device: torch.device) -> None:
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, generator=order)
    dice_loss, cross_entropy = smp.losses.DiceLoss('binary'), nn.BCEWithLogitsLoss()
    optimizer = create_optimizer_v2(model, opt='adamw', lr=args.lr, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, sched='cosine', num_epochs=args.epochs, warmup_epochs=1)
    model.train()
    for epoch in range(args.epochs):
        total = 0.0
        for images, masks in loader:
            logits, masks = model(images.to(device)), masks.to(device)
            loss = dice_loss(logits, masks) + cross_entropy(logits, masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
        scheduler.step(epoch + 1)
        print(f'  epoch {epoch + 1}/{args.epochs}  loss {total / len(dataset):.4f}', flush=True)


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset, batch_size: int, device: torch.device) -> Tuple[torch.Tensor, ...]:
    """Predicted and true masks, (N, H, W) of False and True."""
    model.eval()
    pairs = [(model(images.to(device)).cpu() > 0, masks > 0) for images, masks in DataLoader(dataset, batch_size)]
    return tuple(torch.cat(masks).squeeze(1) for masks in zip(*pairs))


def dice_scores(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice score of each image, 2 |A and B| / (|A| + |B|), and 1 where both masks are empty.

    Args:
        predicted: Masks of False and True, (N, H, W).
        target: Likewise.

    Returns:
        Scores, (N,).
    """
    shared, total = (predicted & target).sum(dim=(1, 2)), predicted.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    return torch.where(total > 0, 2 * shared / total.clamp(min=1), 1.0)


def format_scores(scores: Dict[str, np.ndarray], kinds: List[str], seconds: Dict[str, float]) -> str:
    """Mean Dice score of each kind and of all images, and the difference between the starts."""
    columns = {**{kind: np.array(kinds) == kind for kind in KINDS}, 'all': np.full(len(kinds), True)}
    lines = ['Dice score  ' + ''.join(f'{name:>8}' for name in columns) + '   training']
    for start, values in scores.items():
        means = ''.join(f'{values[chosen].mean():>8.3f}' for chosen in columns.values())
        lines.append(f'{start:<12}{means}{seconds[start]:>9.0f} s')
    difference = scores['released'] - scores['random']
    interval = scipy.stats.bootstrap((difference,), np.mean, rng=0).confidence_interval
    lines.append(f'released - random: {difference.mean():+.3f} ({interval.low:+.3f} to {interval.high:+.3f})')
    return '\n'.join(lines)


def paint(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """White where both masks are, orange where only the predicted one is, blue where only the true one is."""
    picture = np.zeros((*target.shape, 3), np.uint8)
    picture[predicted & target] = 255
    picture[predicted & ~target] = (230, 159, 0)
    picture[~predicted & target] = (0, 114, 178)
    return picture


def plot_examples(
    dataset: Phantoms,
    predictions: Dict[str, np.ndarray],
    scores: Dict[str, np.ndarray],
    path: Path,
    number: int = 6,
) -> None:
    """Write a picture of the first test images that have a finding: image, mask, and the prediction of each network."""
    chosen = [index for index in range(len(dataset)) if dataset.kind(index) != 'clear'][:number]
    figure = Figure(figsize=(1.15 * len(chosen), 5.2), layout='constrained')
    for column, index in zip(figure.subplots(2 + len(STARTS), len(chosen), squeeze=False).T, chosen):
        image, mask = dataset.draw(index)
        panels = [image, paint(mask, mask), *(paint(predictions[start][index], mask) for start in STARTS)]
        for axes, panel in zip(column, panels):
            axes.imshow(panel, cmap='gray', vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        column[0].set_title(dataset.kind(index), fontsize=9)
        for axes, start in zip(column[2:], STARTS):
            axes.set_xlabel(f'{scores[start][index]:.2f}', fontsize=8)
    for axes, label in zip(figure.axes[:: len(chosen)], ['image', 'mask', *STARTS]):
        axes.set_ylabel(label, fontsize=9)
    figure.savefig(path, dpi=110)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=positive, default=12)
    parser.add_argument('--img-size', type=positive, default=96)
    parser.add_argument('--train-images', type=positive, default=96)
    parser.add_argument('--test-images', type=positive, default=100)
    parser.add_argument('--batch-size', type=positive, default=16)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('segmentation'), help='folder to write')
    args = parser.parse_args()
    if args.img_size % STRIDE:
        parser.error(f"--img-size must be a multiple of {STRIDE}, the encoder's last stride, got {args.img_size}.")
    if args.out.exists():
        parser.error(f"--out '{args.out}' already exists: choose another folder, nothing is overwritten.")
    return args


def main() -> None:
    args = parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    args.out.mkdir(parents=True)
    predictions, scores, seconds = {}, {}, {}
    for start in STARTS:
        print(f'U-Net from {start} weights', flush=True)
        torch.manual_seed(args.seed)
        model = create_unet(start).to(device)
        data_config = resolve_model_data_config(model.encoder.model)
        normalization = dict(mean=data_config['mean'], std=data_config['std'])
        train_set = Phantoms(args.train_images, args.img_size, 2 * args.seed, **normalization)
        test_set = Phantoms(args.test_images, args.img_size, 2 * args.seed + 1, **normalization)
        began = time.time()
        train(model, train_set, args, device)
        seconds[start] = time.time() - began
        predicted, masks = predict(model, test_set, args.batch_size, device)
        predictions[start], scores[start] = predicted.numpy(), dice_scores(predicted, masks).numpy()
        model.save_pretrained(args.out / start)
    kinds = [test_set.kind(index) for index in range(len(test_set))]
    rows = [dict(image=i, kind=kind, **{start: scores[start][i] for start in STARTS}) for i, kind in enumerate(kinds)]
    write_rows(rows, args.out / 'dice.csv')
    plot_examples(test_set, predictions, scores, args.out / 'examples.png')
    print(format_scores(scores, kinds, seconds))


if __name__ == '__main__':
    main()
