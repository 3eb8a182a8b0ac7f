"""What a run takes from elsewhere beside images, teachers, class weights, SMOTE's numbers: compared when it resumes."""

import hashlib
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from torch import nn

from ..utils.files import check_sums, write_json
from ..utils.parsing import read_json
from ..utils.run_files import INPUTS_FILE


def digest_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe_inputs(
    teachers: Mapping[str, nn.Module],
    class_weight: Optional[torch.Tensor],
    classes: Sequence[str],
    smote: Optional[str],
    untested: Sequence[str] = (),
) -> Dict[str, Any]:
    """What a run is to be resumed with.

    Args:
        teachers: Name as it was given -> trained teacher.
        class_weight: Weights of the classes, (K,).
        classes: Class names by index.
        smote: File with the numbers of images of each class, if SMOTE adds some.
        untested: Networks of the run that have no results: teachers of other classes than the data.
    """
    return {
        'teachers': {name: digest_weights(teacher.state_dict()) for name, teacher in teachers.items()},
        'class_weights': {} if class_weight is None else dict(zip(classes, class_weight.tolist())),
        'smote': read_json(Path(smote)) if smote else {},
        'untested': list(untested),
    }


def keep_inputs(inputs: Mapping[str, Any], folder: Path) -> None:
    """Record what a run takes from elsewhere in its folder, if anything, or compare it with what was recorded. Runs of
    earlier versions have no record.

    Raises:
        ValueError: if a run that is resumed was started with others; names them, and the way out.
    """
    path = folder / INPUTS_FILE
    if not path.exists():
        if any(inputs.values()):
            write_json(dict(inputs), path, summed=True)
        return
    check_sums(folder, INPUTS_FILE)
    recorded = read_json(path)
    way_out = 'restore it, or start another run with --experiment'
    digests = zip(inputs['teachers'].items(), recorded.get('teachers', {}).values())
    changed = [name for (name, now), before in digests if now != before]  # the folder may be spelled otherwise
    if changed:
        raise ValueError(
            f"The teacher '{changed[0]}' of run '{folder}' has other weights than when the run was started: {way_out}."
        )
    for key, what in (('class_weights', '--class-weights'), ('smote', '--smote')):
        old, new = recorded.get(key, {}), inputs[key]
        for label in {**new, **old}:
            if old.get(label) != new.get(label):
                raise ValueError(
                    f"Run '{folder}' was started with {old.get(label)} for '{label}' in {what}, not {new.get(label)}:"
                    f' {way_out}.'
                )
