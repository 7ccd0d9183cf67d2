"""This module loads images as batches, from the data set `matching`, torchvision's data sets, or folders of images.

`load_data` returns training images, held-out images and class names. `plan_epoch` says which images form which batch,
and a `Loader` reads them. Seeds from the caller determine everything random, whatever the number of workers.
"""

import filecmp
import hashlib
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from support.errors import UserError, unknown
from support.matching import SHAPES, matching
from support.randaugment import rand_augment

# torchvision is imported inside the functions that need it: the import takes more than a second, and `matching` does
# not need it.


class Data(NamedTuple):
    """Training images, held-out images and classes. Items are (image, label), with normalised float32 (3, S, S)."""

    train: Dataset
    val: Dataset
    classes: list[str]


class Split(NamedTuple):
    """The training images or the held-out images of a source, each as (index in the source, label).

    An item of the source begins with an image, or with the path of an image file below the folder `root`.
    """

    source: Any
    items: list
    root: str = ""

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields each image's path, or "" if it is no file, and its name: the path below the root, or its index."""
        for index, _ in self.items:
            image = self.source[index][0]
            path = image if isinstance(image, str) else ""
            yield path, path.removeprefix(self.root).lstrip(os.sep) or str(index)


def normalise(images: Tensor, mean: tuple, std: tuple) -> Tensor:
    """Subtracts each channel's mean from images (..., 3, S, S) and divides by the channel's standard deviation."""
    mean, std = by_channel(mean, std, images.device)
    return (images - mean) / std


@cache
def by_channel(mean: tuple, std: tuple, device: torch.device) -> Tensor:
    """Returns both as a tensor (2, 3, 1, 1) on the device. It is cached, since each copy to a GPU waits for the GPU."""
    return torch.tensor((mean, std), device=device).view(2, 3, 1, 1)


# ---- Data sets by name -----------------------------------------------------------------------------------------------

# All runs make `matching` from these seeds, whatever their own seed, so all runs have the same images.
TRAIN_SEED = 0
VAL_SEED = 1
MATCHING = 500  # This is the default number of its training images.


class Source(NamedTuple):
    """A source says how to call a class of torchvision.datasets for each split, and where its files are."""

    kind: str
    keyword: str
    train: Any  # The keyword has this value for the training images.
    val: Any  # It has this value for the held-out images. If both values are equal, a tenth of the images is held out.
    labels: str  # This attribute lists the labels, either alone or in pairs with files.
    files: str  # The files are at this path below the root.
    options: dict = {}  # The class is also called with these options.


