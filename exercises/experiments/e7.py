"""Trains a teacher with null keys, and students with and without them."""

from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import patch

import torch
from experiments.e6 import built_with
from kit import Finding, Trial
from torch import Tensor

import model
import teachers
import train
from model import ViT, attention_map
from support import data
from transfer import measures


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    usual, path = teachers.load_teacher("deit_nano"), args.out / f"teacher-{args.record['answer']}.safetensors"
    spec = teachers.find_teacher("deit_nano")
    with patch.object(model, "Attention", answer.NullAttention):
        teachers.pretrain("deit_nano", path)
        null = teachers.open_file("deit_nano", path, spec.config).eval().requires_grad_(False)
    images = data.load_data("matching", "", 32, spec.normalisation).val
    show_sinks(answer, torch.stack([images[number][0] for number in range(256)]), usual, null)
    students = {"standard": train.build_student, "null": built_with(answer.NullAttention)}
    for teacher, weights in {"none": usual, "usual": usual, "null": null}.items():
        words = ["--mode", "baseline" if teacher == "none" else "transfer", *args.train]
        for student, build_student in students.items():
            label = f"teacher {teacher}, student {student}"
            yield Trial(label, words, teacher=weights, build_student=build_student)


@torch.inference_mode()
def show_sinks(answer: ModuleType, images: Tensor, usual: ViT, null: ViT) -> None:
    """Prints, by block, how much the strongest token gets in both teachers, and how much leaks to the null key."""
    seen = {usual: [], null: []}
    for teacher, attended in seen.items():
        teacher(images, seen=attended)
    for number, (plain, other) in enumerate(zip(seen[usual], seen[null], strict=True)):
        maps = attention_map(plain.routing), attention_map(other.routing)
        leak = answer.read_with_null(other.routing, other.v, null.blocks[number].attn.null)[1]
        kept = maps[1] * (1 - leak)[..., None]
        usual_sink, null_sink = (measures(m, m, usual.config)["sink"][0].mean() for m in (maps[0], kept))
        heads = " ".join(f"{share:.2f}" for share in leak.mean((0, 2)))
        print(f"block {number}: sink {usual_sink:.2f}, with a null key {null_sink:.2f}; leak by head {heads}")
