"""The data: `matching`, torchvision's sets and folders of images, from files to batches.

`load_data` gives training images, held-out images and class names; `plan_epoch` says which images make up which batch,
and a `Loader` reads them. All that is random follows from seeds that are handed over, whatever the number of workers.
"""

import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from support.errors import UserError, unknown
from support.matching import SHAPES, matching
from support.randaugment import rand_augment

# torchvision is imported where it is needed: that takes more than a second, and `matching` does without.


class Data(NamedTuple):
    """A data set. Items are (image float32 (3, S, S) normalised, label)."""

    train: Dataset
    val: Dataset
    classes: list[str]


class Split(NamedTuple):
    """Training or held-out images: (index, label) of each in a source, whose items begin with an image or its path."""

    source: Any
    items: list[tuple[int, int]]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (..., 3, S, S) from 0 to 1, less the mean and divided by the standard deviation of each channel."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


# ---- Data sets by name -----------------------------------------------------------------------------------------------

# The seeds of `matching`, which is the same set in every run, whatever the run's own seed.
TRAIN_SEED, VAL_SEED = 0, 1


class Source(NamedTuple):
    """A class of torchvision.datasets: how it is called for each split, and where its files are."""

    kind: str
    keyword: str
    train: str | bool  # the keyword's value for the training images
    val: str | bool  # its value for the held-out ones; if it is the same, every tenth image is held out
    labels: str  # the attribute that lists the labels, alone or in pairs with files
    files: str  # where the files are, below the root
    options: dict = {}  # what else the class is to be called with


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
# torchvision takes what it finds of these sets for all of them. They have so many images for training, and held out.
COUNTS = {"imagenette": (9469, 3925), "inat2017": (675_170,), "inat2018": (461_939,), "inat2019": (268_243,)}
COUNTS |= {"inat2021": (2_686_843, 100_000)}
DATASETS = ["matching", *SOURCES, "imagenet"]
SMALL = {"cifar10", "cifar100", "stl10", "fashion_mnist", "svhn"}  # Their images are square, with at most 96 px a side.


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
    """One of DATASETS (files below `root`, downloaded if missing), or the path of a folder of images.

    `augment` crops and flips the training images at random; `randaugment` (a magnitude, 0 for none) and `erasing`
    (a probability) add to that. `train_images` keeps a class-balanced subset; of matching it is the number to make, 500
    unless told (held out: 10,000). imagenet is ROOT/imagenet/{train,val} with a folder for each class. A folder has the
    same layout, or class folders alone, of which every tenth image of each class is held out.
    """
    if name == "matching":
        if (train_images or 0) > 100_000:
            raise UserError(f"{train_images} training images asked for; matching makes 1 to 100,000")
        plain = partial(resized, img_size=img_size)
        train, val = (
            matching_split(train_images or 500, TRAIN_SEED, normalisation),
            matching_split(10_000, VAL_SEED, normalisation),
        )
        return Data(Images(train, plain), Images(val, plain), SHAPES)

    if name in SOURCES:
        train, val, classes = from_torchvision(name, root)
    else:
        train, val, classes = from_folder(find_folder(name, root))
    if train_images is not None:
        train = balanced(train, train_images)
    plain = plain_view(name, img_size, normalisation)
    augmented = augmented_view(name, img_size, normalisation, randaugment, erasing) if augment else None
    return Data(Images(train, plain, augmented), Images(val, plain), classes)


def find_folder(name: str, root: str, datasets: Sequence[str] = DATASETS) -> Path:
    """The folder that `name` is a path of, or ROOT/imagenet; a `UserError` naming `datasets` if it is not there."""
    path = Path(root) / "imagenet" if name == "imagenet" else Path(name)
    if name == "imagenet" and not has_splits(path):
        raise UserError(f"imagenet cannot be downloaded; put its class folders into {path}/train and {path}/val")
    if not path.is_dir():
        raise UserError(f"{unknown('dataset', name, datasets)} (the path of a folder of images works too)")
    return path


