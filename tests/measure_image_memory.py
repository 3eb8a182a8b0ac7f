"""Peak memory of reading images: four bombs, and six real 16-bit PNG files of 20 megapixels at once.

Not a test: `python tests/measure_image_memory.py [FOLDER]` writes the files to a folder (default: a temporary one), if
they are not there, and prints a line each. The figures are what a fresh process takes beyond its imports (Linux's
VmHWM, as ru_maxrss counts what its parent had), its address space held to 6 GiB.
"""

import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import List, Optional

import numpy as np

LIMIT = 6 * 2**30
READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
import pydicom.pixels, numpy as np
from PIL import Image
from hdkd_timm.data.inspection import inspect_images
Image.init()
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))

before = peak()
errors = [record.error for record in inspect_images(sys.argv[1:])]
print(peak() - before, next(iter(errors), '') or 'read')
"""


def write_webp(path: Path, side: int = 16383) -> None:
    """34 bytes of a lossless WebP image that is all one colour."""
    head = b'\x2f' + struct.pack('<I', side - 1 | side - 1 << 14 | 1 << 28)
    data = (head + b'\x07\x10\x11\x11\x88\x88\xfe\x07').ljust(14, b'\0')
    path.write_bytes(b'RIFF' + struct.pack('<I', 12 + len(data)) + b'WEBPVP8L' + struct.pack('<I', len(data)) + data)


def write_png(path: Path, side: int, rows: Optional[np.ndarray] = None) -> None:
    """Grey, 16 bits: black, or these rows (height, width)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    height, width = (side, side) if rows is None else rows.shape
    compressor, data = zlib.compressobj(6 if rows is None else 1), []
    for i in range(height):
        row = bytes(2 * width) if rows is None else rows[i].astype('>u2').tobytes()
        data.append(compressor.compress(b'\0' + row))
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, 0, 0, 0, 0))
        + chunk(b'IDAT', b''.join(data) + compressor.flush())
        + chunk(b'IEND', b'')
    )


def write_deflated_dicom(path: Path, side: int) -> None:
    """Grey, 16 bits, black."""
    import pydicom
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, generate_uid

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, 'MONOCHROME2'
    dataset.Rows = dataset.Columns = side
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = bytes(2 * side * side)
    dataset.save_as(path, enforce_file_format=True)


def measure(paths: List[Path]) -> str:
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, '-c', READ.format(limit=LIMIT), *map(str, paths)],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.environ.get('PYTHONPATH', root), OMP_NUM_THREADS='1'),
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f'ended with {done.returncode}'])[-1]
    kib, _, error = done.stdout.strip().partition(' ')
    return f'{int(kib) / 2**20:6.2f} GiB   {error[:150]}'


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'real5.png').exists():
        write_files(folder)
    for name in ('bomb.webp', 'bomb.png', 'bomb.dcm', 'large.dcm'):
        path = folder / name
        print(f'{name:<12}{path.stat().st_size:>12,} bytes   {measure([path])}', flush=True)
    real = [folder / f'real{i}.png' for i in range(6)]
    print(f'6 real PNGs of 20 Mpix, {real[0].stat().st_size:,} bytes each   {measure(real)}')


def write_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    write_webp(folder / 'bomb.webp')
    write_png(folder / 'bomb.png', 13_000)
    write_deflated_dicom(folder / 'bomb.dcm', 21_000)
    write_deflated_dicom(folder / 'large.dcm', 9_000)  # within the limit
    for i in range(6):
        rows = np.add.outer(np.arange(4000) * 8, np.arange(5000) * 4) + rng.integers(0, 4096, (4000, 5000)) + 1000 * i
        write_png(folder / f'real{i}.png', 0, rows.clip(0, 65535))


if __name__ == '__main__':
    main()