SOURCES = {
    "imagenette": Source("Imagenette", "split", "train", "val", "_samples", "imagenette2-320", {"size": "320px"}),
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
# torchvision does not notice if images of these data sets are missing, so their numbers of training and held-out images
# are listed here. Where both numbers are equal, a tenth of the images is held out.
COUNTS = {
    "imagenette": (9469, 3925),
    "inat2017": (675_170, 675_170),
    "inat2018": (461_939, 461_939),
    "inat2019": (268_243, 268_243),
    "inat2021": (2_686_843, 100_000),
}
MADE = ["matching", *SOURCES]  # These are computed or downloaded, so they are always the same.
DATASETS = [*MADE, "imagenet"]
SMALL = {"cifar10", "cifar100", "stl10", "fashion_mnist", "svhn"}  # Their images are square and at most 96 px wide.


def load_data(
    name: str,
    root: str,
    img_size: int,
    normalisation: tuple,
    train_images: int | None = None,
    augment: bool = True,
    randaugment: float = 0.0,
    erasing: float = 0.0,
) -> Data:
    """Loads one of DATASETS (its files are below `root`, and downloaded if missing), or a folder given by its path.

    `augment` crops and flips the training images at random. `randaugment` (a magnitude, 0 for none) and `erasing` (a
    probability) change them further. `train_images` keeps a class-balanced subset of them. For matching it is the
    number of images to make, 500 by default; 10,000 more are held out. ImageNet is in ROOT/imagenet/{train,val}, with a
    folder for each class. A folder of images has the same layout, or only class folders; then a tenth of the images is
    held out (see `hold_out`).
    """
    if name == "matching":
        count = train_images or MATCHING
        if count > 100_000:
            raise UserError(f"{count} training images requested; matching makes 1 to 100,000")
        train = matching_split(count, TRAIN_SEED, normalisation)
        val = matching_split(10_000, VAL_SEED, normalisation)
        plain = partial(resized, img_size=img_size)
        return Data(Images(train, normalisation, plain), Images(val, normalisation, plain), SHAPES)

    if name in SOURCES:
        train, val, classes = from_torchvision(name, root)
    else:
        train, val, classes = from_folder(find_folder(name, root))
    if train_images is not None:
        train = balanced(train, train_images)
    plain = plain_view(name, img_size)
    augmented = augmented_view(name, img_size, normalisation, randaugment, erasing) if augment else None
    return Data(Images(train, normalisation, plain, augmented), Images(val, normalisation, plain), classes)


def one_name(name: str, datasets: list = DATASETS) -> str:
    """Returns the unique name of a data set. For a folder of images, this is its absolute path.

    A name with a slash is a folder, even if a data set has the same name.
    """
    return name if name in datasets else str(find_folder(name, "", datasets).resolve())


def find_folder(name: str, root: str, datasets: list = DATASETS) -> Path:
    """Returns ImageNet's folder, or the one at the path `name`. If it is missing, a `UserError` names `datasets`."""
    if name == "imagenet":
        path = Path(root, name)
        if not (path.is_dir() and splits_of(path)):
            raise UserError(f"imagenet cannot be downloaded; put its class folders into {path}/train and {path}/val")
        return path
    path = Path(name)
    if path.is_dir():
        return path
    if os.sep in name:
        raise UserError(f"there is no folder {name}; put it back, or give another folder with --data")
    raise UserError(f"{unknown('dataset', name, datasets)} (there is no folder of that name either)")


def from_torchvision(name: str, root: str) -> tuple:
    """Returns the training images, the held-out images and the class names of one of torchvision's data sets."""
    from torchvision import datasets

    source = SOURCES[name]
    dataset = partial(getattr(datasets, source.kind), root, download=True, **source.options)
    try:
        train, val = (dataset(**{source.keyword: split}) for split in (source.train, source.val))
    except Exception as error:  # If the network, a package or a file is missing, torchvision may raise any error.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot load {name} ({reason}); its files belong at {root}/{source.files}; "
            "delete any that are only partly unpacked"
        ) from error

    splits = []
    for split, published in zip((train, val), COUNTS.get(name, (0, 0)), strict=True):
        split.loader = str  # Data sets that open files now return the paths instead, and `read_image` opens them.
        if source.kind == "INaturalist":  # This class lists files in an order that depends on the disk.
            split.index.sort()
        labels = [label_of(entry) for entry in getattr(split, source.labels)]
        # Some data sets list their files, and some of these may be missing.
        paths = getattr(split, "_image_files", getattr(split, "_images", []))
        there = sum(map(os.path.isfile, paths)) if paths else len(labels)
        count = published or len(labels)
        if there < count:
            raise UserError(
                f"{name} is only partly unpacked: {there:,} of {count:,} images are there; "
                f"delete {root}/{source.files}, and start again"
            )
        images = [(str(path),) for path in paths] or split
        splits.append(Split(images, list(enumerate(labels)), str(root)))
    names = getattr(train, "classes", getattr(train, "all_categories", sorted(set(labels))))
    # A class of Imagenette has a tuple of synonyms.
    classes = [str(name[0] if isinstance(name, tuple) else name) for name in names]
    return *(hold_out(splits[0]) if source.train == source.val else splits), classes


def label_of(entry: Any) -> int:
    """Returns the label of an entry, which is the label itself, or (path, label), or (label, file)."""
    return next(item for item in entry if isinstance(item, int)) if isinstance(entry, tuple) else int(entry)


def matching_split(count: int, seed: int, normalisation: tuple) -> Split:
    images, labels = matching(count, seed)
    source = list(zip(normalise(images, *normalisation), labels, strict=True))
    return Split(source, list(enumerate(labels.tolist())))


def hold_out(split: Split) -> tuple:
    """Holds out a tenth of the images, and returns the training and the held-out images.

    An image is held out if the hash of its name is in the lowest tenth. If a class has no such image, the one with the
    lowest hash is held out. So a new image turns no training image into a held-out one, except in very small classes.
    """
    by_class = {}
    for item, (_, name) in zip(split.items, split.files(), strict=True):
        digest = hashlib.sha256(os.fsencode(name)).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64  # from 0 to 1
        by_class.setdefault(item[1], []).append((draw, item))
    held_out = set()
    for drawn in by_class.values():
        lowest = sum(draw < 0.1 for draw, _ in drawn)
        count = min(max(lowest, 1), len(drawn) - 1)
        held_out.update(item for _, item in sorted(drawn)[:count])
    train = [item for item in split.items if item not in held_out]
    return split._replace(items=train), split._replace(items=sorted(held_out))