def from_torchvision(name: str, root: str) -> tuple[Split, Split, list[str]]:
    """Training images, held-out images and class names of a set that torchvision knows."""
    from torchvision import datasets

    source = SOURCES[name]
    dataset = partial(getattr(datasets, source.kind), root, download=True, **source.options)
    try:
        train, val = (dataset(**{source.keyword: split}) for split in (source.train, source.val))
    except Exception as error:  # Without network, package or file, torchvision can raise anything.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = f"its files belong at {root}/{source.files}; delete what was only partly unpacked"
        raise UserError(f"cannot load {name} ({reason}); {remedy}") from error

    # Of both splits: the images, how many are there, and how many should be.
    splits, counts, wanted = [], [], []
    for split in (train, val):
        split.loader = str  # Items of sets that open files become paths, which `read_image` opens.
        if source.kind == "INaturalist":  # It lists files in the disk's order.
            split.index.sort()
        labels = [label_of(entry) for entry in getattr(split, source.labels)]
        paths = list(map(str, getattr(split, "_image_files", getattr(split, "_images", []))))
        counts.append(len(labels) - len(paths) + sum(map(os.path.isfile, paths)))
        wanted.append(len(labels))
        if source.kind == "OxfordIIITPet":  # It opens files without a loader.
            split = [(path,) for path in paths]
        splits.append(whole(split, labels))
    for there, count in zip(counts, COUNTS.get(name, wanted), strict=False):
        if there < count:
            problem = f"{name} is only partly unpacked: {there:,} of {count:,} images are there"
            raise UserError(f"{problem}; delete {root}/{source.files}, and start again")
    names = getattr(train, "classes", None) or getattr(train, "all_categories", None) or sorted(set(labels))
    classes = [str(name[0] if isinstance(name, tuple) else name) for name in names]  # Imagenette's have synonyms.
    return *(hold_out(splits[0]) if source.train == source.val else splits), classes


def label_of(entry: Any) -> int:
    """The label in one entry of a list of labels, of (path, label) or of (label, file)."""
    return next(item for item in entry if isinstance(item, int)) if isinstance(entry, tuple) else int(entry)


def whole(source: Any, labels: list[int]) -> Split:
    """All images of a source."""
    return Split(source, list(enumerate(labels)))


def matching_split(count: int, seed: int, normalisation: tuple) -> Split:
    images, labels = matching(count, seed)
    return whole(list(zip(normalise(images, *normalisation), labels, strict=True)), labels.tolist())


def hold_out(split: Split) -> tuple[Split, Split]:
    """Splits images into training and held-out ones, which are the 1st, 11th, ... of each class."""
    seen, train, val = Counter(), [], []
    for item in split.items:
        (val if seen[item[1]] % 10 == 0 else train).append(item)
        seen[item[1]] += 1
    return Split(split.source, train), Split(split.source, val)


def balanced(split: Split, count: int) -> Split:
    """`count` images, as many of each class as can be, the same at every call, and among those of a larger count."""
    all_images, classes = len(split.items), len({label for _, label in split.items})
    if not classes <= count <= all_images:
        raise UserError(f"{count} training images asked for; choose {classes} (one a class) to {all_images} (all)")
    # In a random order each image is the first, second, ... of its class: take all first ones, then all second ones.
    seen, turns = Counter(), {}
    for place in torch.randperm(all_images, generator=torch.Generator().manual_seed(0)).tolist():
        item = split.items[place]
        turns[item] = seen[item[1]]
        seen[item[1]] += 1
    return Split(split.source, sorted(turns, key=turns.get)[:count])


# ---- Folders of images -----------------------------------------------------------------------------------------------

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def has_splits(folder: Path) -> bool:
    """Whether a folder of images has train/ and val/."""
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def from_folder(folder: Path) -> tuple[Split, Split, list[str]]:
    """Training images FOLDER/train/CLASS/*, held-out FOLDER/val/CLASS/*, or every tenth of FOLDER/CLASS/* held out."""
    if has_splits(folder):
        train, classes = class_folders(folder / "train")
        val, _ = class_folders(folder / "val", classes)
        return train, val, classes
    images, classes = class_folders(folder)
    for label, count in Counter(label for _, label in images.items).items():
        if count == 1:
            name = classes[label]
            raise UserError(f"class '{name}' of {folder} has one image, too few to hold any out; add at least one")
    return *hold_out(images), classes


