"""Images in tar files: links, inner tar files, damage."""

import io
import os
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from data_helpers import create, sizes, tar_folder, truncate
from helpers import write_images
from PIL import Image
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from hdkd_timm.data.sources.folders import read_folders
from hdkd_timm.data.sources.tars import TarReader


def png(grey):
    buffer = io.BytesIO()
    Image.new('L', (4, 4), grey).save(buffer, 'png')
    return buffer.getvalue()


def write_tar(path, *members, format=tarfile.PAX_FORMAT):
    """A tar file of (name, content), where a pair of texts is a symbolic link, and (name, 'hard', target)."""
    with tarfile.open(path, 'w', format=format) as tar:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what[0], bytes):
                info.size = len(what[0])
                tar.addfile(info, io.BytesIO(what[0]))
            else:
                info.type = tarfile.LNKTYPE if what[0] == 'hard' else tarfile.SYMTYPE
                info.linkname = what[-1]
                tar.addfile(info)
    return str(path)


def content(reader):
    """Name -> (grey, class) of each image."""
    found = {}
    for i in range(len(reader)):
        file, target = reader[i]
        found[reader.filename(i)] = (Image.open(file).getpixel((0, 0)), reader.classes[target])
    assert len(found) == len(reader)
    return found


def test_links_are_followed(tmp_path):
    reader = TarReader(
        write_tar(
            tmp_path / 'x.tar',
            ('store/blob', png(1)),
            ('a/1.png', png(2)),
            ('a/2.png', 'hard', 'a/1.png'),
            ('b/3.png', 'hard', 'store/blob'),
            ('b/4.png', '../a/2.png'),
            ('b/5.png', '4.png'),
            ('./b/6.png', png(6)),
            ('b/later.png', '../b/7.png'),
            ('b/7.png', png(7)),
        )
    )
    assert content(reader) == {
        'a/1.png': (2, 'a'),
        'a/2.png': (2, 'a'),
        'b/3.png': (1, 'b'),
        'b/4.png': (2, 'b'),
        'b/5.png': (2, 'b'),
        './b/6.png': (6, 'b'),
        'b/later.png': (7, 'b'),
        'b/7.png': (7, 'b'),
    }


@pytest.mark.parametrize(
    ('link', 'match'),
    [
        (('b/2.png', '../c/9.png'), "'b/2.png' is a link to '../c/9.png', which it does not contain: .*--dereference"),
        (('b/2.png', '/data/9.png'), 'which it does not contain'),
        (('b/2.png', '2.png'), 'which it does not contain'),
        (('b', 'hard', 'c'), 'which it does not contain'),
        (('b', '/data/b'), 'which it does not contain'),
    ],
)
def test_broken_links(tmp_path, link, match):
    with pytest.raises(ValueError, match=f"x.tar': .*{match}"):
        TarReader(write_tar(tmp_path / 'x.tar', ('a/1.png', png(1)), link))


def test_all_files_of_a_tar_of_linked_files_are_there(tmp_path):
    """`tar` writes a file that has two names as a file and a link."""
    folder = tmp_path / 'images'
    write_images(folder, classes=['a', 'b', 'c'], number=6)
    for name in 'abc':
        for i in range(6):
            os.link(folder / name / f'{i}.png', folder / name / f'{i}-hard.png')
            os.symlink(f'{i}.png', folder / name / f'{i}-soft.png')
    (tmp_path / 'data').mkdir()
    with tarfile.open(tmp_path / 'data' / 'train.tar', 'w') as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    samples = read_folders(tmp_path / 'data', only='train')[0]['train']
    assert np.bincount(samples.targets).tolist() == [18, 18, 18]
    for i in range(len(samples)):
        assert samples.reader[i][0].read() == (folder / samples.filename(i)).read_bytes()


def test_order_and_classes_are_timms(tmp_path):
    write_images(tmp_path, classes=['10', '9', 'Normal', 'glioma'], number=11, size=4)
    path = write_tar(
        tmp_path / 'x.tar', *((str(file.relative_to(tmp_path)), file.read_bytes()) for file in tmp_path.glob('*/*.png'))
    )
    ours, theirs = TarReader(path), ReaderImageInTar(path)
    assert [ours.filename(i) for i in range(44)] == [theirs.filename(i) for i in range(44)]
    assert ours.targets == theirs.targets.tolist()
    assert ours.classes == list(theirs.class_name_to_idx) == ['9', '10', 'glioma', 'Normal']


