"""What a training loop calls: the learning rate, the optimiser's groups, mixing of images, averages, and accuracy."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from support.data import Loader, in_order
from support.errors import not_finite
from support.processes import Processes


def cosine_schedule(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The share of the learning rate at a step: a linear rise over `warmup` steps, then half a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(
    student: nn.Module, peak: float, weight_decay: float, layer_decay: float, from_head: bool = False
) -> list[dict]:
    """Parameters by weight decay and the highest learning rate that they reach, their `peak`.

    With `layer_decay`, the learning rate shrinks by that factor from each block to the one before. The last block has
    the whole of it, as in the code of arXiv 2411.09702; or, `from_head`, the head alone, as in MAE's fine-tuning.
    """
    groups = {}  # by learning rate and weight decay
    depth = student.config.depth
    whole = depth + 1 if from_head else depth  # the first layer with all of the learning rate
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        # Layer 0 is what comes before the blocks, 1 to `depth` are the blocks, and then comes the head.
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1
        if name.startswith(("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "rel_pos_bias")):
            layer = 0
        rate = peak * layer_decay ** max(0, whole - layer)
        # Matrices decay; norms, biases, LayerScale, tokens and positions do not.
        is_matrix = parameter.ndim > 1 and not name.endswith(("_token", "pos_embed", "bias_table"))
        decay = weight_decay if is_matrix else 0.0
        group = groups.setdefault((rate, decay), dict(params=[], peak=rate, weight_decay=decay))
        group["params"].append(parameter)
    return list(groups.values())


def mixing(mixup: float, cutmix: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), one of them drawn for every 32 images of a batch."""
    if not (mixup or cutmix):
        return lambda images, labels: (images, labels)
    from torchvision.transforms import v2

    kinds = []  # one of which is drawn
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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    batch_size: int,
    processes: Processes,
    classes: list[int] | slice = slice(None),
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    when: str = "",
) -> dict[str, float]:
    """Accuracy in percent (top1, top5), mean loss, the number n of images and images_per_s.

    The model, left in eval mode, makes logits of images, or a tuple that begins with them; `classes` are those that are
    asked for. The processes share the images, each counted once, and add up what they find. Raises a `UserError`, which
    says `when`, if the loss is not finite.
    """
    start = time.perf_counter()
    model.eval()  # no stochastic depth
    sums = torch.zeros(4, dtype=torch.float64)  # right, right among the best five, loss, images
    batches = in_order(len(loader.dataset), batch_size, processes.rank, processes.world)
    bar = dict(desc="validation", total=len(batches), leave=False, delay=1, disable=not processes.main)
    for images, labels in tqdm(loader.read(batches), **bar):
        with autocast():
            output = model(images)
        logits = (output[0] if isinstance(output, tuple) else output).float()[:, classes]
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack((right[:, 0].sum(), right.any(1).sum(), loss, loss.new_tensor(len(labels)))).cpu()
    top1, top5, loss, n = processes.sum(sums).tolist()
    seconds = time.perf_counter() - start
    if not math.isfinite(loss):
        raise not_finite(f"the loss on held-out images{when} is")
    return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "loss": loss / n, "n": int(n), "images_per_s": n / seconds}


class Meter:
    """Averages over the images of an epoch, in all processes."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums = torch.zeros(4, device=processes.device)  # loss, transfer loss, right answers, images

    @torch.no_grad()
    def add(self, loss: Tensor, transfer_loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        # Where images are mixed, the right answer is the one with the larger share.
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        right, count = (logits.argmax(1) == labels).sum().float(), loss.new_tensor(len(labels))
        self.sums += torch.stack((loss * count, transfer_loss.float() * count, right, count))

    def averages(self, step: int) -> dict[str, float]:
        """The averages after that step. Raises a `UserError` if a loss was not finite."""
        loss, transfer_loss, right, images = self.processes.sum(self.sums).tolist()
        if not math.isfinite(loss):
            raise not_finite(f"the loss at step {step} is")
        return {"loss": loss / images, "transfer_loss": transfer_loss / images, "top1": 100 * right / images}