def class_folders(folder: Path, classes: list[str] | None = None) -> tuple[Split, list[str]]:
    """The images FOLDER/CLASS/*, as torchvision's ImageFolder lists them, and the names of the classes.

    A label is the place of the class among `classes`, which are the folder's own, sorted, unless given. Hidden files
    and folders do not count.
    """
    from torchvision.datasets import ImageFolder

    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise UserError(f"{folder} has no class folders; put the images of each class into a folder of its own")
    if set(names) <= {"train", "val", "test"}:
        raise UserError(f"{folder} has {' and '.join(names)}, but train and val are needed; or name one that has")
    classes = classes or names
    for name in set(names) - set(classes):
        raise UserError(f"class '{name}' of {folder} is not among the training images; add or remove it")

    def is_image(path: str) -> bool:
        is_hidden = os.sep + "." in path[len(str(folder)) :]
        return path.lower().endswith(EXTENSIONS) and not is_hidden

    numbers = {name: classes.index(name) for name in names}
    samples = ImageFolder.make_dataset(str(folder), numbers, is_valid_file=is_image, allow_empty=True)
    labels = [label for _, label in samples]
    for number in set(numbers.values()) - set(labels):
        raise UserError(f"class '{classes[number]}' of {folder} has no images; add some or remove the folder")
    return whole(samples, labels), classes


def read_image(path: str | Path) -> Any:
    """A picture as an RGB PIL image. A file that was cut short, as is common in large sets, gives what it has."""
    from PIL import Image, ImageFile

    for damaged in (False, True):
        ImageFile.LOAD_TRUNCATED_IMAGES = damaged
        try:
            with Image.open(path) as opened:
                image = to_rgb(opened)
            if damaged and not image.getbbox():
                raise ValueError("nothing of it can be decoded")
            if damaged:
                warnings.warn(f"{path} is damaged; what can be read of it is used", stacklevel=2)
            return image
        except Exception as error:  # A broken file can make PIL raise anything.
            if damaged:
                raise UserError(f"cannot read {path} as an image ({error}); replace it, or leave it out") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def to_rgb(image: Any) -> Any:
    """A PIL image with three times 8 bits a pixel. 16 bits are scaled here, as PIL would cut them off at 255."""
    if image.mode in ("I", "F"):
        raise ValueError("more than 16 bits a pixel, of which nobody knows the range")
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
    return image.convert("RGB")


def check_images(folder: Path) -> None:
    """Opens each file, so that one that is no image is a mistake before the training, not in the middle of it."""
    from PIL import Image

    for split in from_folder(folder)[:2]:
        for index, _ in tqdm(split.items, desc="checking images", leave=False, disable=None):
            path, _ = split.source[index]
            try:
                Image.open(path).close()  # This reads the header alone.
            except Exception as error:  # A broken file can make PIL raise anything.
                raise UserError(f"cannot open {path} as an image ({error}); remove or replace it") from error


# ---- From images to tensors ------------------------------------------------------------------------------------------


def to_tensor(image: Any, normalisation: tuple) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    return normalise(pil_to_tensor(image) / 255, *normalisation)


def resized(image: Tensor, img_size: int) -> Tensor:
    """An image of `matching`. It is seen whole, and never augmented."""
    if img_size == image.shape[-1]:
        return image
    return F.interpolate(image[None], (img_size, img_size), mode="bilinear", antialias=True)[0]


def is_small(name: str, img_size: int) -> bool:
    """Whether images are used whole: those of small sets, and all at 64 px or less."""
    return name in SMALL or img_size <= 64


def plain_view(name: str, img_size: int, normalisation: tuple) -> Callable:
    """What evaluation sees of an RGB PIL image, as a tensor (3, S, S): its central square, or all if it is small."""
    from torchvision.transforms import v2

    bicubic = v2.InterpolationMode.BICUBIC  # arXiv 2411.09702 uses it, too.
    if is_small(name, img_size):
        steps = [v2.Resize((img_size, img_size), bicubic)]
    else:
        # Up to 224 px, evaluation sees 7/8 of the shorter side. Larger sizes keep all of it, to see more.
        side = int(img_size / 0.875) if img_size <= 224 else img_size
        steps = [v2.Resize(side, bicubic), v2.CenterCrop(img_size)]
    return v2.Compose([*steps, partial(to_tensor, normalisation=normalisation)])


