"""This file brings data from files to batches: the data set `matching`, the sets of torchvision, and folders of images.

`load_data` gives training images, held-out images and class names. `plan_epoch` says which images make up which batch,
and a `Loader` reads them. All that is random follows from seeds that the caller gives, whatever the number of workers.
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
    """A data set has items (image, label), whose image is normalised float32 (3, S, S)."""

    train: Dataset
    val: Dataset
    classes: list[str]


class Split(NamedTuple):
    """A split is the training or the held-out images of a source, each as (index in the source, label).

    An item of the source begins with an image, or with the path of one, which is below the folder `root`.
    """

    source: Any
    items: list
    root: str = ""

    def files(self) -> Iterator[tuple[str, str]]:
        """The path of each image, or "" if it is no file, and its name: the path below the root, or a number."""
        for index, _ in self.items:
            image = self.source[index][0]
            path = image if isinstance(image, str) else ""
            yield path, path.removeprefix(self.root).lstrip(os.sep) or str(index)


def normalise(images: Tensor, mean: tuple, std: tuple) -> Tensor:
    """Subtracts each channel's mean from images (..., 3, S, S) and divides them by its standard deviation."""
    mean, std = by_channel(mean, std, images.device)
    return (images - mean) / std


@cache
def by_channel(mean: tuple, std: tuple, device: torch.device) -> Tensor:
    """Puts both on a device once, (2, 3, 1, 1): to bring numbers to a GPU is to wait for it."""
    return torch.tensor((mean, std), device=device).view(2, 3, 1, 1)


# ---- Data sets by name -----------------------------------------------------------------------------------------------

# Every run makes `matching` from these seeds, whatever its own seed, so it is the same set in all runs.
TRAIN_SEED = 0
VAL_SEED = 1
MATCHING = 500  # It has so many training images, unless another number is asked for.


class Source(NamedTuple):
    """A source says how a class of torchvision.datasets is called for each split, and where its files are."""

    kind: str
    keyword: str
    train: Any  # The keyword has this value for the training images.
    val: Any  # It has this value for the held-out images. If the values are equal, a tenth of the images is held out.
    labels: str  # This attribute lists the labels, either alone or in pairs with files.
    files: str  # The files are here below the root.
    options: dict = {}  # The class is called with these options too.


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
# torchvision does not notice if images of these sets are missing, so here is how many training and held-out images each
# has. Where both numbers are equal, a tenth of these images is held out.
COUNTS = {
    "imagenette": (9469, 3925),
    "inat2017": (675_170, 675_170),
    "inat2018": (461_939, 461_939),
    "inat2019": (268_243, 268_243),
    "inat2021": (2_686_843, 100_000),
}
MADE = ["matching", *SOURCES]  # These are computed or downloaded, so that they are always the same.
DATASETS = [*MADE, "imagenet"]
SMALL = {"cifar10", "cifar100", "stl10", "fashion_mnist", "svhn"}  # The images are square, with sides of 96 px at most.


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
    """Loads one of DATASETS, whose files are below `root` and are downloaded if missing, or the folder of that path.

    `augment` crops and flips the training images at random. `randaugment` (a magnitude, 0 for none) and `erasing` (a
    probability) change them further. `train_images` keeps a class-balanced subset of them. Of matching it is the number
    to make, which is 500 by default; 10,000 are held out. ImageNet lies in ROOT/imagenet/{train,val}, with a folder for
    each class. A folder of images has the same layout, or it has class folders alone, and then a tenth of the images is
    held out (see `hold_out`).
    """
    if name == "matching":
        count = train_images or MATCHING
        if count > 100_000:
            raise UserError(f"{count} training images asked for; matching makes 1 to 100,000")
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
    """Returns the one name of a data set, or of a folder of images, which is its whole path.

    A word with a slash is a folder, even if a data set has that name.
    """
    return name if name in datasets else str(find_folder(name, "", datasets).resolve())


def find_folder(name: str, root: str, datasets: list = DATASETS) -> Path:
    """Returns the folder of ImageNet or that of the path `name`. If it is not there, a `UserError` names `datasets`."""
    if name == "imagenet":
        path = Path(root, name)
        if not (path.is_dir() and splits_of(path)):
            raise UserError(f"imagenet cannot be downloaded; put its class folders into {path}/train and {path}/val")
        return path
    path = Path(name)
    if path.is_dir():
        return path
    if os.sep in name:
        raise UserError(f"there is no folder {name}; put it back, or name another place of the images with --data")
    raise UserError(f"{unknown('dataset', name, datasets)} (nor is there a folder of images of that name)")