def fingerprints(images: Data) -> dict:
    """Returns a fingerprint of each set of images: their number, and a hash of names, sizes in bytes and labels.

    For about a hundred files the hash covers the content too, since images of one format may all have the same size.
    """
    prints = {}
    for part, split in ("train_set", images.train.split), ("val_set", images.val.split):
        digest = hashlib.sha256()
        every = len(split.items) // 100 + 1
        for place, (path, name) in enumerate(split.files()):  # The order counts: it decides which images share a batch.
            size = os.path.getsize(path) if path else 0
            digest.update(os.fsencode(f"{name} {size} {split.items[place][1]}\n"))
            if path and place % every == 0:
                digest.update(Path(path).read_bytes())
        prints[part] = f"{len(split.items):,} ({digest.hexdigest()[:16]})"
    return prints


def seen_before(images: Split, training: Split) -> int:
    """Counts the images for which a training image has the same file name and content."""
    known = {}
    for path, _ in training.files():
        if path:
            known.setdefault((os.path.basename(path), os.path.getsize(path)), []).append(path)
    found = 0
    for path, _ in images.files():
        twins = known.get((os.path.basename(path), os.path.getsize(path)), []) if path else []
        found += any(path == twin or filecmp.cmp(path, twin, shallow=False) for twin in twins)
    return found


def balanced(split: Split, count: int) -> Split:
    """Chooses `count` images, with the same number from each class as far as possible.

    Every call chooses the same images, and a larger count includes the images of a smaller one.
    """
    # In a random order, each image is the first, second, ... of its class. First ones are chosen first, and so on.
    seen = Counter()
    turns = {}
    for place in torch.randperm(len(split.items), generator=torch.Generator().manual_seed(0)).tolist():
        item = split.items[place]
        turns[item] = seen[item[1]]
        seen[item[1]] += 1
    if not len(seen) <= count <= len(turns):
        raise UserError(f"{count} training images requested; choose {len(seen)} (one per class) to {len(turns)} (all)")
    return split._replace(items=sorted(turns, key=turns.get)[:count])


# ---- Folders of images -----------------------------------------------------------------------------------------------

# Splits have these names, in upper or lower case. If there is no validation set, the test set is used.
SPLITS = {name: "train" for name in ("train", "training")}
SPLITS |= {name: "val" for name in ("val", "valid", "validation", "dev", "eval", "evaluation")}
SPLITS |= {name: "test" for name in ("test", "testing")}
ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def splits_of(folder: Path) -> tuple[Path, Path] | None:
    """Returns the folders of the training and the held-out images, or None if no folders have the usual names."""
    found = {}
    for name in folders_of(folder):
        split = SPLITS.get(name.lower())
        if split in found:
            raise UserError(f"{folder} has both {found[split].name} and {name}; keep only one of them")
        if split:
            found[split] = folder / name
    held_out = found.get("val", found.get("test"))
    return (found["train"], held_out) if "train" in found and held_out else None


def from_folder(folder: Path) -> tuple:
    """Returns training images, held-out images and class names of a folder.

    It reads FOLDER/train/CLASS/* and FOLDER/val/CLASS/*, or else holds out a tenth of FOLDER/CLASS/*.
    """
    splits = splits_of(folder)
    place = splits[0] if splits else folder
    images, classes = class_folders(place)
    if len(classes) == 1:
        inside = place / classes[0]
        advice = f"give {inside}, which has several" if len(folders_of(inside)) > 1 else "a student needs two or more"
        raise UserError(f"{place} has only one class, '{classes[0]}', so there is nothing to learn; {advice}")
    if splits:
        return images, class_folders(splits[1], classes)[0], classes
    for label, count in Counter(label for _, label in images.items).items():
        if count == 1:
            raise UserError(
                f"class '{classes[label]}' of {folder} has only one image, so none can be held out; add at least one"
            )
    return *hold_out(images), classes


