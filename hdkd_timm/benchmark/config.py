"""The settings of `hdkd bench`."""

import dataclasses
from typing import Optional, Tuple

from ..models.hdkd import MIN_IMG_SIZE
from ..utils.config import check_values, setting

PARTS = ('step', 'profile', 'inference', 'inference-profile', 'epoch', 'growth')
EXPORTS = {  # form -> format of `export_model`, and whether it is quantised
    'onnx': ('onnx', False),
    'int8': ('onnx', True),
    'openvino': ('openvino', False),
    'openvino-int8': ('openvino', True),
}
FORMS = ('eager', 'fused', 'kept', 'compiled', *EXPORTS)
DEFAULT_FORMS = tuple(form for form in FORMS if not form.startswith('openvino'))
MODELS = ('hdkd_teacher', 'hdkd_student', 'hdkd_student_plain', 'hdkd_teacher_s4', 'hdkd_student_s4')
OTHERS = ('mobilevit_s', 'tiny_vit_5m_224', 'levit_128', 'deit_tiny_distilled_patch16_224', 'efficientnet_b0')


@dataclasses.dataclass
class BenchConfig:
    """Settings of `run_benchmark`."""

    parts: Tuple[str, ...] = setting(PARTS, 'what to measure', choices=PARTS, group='benchmark', common=True)
    img_size: int = setting(224, 'height and width of the images in pixels', at_least=MIN_IMG_SIZE, common=True)
    batch_size: int = setting(
        8, 'batch size of the training steps and of the profiles', flags=('-b',), at_least=1, common=True
    )
    rounds: int = setting(5, 'number of timings of which the median is reported', at_least=1, common=True)
    models: Tuple[str, ...] = setting(
        (*MODELS, *OTHERS), "networks of the inference tables, any of timm's", common=True
    )
    forms: Tuple[str, ...] = setting(
        DEFAULT_FORMS, 'forms of each network in the inference table', choices=FORMS, common=True
    )
    inference_batches: Tuple[int, ...] = setting((1, 8, 64), 'batch sizes of the inference table', at_least=1)
    growth_sizes: Tuple[int, ...] = setting(
        (112, 160, 224, 320, 448), 'image sizes of the growth table', at_least=MIN_IMG_SIZE
    )
    growth_batches: Tuple[int, ...] = setting((4, 8, 16, 32, 64), 'batch sizes of the growth table', at_least=1)
    data_dir: Optional[str] = setting(
        None, 'folder with train/<class>/* for the epochs (default: synthetic phantom images)', metavar='DIR'
    )
    epoch_images: int = setting(128, 'number of phantom images', at_least=8)
    compiled: bool = setting(True, 'include compiled networks', common=True)
    memory: bool = setting(True, 'include the peak memory of a step, measured in a separate process per form')
    amp: bool = setting(
        True, 'include mixed precision (CPUs without AMX or AVX-512 BF16 gain nothing from it)', common=True
    )
    amp_dtype: str = setting('bfloat16', 'autocast dtype', choices=('float16', 'bfloat16'))
    workers: int = setting(2, 'loader processes for the epochs', flags=('-j',), at_least=0)
    device: Optional[str] = setting(None, 'cpu, cuda, ... (default: the best available)', common=True)
    out: str = setting('bench.csv', 'CSV file to write', metavar='FILE', common=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        check_values(self)