def from_torchvision(name: str, root: str) -> tuple:
    """Returns the training images, the held-out images and the class names of a set that torchvision knows."""
    from torchvision import datasets

    source = SOURCES[name]
    dataset = partial(getattr(datasets, source.kind), root, download=True, **source.options)
    try:
        train, val = (dataset(**{source.keyword: split}) for split in (source.train, source.val))
    except Exception as error:  # If a network, package or file is missing, torchvision may raise any error.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot load {name} ({reason}); its files belong at {root}/{source.files}; "
            "delete what was only partly unpacked"
        ) from error

    splits = []
    for split, published in zip((train, val), COUNTS.get(name, (0, 0)), strict=True):
        split.loader = str  # Sets that open files now return their paths, which `read_image` opens.
        if source.kind == "INaturalist":  # This class lists files in the disk's order.
            split.index.sort()
        labels = [label_of(entry) for entry in getattr(split, source.labels)]
        # Some sets list their files, of which some may be missing.
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
    """Holds out a tenth of the images. It returns the training and the held-out images.

    The hash of its name decides on each image, and where no name of a class is among the lowest tenth, the lowest is
    held out. So a new image makes no training image a held-out one, but in a class of very few images.
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
    """Says which images are trained on and held out: their number, and a hash of names, sizes in bytes and labels.

    Of about a hundred files the hash has the content too, as pictures of one format may all be of one size.
    """
    prints = {}
    for part, split in ("train_set", images.train.split), ("val_set", images.val.split):
        digest = hashlib.sha256()
        every = len(split.items) // 100 + 1
        for place, (path, name) in enumerate(split.files()):  # The order decides which images share a batch.
            size = os.path.getsize(path) if path else 0
            digest.update(os.fsencode(f"{name} {size} {split.items[place][1]}\n"))
            if path and place % every == 0:
                digest.update(Path(path).read_bytes())
        prints[part] = f"{len(split.items):,} ({digest.hexdigest()[:16]})"
    return prints


def seen_before(images: Split, training: Split) -> int:
    """Counts those images that are among the training images, in files of the same name and content."""
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
    """Chooses `count` images so that the classes have equally many, as far as possible.

    Every call chooses the same images, and those of a smaller count are among those of a larger one.
    """
    # In a random order each image is the first, second, ... of its class: take all first ones, then all second ones.
    seen = Counter()
    turns = {}
    for place in torch.randperm(len(split.items), generator=torch.Generator().manual_seed(0)).tolist():
        item = split.items[place]
        turns[item] = seen[item[1]]
        seen[item[1]] += 1
    if not len(seen) <= count <= len(turns):
        raise UserError(f"{count} training images asked for; choose {len(seen)} (one a class) to {len(turns)} (all)")
    return split._replace(items=sorted(turns, key=turns.get)[:count])


# ---- Folders of images -----------------------------------------------------------------------------------------------

# Splits are known by these names, in any case. A test set is used where there is no validation set.
SPLITS = {name: "train" for name in ("train", "training")}
SPLITS |= {name: "val" for name in ("val", "valid", "validation", "dev", "eval", "evaluation")}
SPLITS |= {name: "test" for name in ("test", "testing")}
ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def splits_of(folder: Path) -> tuple[Path, Path] | None:
    """Returns the folders of the training and of the held-out images, or None if there are none of the usual names."""
    found = {}
    for name in folders_of(folder):
        split = SPLITS.get(name.lower())
        if split in found:
            raise UserError(f"{folder} has both {found[split].name} and {name}; leave one of them there")
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
        advice = f"name {inside}, which has several" if len(folders_of(inside)) > 1 else "a student needs two or more"
        raise UserError(f"{place} has one class, '{classes[0]}', and there is nothing to tell apart; {advice}")
    if splits:
        return images, class_folders(splits[1], classes)[0], classes
    for label, count in Counter(label for _, label in images.items).items():
        if count == 1:
            raise UserError(
                f"class '{classes[label]}' of {folder} has one image, too few to hold any out; add at least one"
            )
    return *hold_out(images), classes


def class_folders(folder: Path, classes: list | None = None) -> tuple[Split, list]:
    """Returns the images FOLDER/CLASS/*, which may lie in folders of a class's folder, and the names of the classes.

    A label is the place of the class among `classes`. Without these, it is the place among the folder's own classes in
    alphabetical order. Hidden files and folders do not count.
    """
    found = files_below(folder)
    left_out = found.pop(".")
    if not found:
        raise UserError(f"{folder} has no class folders; put the images of each class into a folder of its own")
    if {name.lower() for name in found} <= SPLITS.keys():
        raise UserError(f"{folder} has {' and '.join(found)}, but train and val are needed; or name one that has")
    classes = classes or list(found)
    samples = []
    for name, files in found.items():
        if name not in classes:
            raise UserError(f"class '{name}' of {folder} is not among the training images; add or remove it")
        images = [(path, classes.index(name)) for path in files if path.lower().endswith(ENDINGS)]
        if not images:
            raise UserError(f"class '{name}' of {folder} has no images; add some or remove the folder")
        samples += images
        left_out += [path for path in files if not path.lower().endswith(ENDINGS)]
    if left_out:
        count = f"{len(left_out):,} of {len(left_out) + len(samples):,} files, such as {left_out[0]}"
        rule = f"images lie in the folder of a class, and end in {' '.join(ENDINGS)}"
        warnings.warn(f"{count}, are left out; {rule}", stacklevel=2)
    return Split(samples, [(index, label) for index, (_, label) in enumerate(samples)], str(folder)), classes


def folders_of(folder: Path) -> list[str]:
    """Lists the names of the folders of a folder that are not hidden."""
    return sorted(name for name in next(os.walk(folder, onerror=cannot_read))[1] if not name.startswith("."))


def files_below(folder: Path) -> dict[str, list]:
    """Lists the files below each folder of a folder, by its name, and under "." those beside them.

    Links are followed, but each folder is read once.
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
                raise UserError(f"{path} is a link that leads nowhere; mend it, or remove it")
        found.setdefault(os.path.relpath(place, folder).split(os.sep)[0], []).extend(paths)
    return found


def is_new(path: str, root: str, seen: set[str]) -> bool:
    """Tells whether a folder is to be read: not if it is hidden, was `seen`, or is a link to what is read anyway."""
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
    """Reads a picture as an RGB PIL image. Of a file that was cut short it reads what is there."""
    from PIL import Image, ImageFile

    for damaged in (False, True):
        ImageFile.LOAD_TRUNCATED_IMAGES = damaged  # The second try takes what it can get.
        try:
            with Image.open(path) as opened:
                opened.load()
                if damaged and not opened.getbbox():
                    raise ValueError("nothing of it can be decoded")
                image = to_rgb(opened)
            if damaged:
                warnings.warn(f"{path} is damaged; what can be read of it is used", stacklevel=2)
            return image
        except MemoryError as error:
            raise UserError(f"there is not enough memory to decode {path}; make it smaller, or leave it out") from error
        except Exception as error:  # If a file is broken, PIL may raise any error.
            if damaged:
                raise UserError(f"cannot read {path} as an image ({error}); replace it, or leave it out") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def to_rgb(image: Any) -> Any:
    """Makes a PIL image RGB, with 8 bits a channel: turned as its camera says, and on white where it is transparent."""
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError("more than 16 bits a pixel, of which nobody knows the range")
    image = upright(image)
    if image.mode.startswith("I;16"):  # PIL itself would cut values off at 255.
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # To convert is to copy.


def upright(image: Any) -> Any:
    """Turns or mirrors a PIL image as the orientation in its EXIF data asks, if these can be read."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    except Exception:  # If EXIF data are broken, PIL may raise any error.
        return image


def check_images(folder: Path) -> None:
    """Opens each file of a folder, so that a file that is no image is found before the training starts."""
    from PIL import Image

    for split in from_folder(folder)[:2]:
        for index, _ in tqdm(split.items, desc="checking images", leave=False, disable=None):
            path, _ = split.source[index]
            try:
                Image.open(path).close()  # This reads the header alone.
            except Exception as error:  # If a file is broken, PIL may raise any error.
                raise UserError(f"cannot open {path} as an image ({error}); remove or replace it") from error


# ---- From images to tensors ------------------------------------------------------------------------------------------


def to_bytes(image: Any) -> Tensor:
    """Returns an RGB PIL image as bytes: uint8 (3, height, width)."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image)


def to_floats(images: Tensor, normalisation: tuple) -> Tensor:
    """Normalises images (..., 3, S, S) of bytes. Others are normalised already."""
    if images.dtype != torch.uint8:
        return images
    mean, std = by_channel(*normalisation, images.device)
    # Bytes come from PIL with the channels last. A copy in another order costs less than floats in this one.
    return (images.contiguous() / 255).sub_(mean).div_(std)


def resized(image: Tensor, img_size: int) -> Tensor:
    """Resizes an image of `matching`. Such images are seen whole and never augmented."""
    if img_size == image.shape[-1]:
        return image
    return F.interpolate(image[None], img_size, mode="bilinear", antialias=True)[0]


def is_small(name: str, img_size: int) -> bool:
    """Tells whether images are used whole, as those of small sets are, and all images at sizes up to 64 px."""
    return name in SMALL or img_size <= 64


def plain_view(name: str, img_size: int) -> Callable:
    """Makes the view of evaluation: a function from an RGB PIL image to bytes, uint8 (3, S, S).

    It shows the central square of the image, or all of it if it is small.
    """
    from torchvision.transforms import v2

    # At sizes up to 224 px, evaluation sees 7/8 of the image's shorter side. At larger sizes it sees all of that side.
    side = int(img_size / 0.875) if img_size <= 224 else img_size
    if is_small(name, img_size):
        side = (img_size, img_size)
    resize = v2.Resize(side, v2.InterpolationMode.BICUBIC)  # arXiv 2411.09702 resizes so too.
    steps = [resize] if is_small(name, img_size) else [middle, resize]
    return v2.Compose([*steps, v2.CenterCrop(img_size), to_bytes])


def middle(image: Any) -> Any:
    """Cuts off the ends of an image that is more than ten times as long as wide, which would be resized in vain."""
    from torchvision.transforms.v2.functional import center_crop

    longest = 10 * min(image.size)
    return image if max(image.size) <= longest else center_crop(image, [min(s, longest) for s in image.size[::-1]])


def augmented_view(
    name: str, img_size: int, normalisation: tuple, randaugment: float = 0.0, erasing: float = 0.0
) -> Callable:
    """Makes the view of training: a function from an RGB PIL image to an image (3, S, S), with random changes.

    The image is of bytes, uint8, but with erasing it is normalised, as erasing fills in normalised noise.
    """
    from torchvision.transforms import v2

    # A crop has at least 8 % of the area (Szegedy et al., "Going deeper with convolutions", 2015, section 6), or 35 %
    # where 8 % would be too few pixels.
    smallest = 0.35 if is_small(name, img_size) else 0.08
    steps = [partial(random_crop, img_size=img_size, smallest=smallest)]
    if name != "svhn":  # A mirrored digit is another digit or none.
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
    """Cuts a random rectangle out of a PIL image, with at least `smallest` of its area: bytes (3, S, S).

    To resize bytes takes a third of the time that PIL takes, and gives the same but for a grey level here and there.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    bicubic = v2.InterpolationMode.BICUBIC
    place = v2.RandomResizedCrop(img_size, scale=(smallest, 1)).make_params([image])
    return functional.resize(to_bytes(functional.crop(image, **place)), [img_size, img_size], bicubic)


@dataclass(eq=False, repr=False)
class Images(Dataset):
    """This makes tensors of a split: item i is as evaluation sees it, and item (i, seed) is augmented by that seed."""

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
        """Returns what a loader asks for, images of bytes where they can be: a quarter of what floats would be."""
        return [self.read(item) for item in items]

    def read(self, item: int | tuple) -> tuple[Tensor, int]:
        """Returns an item before bytes are normalised."""
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

    The order and the seeds follow from (seed, epoch). A last, shorter batch is left out if it has fewer images than
    there are processes, `world`.
    """
    # torch's generator keeps 32 bits of its seed, so (seed, epoch) is folded into them.
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
    """Plans the batches of one process's evaluation, which has every world-th image, from the image `rank` on."""
    mine = range(rank, count, world)  # The shares of two processes differ by one image at most.
    return list(BatchSampler(mine, batch_size, drop_last=False))


class Loader:
    """A loader reads a data set pass after pass. Its worker processes start with the first pass."""

    def __init__(self, dataset: Dataset, workers: int, device: torch.device) -> None:
        self.dataset = dataset
        self.device = device
        self.batches = []  # The next pass has these batches, each a list of items.
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
        on_cuda = self.device.type == "cuda"  # On other devices a copy that nobody waits for may be read too early.
        for images, labels in self.loader:
            images = images.to(self.device, non_blocking=on_cuda)
            if images.dtype == torch.uint8:  # Here a GPU does it.
                images = to_floats(images, self.dataset.normalisation)
            yield images, labels.to(self.device, non_blocking=on_cuda)


def leave_ctrl_c(worker: int) -> None:
    """Makes a loader's worker ignore Ctrl-C, which reaches it too. The main process will end the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *error: None  # A thread whose batch no process takes any more would complain.


def mixing(mixup: float, cutmix: float, classes: int) -> Callable:
    """Makes a function that mixes images by Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    It takes (images, labels) and returns mixed images and shares of classes. Mixup or CutMix is drawn for every 32
    images of a batch. `mixup` and `cutmix` are their alphas, of which 0 means none. If both are 0, the function changes
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
        # arXiv 2411.09702 has batches of 32 images on each GPU. One draw for all 2,048 images would make steps unequal.
        mixed = map(one_of_them, images.split(32), labels.split(32))
        images, targets = zip(*mixed, strict=True)
        return torch.cat(images), torch.cat(targets)

    return mix