def test_hidden_and_other_files(tmp_path, caplog):
    dicom = b'\0' * 128 + b'DICM'
    path = write_tar(
        tmp_path / 'x.tar',
        ('a/1.jfif', png(1)),
        ('a/1.2.840.77', dicom),
        ('a/._1.jfif', b''),
        ('a/2.xyz', b'x'),
        ('__MACOSX/a/1.png', b''),
        ('.ipynb_checkpoints/1.png', b''),
        ('a/.ipynb_checkpoints/1.png', b''),
        ('labels.csv', b''),
        ('b/1.png', png(2)),
        ('b/link.txt', 'nowhere'),
    )
    reader = TarReader(path)
    assert [reader.filename(i) for i in range(len(reader))] == ['a/1.2.840.77', 'a/1.jfif', 'b/1.png']
    assert [record.message for record in caplog.records] == [
        f"Ignored 1 file in '{path}', without an image suffix: a/2.xyz (by suffix: .xyz 1)."
    ]


def test_duplicate_name(tmp_path):
    path = write_tar(tmp_path / 'x.tar', ('a/1.png', png(1)), ('a/2.png', 'hard', 'a/1.png'), ('./a/1.png', png(3)))
    assert content(TarReader(path))['./a/1.png'] == (3, 'a')  # as `tar -x` leaves it


def test_inner_tar_files(tmp_path):
    for name, grey in (('a', 10), ('b', 20)):
        write_tar(
            tmp_path / f'{name}.tar', ('1.png', png(grey)), ('./2.png', png(grey + 1)), ('3.png', 'hard', '1.png')
        )
    reader = TarReader(
        write_tar(tmp_path / 'x.tar', *((f'{name}.tar', (tmp_path / f'{name}.tar').read_bytes()) for name in 'ab'))
    )
    assert reader.classes == ['a', 'b']
    found = [(reader.filename(i), Image.open(reader[i][0]).getpixel((0, 0)), reader[i][1]) for i in range(len(reader))]
    assert sorted(found) == sorted(
        (name, grey, k)
        for k, base in enumerate((10, 20))
        for name, grey in (('1.png', base), ('./2.png', base + 1), ('3.png', base))
    )


def test_a_tar_file_that_changed_is_read_anew(tmp_path, monkeypatch):
    """timm keeps the list of a large tar file beside it, and takes that whatever the tar file holds by then."""
    path = tmp_path / 'train.tar'
    write_tar(path, ('a/1.png', png(1)), ('b/1.png', png(2)))
    monkeypatch.setattr('os.path.getsize', lambda path: 2**40)
    TarReader(str(path))
    write_tar(path, ('a/1.png', png(1)), ('b/1.png', png(2)), ('b/2.png', png(3)))
    assert len(TarReader(str(path))) == 3
    assert [file.name for file in tmp_path.iterdir()] == ['train.tar']


def test_sparse_members(tmp_path):
    """`tar --sparse` leaves holes of files out, uncompressed images on a black ground have such."""
    if not shutil.which('tar'):
        pytest.skip('needs tar')
    folder = tmp_path / 'images' / 'a'
    folder.mkdir(parents=True)
    pixels = np.zeros((600, 600), np.uint8)
    pixels[-1] = pixels[0] = 200
    Image.fromarray(pixels).save(tmp_path / '1.bmp')
    data = (tmp_path / '1.bmp').read_bytes()
    with open(folder / '1.bmp', 'wb') as file:
        file.write(data[:4096])  # header and palette
        file.seek(len(data) - 4096)
        file.write(data[-4096:])
    subprocess.run(['tar', '--sparse', '-cf', str(tmp_path / 'x.tar'), '-C', str(tmp_path / 'images'), 'a'], check=True)
    assert TarReader(str(tmp_path / 'x.tar'))[0][0].read() == data


def test_threads_and_processes_share_a_reader(tmp_path):
    """Nothing is open between two accesses."""
    path = write_tar(tmp_path / 'x.tar', *((f'{"ab"[i % 2]}/{i}.png', png(i)) for i in range(100)))
    reader = TarReader(path)
    with ThreadPoolExecutor(8) as pool:
        greys = list(pool.map(lambda i: Image.open(reader[i][0]).getpixel((0, 0)), range(100)))
    assert sorted(greys) == list(range(100))
    (tmp_path / 'train.tar').write_bytes((tmp_path / 'x.tar').read_bytes())
    dataset = create(tmp_path, only='train')[0]['train']
    loader = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2))
    assert [image.getpixel((0, 0))[0] for image, _ in loader] == [*range(0, 100, 2), *range(1, 100, 2)]