def class_folders(folder: Path, classes: list | None = None) -> tuple[Split, list]:
    """Returns the images FOLDER/CLASS/*, also those in subfolders of a class, and the names of the classes.

    A label is the index of the class in `classes`, which by default are the folder's own classes in alphabetical order.
    Hidden files and folders are ignored.
    """
    found = files_below(folder)
    left_out = found.pop(".")
    if not found:
        raise UserError(f"{folder} has no class folders; put the images of each class into a folder of its own")
    if {name.lower() for name in found} <= SPLITS.keys():
        raise UserError(
            f"{folder} has {' and '.join(found)}, but train and val are needed; add them, or give another folder"
        )
    classes = classes or list(found)
    samples = []
    for name, files in found.items():
        if name not in classes:
            raise UserError(f"class '{name}' of {folder} is not a class of the training images; add or remove it")
        images = [(path, classes.index(name)) for path in files if path.lower().endswith(ENDINGS)]
        if not images:
            raise UserError(f"class '{name}' of {folder} has no images; add some or remove the folder")
        samples += images
        left_out += [path for path in files if not path.lower().endswith(ENDINGS)]
    if left_out:
        count = f"{len(left_out):,} of {len(left_out) + len(samples):,} files, such as {left_out[0]}"
        rule = f"images must lie in a class folder and end in {' '.join(ENDINGS)}"
        warnings.warn(f"{count}, are skipped; {rule}", stacklevel=2)
    return Split(samples, [(index, label) for index, (_, label) in enumerate(samples)], str(folder)), classes


def folders_of(folder: Path) -> list[str]:
    """Lists the names of a folder's subfolders, without the hidden ones."""
    return sorted(name for name in next(os.walk(folder, onerror=cannot_read))[1] if not name.startswith("."))


def files_below(folder: Path) -> dict[str, list]:
    """Lists the files below each subfolder, by the subfolder's name, and under "." those in the folder itself.

    Links are followed, but each folder is read only once.
    """
    root = os.path.realpath(folder)
    seen = set()
    found = {}
    for place, folders, files in os.walk(folder, onerror=cannot_read, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(os.path.join(place, name), root, seen)]
        if place == str(folder):
            found = {name: [] for name in (*folders, ".")}
        paths = [os.path.join(place, name) for name in sorted(files) if not name.startswith(".")]
        for path in paths:
            if os.path.islink(path) and not os.path.exists(path):
                raise UserError(f"{path} is a broken link; repair it or remove it")
        found.setdefault(os.path.relpath(place, folder).split(os.sep)[0], []).extend(paths)
    return found


def is_new(path: str, root: str, seen: set[str]) -> bool:
    """Tells whether to read a folder: not if it is hidden, was `seen`, or is a link to what is read anyway."""
    real = os.path.realpath(path)
    inside = Path(real).is_relative_to(root) and f"{os.sep}." not in real.removeprefix(root)
    leads_back = os.path.islink(path) and (inside or Path(root).is_relative_to(real))
    if os.path.basename(path).startswith(".") or leads_back or real in seen:
        return False
    seen.add(real)
    return True


def cannot_read(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}; change its permissions, or move it") from error


def read_image(path: str | Path) -> Any:
    """Reads a file as an RGB PIL image. From a truncated file it reads what is there."""
    from PIL import Image, ImageFile

    for damaged in (False, True):
        ImageFile.LOAD_TRUNCATED_IMAGES = damaged  # The second attempt reads as much as possible.
        try:
            with Image.open(path) as opened:
                opened.load()
                if damaged and not opened.getbbox():
                    raise ValueError("no part of it can be decoded")
                image = to_rgb(opened)
            if damaged:
                warnings.warn(f"{path} is damaged; only the readable part is used", stacklevel=2)
            return image
        except MemoryError as error:
            raise UserError(f"there is not enough memory to decode {path}; make it smaller or remove it") from error
        except Exception as error:  # If a file is broken, PIL may raise any error.
            if damaged:
                raise UserError(f"cannot read {path} as an image ({error}); replace it or remove it") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def to_rgb(image: Any) -> Any:
    """Converts a PIL image to upright RGB with 8 bits per channel. Transparent parts get a white background."""
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError("it has more than 16 bits per pixel, in an unknown range")
    image = upright(image)
    if image.mode.startswith("I;16"):  # PIL itself would clip the values at 255.
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # Converting makes a copy.


