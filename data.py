"""The data: a set made by torch alone, torchvision's sets, and folders of images.

`load_data` gives the training images, the held-out images and the class names; `loader` feeds
either of the first two to a model. Everything random is a function of a seed that is passed in:
batches and augmentation are the same whatever the number of worker processes.
"""

import http.client
import os
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model import UserError, unknown


class Data(NamedTuple):
    """A data set. Items are (image float32 (3, S, S) normalised, label int)."""

    train: Dataset
    val: Dataset
    classes: list[str]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (..., 3, S, S) in [0, 1] to zero mean and unit deviation in each channel."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


# ---------------------------------------------------------------------------------------------
# matching: which shape has the colour of the cue?
#
# The answer lies in one of 15 places, and only its colour tells which. A model can only solve the
# task by comparing the first cell with the others, which is what attention does.

GLYPHS = {
    "disc": "..##.. .####. ###### ###### .####. ..##..",
    "ring": "..##.. .#..#. #....# #....# .#..#. ..##..",
    "square": "###### ###### ###### ###### ###### ######",
    "frame": "###### #....# #....# #....# #....# ######",
    "plus": "..#... ..#... #####. ..#... ..#... ......",
    "cross": "#....# .#..#. ..##.. ..##.. .#..#. #....#",
    "horizontal bar": "...... ...... ###### ###### ...... ......",
    "vertical bar": "..##.. ..##.. ..##.. ..##.. ..##.. ..##..",
}
SHAPES = list(GLYPHS)
# Red, green, blue, yellow, magenta, cyan, white, grey: no two nearer than 0.86 in RGB, nor to black.
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0.5] * 3])
NOISE = 0.15
TRAIN_SEED, VAL_SEED = 0, 1  # the set is the same in every run, whatever the run's own seed


class Layout(NamedTuple):
    """What is drawn where, for B images with 4 glyphs each."""

    shapes: Tensor  # (B, 4) of the 8 SHAPES, drawn independently
    colours: Tensor  # (B, 4) of the 8 COLOURS, all four distinct
    cells: Tensor  # (B, 4) of 1..15, all four distinct; cell 0 holds the cue
    shifts: Tensor  # (B, 4, 2) of 0..2: rows and columns between the cell's corner and the glyph's
    cue: Tensor  # (B,) of 0..3: the glyph whose colour the cue has, and whose shape is the label


def layout(count: int, seed: int) -> Layout:
    # One row of uniform numbers for each image, so that the first n images do not depend on `count`.
    u = torch.rand(count, 36, generator=torch.Generator().manual_seed(2 * seed))
    cells, colours, shapes, shifts, cue = u.split([15, 8, 4, 8, 1], dim=1)
    return Layout(
        shapes=(shapes * 8).long(),
        colours=colours.argsort(1)[:, :4],
        cells=1 + cells.argsort(1)[:, :4],
        shifts=(shifts * 3).long().view(count, 4, 2),
        cue=(cue * 4).long().squeeze(1),
    )


def paint(plan: Layout) -> Tensor:
    """The images (B, 3, 32, 32) of a layout, without noise, on black."""
    stencils = torch.zeros(8, 3, 3, 8, 8)  # shape, shift down, shift right, rows, columns
    for shape, rows in enumerate(GLYPHS.values()):
        mask = torch.tensor([[pixel == "#" for pixel in row] for row in rows.split()]).float()
        for down in range(3):
            for right in range(3):
                stencils[shape, down, right, down : down + 6, right : right + 6] = mask

    image = torch.arange(len(plan.cue))
    colours = COLOURS[plan.colours]  # (B, 4, 3)
    tiles = torch.zeros(len(image), 16, 3, 8, 8)
    tiles[:, 0] = colours[image, plan.cue][:, :, None, None]
    glyphs = stencils[plan.shapes, plan.shifts[..., 0], plan.shifts[..., 1]]  # (B, 4, 8, 8)
    tiles[image[:, None], plan.cells] = glyphs[:, :, None] * colours[..., None, None]
    return tiles.view(-1, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 32, 32)