def test_nothing_is_lost_after_a_damaged_header(tmp_path, caplog):
    path = tmp_path / 'x.tar'
    write_tar(path, *((f'{label}/{i}.png', png(i)) for label in 'ab' for i in range(5)))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        start, end = members[6].offset, tar.offset
    flipped = whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :]
    zeroed = whole[:start] + bytes(512) + whole[start + 512 :]
    for damaged in (flipped, zeroed, whole[: start + 100], whole + whole):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.tar'.* at byte .*, but data follows: it is damaged, or several"):
            TarReader(str(path))
    outer = write_tar(tmp_path / 'outer.tar', ('c.tar', flipped))
    with pytest.raises(ValueError, match=r"outer\.tar': 'c\.tar': its list of files ends at byte"):
        TarReader(outer)
    assert not caplog.records
    path.write_bytes(whole[:end])
    assert len(TarReader(str(path))) == 10
    assert "x.tar' has no end-of-archive marker" in caplog.text


def test_tar_files(image_folder):
    expected = [(np.asarray(image), target) for image, target in create(image_folder)[0]['test']]
    for split in ('train', 'test'):
        tar_folder(image_folder / f'{split}.tar', image_folder / split)
        (image_folder / split).rename(image_folder / f'{split} folder')
    datasets, classes = create(image_folder)
    assert (sizes(datasets), classes) == ({'train': 24, 'test': 12}, ['a', 'b', 'c'])
    assert datasets['test'].samples.filenames() == [f'{c}/{i}.png' for c in 'abc' for i in range(4)]
    for (image, target), (pixels, expected_target) in zip(datasets['test'], expected):
        assert (np.asarray(image) == pixels).all()
        assert target == expected_target
    assert sizes(create(image_folder, only='test')[0]) == {'test': 12}
    datasets, _ = create(image_folder, train_fraction=0.5, val_fraction=0.25, in_chans=1)
    assert sizes(datasets) == {'train': 9, 'test': 12, 'val': 3}
    assert datasets['val'][0][0].mode == 'L'


def test_tar_files_beside_folders(image_folder):
    tar_folder(image_folder / 'VAL.tar', image_folder / 'test', prefix='./val/')
    write_images(image_folder / 'more', classes=['a', 'b', 'c', 'd'], number=1, suffix='.webp')
    datasets, _ = create(image_folder)
    assert sizes(datasets) == {'train': 24, 'val': 12, 'test': 12}
    tar_folder(image_folder / 'VAL.tar', image_folder / 'more')
    with pytest.raises(ValueError, match=r"Class 'd' is in '.*VAL\.tar' but not in '.*train'"):
        create(image_folder)


def test_bad_tar_files(image_folder):
    place = image_folder / 'val.tar'
    tar_folder(place, image_folder / 'test')
    whole = place.read_bytes()
    for content in (b'no tar file', b'', whole[: len(whole) // 2]):
        place.write_bytes(content)
        with pytest.raises(ValueError, match=r"val\.tar' is not a tar file of images in class folders"):
            create(image_folder)
    with tarfile.open(place, 'w'):
        pass
    with pytest.raises(ValueError, match=r"val\.tar' is not a tar file of images in class folders"):
        create(image_folder)
    (image_folder / 'test' / '0.png').write_bytes((image_folder / 'test' / 'a' / '0.png').read_bytes())
    tar_folder(place, image_folder / 'test')
    (image_folder / 'test' / '0.png').unlink()
    with pytest.raises(ValueError, match=r"val\.tar' contains images outside class folders or one level too deep"):
        create(image_folder)


def test_images_of_a_tar_file_are_named(image_folder):
    truncate(image_folder / 'test' / 'b' / '2.png')
    tar_folder(image_folder / 'val.tar', image_folder / 'test')
    with pytest.raises(ValueError, match=r"Cannot read image 'b/2\.png' .*--on-bad-image skip"):
        create(image_folder, only='val')
    assert len(create(image_folder, only='val', on_bad_image='skip')[0]['val']) == 11
    dataset = create(image_folder, only='val', check_images=False)[0]['val']
    with pytest.raises(ValueError, match=r"Cannot read image 'b/2\.png' \(OSError"):
        dataset[6]