def augmented_view(
    name: str, img_size: int, normalisation: tuple, randaugment: float = 0.0, erasing: float = 0.0
) -> Callable:
    """What training sees of an RGB PIL image, as a tensor (3, S, S), drawn at random."""
    from torchvision.transforms import v2

    # At least 8 % of the area (Szegedy et al., "Going deeper with convolutions", 2015, section 6), or 35 % where that
    # would leave too few pixels.
    smallest = 0.35 if is_small(name, img_size) else 0.08
    steps = [v2.RandomResizedCrop(img_size, scale=(smallest, 1), interpolation=v2.InterpolationMode.BICUBIC)]
    if name != "svhn":  # A mirrored digit is another digit, or none.
        steps.append(v2.RandomHorizontalFlip())
    if randaugment:
        steps.append(partial(rand_augment, magnitude=randaugment, mean=normalisation[0]))
    steps.append(partial(to_tensor, normalisation=normalisation))
    if erasing:  # arXiv 1708.04896, with pixels of noise
        steps.append(v2.RandomErasing(erasing, scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3), value="random"))
    return v2.Compose(steps)


class Images(Dataset):
    """A split of a set as tensors: item i is what evaluation sees, item (i, seed) is augmented by that seed."""

    def __init__(self, split: Split, plain: Callable, augmented: Callable | None = None) -> None:
        self.split, self.plain, self.augmented = split, plain, augmented

    def __len__(self) -> int:
        return len(self.split.items)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        number, seed = item if isinstance(item, tuple) else (item, None)
        index, label = self.split.items[number]
        image = self.split.source[index][0]
        if not isinstance(image, Tensor):
            image = read_image(image) if isinstance(image, str) else image.convert("RGB")
        if seed is None or self.augmented is None:
            return self.plain(image), label
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPU's generators too, beyond the fork.
            torch.default_generator.manual_seed(seed)
            return self.augmented(image), label


# ---- Batches ---------------------------------------------------------------------------------------------------------


def plan_epoch(count: int, batch_size: int, seed: int, epoch: int, world: int = 1) -> list[list[tuple[int, int]]]:
    """The batches of one pass over `count` training images: pairs (index, seed of the augmentation).

    The order and the seeds follow from (seed, epoch). A last, shorter batch is left out if it has fewer images than
    there are processes, `world`.
    """
    # torch's generator keeps 32 bits of its seed: (seed, epoch) is folded into them.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32)
    order = torch.randperm(count, generator=generator).tolist()
    seeds = torch.randint(2**32, (count,), generator=generator).tolist()
    items = [(index, seeds[index]) for index in order]
    batches = [items[at : at + batch_size] for at in range(0, count, batch_size)]
    if len(batches[0]) < world:
        raise UserError(
            f"{world} processes cannot share a batch of {len(batches[0])} images; raise --batch-size or --train-images"
        )
    return batches if len(batches[-1]) >= world else batches[:-1]


def in_order(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """The batches of an evaluation by one of several processes: every world-th image, from the image `rank`."""
    mine = range(rank, count, world)  # The shares of two processes differ by one image at most.
    return [list(mine[at : at + batch_size]) for at in range(0, len(mine), batch_size)]


class Loader:
    """Reads a data set, pass after pass, by worker processes that start with the first pass."""

    def __init__(self, dataset: Dataset, workers: int, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.batches = []  # the batches of the next pass, each a list of items
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_ctrl_c,
            generator=torch.Generator(),  # Without one of its own, each pass would advance torch's global one.
        )

    def read(self, batches: list[list]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, 3, S, S), labels (B,)) of each batch, on the device."""
        self.batches[:] = batches
        on_cuda = self.device.type == "cuda"  # Elsewhere a copy that nobody waits for may be read too early.
        for images, labels in self.loader:
            yield images.to(self.device, non_blocking=on_cuda), labels.to(self.device, non_blocking=on_cuda)


def leave_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches a loader's workers too; they leave the answer to the main process, which ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *error: None  # A thread that hands a batch to an ended process would complain.


def mixing(mixup: float, cutmix: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): one of them is drawn for every 32 images of a batch.

    Returns what makes (images, labels) mixed images and shares of classes; without alphas it leaves both as they are.
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

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # 32 is the batch of one GPU in arXiv 2411.09702. One draw for all 2,048 images would make steps very unequal.
        mixed = map(one_of_them, images.split(32), labels.split(32))
        images, targets = zip(*mixed, strict=True)
        return torch.cat(images), torch.cat(targets)

    return mix