def matching(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) float32 in [0, 1] and labels (count,) int64, an index into SHAPES.

    A 4 x 4 grid of cells of 8 x 8 pixels. The first cell is filled with the colour of one of four
    glyphs that lie in other cells; the label is that glyph's shape. Chance is 12.5 %; naming the
    commonest of the four shapes, without a look at the cue, is right for 41 %. The same seed gives
    the same images, and a smaller count the first of them.
    """
    plan = layout(count, seed)
    # A stream of its own: noise from the layout's numbers would be correlated with the layout.
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2 * seed + 1))
    images = noise.mul_(NOISE).add_(paint(plan)).clamp_(0, 1)
    return images, plan.shapes[torch.arange(count), plan.cue]


class Matching(Dataset):
    """`matching` as a data set. It is never augmented: the seed in an item is not used."""

    def __init__(self, count: int, seed: int, img_size: int, mean, std):
        images, self.labels = matching(count, seed)
        self.images, self.img_size = normalise(images, mean, std), img_size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: list) -> list[tuple[Tensor, int]]:
        """A whole batch at once, resized only now: at 224 px the held-out set would fill 6 GB."""
        indices = [item[0] if isinstance(item, tuple) else item for item in items]
        images = self.images[indices]
        if self.img_size != 32:
            images = F.interpolate(images, (self.img_size,) * 2, mode="bilinear", antialias=True)
        return list(zip(images, self.labels[indices].tolist()))


# ---------------------------------------------------------------------------------------------
# Folders of images

Part = tuple[Any, list[int]]  # a source of items (PIL image, label), and the labels
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def read_image(path: Path):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


class Folder:
    """Image files, read when asked for. `samples` holds (label, path)."""

    def __init__(self, samples: list[tuple[int, Path]], classes: list[str]):
        self.samples, self.classes = samples, classes

    def __getitem__(self, index: int):
        from PIL import ImageFile

        label, path = self.samples[index]
        try:
            return read_image(path), label
        except OSError:  # a download cut short is common in large sets: keep what there is of it
            warnings.warn(f"{path} (class '{self.classes[label]}') is damaged; what can be read of it is used")
            ImageFile.LOAD_TRUNCATED_IMAGES = True
            try:
                return read_image(path), label
            except OSError as error:
                raise UserError(f"cannot read {path} (class '{self.classes[label]}'); remove or replace it") from error
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = False


def class_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, both sorted by name; a UserError where there are none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise UserError(f"{folder} has no class folders; put the images of each class into a folder of its own")
    files = {
        name: sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
        for name in names
    }
    for name in names:
        if not files[name]:
            raise UserError(f"class '{name}' has no images in {folder / name}; add some or remove the folder")
    return files


def hold_out(samples: list[tuple]) -> tuple[list, list]:
    """Splits samples (label, ...) into training and validation: the 1st, 11th, ... of each class."""
    seen, parts = Counter(), ([], [])
    for sample in samples:
        parts[seen[sample[0]] % 10 == 0].append(sample)
        seen[sample[0]] += 1
    return parts


def check_images(samples: list[tuple[int, Path]], classes: list[str]) -> None:
    from PIL import Image
    from tqdm import tqdm

    for label, path in tqdm(samples, desc="checking images", leave=False, disable=None):
        try:
            Image.open(path).close()  # reads the header alone
        except (OSError, Image.DecompressionBombError):
            raise UserError(f"cannot open {path} (class '{classes[label]}') as an image; remove or replace it")


def has_split(path: Path) -> bool:
    """Whether a folder of images is split into train/ and val/."""
    return (path / "train").is_dir() and (path / "val").is_dir()


def from_folder(path: Path, check: bool) -> tuple[Part, Part, list[str]]:
    """Reads PATH/train/CLASS/* and PATH/val/CLASS/*, or PATH/CLASS/* with every tenth image held out.

    Each part is a source with items (PIL image, label) and its labels; then come the class names.
    With `check` each file is opened first: a file that is no image is a UserError before the
    training, not in the middle of it.
    """
    parted = has_split(path)
    files = class_files(path / "train" if parted else path)
    classes = list(files)
    train = [(label, file) for label, name in enumerate(classes) for file in files[name]]
    if parted:
        val_files = class_files(path / "val")
        for name in val_files:
            if name not in classes:
                raise UserError(f"class '{name}' of {path / 'val'} is not in {path / 'train'}; add or remove it")
        val = [(classes.index(name), file) for name in val_files for file in val_files[name]]
    else:
        for name in classes:
            if len(files[name]) == 1:
                raise UserError(f"class '{name}' of {path} has one image, too few to hold any out; add at least one")
        train, val = hold_out(train)
    if check:
        check_images(train + val, classes)
    train_part, val_part = ((Folder(part, classes), [label for label, _ in part]) for part in (train, val))
    return train_part, val_part, classes


# ---------------------------------------------------------------------------------------------
# Sets that torchvision knows


class Source(NamedTuple):
    """A class of torchvision.datasets: how it is called for each split, and where its things are."""

    kind: str
    keyword: str
    train: str | bool  # the keyword's value for the training part
    val: str | bool  # for the held-out part; the same value means that `hold_out` parts it
    labels: str  # the attribute that lists the labels, alone or in pairs with files
    files: str  # below the root


SOURCES = {
    "imagenette": Source("Imagenette", "split", "train", "val", "_samples", "imagenette2-320"),
    "cifar10": Source("CIFAR10", "train", True, False, "targets", "cifar-10-batches-py"),
    "cifar100": Source("CIFAR100", "train", True, False, "targets", "cifar-100-python"),
    "stl10": Source("STL10", "split", "train", "test", "labels", "stl10_binary"),
    "food101": Source("Food101", "split", "train", "test", "_labels", "food-101"),
    "flowers102": Source("Flowers102", "split", "train", "test", "_labels", "flowers-102"),
    "pets": Source("OxfordIIITPet", "split", "trainval", "test", "_labels", "oxford-iiit-pet"),
    "fashion_mnist": Source("FashionMNIST", "train", True, False, "targets", "FashionMNIST/raw"),
    "svhn": Source("SVHN", "split", "train", "test", "labels", "{train,test}_32x32.mat"),
    "inat2017": Source("INaturalist", "version", "2017", "2017", "index", "2017"),
    "inat2018": Source("INaturalist", "version", "2018", "2018", "index", "2018"),
    "inat2019": Source("INaturalist", "version", "2019", "2019", "index", "2019"),
    "inat2021": Source("INaturalist", "version", "2021_train", "2021_valid", "index", "2021_{train,valid}"),
}
DATASETS = ["matching", *SOURCES, "imagenet"]
SMALL = {"cifar10", "cifar100", "stl10", "fashion_mnist", "svhn"}  # square, at most 96 px


def label_of(entry) -> int:
    """The label in one entry of a list of labels, of (path, label) or of (label, file)."""
    return next(part for part in entry if isinstance(part, int)) if isinstance(entry, tuple) else int(entry)


def from_torchvision(name: str, root: str) -> tuple[Part, Part, list[str]]:
    """Two parts, each of a source with items (PIL image, label) and its labels, and the class names."""
    from torchvision import datasets

    source = SOURCES[name]
    size = {"size": "320px"} if name == "imagenette" else {}
    try:
        build = getattr(datasets, source.kind)
        train, val = (build(root, download=True, **{source.keyword: part}, **size) for part in source[2:4])
    except ImportError as error:  # torchvision reads the .mat files of flowers102 and svhn with scipy
        raise UserError(f"{name} needs the package {error.name}; install it with pip install {error.name}")
    except (RuntimeError, OSError, EOFError, http.client.HTTPException, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load {name} ({reason}); its files belong at {root}/{source.files}")
    if source.kind == "INaturalist":  # it lists files in the disk's order
        train.index.sort()
        val.index.sort()
        if source.train == source.val:
            train.index, val.index = hold_out(train.index)
    train_labels, val_labels = ([label_of(entry) for entry in getattr(part, source.labels)] for part in (train, val))
    numbers = [str(label) for label in sorted(set(train_labels))]
    classes = getattr(train, "classes", None) or getattr(train, "all_categories", None) or numbers
    classes = [name if isinstance(name, str) else name[0] for name in classes]  # imagenette's have synonyms
    return (train, train_labels), (val, val_labels), classes


# ---------------------------------------------------------------------------------------------
# From files to tensors


class Images(Dataset):
    """The images `indices` of a source whose items are (PIL image, label).

    An item is asked for by its index, which gives the plain view that evaluation uses, or by a
    pair (index, seed), which gives the augmented view drawn from that seed.
    """

    def __init__(self, source, labels: list[int], indices: Sequence[int], view, augmented, erase, mean, std):
        self.source, self.indices, self.labels = source, indices, [labels[i] for i in indices]
        self.view, self.augmented, self.erase, self.mean, self.std = view, augmented, erase, mean, std

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        from torchvision.transforms.v2.functional import pil_to_tensor

        index, seed = item if isinstance(item, tuple) else (item, None)
        image = self.source[self.indices[index]][0].convert("RGB")
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is None or self.augmented is None:
                tensor = normalise(pil_to_tensor(self.view(image)) / 255, self.mean, self.std)
            else:
                # Not torch.manual_seed, which would seed the GPU's generators too, beyond the fork.
                torch.default_generator.manual_seed(seed)
                tensor = normalise(pil_to_tensor(self.augmented(image)) / 255, self.mean, self.std)
                tensor = self.erase(tensor)
        return tensor, self.labels[index]


def views(name: str, img_size: int, randaugment: int = 0, erasing: float = 0.0):
    """The plain view and the augmented one, PIL image to PIL image of S x S pixels, and what is done to the tensor.

    Small sets, and any set at 64 px or less, are resized whole; of others, the plain view is the
    central 7/8. The random crop takes at least 8 % of the area (Szegedy et al., "Going deeper with
    convolutions", 2015, section 6), or 35 % where that would leave too few pixels.
    """
    from torchvision.transforms import v2

    small = name in SMALL or img_size <= 64
    bicubic = v2.InterpolationMode.BICUBIC
    if small:
        view = v2.Resize((img_size, img_size), bicubic)
    else:
        view = v2.Compose([v2.Resize(round(img_size / 0.875), bicubic), v2.CenterCrop(img_size)])
    crop = v2.RandomResizedCrop(img_size, scale=(0.35 if small else 0.08, 1), interpolation=bicubic)
    augmented = [crop]
    if name != "svhn":  # a mirrored digit is another digit, or none
        augmented.append(v2.RandomHorizontalFlip())
    if randaugment:  # arXiv 1909.13719
        augmented.append(v2.RandAugment(magnitude=randaugment, interpolation=v2.InterpolationMode.BILINEAR))
    # Zhong et al., "Random Erasing" (arXiv 1708.04896); zero is the mean of a normalised image
    return view, v2.Compose(augmented), v2.RandomErasing(erasing) if erasing else v2.Identity()


def balanced(labels: list[int], count: int) -> list[int]:
    """The indices of `count` images, as many of each class as can be, the same at every call.

    A smaller subset is contained in a larger one.
    """
    classes = len(set(labels))
    if not classes <= count <= len(labels):
        raise UserError(f"{count} training images asked for; choose {classes} (one a class) to {len(labels)} (all)")
    seen, turns = Counter(), []
    for index in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist():
        turns.append((seen[labels[index]], index))
        seen[labels[index]] += 1
    return [index for _, index in sorted(turns, key=lambda turn: turn[0])[:count]]


def find_folder(name: str, root: str, datasets: Sequence[str] = DATASETS) -> Path:
    """The folder that `name` is a path of, or ROOT/imagenet; a UserError naming `datasets` if it is not there."""
    if name == "imagenet":
        path = Path(root) / "imagenet"
        if not has_split(path):
            raise UserError(f"imagenet cannot be downloaded; put its class folders into {path}/train and {path}/val")
        return path
    if not Path(name).is_dir():
        if os.sep in name:
            raise UserError(f"no folder {name}; give the path of a folder of images or one of {', '.join(datasets)}")
        raise UserError(f"{unknown('dataset', name, datasets)} (the path of a folder of images works too)")
    return Path(name)


def load_data(
    name: str,
    root: str,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    train_images: int | None = None,
    augment: bool = True,
    randaugment: int = 0,
    erasing: float = 0.0,
) -> Data:
    """One of DATASETS (files below `root`, downloaded if missing), or the path of a folder of images.

    `augment` crops and flips the training images at random; `randaugment` (a magnitude, 0 for none) and `erasing`
    (a probability) add to that. `train_images` keeps a class-balanced subset, the same in every run; of matching it is
    the number to make, 500 unless told (held out: 10,000). imagenet is ROOT/imagenet/{train,val} with
    a folder for each class. A folder has the same layout, or class folders alone, of which every
    tenth image of each class is held out, as it is for inat2017, inat2018 and inat2019. flowers102
    trains on its 1,020 training images and holds out the test split, like all that have one.
    Raises UserError for what the user can mend.
    """
    if name == "matching":
        count = 500 if train_images is None else train_images
        if not 1 <= count <= 100_000:
            raise UserError(f"{count} training images asked for; matching makes 1 to 100,000")
        train = Matching(count, TRAIN_SEED, img_size, mean, std)
        return Data(train, Matching(10_000, VAL_SEED, img_size, mean, std), SHAPES)

    if name in SOURCES:
        (train, train_labels), (val, val_labels), classes = from_torchvision(name, root)
    else:  # imagenet goes unchecked: opening 1.3 million files takes too long
        path = find_folder(name, root)
        (train, train_labels), (val, val_labels), classes = from_folder(path, check=name != "imagenet")

    view, augmented, erase = views(name, img_size, randaugment, erasing)
    indices = range(len(train_labels)) if train_images is None else balanced(train_labels, train_images)
    return Data(
        Images(train, train_labels, indices, view, augmented if augment else None, erase, mean, std),
        Images(val, val_labels, range(len(val_labels)), view, None, None, mean, std),
        classes,
    )


# ---------------------------------------------------------------------------------------------
# Batches


def loader(
    dataset: Dataset,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
    pin: bool = False,
) -> DataLoader:
    """Batches (images (B, 3, S, S), labels (B,)) of one pass over the data, the last one shorter.

    Without a seed, for evaluation: in order, unaugmented; shard (rank, world) has every world-th
    image, so that the shards together hold each image once. With a seed, for training: `batch_size`
    counts a global batch, shuffled and augmented by (seed, epoch) alone, of which the shard has
    every world-th image; a last batch that leaves some shard without an image is left out.
    `start` skips as many batches, to go on in the middle of an epoch.
    """
    rank, world = shard
    count = len(dataset)
    if seed is None:
        mine = range(rank, count, world)
        batches = [list(mine[at : at + batch_size]) for at in range(0, len(mine), batch_size)]
    else:
        # torch's generator keeps 32 bits of its seed: fold (seed, epoch) into them.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32)
        order = torch.randperm(count, generator=generator).tolist()
        seeds = torch.randint(2**32, (count,), generator=generator).tolist()
        whole = [order[at : at + batch_size] for at in range(0, count, batch_size)]
        batches = [[(index, seeds[index]) for index in batch[rank::world]] for batch in whole if len(batch) >= world]
    # A generator of its own: without it, each pass would advance torch's global one.
    return DataLoader(
        dataset,
        batch_sampler=batches[start:],
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),
        worker_init_fn=leave_group,
    )


def leave_group(worker: int) -> None:
    """Ctrl-C, and torchrun when it ends, signal a whole process group; when workers end, the main process says."""
    os.setpgrp()
