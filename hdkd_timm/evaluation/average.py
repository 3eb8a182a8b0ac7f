"""The average of the weights of several saved models, in shares that validation images choose."""

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from ..data.datasets import create_datasets
from ..data.samples import SampleDataset
from ..models.averaging import Averageable, average_weights, check_shares, load_averageable
from ..models.checkpoint import save_model
from ..utils.files import PathLike, check_output_folder, new_folder, write_json
from ..utils.image_size import to_height_width
from .candidates import Candidate, choose, format_numbers, rank
from .evaluate import EvalConfig, evaluate_model
from .metrics import METRIC_NAMES
from .model_sources import check_changeable, check_unseen, warn_of_calibration

_logger = logging.getLogger(__name__)

AVERAGE_FILE = 'average.json'
STEPS = 10  # of the shares of two models, from 0 to 1


def average_models(
    names: Sequence[PathLike],
    folder: PathLike,
    shares: Optional[Sequence[float]] = None,
    config: Optional[EvalConfig] = None,
    select_metric: Optional[str] = None,
) -> Dict[str, Any]:
    """Write a model folder with the average of the weights of several models, and average.json, which says of what.

    Without shares, validation images choose them: for two models from 0 to 1 in steps of 0.1, as in WiSE-FT (Wortsman
    et al. 2022, arXiv 2109.01903); for more a greedy soup (Wortsman et al. 2022, arXiv 2203.05482), which starts from
    the best and adds each of the others, from good to bad, if that is no worse. Without images the shares are equal.

    Args:
        names: Two models or more that differ in their weights only, as `load_model` accepts them.
        folder: Output folder; must not exist.
        shares: Share of each model, with a sum of 1.
        config: Validation images, those of `config.split`, and how to load and run the models.
        select_metric: Metric of the validation images that chooses; None for balanced accuracy or, of images with any
            number of labels, macro AUROC.

    Returns:
        What average.json holds: 'models', 'shares', and, if images chose them, 'split', 'select_metric' and
        'candidates', a list of the shares and metrics that were tried.

    Raises:
        FileExistsError: if the folder exists.
        FileNotFoundError, ValueError: as `load_averageable`, `check_changeable` and `evaluate_model`; if the shares are
            not valid, or images or a metric are given beside them; if a validation image is a training image of one of
            the models, or the metric is not one of the images'.
    """
    check_output_folder(folder, '--out-dir')
    check_changeable(names)
    config = config or EvalConfig()
    has_images = bool(config.data_dir or config.data_csv or config.dataset)
    if shares is not None:
        check_shares(shares, len(names))
        if has_images:
            raise ValueError('Images choose the shares: give either images or --shares.')
    if select_metric and not has_images:
        raise ValueError(f'--select-metric {select_metric} has no effect without images: add --data-dir or --data-csv.')
    models = load_averageable(
        names,
        config.label_names,
        model_name=config.model,
        img_size=config.img_size,
        use_ema=config.use_ema,
        model_kwargs=config.model_kwargs,
    )
    warn_of_calibration(names)
    record: Dict[str, Any] = {'models': [str(name) for name in names]}
    if has_images:
        select_metric = select_metric or ('macro_auroc' if models.problem else 'balanced_accuracy')
        candidates = _try(names, models, config, select_metric)
        shares = choose(candidates, select_metric, lambda each: max(each['shares']))['shares']  # the most even
        record.update(shares=shares, split=config.split, select_metric=select_metric, candidates=candidates)
    else:
        record['shares'] = shares = list(shares) if shares is not None else [1 / len(names)] * len(names)
    with new_folder(folder) as temporary:
        _save(models, shares, temporary, config)
        write_json(record, temporary / AVERAGE_FILE)
    return record


def _save(models: Averageable, shares: Sequence[float], folder: Path, config: EvalConfig) -> None:
    """Write the model folder of an average."""
    model = models.model
    model.load_state_dict(average_weights(models.state_dicts, shares))
    size = None if config.img_size is None else (model.in_chans, *to_height_width(config.img_size))
    save_model(model, folder, models.label_names, models.model_args, size, problem=models.problem)


# -- shares ------------------------------------------------------------------------------------------------------------


def _try(names: Sequence[PathLike], models: Averageable, config: EvalConfig, select_metric: str) -> List[Candidate]:
    """The averages that were tried on the validation images, with their metrics."""
    # an average's folder tells its architecture
    config = dataclasses.replace(config, model=None, model_kwargs={}, bootstrap=0, calibrated=False)
    candidates: List[Candidate] = []
    datasets, _ = create_datasets(
        dataclasses.replace(
            config, in_chans=models.model.in_chans, multi_label=bool(models.problem), check_images=False
        ),
        only=config.split,
    )
    if isinstance(datasets[config.split], SampleDataset):
        check_unseen(names, datasets[config.split].samples.filenames(), config.split)

    def evaluate(shares: List[float]) -> Candidate:
        with tempfile.TemporaryDirectory() as parent:
            _save(models, shares, Path(parent) / 'average', config)
            # the first one has read all images
            checked = dataclasses.replace(config, check_images=config.check_images and not candidates)
            report, _ = evaluate_model(str(Path(parent) / 'average'), checked)
        found = {'shares': shares, **{key: value for key, value in report.items() if isinstance(value, float)}}
        if report.get('classes_guessed'):
            raise ValueError(
                'The models have no class names, and their order is ambiguous: name the classes in index order,'
                ' --label-names NAME ...'
            )
        rank(found, select_metric)
        candidates.append(found)
        _logger.info(f'shares {format_numbers(shares)}: {METRIC_NAMES[select_metric]} {found[select_metric]:.4f}')
        return found

    if len(names) == 2:
        for i in range(STEPS + 1):
            evaluate([i / STEPS, 1 - i / STEPS])
    else:
        _add_greedily(len(names), evaluate, select_metric)
    return candidates


def _add_greedily(number: int, evaluate: Callable[[List[float]], Candidate], select_metric: str) -> None:
    """The greedy soup of Wortsman et al. 2022 (arXiv 2203.05482), recipe 1."""

    def even(chosen: Sequence[int]) -> List[float]:
        return [(i in chosen) / len(chosen) for i in range(number)]

    ranks = [rank(evaluate(even([i])), select_metric) for i in range(number)]
    order = sorted(range(number), key=lambda i: ranks[i], reverse=True)
    chosen, best = order[:1], ranks[order[0]]
    for i in order[1:]:
        found = rank(evaluate(even([*chosen, i])), select_metric)
        if found >= best:
            chosen, best = [*chosen, i], found