def upright(image: Any) -> Any:
    """Rotates or mirrors a PIL image according to the orientation in its EXIF data, if they can be read."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    except Exception:  # If EXIF data are broken, PIL may raise any error.
        return image


def check_images(folder: Path) -> None:
    """Opens every file in a folder, to find files that are not images before the training starts."""
    from PIL import Image

    for split in from_folder(folder)[:2]:
        for index, _ in tqdm(split.items, desc="checking images", leave=False, disable=None):
            path, _ = split.source[index]
            try:
                Image.open(path).close()  # This reads only the header.
            except Exception as error:  # If a file is broken, PIL may raise any error.
                raise UserError(f"cannot open {path} as an image ({error}); remove or replace it") from error


# ---- From images to tensors ------------------------------------------------------------------------------------------


def to_bytes(image: Any) -> Tensor:
    """Returns an RGB PIL image as bytes: uint8 (3, height, width)."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image)


def to_floats(images: Tensor, normalisation: tuple) -> Tensor:
    """Normalises uint8 images (..., 3, S, S). Float images are already normalised."""
    if images.dtype != torch.uint8:
        return images
    mean, std = by_channel(*normalisation, images.device)
    # Bytes from PIL have the channels last. Reordering the bytes costs less than computing on floats in that order.
    return (images.contiguous() / 255).sub_(mean).div_(std)


def resized(image: Tensor, img_size: int) -> Tensor:
    """Resizes an image of `matching`. Such images are used whole and never augmented."""
    if img_size == image.shape[-1]:
        return image
    return F.interpolate(image[None], img_size, mode="bilinear", antialias=True)[0]


def is_small(name: str, img_size: int) -> bool:
    """Tells whether images are used whole: those of small data sets, and all images at sizes up to 64 px."""
    return name in SMALL or img_size <= 64


def plain_view(name: str, img_size: int) -> Callable:
    """Makes the view for evaluation: a function from an RGB PIL image to bytes, uint8 (3, S, S).

    It shows the central square of the image, or the whole image if it is small (see `is_small`).
    """
    from torchvision.transforms import v2

    # At sizes up to 224 px, evaluation sees 7/8 of the image's shorter side. At larger sizes it sees all of that side.
    side = int(img_size / 0.875) if img_size <= 224 else img_size
    if is_small(name, img_size):
        side = (img_size, img_size)
    resize = v2.Resize(side, v2.InterpolationMode.BICUBIC)  # arXiv 2411.09702 does the same.
    steps = [resize] if is_small(name, img_size) else [middle, resize]
    return v2.Compose([*steps, v2.CenterCrop(img_size), to_bytes])


def middle(image: Any) -> Any:
    """Cuts off the ends of an image more than ten times as long as wide. Resizing them would be wasted work."""
    from torchvision.transforms.v2.functional import center_crop

    longest = 10 * min(image.size)
    return image if max(image.size) <= longest else center_crop(image, [min(s, longest) for s in image.size[::-1]])


def augmented_view(
    name: str, img_size: int, normalisation: tuple, randaugment: float = 0.0, erasing: float = 0.0
) -> Callable:
    """Makes the view for training: a function from an RGB PIL image to an image (3, S, S), with random changes.

    The result is uint8. With erasing it is normalised float32, since erasing fills in normalised noise.
    """
    from torchvision.transforms import v2

    # A crop has at least 8 % of the area (Szegedy et al., "Going deeper with convolutions", 2015, section 6), or 35 %
    # where 8 % would be too few pixels.
    smallest = 0.35 if is_small(name, img_size) else 0.08
    steps = [partial(random_crop, img_size=img_size, smallest=smallest)]
    if name != "svhn":  # A mirrored digit is another digit, or no digit.
        steps.append(v2.RandomHorizontalFlip())
    if randaugment:
        changes = partial(rand_augment, magnitude=randaugment, mean=normalisation[0])
        steps += [v2.ToPILImage(), changes, to_bytes]
    if erasing:
        # Random erasing (arXiv 1708.04896) fills a rectangle with noise.
        erase = v2.RandomErasing(erasing, scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3), value="random")
        steps += [partial(to_floats, normalisation=normalisation), erase]
    return v2.Compose(steps)


