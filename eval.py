"""What a trained student is worth: accuracy on its own validation set and on others.

    python eval.py runs/deit_nano-matching-distill-seed0
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data import Data, load_data, loader
from model import UserError, ViT, ViTConfig
from teachers import Arguments, answer_mistakes, find, load_teacher
from transfer import AttentionTransfer


def read_run(folder: str | Path) -> dict:
    """The config.json of a run; a UserError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run: it has no config.json; train.py makes runs, below runs/ unless told")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); train the run again with --fresh") from error


def load_student(folder: str | Path, ema: bool = False) -> ViT:
    """The student of a finished run, in eval mode; with `ema`, the moving average of its weights."""
    config = read_run(folder)
    path = Path(folder) / ("student_ema.safetensors" if ema else "student.safetensors")
    if not path.is_file():
        if ema and (Path(folder) / "student.safetensors").is_file():
            raise UserError(f"{folder} kept no moving average of its weights; train with --ema 0.9999, or leave --ema out")
        raise UserError(f"{folder} is not finished; go on with: {config['command']}")
    student = ViT(ViTConfig(**config["student"]))
    try:
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the student of its config.json; train the run again with --fresh") from error
    return student.eval()


def run_data(settings: dict) -> Data:
    """The data set of a run, at its size and with its teacher's normalisation."""
    mean, std = find(settings["teacher"]).normalisation
    return load_data(settings["data"], settings["data_root"], settings["img_size"], mean, std,
                     train_images=settings["train_images"], augment=settings["augment"],
                     randaugment=settings["randaugment"], erasing=settings["erasing"])


def run_teacher(settings: dict) -> ViT:
    """The teacher of a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an untrained teacher, `--weights random`, is the same at every call
        return load_teacher(settings["teacher"], settings["weights"], settings["img_size"])


def predictor(settings: dict, student: ViT, teacher: ViT | None = None) -> Callable[[Tensor], Tensor]:
    """Images to logits: the student, reading with its teacher's routing where the run was Attention Copy."""
    if settings["method"] != "copy":
        return student
    module = AttentionTransfer(student, teacher or run_teacher(settings), "copy", settings["blocks"], settings["what"],
                               heads=settings["heads"])
    module.eval().to(next(student.parameters()).device)
    return lambda images: module(images)[0]


@torch.inference_mode()
def evaluate(predict: Callable[[Tensor], Tensor], dataset: Dataset, batch_size: int, device: torch.device,
             workers: int = 0, autocast: torch.dtype | None = None, shard: tuple[int, int] = (0, 1),
             progress: str = "") -> dict[str, float]:
    """Accuracy in percent (top1, top5), mean loss, the number n of images and images_per_s.

    With `shard` (rank, world), the images are split among the processes, each counted once, and the sums exchanged.
    """
    sums, start = torch.zeros(4, dtype=torch.float64), time.perf_counter()
    batches = loader(dataset, batch_size, shard=shard, workers=workers, pin=device.type == "cuda")
    for images, labels in tqdm(batches, desc=progress, disable=not progress, leave=False, unit="batch"):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = predict(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack((best[:, 0].sum(), best.any(1).sum(), loss, loss.new_tensor(len(labels)))).cpu().double()
    if shard[1] > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    top1, top5, loss, n = sums.tolist()
    return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "loss": loss / n, "n": int(n),
            "images_per_s": n / (time.perf_counter() - start)}


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{name}' is not there ({str(error).splitlines()[0]}); use cpu") from error
    return device


def main() -> None:
    parser = Arguments(description="Evaluates trained students.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that train.py made")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights, if the run kept one")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(f"{'run':50} {'top-1':>6} {'top-5':>6} {'n':>7} {'images/s':>8}")
    for folder in args.runs:
        settings = read_run(folder)["settings"]
        student = load_student(folder, args.ema).to(device)
        found = evaluate(predictor(settings, student), run_data(settings).val, args.batch_size, device, args.workers,
                         progress=Path(folder).name)
        print(f"{Path(folder).name:50} {found['top1']:6.2f} {found['top5']:6.2f} {found['n']:7d} {found['images_per_s']:8.0f}")


if __name__ == "__main__":
    answer_mistakes(main)