def random_crop(image: Any, img_size: int, smallest: float) -> Tensor:
    """Crops a random rectangle from a PIL image, with at least `smallest` of its area, and returns bytes (3, S, S).

    Resizing bytes takes a third of PIL's time, and the result differs only by a grey level here and there.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    bicubic = v2.InterpolationMode.BICUBIC
    place = v2.RandomResizedCrop(img_size, scale=(smallest, 1)).make_params([image])
    return functional.resize(to_bytes(functional.crop(image, **place)), [img_size, img_size], bicubic)


@dataclass(eq=False, repr=False)
class Images(Dataset):
    """A split as tensors. Item i is the view for evaluation, and item (i, seed) is augmented with this seed."""

    split: Split
    normalisation: tuple
    plain: Callable
    augmented: Callable | None = None

    def __len__(self) -> int:
        return len(self.split.items)

    def __getitem__(self, item: int | tuple) -> tuple[Tensor, int]:
        image, label = self.read(item)
        return to_floats(image, self.normalisation), label

    def __getitems__(self, items: list) -> list[tuple[Tensor, int]]:
        """Returns items for a loader, with images as bytes where possible: they are a quarter of the size of floats."""
        return [self.read(item) for item in items]

    def read(self, item: int | tuple) -> tuple[Tensor, int]:
        """Returns an item whose bytes are not yet normalised."""
        number, seed = item if isinstance(item, tuple) else (item, None)
        index, label = self.split.items[number]
        image = self.split.source[index][0]
        if not isinstance(image, Tensor):
            image = read_image(image) if isinstance(image, str) else image.convert("RGB")
        if seed is None or self.augmented is None:
            return self.plain(image), label
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the generators of GPUs too, which the fork does not protect.
            torch.default_generator.manual_seed(seed)
            return self.augmented(image), label


# ---- Batches ---------------------------------------------------------------------------------------------------------


def plan_epoch(count: int, batch_size: int, seed: int, epoch: int, world: int = 1) -> list:
    """Plans the batches of one pass over `count` training images, each a list of (index, seed of the augmentation).

    The order and the seeds depend only on (seed, epoch). A shorter last batch is dropped if it has fewer images than
    there are processes (`world`).
    """
    # torch's generator uses only 32 bits of its seed, so (seed, epoch) is reduced to 32 bits.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32)
    order = torch.randperm(count, generator=generator).tolist()
    seeds = torch.randint(2**32, (count,), generator=generator).tolist()
    items = [(index, seeds[index]) for index in order]
    largest = min(batch_size, count)
    if largest < world:
        raise UserError(
            f"{world} processes cannot share a batch of {largest} images; raise --batch-size or --train-images"
        )
    batches = BatchSampler(items, batch_size, drop_last=False)
    return [batch for batch in batches if len(batch) >= world]


def in_order(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list:
    """Plans the evaluation batches of one process, which takes every `world`-th image from the image `rank` on."""
    mine = range(rank, count, world)  # The shares of two processes differ by at most one image.
    return list(BatchSampler(mine, batch_size, drop_last=False))


class Loader:
    """A loader reads a data set pass after pass. Its worker processes start with the first pass."""

    def __init__(self, dataset: Dataset, workers: int, device: torch.device) -> None:
        self.dataset = dataset
        self.device = device
        self.batches = []  # These are the batches of the next pass, each a list of items.
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_ctrl_c,
            generator=torch.Generator(),  # Without it, each pass would advance torch's global generator.
        )

    def read(self, batches: list) -> Iterator[tuple]:
        """Yields the images (B, 3, S, S) and the labels (B,) of each batch, on the device."""
        self.batches[:] = batches
        on_cuda = self.device.type == "cuda"  # On other devices a non-blocking copy may be read too early.
        for images, labels in self.loader:
            images = images.to(self.device, non_blocking=on_cuda)
            if images.dtype == torch.uint8:  # This runs on the device, often a GPU.
                images = to_floats(images, self.dataset.normalisation)
            yield images, labels.to(self.device, non_blocking=on_cuda)


def leave_ctrl_c(worker: int) -> None:
    """Makes a loader's worker ignore Ctrl-C, which is sent to it too. The main process ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *error: None  # Otherwise a thread whose batch is no longer needed would print an error.


def mixing(mixup: float, cutmix: float, classes: int) -> Callable:
    """Makes a function that mixes images by Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    It takes (images, labels) and returns mixed images and soft labels. For every 32 images of a batch, it chooses Mixup
    or CutMix at random. `mixup` and `cutmix` are their alphas; 0 turns one off. If both are 0, the function changes
    nothing.
    """
    if not (mixup or cutmix):
        return lambda images, labels: (images, labels)
    from torchvision.transforms import v2

    kinds = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    one_of_them = v2.RandomChoice(kinds)

    def mix(images: Tensor, labels: Tensor) -> tuple:
        # arXiv 2411.09702 uses batches of 32 images per GPU. One draw for all 2,048 images would make steps unequal.
        mixed = map(one_of_them, images.split(32), labels.split(32))
        images, targets = zip(*mixed, strict=True)
        return torch.cat(images), torch.cat(targets)

    return mix
