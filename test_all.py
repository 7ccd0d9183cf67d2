"""Tests each file in a section of its own, in reading order. The name of a test is the sentence that it proves."""

import argparse
import ast
import copy
import csv
import errno
import http.server
import io
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import timeit
import urllib.error
import warnings
import weakref
import zipfile
from collections import Counter
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageOps
from safetensors.torch import load_file, save, save_file
from timm.data import auto_augment
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import eval as evaluation
import teachers
import train
import transfer
from model import COMPONENTS, Handed, Routing, ViT, ViTConfig, attend, attention_map, native_components
from support import arguments, data, errors, matching, processes, randaugment, runs, tables, weights
from support.errors import UserError
from support.files import replacing
from support.processes import Processes
from support.schedule import average_decay, cosine_schedule
from support.weights import cache_path
from teachers import TEACHERS, load_teacher, student_config
from transfer import (
    LOSSES,
    PARTS,
    AttentionTransfer,
    StudentAlone,
    align,
    choose_blocks,
    copied,
    distillation_loss,
    init_from,
)

HERE = Path(teachers.__file__).parent

# There are as many test processes as cores, so each of them, and each process that a test starts, has one thread.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# No test finds what the user has downloaded.
os.environ |= dict(HF_HOME="nowhere", HF_HUB_CACHE="", HF_HUB_OFFLINE="")

# Some tests run on the device "cpu" everywhere, and also on "cuda" where there is one.

HAS_GPU = torch.cuda.is_available()
ON = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not HAS_GPU, reason="there is no GPU with CUDA"))],
)
PAIR = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")),
    ],
)


@torch.no_grad()
def scramble(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter random values of a size that keeps signals alive; nothing stays at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and name.endswith("weight"):
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.3 * noise + (1 if "norm" in name and name.endswith("weight") else 0.2))
    return module


NANO = [name for name in TEACHERS if name.endswith("_nano")]


def vit(name: str, seed: int = 0, components: str = "native", **changes) -> ViT:
    """Returns a random model with the architecture of a nano teacher, or with that of one of its students."""
    config = TEACHERS[name].config if components == "teacher" else student_config(name, components, 8)
    return scramble(ViT(replace(config, **changes)), seed)


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def noise_folders(path, names="ab", each=2, seed=0, size=(40, 40), suffix=".png") -> Path:
    """Writes class folders of noise images, of which no two crops are alike. Returns the path that was given."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder := Path(path, name)).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}{suffix}")
    return Path(path)


def refused(action, *given, **options) -> str:
    """Returns the one line with which an action is refused."""
    with pytest.raises(UserError) as caught:
        action(*given, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def quickest(action, times: int) -> float:
    """Returns the seconds that the quickest of several calls takes."""
    return min(timeit.repeat(action, number=1, repeat=times))


def environment(**more) -> dict[str, str]:
    """Returns the environment of a process that finds the project's files wherever it runs."""
    return os.environ | dict(PYTHONPATH=str(HERE)) | more


def python(*words, **options) -> subprocess.CompletedProcess:
    """Runs Python to its end in a process of its own."""
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120, **options)


def call(script, *words) -> str:
    """Runs a script's main in this process; returns what it prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
        script.main()
    return out.getvalue()


def mistake(script, *words) -> tuple[str, str]:
    """Runs a script that must end with status 2. Returns what it prints on stdout and on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            errors.answer_mistakes(script.main)
    assert ended.value.code == 2
    return out.getvalue(), err.getvalue()


def start(*words, env=None, **options) -> subprocess.Popen:
    """Starts Python in a process of its own."""
    words, PIPE = [sys.executable, *map(str, words)], subprocess.PIPE
    return subprocess.Popen(words, text=True, stdout=PIPE, stderr=PIPE, env=env or environment(), **options)


# ---- The method, written out -----------------------------------------------------------------------------------------


def plain_transfer(student: ViT, teacher: ViT, images: torch.Tensor, method: str, blocks: list[int]):
    """Computes either method by its definition, with full maps. Returns the logits and the transfer loss."""
    R, first = teacher.config.registers - student.config.registers, int(teacher.config.class_token)
    maps = {}
    for number, routing in enumerate(teacher.route(images, 4)):
        m = attention_map(routing)
        keep = [i for i in range(m.shape[-1]) if not first <= i < first + R]
        m = m[..., keep, :][..., keep]
        maps[number] = m / m.sum(-1, keepdim=True)
    x, loss = student.embed(images), torch.zeros(())
    for number, block in enumerate(student.blocks):
        y = block.norm1(x)
        own = attention_map(block.route(x, student.rope, student.shared_bias()))
        if number in blocks and method == "distill":
            loss = loss - (maps[number] * own.log()).sum(-1).mean()
        m = maps[number] if number in blocks and method == "copy" else own
        read = (m @ block.attn.values(y)).transpose(1, 2).flatten(2)
        x = x + block.ls1(block.attn.proj(block.attn.norm(read)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return student.forward_head(student.norm(x)), loss


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("blocks", [None, [1, 2]])
@pytest.mark.parametrize("method", ["copy", "distill"])
@pytest.mark.parametrize("components", ["standard", "native"])
@pytest.mark.parametrize(
    "name", ["deit_nano", "beit_nano", "dinov2_reg_nano", "dinov3_nano", "siglip_nano", "eva02_nano"]
)
def test_transfer_gives_the_logits_losses_and_gradients_of_its_definition(name, components, method, blocks, fused):
    student, teacher = vit(name, 0, components).train(), vit(name, 1, "teacher")
    twin = copy.deepcopy(student)
    logits, loss = AttentionTransfer(student, teacher, method, blocks, fused=fused)(pictures())
    (logits.square().sum() + 3 * loss).backward()
    wanted, wanted_loss = plain_transfer(twin, teacher, pictures(), method, choose_blocks(blocks, 4))
    (wanted.square().sum() + 3 * wanted_loss).backward()
    assert relative(logits, wanted) < 1e-4 and torch.isclose(loss, wanted_loss, rtol=1e-4)
    for (key, ours), truth in zip(student.named_parameters(), twin.parameters(), strict=True):
        if truth.grad is not None and truth.grad.norm() > 1e-6:
            assert relative(ours.grad, truth.grad) < 1e-4, key


# ---- model.py --------------------------------------------------------------------------------------------------------


def timm_nano(**options) -> torch.nn.Module:
    """Returns timm's model with the shape of a nano student."""
    shape = dict(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=8)
    return timm.create_model("vit_tiny_patch16_224", **shape, **options).eval()


@pytest.mark.parametrize("options", [dict(pool="token"), dict(pool="avg"), dict(qk_norm=True)], ids=str)
def test_a_standard_vit_opens_in_timm_strictly_and_gives_the_same_logits_also_with_qk_norm(options):
    config = ViTConfig(img_size=32, patch_size=8, dim=64, depth=4, heads=4, num_classes=8, **options)
    ours, theirs = scramble(ViT(config)).eval(), timm_nano(global_pool=config.pool, qk_norm=config.qk_norm)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert relative(ours(pictures()), theirs(pictures())) < 1e-5


@pytest.mark.parametrize("name", NANO)
def test_the_rows_of_every_map_sum_to_one_and_the_map_times_v_is_what_attention_reads(name):
    model, seen = vit(name).eval(), []
    model(pictures(), seen=seen)
    for m, (routing, v, _) in zip(model.attention_maps(pictures()), seen, strict=True):
        assert torch.allclose(m.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(attend(routing, v), m @ v, atol=1e-4)


@pytest.mark.parametrize("name", NANO)
def test_a_model_that_is_handed_its_own_routing_computes_the_same(name):
    model = vit(name).eval()
    routings = model.route(pictures(), 4)
    handed = {number: Handed(routing=routing) for number, routing in enumerate(routings)}
    assert torch.allclose(model(pictures(), handed=handed), model(pictures()), atol=1e-5)


def test_a_block_that_is_handed_a_routing_computes_no_q_and_k(monkeypatch):
    model = vit("deit_nano").eval()
    handed = {number: Handed(routing=routing) for number, routing in enumerate(model.route(pictures(), 4))}
    monkeypatch.setattr("model.Attention.route", None)
    model(pictures(), handed=handed)


def test_a_block_that_is_handed_v_computes_none_and_leaves_its_routing_as_it_was(monkeypatch):
    model, usual, seen = vit("deit_nano").eval(), [], []
    model(pictures(), seen=usual)
    v = torch.randn_like(usual[0].v)
    model(pictures(), handed={0: Handed(v=v)}, seen=seen)
    assert torch.equal(seen[0].routing.q, usual[0].routing.q) and seen[0].v is v
    monkeypatch.setattr("model.Attention.values", None)
    model.forward_blocks(pictures(), 1, handed={0: Handed(v=v)})


def test_route_computes_nothing_after_the_last_routing(monkeypatch):
    model, ran = vit("beit_nano").eval(), []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    model.route(pictures(), 3)
    assert "blocks.1.mlp" in ran and "blocks.2.norm1" in ran
    assert not any(name.startswith(("blocks.2.mlp", "blocks.2.attn.proj", "blocks.3")) for name in ran)
    assert "norm" not in ran and "head" not in ran
    values = []
    monkeypatch.setattr("model.Attention.values", lambda *inputs: values.append(1))
    model.route(pictures(), 1)
    assert not values


@pytest.mark.parametrize("name", NANO)
def test_every_native_component_changes_what_its_model_computes(name):
    native = vit(name).eval()
    for component in native_components(TEACHERS[name].config):
        if getattr(native.config, component) == "sincos":
            continue  # Fixed positions differ only in their start and in staying so, which the next test checks.
        changes = {component: getattr(ViTConfig, component), "drop_path": 0}
        without = scramble(ViT(replace(native.config, **changes))).eval()
        own = native.state_dict()
        for key, value in without.state_dict().items():
            if key in own and own[key].shape == value.shape:
                value.copy_(own[key])
        assert relative(without(pictures()), native(pictures())) > 1e-4, component


def test_fixed_positions_are_waves_that_tell_patches_apart_and_are_not_trained():
    model = ViT(TEACHERS["mae_nano"].config)
    assert not model.pos_embed.requires_grad and not model.pos_embed[:, 0].any()
    waves = model.pos_embed[0, 1:]
    assert torch.allclose(waves.square().sum(-1), torch.tensor(32.0))  # For each of 32 pairs, sin^2 + cos^2 = 1.
    assert torch.cdist(waves, waves)[~torch.eye(16, dtype=torch.bool)].min() > 0.5
    # The dot product of two positions depends only on the offset between them.
    products = (waves @ waves.T).view(4, 4, 4, 4)
    assert torch.allclose(products[:3, :3, :3, :3], products[1:, 1:, 1:, 1:], atol=1e-4)


def test_drop_path_keeps_the_mean_and_drops_deeper_branches_more_often():
    model = vit("deit_nano", drop_path=0.5).train()
    torch.manual_seed(0)
    drops = model.draw_drops(pictures(1).expand(4000, -1, -1, -1))
    assert torch.allclose(drops.mean((1, 2, 3, 4)), torch.ones(4), atol=0.05)
    assert torch.allclose((drops == 0).float().mean((1, 2, 3, 4)), torch.tensor([0, 1, 2, 3]) / 6, atol=0.03)
    for nothing in model.eval(), vit("deit_nano").train():  # Nothing is dropped in eval mode or at a rate of 0.
        assert nothing.draw_drops(pictures()) == [None] * 4


def test_drops_of_none_drop_nothing_and_are_not_drawn_again():
    model = vit("deit_nano", drop_path=0.9).train()
    whole = model.eval().route(pictures(8), 4)
    for ours, theirs in zip(model.train().route(pictures(8), 4, drops=[None] * 4), whole, strict=True):
        assert torch.equal(ours.q, theirs.q)


def test_each_native_component_is_described_with_its_paper_and_readme_names_the_same_ones():
    purposes = {field.name: field.metadata.get("purpose", "") for field in fields(ViTConfig)}
    assert [name for name, purpose in purposes.items() if purpose] == COMPONENTS
    assert all("arXiv" in purposes[name] and purposes[name].endswith(".") for name in COMPONENTS)
    table = re.search(r"^\| component .*?\n\n", README, re.M | re.S)[0]
    first_column = "".join(row.split("|")[1] for row in table.split("\n") if row)
    assert sorted(re.findall(r"`(\w+)`", first_column)) == sorted(COMPONENTS)


@pytest.mark.parametrize("change", [dict(img_size=33), dict(img_size=4), dict(heads=5)])
def test_a_config_that_cannot_be_built_is_refused(change):
    refused(ViTConfig, **dict(img_size=32, patch_size=8, dim=64, heads=4) | change)


# ---- transfer.py -----------------------------------------------------------------------------------------------------


def random_routing(B=2, H=3, N=21, d=8, bias=False, seed=0, dtype=torch.float64) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(B, N, H, d, generator=generator, dtype=dtype).transpose(1, 2) * 1.5 for _ in range(2))
    return Routing(q, k, torch.randn(H, N, N, generator=generator, dtype=dtype) if bias else None)


def value_and_gradients(loss, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = loss(*inputs)
    value.backward()
    return [value.detach()] + [x.grad for x in inputs]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("N", [1, 2, 21, 300])
def test_the_loss_without_maps_is_the_loss_with_maps_in_value_and_gradient(N, bias):
    teacher, student = random_routing(N=N, bias=bias), random_routing(N=N, seed=1)
    fused = transfer.fused_cross_entropy
    ours = value_and_gradients(lambda q, k: 3 * fused(teacher, Routing(q, k)), student.q, student.k)
    plain = value_and_gradients(lambda q, k: 3 * distillation_loss(teacher, Routing(q, k)), student.q, student.k)
    for mine, truth in zip(ours, plain):
        assert (mine - truth).abs().max() < 1e-8 and (N == 1 or truth.abs().max() > 1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("N", [1, 2, 21, 300])
def test_copying_is_the_teachers_map_times_the_students_value_in_value_and_gradient(N, bias):
    routing = random_routing(N=N, bias=bias)
    v, weight = random_routing(N=N, seed=1)[:2]
    ours = value_and_gradients(lambda v: (attend(routing, v) * weight).sum(), v)
    plain = value_and_gradients(lambda v: (copied(routing, v) * weight).sum(), v)
    for mine, truth in zip(ours, plain):
        assert (mine - truth).abs().max() < 1e-8 and truth.abs().max() > 1e-4


def test_whether_maps_are_built_is_decided_by_tokens_device_and_loss():
    few, many, biased = random_routing(N=399), random_routing(N=400), random_routing(N=400, bias=True)
    ce, js = LOSSES["cross_entropy"], LOSSES["js"]
    assert not transfer.use_fused(few, ce, None) and transfer.use_fused(many, ce, None)
    assert transfer.use_fused(few, ce, True) and not transfer.use_fused(many, ce, False)
    assert not transfer.use_fused(biased, ce, True) and not transfer.use_fused(many, js, True)


class Watched(TorchDispatchMode):
    """Notes the shapes of all tensors that are made inside, and counts the bytes of those that are alive.

    `peak` is the largest count. The memory that kernels use is not seen, nor are the `known` tensors.
    """

    def __init__(self, known=()):
        super().__init__()
        self.live, self.peak, self.shapes = 0, 0, set()
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
                if (storage := tensor.untyped_storage()) not in self.seen:
                    self.seen.add(storage)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, count):
        self.live -= count


@pytest.mark.parametrize(
    "method, fused, whole", [("copy", None, False), ("distill", True, False), ("distill", False, True)]
)
def test_copying_and_the_fused_loss_make_no_tensor_of_n_by_n_and_the_plain_loss_does(method, fused, whole):
    student, teacher = vit("deit_nano", 0), vit("deit_nano", 1, "teacher")
    module = AttentionTransfer(student, teacher, method, fused=fused).train()
    with Watched() as watched:
        logits, loss = module(pictures(3))
        (logits.square().sum() + loss).backward()
    assert any(shape[-2:] == (17, 17) for shape in watched.shapes) == whole


def test_peak_memory_counts_what_lives_at_the_same_time():
    x = torch.zeros(1000)
    with Watched([x]) as memory:
        y = x.view(10, 100)  # A view takes no memory.
        y = (y + 1) + 1  # Two tensors are alive at once.
        del y
        x + 1
    assert 2 * 4e3 <= memory.peak < 2.1 * 4e3


@pytest.mark.parametrize(
    "method, fused, least, most", [("copy", None, 3.5, 4.1), ("distill", True, 3.5, 4.1), ("distill", False, 10, 17)]
)
def test_memory_grows_with_the_tokens_or_for_the_plain_loss_with_their_square(method, fused, least, most):
    peaks = []
    for size in 128, 256:  # There are 257 and 1,025 tokens.
        student, teacher = vit("deit_nano", img_size=size), vit("deit_nano", 1, "teacher", img_size=size)
        module, images = AttentionTransfer(student, teacher, method, fused=fused).train(), pictures(1, size)
        with Watched([images, *student.parameters(), *teacher.parameters()]) as memory:
            logits, loss = module(images)
            (logits.square().sum() + loss).backward()
        peaks.append(memory.peak)
        del logits, loss
    assert least < peaks[1] / peaks[0] < most


def test_copying_leaves_the_students_q_and_k_without_gradient_and_distillation_does_not():
    for method, reached in ("copy", False), ("distill", True):
        student = vit("deit_nano").train()
        logits, loss = AttentionTransfer(student, vit("deit_nano", 1, "teacher"), method)(pictures())
        (logits.sum() + loss).backward()
        assert (student.blocks[0].attn.qkv.weight.grad[:128].abs().max() > 0) == reached
        assert student.blocks[0].attn.qkv.weight.grad[128:].abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [False, True])
def test_no_student_is_closer_to_the_teacher_than_the_teacher_itself(loss, bias):
    teacher, other = random_routing(bias=bias), random_routing(bias=bias, seed=1)
    at_teacher = distillation_loss(teacher, teacher, LOSSES[loss])
    assert distillation_loss(teacher, other, LOSSES[loss]) > at_teacher + 1e-3
    if loss != "cross_entropy":
        assert at_teacher.abs() < 1e-12
    q, k = teacher.q.clone().requires_grad_(), teacher.k.clone().requires_grad_()
    distillation_loss(teacher, Routing(q, k, teacher.bias), LOSSES[loss]).backward()
    assert q.grad.abs().max() < 1e-7


def test_jensen_shannon_is_symmetric_and_at_most_log_2():
    one, other = random_routing(), random_routing(seed=1)
    there, back = distillation_loss(one, other, LOSSES["js"]), distillation_loss(other, one, LOSSES["js"])
    assert torch.isclose(there, back) and 0 < there < math.log(2)


def test_the_teacher_is_frozen_and_stays_in_eval_mode():
    teacher = vit("deit_nano", 1, "teacher").train()
    module = AttentionTransfer(vit("deit_nano"), teacher, "distill").train()
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in module.student.parameters()}
    assert next(module.double().teacher.parameters()).dtype == torch.float64


def test_distillation_in_eval_mode_needs_no_teacher_and_copy_does():
    student = vit("deit_nano")
    logits, loss = AttentionTransfer(student, None, "distill").eval()(pictures())
    assert torch.equal(logits, student(pictures())) and loss == 0
    assert "needs the teacher" in refused(AttentionTransfer, student, None, "copy")


@pytest.mark.parametrize("what", ["map", "v", "output"])
def test_the_teacher_runs_no_further_than_what_is_used(what):
    teacher, ran = vit("deit_nano", 1, "teacher"), []
    for name, module in teacher.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    AttentionTransfer(vit("deit_nano").train(), teacher, "distill", blocks=2, what=what)(pictures())
    assert "blocks.0.mlp" in ran and "blocks.1.norm1" in ran
    assert not any(name.startswith("blocks.2") for name in ran) and "norm" not in ran
    if what == "map":  # In the last block, only the routing is computed.
        assert not {"blocks.1.mlp", "blocks.1.attn.proj"} & set(ran)


def test_teacher_and_student_drop_the_same_branches_of_an_image():
    student, teacher = vit("deit_nano", 1, "teacher", drop_path=0.9).train(), vit("deit_nano", 1, "teacher")
    for seed in range(3):  # The same weights and branches give the same maps.
        torch.manual_seed(seed)
        loss = AttentionTransfer(student, teacher, "distill", loss="kl")(pictures(8))[1]
        assert loss < 1e-5
    torch.manual_seed(0)
    without, dropped = (teacher.route(pictures(8), 4, drops) for drops in (None, student.draw_drops(pictures(8))))
    apart = [distillation_loss(*pair, LOSSES["kl"]) for pair in zip(without, dropped)]
    assert sum(apart) > 1e-2  # Dropped branches change the maps.


def test_registers_that_only_the_teacher_has_leave_their_share_to_the_rest_of_the_row():
    teacher = vit("dinov3_nano", 1, "teacher")
    standard, native = (vit("dinov3_nano", 0, components).config for components in ("standard", "native"))
    routing = teacher.route(pictures(), 1)[0]
    aligned, keep = attention_map(align(routing, teacher.config, standard)), [0, *range(5, 21)]
    kept = attention_map(routing)[..., keep, :][..., keep]
    assert aligned.shape[-1] == 17 and torch.allclose(aligned, kept / kept.sum(-1, keepdim=True), atol=1e-5)
    assert torch.equal(align(routing, teacher.config, native).q, routing.q)


@pytest.mark.parametrize("name", ["deit_nano", "dinov2_reg_nano"])
def test_copying_v_reads_the_teachers_v_with_the_students_own_map(name):
    student, teacher, theirs = vit(name, 0, "standard"), vit(name, 1, "teacher"), []
    teacher(pictures(), seen=theirs)
    v, R, seen = theirs[1].v, teacher.config.registers, []
    v = torch.cat((v[:, :, :1], v[:, :, 1 + R :]), dim=2)
    module = AttentionTransfer(student, teacher, "copy", blocks=[1], what="v")
    logits, _ = module(pictures())
    student(pictures(), handed=module.handed(module.teacher_targets(pictures())), seen=seen)
    own = student.route(pictures(), 2)[1]
    read = (attention_map(own) @ v).transpose(1, 2).flatten(2)
    assert torch.allclose(seen[1].output, student.blocks[1].attn.proj(read), atol=1e-5)
    logits.sum().backward()  # In that block, q and k learn, but v does not.
    q, k, ours = student.blocks[1].attn.qkv.weight.grad.chunk(3)
    assert q.abs().max() > 0 and k.abs().max() > 0 and ours.abs().max() == 0


@pytest.mark.parametrize("what", ["q", "k"])
def test_copying_q_or_k_combines_the_teachers_with_the_other_one_of_the_student(what):
    student, teacher = vit("deit_nano"), vit("deit_nano", 1, "teacher")
    logits, _ = AttentionTransfer(student, teacher, "copy", blocks=1, what=what)(pictures())
    own, theirs = student.route(pictures(), 1)[0], teacher.route(pictures(), 1)[0]
    mixed = own._replace(**{what: getattr(theirs, what)})
    assert torch.allclose(logits, student(pictures(), handed={0: Handed(routing=mixed)}), atol=1e-5)
    assert not torch.allclose(logits, student(pictures()), atol=1e-3)


@pytest.mark.parametrize("what", ["q", "k", "v", "output"])
def test_distilling_an_activation_is_its_mean_squared_error(what):
    for name in "deit_nano", "dinov2_reg_nano":
        student, teacher, seen = vit(name, 0, "standard").train(), vit(name, 1, "teacher"), ([], [])
        for model, notes in zip((student, teacher), seen):
            model(pictures(), seen=notes)
        loss = AttentionTransfer(student, teacher, "distill", blocks=[1, 2], what=what)(pictures())[1]
        wanted = 0
        for number in 1, 2:
            ours, theirs = (getattr(notes[number].routing if what in "qk" else notes[number], what) for notes in seen)
            R = theirs.shape[-2] - ours.shape[-2]
            theirs = torch.cat((theirs[..., :1, :], theirs[..., 1 + R :, :]), dim=-2)
            wanted = wanted + (ours - theirs).square().mean()
        assert torch.isclose(loss, wanted, rtol=1e-5)


def test_transfer_in_bfloat16_is_near_that_in_float32():
    for method in "copy", "distill":
        student, teacher = vit("eva02_nano").train(), vit("eva02_nano", 1, "teacher")
        module = AttentionTransfer(student, teacher, method)
        logits, loss = module(pictures())
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_loss = module(pictures())
            (rough.float().sum() + rough_loss).backward()
        assert relative(rough.float(), logits) < 0.05 and torch.isclose(rough_loss.float(), loss, rtol=0.02)
        assert rough_loss.dtype == torch.float32 or method == "copy"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_the_map_loss_is_computed_in_float32_under_autocast(fused, dtype):
    student, teacher = vit("deit_nano").train(), vit("deit_nano", 1, "teacher")
    module, seen = AttentionTransfer(student, teacher, "distill", fused=fused), []
    with torch.autocast("cpu", dtype):
        theirs = module.teacher_routings(pictures())
        student(pictures(), seen=seen)
        losses = [module.block_loss(theirs[block], seen[block]) for block in range(4)]
    assert seen[0].routing.q.dtype == dtype
    for block, loss in enumerate(losses):
        ours, wanted = seen[block].routing, theirs[block]
        exact = distillation_loss(*(Routing(routing.q.double(), routing.k.double()) for routing in (wanted, ours)))
        assert loss.dtype == torch.float32 and torch.isclose(loss.double(), exact, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", "deit_s dinov2_s dinov2_reg_s dinov3_s eva02_s clip_b beit_b".split())
def test_the_forward_pass_is_sound_on_fake_cuda_tensors(name, dtype):
    """Checks shapes, types and devices of the forward pass. No number is computed, and backward needs a real GPU."""
    torch.set_autocast_enabled("cuda", dtype != torch.float32)  # torch.autocast switches itself off without a GPU.
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(), torch.device("cuda"):
            config = student_config(name, "standard" if name == "deit_s" else "native", img_size=224)
            student = ViT(replace(config, depth=2)).train()
            teacher = ViT(replace(TEACHERS[name].config, img_size=224, depth=2))
            images = torch.randn(4, 3, 224, 224)
            outputs = [student(images)]
            for method, fused in ("copy", None), ("distill", True), ("distill", False):
                logits, loss = AttentionTransfer(student, teacher, method, fused=fused).train()(images)
                assert loss.dtype == torch.float32 and loss.is_cuda and loss.shape == ()
                outputs.append(logits)
            assert {(x.dtype, x.device.type, tuple(x.shape)) for x in outputs} == {(dtype, "cuda", (4, 1000))}
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_blocks_are_a_count_a_range_or_a_list():
    right = {None: [0, 1, 2, 3], "2": [0, 1], "1-2": [1, 2], "0,3": [0, 3], "3,": [3], "2,0": [0, 2]}
    for typed, meant in right.items():
        assert choose_blocks(typed, 4) == meant
    for typed in "5", "0", "x", "2-1", "3-8", "0,4", "-1", "", "99999999999", "0-99999999999":
        assert "blocks" in refused(lambda: choose_blocks(typed, 4))
    assert choose_blocks(2, 4) == [0, 1] and choose_blocks(range(1, 3), 4) == [1, 2]
    for blocks in [], [4], [-1], 0:
        assert "there are 4" in refused(choose_blocks, blocks, 4)


@pytest.mark.parametrize("parts", [*PARTS, "all", "mlp,norms"])
@pytest.mark.parametrize("name", ["deit_nano", "beitv2_nano", "dinov3_nano", "beit3_nano", "clip_nano"])
def test_init_from_copies_just_those_parts(name, parts):
    student, teacher = vit(name), vit(name, 1, "teacher")
    before = copy.deepcopy(student.state_dict())
    init_from(student, teacher, parts)
    for key, value in student.state_dict().items():
        taken = transfer.part_of(key) in (PARTS if parts == "all" else parts.split(","))
        assert torch.equal(value, teacher.state_dict()[key] if taken else before[key]), key


def test_every_parameter_of_every_teacher_belongs_to_a_part():
    for name in NANO:
        heads = {key for key in vit(name).state_dict() if transfer.part_of(key) == "head"}
        assert heads <= {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_a_student_with_everything_of_the_teacher_computes_its_tokens():
    teacher, student = vit("beit_nano", 1, "teacher").eval(), vit("beit_nano", 0, "native", pool="avg").eval()
    init_from(student, teacher, "all")
    student.norm, teacher.norm = torch.nn.Identity(), torch.nn.Identity()
    assert torch.equal(student.forward_features(pictures()), teacher.forward_features(pictures()))


@pytest.mark.parametrize(
    "student, teacher, options, says",
    [
        ({}, dict(depth=3), {}, "depth is 3 and the student's 4"),
        ({}, dict(heads=8), {}, "heads is 8 and the student's 4"),
        ({}, dict(img_size=64), {}, "grid is 8 and the student's 4"),
        (dict(registers=2), {}, {}, "0 registers and the student 2"),
        ({}, {}, dict(method="coppy"), "did you mean copy"),
        ({}, {}, dict(what="maps"), "did you mean map"),
        ({}, {}, dict(loss="cross-entropy"), "did you mean cross_entropy"),
        ({}, {}, dict(method="copy", what="output"), "distilled, not copied"),
        ({}, {}, dict(what="q", loss="kl"), "leave out loss"),
        ({}, {}, dict(blocks=5), "there are 4"),
    ],
)
def test_a_transfer_that_makes_no_sense_is_refused_in_one_clear_line(student, teacher, options, says):
    models = (ViT(replace(TEACHERS["deit_nano"].config, **changes)) for changes in (student, teacher))
    assert says in refused(AttentionTransfer, *models, **{"method": "distill"} | options)


def test_parts_that_do_not_fit_are_refused_in_one_clear_line():
    beit, deit = vit("beit_nano", 1, "teacher"), vit("deit_nano", 1, "teacher")
    assert "--student native" in refused(init_from, vit("beit_nano", 0, "standard"), beit, "attention")
    assert "did you mean mlp" in refused(init_from, vit("deit_nano"), deit, "mpl")


def test_measures_are_right_for_uniform_and_one_hot_maps():
    config, N = ViTConfig(img_size=24, patch_size=8, dim=8, heads=2, registers=2), 12
    uniform, first = torch.full((1, 2, N, N), 1 / N), torch.zeros(1, 2, N, N)
    first[..., 0] = 1
    found = transfer.measures(uniform, first.clone(), config)
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    assert torch.allclose(found["entropy"][0], torch.tensor(math.log(N)))
    assert torch.allclose(found["distance"][0], torch.cdist(places, places).mean())
    assert torch.allclose(found["registers"][0], torch.tensor(2 / N))
    assert torch.allclose(found["sink"][0], torch.tensor(1 / N))
    assert found["entropy"][1].abs().max() < 1e-6
    assert torch.allclose(found["class token"][1], torch.ones(2)) and torch.allclose(found["sink"][1], torch.ones(2))
    itself = transfer.measures(uniform, uniform.clone(), config)
    assert itself["kl"].abs().max() < 1e-6 and itself["js"].abs().max() < 1e-6
    assert found["kl"].min() > 1 and found["js"].min() > 0.1


# ---- train.py --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nano(tmp_path, monkeypatch):
    """Provides a folder to run in, untrained stand-ins for nano teachers, and fewer than 10,000 held-out images."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in "deit_nano", "dinov2_reg_nano":
        stand_in(name, 1)
    hold_out(monkeypatch, 200)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def stand_ins(tmp_path_factory):
    """Provides untrained stand-ins for nano teachers, so that a test pretrains only a teacher that it asks for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "_hub_dir", None)
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in "deit_nano", "dinov2_reg_nano":
            stand_in(name, 1)
        yield


def stand_in(name, seed):
    """Puts a random model into the cache as the nano teacher of that name."""
    cache_path(name).parent.mkdir(parents=True, exist_ok=True)
    stamp = json.dumps([repr(TEACHERS[name].config), teachers.PRETRAINING])
    save_file(vit(name, seed, "teacher").state_dict(), cache_path(name), metadata={"recipe": stamp})


def hold_out(monkeypatch, most):
    """Limits the images that matching makes at a time to `most`."""
    monkeypatch.setattr("support.data.matching", lambda count, seed: matching.matching(min(count, most), seed))


QUICK = "--epochs 2 --train-images 40 --batch-size 16 --amp off".split()
BASELINE, TRANSFER, COPY = (
    words.split() for words in ("--mode baseline", "--mode transfer", "--mode transfer --method copy")
)


def command(*words, processes=0) -> subprocess.CompletedProcess:
    """Runs train.py as a user does, in a process of its own or in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
    return python(*launcher, HERE / "train.py", *words)


def run_of(mode, out="runs", seed=0, data="matching") -> Path:
    """Returns the folder of a run of deit_nano."""
    return Path(out, f"deit_nano-{data}-{mode}-seed{seed}")


def read_json(*path) -> dict:
    return json.loads(Path(*path).read_text())


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]


def parted_folder(path, each=4) -> Path:
    """Writes two classes of noise images, split into train and val."""
    for part in "train", "val":
        noise_folders(Path(path, part), each=each)
    return Path(path)


def cells_of(printed: str) -> list[list[str]]:
    """Returns the cells of the table that was printed."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def student_of(folder) -> dict:
    return load_file(Path(folder) / "student.safetensors")


def test_the_main_job_ends_with_a_table_and_files_that_other_tools_open(nano):
    out = call(train, *QUICK)
    assert out.splitlines()[-1] == "next: python eval.py accuracy runs/deit_nano-matching-distill-seed0"
    header, _, row = cells_of(out)
    assert header == ["family", "teacher", "its top-1", "baseline", "distill"] and row[:2] == ["DeiT", "deit_nano"]
    val = data.load_data("matching", "", 32, teachers.HALF).val
    model = StudentAlone(load_teacher("deit_nano"))
    own = train.evaluate(model, data.Loader(val, 0, CPU), 100, Processes("cpu"))["top1"]
    assert row[2] == f"{own:.1f}" and read_json(run_of("distill"), "result.json")["teacher_top1"] == own
    for mode in "baseline", "distill":
        files = {path.name for path in run_of(mode).iterdir()}
        assert files == {"config.json", "log.jsonl", "student.safetensors", "result.json"}
        lines = log_of(run_of(mode))
        assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["step"] == 6
        assert (lines[0]["transfer_loss"] > 0) == (mode == "distill")
        result, config = (read_json(run_of(mode), f"{name}.json") for name in ("result", "config"))
        assert result["n"] == 200 and 0 <= result["top1"] <= result["top5"] <= 100
        assert config["settings"]["epochs"] == 2 and config["versions"]["torch"] == torch.__version__
        assert config["versions"]["commit"] == runs.code_commit()


def test_a_run_records_the_commit_of_its_code(tmp_path, monkeypatch):
    def git(words):
        asked = subprocess.run(["git", *words.split()], cwd=tmp_path, check=True, capture_output=True, text=True)
        return asked.stdout.strip()

    code = tmp_path / "support" / "runs.py"
    code.parent.mkdir()
    code.write_text("as committed")
    monkeypatch.setattr("support.runs.__file__", str(code))
    assert runs.code_commit() is None  # There is no repository.
    for words in (
        "init -q",
        "config user.name A",
        "config user.email a@example.org",
        "add .",
        "commit -m 1",
        "tag -a v1 -m 1",
    ):
        git(words)
    commit = runs.code_commit()
    assert len(commit) >= 7 and git("rev-parse HEAD").startswith(commit)
    code.write_text("changed")
    assert runs.code_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert runs.code_commit() is None  # There is no git.


def test_a_baseline_needs_no_weights_of_the_teacher(nano, monkeypatch):
    monkeypatch.setattr("train.load_teacher", None)
    call(train, "--teacher", "eva02_nano", *BASELINE, *QUICK, "--weight", 2)
    assert student_of("runs/eva02_nano-matching-baseline-seed0")


def test_a_finished_run_is_trained_again_only_with_fresh_and_other_settings_are_listed(nano):
    call(train, *BASELINE, *QUICK)
    path = run_of("baseline") / "student.safetensors"
    before = path.stat().st_mtime_ns
    assert "finished before" in call(train, *BASELINE, *QUICK)
    said = refused(call, train, *BASELINE, *QUICK, "--lr", 0.1)
    assert re.search("lr 0.006 there and 0.1 here.*--fresh", said) and path.stat().st_mtime_ns == before
    assert "finished before" not in call(train, *BASELINE, *QUICK, "--fresh") and path.stat().st_mtime_ns > before


def test_a_seed_repeats_a_run_exactly_and_two_seeds_differ(nano):
    recipe = "--mixup 0.8 --cutmix 1 --drop-path 0.2 --ema 0.9 --smoothing 0.1 --layer-decay 0.8".split()
    students = []
    for out, seed in ("a", 0), ("b", 0), ("c", 1):
        call(train, *TRANSFER, *QUICK, *recipe, "--seed", seed, "--out", out)
        students.append(student_of(run_of("distill", out, seed)))
    a, b, c = students
    assert same(a, b) and not same(a, c)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method, amp, step", [("copy", "off", 2), ("copy", "fp16", 4), ("distill", "fp16", 5)])
def test_a_run_that_is_killed_at_any_step_ends_with_the_student_it_would_have_had(method, amp, step, nano, monkeypatch):
    words = [*TRANSFER, "--method", method, *QUICK, "--amp", amp]  # With fp16 the scaler's state is resumed, too.
    words += "--mixup 0.8 --drop-path 0.2 --ema 0.9 --checkpoint-every 1 --out".split()
    call(train, *words, "whole")

    def killed(at, *schedule):
        if at == step:
            raise Killed
        return cosine_schedule(at, *schedule)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("train.cosine_schedule", killed)
        call(train, *words, "broken")
    whole, broken = run_of(method, "whole"), run_of(method, "broken")
    assert (broken / "checkpoint.pt").exists() == (step > 2)
    call(train, *words, "broken")
    for name in "student.safetensors", "student_ema.safetensors":
        assert same(load_file(whole / name), load_file(broken / name))
    for one, other in zip(log_of(whole), log_of(broken), strict=True):
        assert all(one[key] == other[key] for key in ("epoch", "loss", "top1"))


def wait_for(path):
    """Waits until a file exists, but not longer than a minute."""
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)


def test_kill_9_and_ctrl_c_lose_nothing(nano):
    parted_folder("pictures", 8)
    words = "--mode baseline --data pictures --workers 0 --train-images 16 --batch-size 4 --epochs 40".split()
    words += "--checkpoint-every 1 --validate-every 40 --out".split()
    call(train, *words, "whole")
    for ending, code, file in (signal.SIGKILL, -9, "checkpoint.pt"), (signal.SIGINT, 130, "log.jsonl"):
        folder = run_of("baseline", f"broken{code}", data="pictures")
        process = start(HERE / "train.py", *words, f"broken{code}")
        wait_for(folder / file)
        process.send_signal(ending)
        said = process.communicate()[1]
        assert process.returncode == code and not (folder / "result.json").exists()
        if ending is not signal.SIGKILL:
            assert "resume with: python train.py --mode baseline" in said.splitlines()[-1] and "Traceback" not in said
        call(train, *words, f"broken{code}")
        assert same(student_of(run_of("baseline", "whole", data="pictures")), student_of(folder))


def test_validation_and_checkpoints_come_every_so_many_epochs_and_at_the_end(nano, monkeypatch):
    kept, save = [], runs.Checkpoint.save
    monkeypatch.setattr(runs.Checkpoint, "save", lambda self, *at: kept.append(at[0]) or save(self, *at))
    words = [*BASELINE, *QUICK, "--epochs", 7]
    call(train, *words, "--out", "a", "--validate-every", 3, "--checkpoint-every", 2)
    assert [line["epoch"] for line in log_of(run_of("baseline", "a")) if "val_top1" in line] == [3, 6, 7]
    assert kept == [2, 4, 6, 7]
    del kept[:]
    call(train, *words, "--out", "b")  # A tenth of 7 epochs is less than one, and 10,000 images are not reached.
    assert ["val_top1" in line for line in log_of(run_of("baseline", "b"))] == [True] * 7 and kept == [7]


def test_the_usual_policies_suit_500_images_and_imagenet():
    assert [settings.validate_every for settings in planned("--mode baseline --epochs 50")] == [5]
    assert [settings.validate_every for settings in planned("--mode baseline --epochs 4")] == [1]
    (settings,) = planned("--mode baseline")
    for count, epochs in (500, 20), (9_469, 2), (1_281_167, 1):
        images = data.Data(range(count), range(9), ["a", "b"])
        run = train.Training(replace(settings, batch_size=count), images, vit("deit_nano"), None, Processes("cpu"))
        assert run.checkpoint_every == epochs


def test_ctrl_c_that_reaches_the_loaders_workers_too_loses_nothing(nano):
    noise_folders("pictures", each=300)
    words = "--mode baseline --data pictures --workers 1 --batch-size 2 --epochs 500 --checkpoint-every 1"
    process = start(HERE / "train.py", *words.split(), start_new_session=True)
    folder = run_of("baseline", data="pictures")
    wait_for(folder / "log.jsonl")
    time.sleep(1)  # By now the next epoch has begun, and its worker is at work.
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and "Traceback" not in said and (folder / "checkpoint.pt").exists()
    assert said.splitlines()[-1] == f"stopped; resume with: python train.py {words}"


def test_an_image_that_cannot_be_read_during_training_is_named_in_one_line(nano):
    (parted_folder("data/imagenet", 2) / "train/a/broken.jpg").touch()
    ended = command(*"--mode baseline --data imagenet --workers 1 --epochs 1 --batch-size 4".split())
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert last.startswith("error: cannot read") and "broken.jpg" in last


# Each setting is changed once: these are the words that both runs have, those that one has, and the effect.
PHOTOS = "--data photos --mode baseline --train-images 20"
CHANGES = {
    "teacher": ("--mode transfer", "--teacher dinov2_reg_nano", "other student"),
    "teacher_seed": ("--mode transfer", "--teacher-seed 1", "other student"),
    "seed": ("--mode baseline", "--seed 1", "other student"),
    "data": (PHOTOS, "--data others", "other student"),
    "mode": ("--mode baseline", "--mode transfer", "other student"),
    "student": ("--mode transfer --teacher dinov2_reg_nano", "--student registers", "other student"),
    "method": ("--mode transfer", "--method copy", "other student"),
    "weights": ("--mode transfer", "--weights random", "other student"),
    "train_images": ("--mode baseline", "--train-images 41", "other student"),
    "img_size": ("--mode baseline", "--img-size 64", "other student"),
    "augment": (PHOTOS, "--no-augment", "other student"),
    "what": ("--mode transfer", "--what q", "other student"),
    "loss": ("--mode transfer", "--loss js", "other student"),
    "weight": ("--mode transfer", "--weight 5", "other student"),
    "blocks": ("--mode transfer", "--blocks 2", "other student"),
    "init": ("--mode baseline", "--init mlp", "other student"),
    "recipe": ("--mode transfer --warmup 1", "--recipe paper", "other student"),
    "epochs": ("--mode baseline", "--epochs 4", "other student"),
    "batch_size": ("--mode baseline", "--batch-size 15", "other student"),
    "lr": ("--mode baseline", "--lr 0.001", "other student"),
    "lr_floor": ("--mode baseline", "--lr-floor 0.5", "other student"),
    "beta2": ("--mode baseline", "--beta2 0.9", "other student"),
    "weight_decay": ("--mode baseline", "--weight-decay 0.5", "other student"),
    "warmup": ("--mode baseline", "--warmup 2", "other student"),
    "clip": ("--mode baseline", "--clip 0.01", "other student"),
    "layer_decay": ("--mode baseline", "--layer-decay 0.5", "other student"),
    "drop_path": ("--mode baseline", "--drop-path 0.5", "other student"),
    "mixup": ("--mode baseline", "--mixup 0.8", "other student"),
    "cutmix": ("--mode baseline", "--cutmix 1", "other student"),
    "randaugment": (PHOTOS, "--randaugment 9", "other student"),
    "erasing": (PHOTOS, "--erasing 1", "other student"),
    "smoothing": ("--mode baseline", "--smoothing 0.1", "other student"),
    "ema": ("--mode baseline --ema 0.1", "--ema 0.05", "other average"),
    "data_root": ("--mode baseline", "--data-root elsewhere", "same"),
    "workers": (PHOTOS, "--workers 2", "same"),
    "accumulate": ("--mode baseline", "--accumulate 2", "same but for rounding"),
    "validate_every": ("--mode baseline", "--validate-every 2", "same"),
    "checkpoint_every": ("--mode baseline", "--checkpoint-every 2", "same"),
    "device": ("--mode baseline", "--device cpu", "same"),
    "amp": ("--mode baseline --amp off", "--amp bf16", "other student"),
    "compile": ("--mode baseline", "--compile", "compiled"),
}
FIELDS = [field.name for field in fields(train.Settings)]  # A field without a line in CHANGES fails.


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_changes_the_student_or_leaves_it_identical_to_the_bit(name, nano, monkeypatch):
    words, change, effect = CHANGES[name]
    noise_folders("photos", each=20)
    noise_folders("others", each=20, seed=1)
    if name == "teacher_seed":
        stamp = json.dumps([repr(TEACHERS["deit_nano"].config), teachers.PRETRAINING | {"seed": 1}])
        tensors = vit("deit_nano", 5, "teacher").state_dict()
        save_file(tensors, cache_path("deit_nano-seed1"), metadata={"recipe": stamp})
    compiled = []
    monkeypatch.setattr(ViT, "compile", lambda student: compiled.append(student))
    students, averages = [], []
    for out, more in ("without", ""), ("with", change):
        call(train, *f"--epochs 3 --train-images 40 --batch-size 16 {words} {more} --out {out}".split())
        (folder,) = Path(out).iterdir()
        students.append(student_of(folder))
        averages.append(load_file(folder / "student_ema.safetensors") if "ema" in words else {})
    is_same, is_same_average = same(*students), same(*averages)
    if effect == "same but for rounding":
        one, other = (evaluation.load_student(*Path(out).iterdir())(pictures()) for out in ("without", "with"))
        assert not is_same and relative(one, other) < 1e-3
    else:
        assert is_same == (effect != "other student") and is_same_average == (effect != "other average")
    assert len(compiled) == (effect == "compiled")


# This is what differs in tables. It depends on the role of a setting and, for the role "run", on its name.
PARTED = {"data": "table", "recipe": "table", "variant": "column", "machine": "nothing"}
PARTED_RUN = dict(teacher="row", teacher_seed="row", weights="row", mode="column", student="column", method="column")


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_separates_tables_rows_or_columns_as_its_role_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "photos", "others":
        noise_folders(tmp_path / folder, each=20)
    words, change, _ = CHANGES[name]
    ((one,), (other,)) = planned(f"--epochs 3 {words}"), planned(f"--epochs 3 {words} {change}")
    role = {field.name: field.metadata["role"] for field in fields(train.Settings)}[name]
    wanted = PARTED.get(role) or (PARTED_RUN | dict(seed="value", recipe="table"))[name]
    one, other = result_of(one), result_of(other)
    if one == other:
        found = "nothing"
    elif len(tables.compare([one, other])) == 2:
        found = "table"
    else:
        found = "row" if one.title != other.title else "column" if one.column != other.column else "value"
    assert found == wanted


@PAIR
@pytest.mark.parametrize("method", ["copy", "distill"])
def test_two_processes_train_the_student_that_one_trains(method, device, nano):
    parted_folder("pictures", 100)
    words = "--mode transfer --data pictures --workers 0 --epochs 2 --train-images 45 --batch-size 16".split()
    words += f"--device {device} --amp off --accumulate 2 --clip 0 --method {method} --out".split()
    call(train, *words, "one")
    together = command(*words, "two", processes=2)
    assert together.returncode == 0, together.stderr
    folders = [run_of(method, out, data="pictures") for out in ("one", "two")]
    one, two = map(student_of, folders)
    start = ViT(evaluation.load_student(folders[0]).config)
    for key in one:
        apart = (one[key] - two[key]).abs()
        if key.endswith("qkv.bias"):
            apart[64:128] = 0  # A bias on k changes no map. Its gradient is rounding error, which Adam scales up.
        assert apart.max() < (2e-4 if device == "cpu" else 2e-3), key
    assert max((one[key] - value).abs().max() for key, value in start.state_dict().items()) > 0.05
    first, second = (read_json(folder, "result.json") for folder in folders)
    assert first["n"] == second["n"] == 200 and abs(first["top1"] - second["top1"]) < 1.1  # Two images may differ.
    assert together.stdout.count("next:") == 1


def test_copying_in_two_processes_leaves_out_parameters_that_get_no_gradient(nano):
    """A student that copies does not use the norms of q and k. So DDP must not wait for their gradients."""
    parted_folder("pictures", 10)
    words = "--teacher qknorm_nano --student native --method copy --weights random --data pictures --workers 0".split()
    done = command(*TRANSFER, *words, *"--device cpu --epochs 1 --batch-size 10".split(), processes=2)
    assert done.returncode == 0 and "top-1" in done.stdout, done.stderr


SEEDS = """
import torch, train
from pathlib import Path
mixing = train.data.mixing
def noted(*words):
    mix = mixing(*words)
    def look(images, labels):
        with open(f"seeds{train.dist.get_rank()}", "a") as file:
            print(torch.initial_seed(), file=file)
        return mix(images, labels)
    return look
train.data.mixing = noted
train.main()
"""


def test_each_process_and_each_step_has_a_seed_of_its_own(nano):
    parted_folder("pictures", 20)
    Path("script.py").write_text(SEEDS)
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2 script.py --device cpu".split()
    assert python(*launcher, *BASELINE, *QUICK, *"--data pictures --workers 0".split()).returncode == 0
    seeds = [Path(f"seeds{rank}").read_text().split() for rank in (0, 1)]
    assert len(seeds[0]) == len(seeds[1]) == 6 and len({*seeds[0], *seeds[1]}) == 12


TWO_MACHINES = """
import sys, train
from support import errors, processes
processes.Processes.patience = 1
sys.argv[0] = "train.py"
errors.answer_mistakes(train.main)
"""


def test_processes_that_do_not_see_the_same_folder_all_end_with_one_line(nano):
    place = dict(LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    words = ["-c", TWO_MACHINES, *BASELINE, "--device", "cpu", *QUICK]
    started = []
    for rank in "01":
        Path(rank).mkdir()
        started.append(start(*words, cwd=rank, env=environment(RANK=rank, **place)))
    for process in started:
        said = [line for line in process.communicate(timeout=100)[1].splitlines() if line.startswith("error")]
        assert process.returncode == 2 and len(said) == 1 and "folder that all machines share" in said[0]


def test_one_process_of_each_machine_acts_before_the_others(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for rank, local, order in (0, 0, "act wait wait wait"), (3, 1, "wait wait act wait"), (2, 0, "wait act wait wait"):
        for name, value in dict(RANK=rank, LOCAL_RANK=local, WORLD_SIZE=4).items():
            monkeypatch.setenv(name, str(value))
        done = []
        monkeypatch.setattr("torch.distributed.barrier", lambda: done.append("wait"))
        Processes("cpu").first(lambda: done.append("act"))
        assert " ".join(done) == order


@pytest.mark.parametrize("cores, here, workers", [(1, 1, 1), (6, 1, 6), (64, 1, 16), (16, 4, 4), (2, 4, 1)])
def test_the_processes_of_a_machine_share_its_cores_among_their_workers(cores, here, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert processes.spare_cores() == workers


def test_a_grid_runs_every_combination_and_skips_what_is_finished(nano):
    call(train, "--teacher", "deit_nano", *BASELINE, *QUICK)
    out = call(train, *"--teacher deit_nano dinov2_reg_nano --method copy distill --seed 0 1".split(), *QUICK)
    assert out.count("finished before") == 1 and len(list(Path("runs").iterdir())) == 12
    header, _, first, second = cells_of(out)
    assert header[3:] == ["baseline", "copy", "distill"] and "±" in first[3] + first[4]
    assert second[1] == "dinov2_reg_nano"


GRID = "--teacher deit_nano dinov2_reg_nano --mode baseline transfer --method copy distill --seed 0 1 --student native"


def test_a_list_has_the_command_of_each_unfinished_run_in_the_order_of_the_grid_and_nothing_is_trained(
    nano, monkeypatch
):
    parted_folder("some pictures")
    words = [*GRID.split(), *QUICK, "--data", "matching", "some pictures", "--no-augment", "--out", "more runs"]
    plan = train.plan_runs(train.parse_arguments(words))
    lines = call(train, *words, "--list").splitlines()
    assert not Path("more runs").exists() and len(lines) == len(plan) == 24
    for line, settings in zip(lines, plan, strict=True):
        start, script, *own = shlex.split(line)
        args = train.parse_arguments(own)
        assert (start, script, args.out, args.list) == ("python", "train.py", "more runs", False)
        assert train.plan_runs(args) == [settings]
    call(train, *shlex.split(lines[0])[2:])
    assert call(train, *words, "--list").splitlines() == lines[1:]
    assert call(train, *words, "--list", "--fresh").splitlines() == [f"{line} --fresh" for line in lines]
    other = [*words, "--list", "--mode", "baseline", "--lr", "0.001"]  # The existing run is a different one.
    assert "holds a different run: lr" in mistake(train, *other)[1]
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")
        assert call(train, *words, "--list") == ""
    out, err = mistake(train, *words, "--list", "--blocks", "9")
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


AT_ONCE = """
import teachers, train
from dataclasses import replace
from support import data
teachers.PRETRAINING["steps"] = 100
make = data.matching
data.matching = lambda count, seed: make(min(count, 200), seed)
entry = teachers.TEACHERS["deit_ti"]
teachers.TEACHERS["deit_ti"] = replace(entry, config=replace(entry.config, depth=2))
teachers.load_teacher("deit_ti")
print("loaded")
train.main()
"""


def test_commands_of_one_grid_may_run_at_once_and_make_or_download_a_teacher_once(tmp_path, serve, cache):
    server = serve(save(random_tensors(DEIT)), pause=3)
    place = environment(HF_ENDPOINT=server.url, TORCH_HOME=str(tmp_path / "shared"), OMP_NUM_THREADS="1")
    words = "--data matching --train-images 48 --batch-size 16 --epochs 1 --out".split() + [tmp_path / "runs"]
    (tmp_path / "script.py").write_text(AT_ONCE)
    modes = [["--mode", "baseline"], ["--mode", "transfer"], ["--mode", "transfer", "--method", "copy"]]
    ends = [start(tmp_path / "script.py", *map(str, [*mode, *words]), env=place) for mode in modes]
    outputs = [process.communicate(timeout=120) for process in ends]
    assert [process.returncode for process in ends] == [0, 0, 0], outputs
    assert len(server.requests) == 1 and sum("pretrain deit_nano" in err for _, err in outputs) == 1
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3
    left = {path.name for path in (tmp_path / "shared/hub/attention_transfer").iterdir()}
    assert left == {"deit_ti.safetensors", "deit_nano.safetensors"}


def test_a_lock_that_a_killed_process_leaves_keeps_nobody_waiting(tmp_path):
    path = tmp_path / "file.safetensors"
    script = f"import time; from pathlib import Path; from support.files import turn\nwith turn(Path({str(path)!r})):\n"
    holder = start("-c", script + " print('mine', flush=True); time.sleep(60)")
    assert holder.stdout.readline() == "mine\n"
    waiting = start("-c", script + " print('mine')")
    time.sleep(0.5)
    assert waiting.poll() is None and holder.poll() is None
    holder.kill()
    assert waiting.communicate(timeout=30)[0] == "mine\n" and list(tmp_path.iterdir()) == []
    holder.communicate()


@pytest.mark.parametrize(
    "world, here, words",
    [
        (1, 1, "python"),
        (8, 8, "torchrun --nproc_per_node=8"),
        (16, 8, "torchrun --nproc_per_node=8 --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=node1"),
    ],
)
def test_a_run_names_the_command_by_which_its_processes_were_started(world, here, words, monkeypatch):
    for name, value in dict(WORLD_SIZE=world, LOCAL_WORLD_SIZE=here, MASTER_ADDR="node1").items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    assert " ".join(Processes("cpu").launcher()) == words


@pytest.mark.parametrize(
    "words",
    [
        "--mode transfer --method copy --what q",
        "--mode transfer --what v",
        "--mode transfer --what output --blocks 1-2",
        "--mode transfer --loss js",
        "--mode transfer --student registers",
        "--mode finetune --student native",
        "--mode baseline --init mlp --student layerscale",
        "--mode transfer --student layerscale,registers",
    ],
)
def test_a_student_trains_with_every_method_what_loss_and_init(words, nano):
    assert "next:" in call(train, "--teacher", "dinov2_reg_nano", *QUICK, "--epochs", 1, *words.split())
    assert len(list(Path("runs").iterdir())) == 1


def test_an_untrained_teacher_is_marked_in_the_name_and_in_the_table(nano):
    out = call(train, "--weights", "random", *COPY, *QUICK)
    assert "deit_nano(random)-matching-copy-seed0" in out and "| deit_nano (random) " in out
    settings = runs.read_settings("runs/deit_nano(random)-matching-copy-seed0", train.Settings)
    one, other = train.build_teacher(settings).state_dict(), train.build_teacher(settings).state_dict()
    assert same(one, other)  # The student is evaluated with the teacher of its training.
    assert not same(one, teachers.load_teacher("deit_nano").state_dict())


def test_a_published_teacher_is_used_at_224_pixels_on_a_folder_in_all_modes_and_methods(nano, monkeypatch):
    entry = TEACHERS["eva02_s"]  # Four of its blocks are enough.
    monkeypatch.setitem(TEACHERS, "eva02_s", replace(entry, config=replace(entry.config, depth=4)))
    for part, count in ("train", 4), ("val", 2):
        noise_folders(Path("animals", part), ["cat", "dog"], count, size=(230, 250), suffix=".jpg")
    path = publish("eva02_s", random_timm("eva02_small_patch14_224", depth=4), Path("."))
    words = f"--teacher eva02_s --weights {path} --data animals --epochs 1 --batch-size 4 --workers 1"
    out = call(train, *words.split(), *"--mode baseline transfer --method copy distill".split())
    assert len(list(Path("runs").iterdir())) == 3 and "eva02_s-animals-distill-seed0" in out
    student = evaluation.load_student("runs/eva02_s-animals-distill-seed0")
    assert student.config.pool == "avg" and student.config.grid == TEACHERS["eva02_s"].config.grid
    assert student.config.num_classes == 2
    shape = dict(patch_size=14, depth=4, num_classes=2, global_pool="avg")
    opened = timm.create_model("vit_small_patch16_224", **shape).eval()
    opened.load_state_dict(student_of("runs/eva02_s-animals-distill-seed0"), strict=True)
    images = torch.randn(2, 3, 224, 224)
    assert relative(student(images), opened(images)) < 1e-5


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_training_in_half_precision_is_close_to_float32_in_all_modes(amp, nano):
    losses = []
    for precision in "off", amp:
        words = ["--amp", precision, "--accumulate", 3, "--out", precision]
        call(train, "--method", "copy", "distill", *QUICK, *words)
        losses.append([read_json(path)["loss"] for path in sorted(Path(precision).rglob("result.json"))])
    assert len(losses[1]) == 3 and losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_gradients_are_clipped_after_they_are_unscaled(nano, monkeypatch):
    clip, norms = train.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr("train.nn.utils.clip_grad_norm_", lambda *given: norms.append(float(clip(*given))))
    for amp in "off", "fp16":
        call(train, *TRANSFER, *QUICK, "--amp", amp, "--out", amp)
    assert norms[6:8] == pytest.approx(norms[:2], rel=0.05)  # They are not 65,536 times as large.


def test_a_step_that_the_scaler_skips_changes_neither_weights_nor_average_and_the_schedule_continues(nano, monkeypatch):
    states, scaler = [], torch.amp.GradScaler

    class Noted(train.Training):
        def __init__(self, *given):
            super().__init__(*given)
            monkeypatch.setattr(
                "train.cosine_schedule", lambda *at: states.append(self.state()) or cosine_schedule(*at)
            )

        def state(self):
            rates = {group["lr"] for group in self.optimiser.param_groups}
            models = self.student, self.average.module
            return [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models] + [rates]

    monkeypatch.setattr("train.Training", Noted)
    monkeypatch.setattr("torch.amp.GradScaler", lambda *a, **options: scaler(*a, **options, init_scale=2.0**40))
    call(train, *TRANSFER, *QUICK, *"--epochs 14 --ema 0.9 --amp fp16 --validate-every 14".split())
    same = [torch.equal(a[0], b[0]) for a, b in zip(states, states[1:])]  # Item 0 holds the weights.
    skipped = same.index(False)
    assert 5 < skipped < 40 and not any(same[skipped:])
    assert [torch.equal(a[1], b[1]) for a, b in zip(states, states[1:])] == same  # Item 1 holds the average.
    rates = [max(state[2]) for state in states[1:]]  # A rate is set after the state of its step is noted.
    assert rates == pytest.approx([6e-3 * 16 / 256 * cosine_schedule(step, 42, 4.2) for step in range(41)])


def test_accumulating_gradients_gives_the_student_of_the_whole_batch(nano):
    for pieces in 1, 4:
        call(train, *TRANSFER, *QUICK, "--accumulate", pieces, "--out", f"out{pieces}")
    one, four = (student_of(run_of("distill", f"out{pieces}")) for pieces in (1, 4))
    assert all(torch.allclose(one[key], four[key], atol=1e-3) for key in one)


def spoil_the_training(monkeypatch, kind):
    """Makes something in a run not finite, from the fifth of six steps on."""
    clip, evaluate = train.nn.utils.clip_grad_norm_, train.evaluate
    count = iter(range(99))  # It counts batches, clipped gradients or validations.

    def spoiled_batch(*recipe):
        return lambda images, labels: (images * math.nan if next(count) == 4 else images, labels)

    def spoiled_gradients(parameters, largest):
        clip(parameters := list(parameters), largest)
        if next(count) == 5:  # After the last step, no loss is computed with the new weights.
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, math.nan if kind == "gradients" else 1e30)

    def spoiled_validation(model, *given, **options):
        if next(count):
            model = StudentAlone(torch.nn.Sequential(model.student, torch.nn.Threshold(math.inf, math.nan)))
        return evaluate(model, *given, **options)

    if kind == "loss":
        monkeypatch.setattr("support.data.mixing", spoiled_batch)
    elif kind == "validation":
        monkeypatch.setattr("train.evaluate", spoiled_validation)
    else:
        monkeypatch.setattr("train.nn.utils.clip_grad_norm_", spoiled_gradients)


@pytest.mark.parametrize(
    "kind, says",
    [
        ("loss", "the loss at step 4 is not finite"),
        ("gradients", "the student's numbers after step 5 are not finite"),
        ("huge gradients", "the optimiser's numbers after step 5 are not finite"),  # Their squares are infinite.
        ("validation", "held-out images after step 5 is not finite"),
    ],
)
def test_what_is_not_finite_is_never_written_and_the_last_good_checkpoint_stays_and_resumes(
    kind, says, nano, monkeypatch
):
    words, folder = [*TRANSFER, "--ema", 0.5, *QUICK, "--checkpoint-every", 1], run_of("distill")
    call(train, *words, "--out", "whole")
    with monkeypatch.context() as patched:
        spoil_the_training(patched, kind)
        assert re.search(f"{says}; .*lower --lr.*--amp off", refused(call, train, *words))
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "config.json", "log.jsonl"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epochs"] == 1
    assert not re.search("NaN|Infinity", (folder / "log.jsonl").read_text())
    call(train, *words)
    assert same(student_of(folder), student_of(run_of("distill", "whole")))


def test_json_files_hold_no_nan(tmp_path):
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "a", {"x": math.nan})
    with pytest.raises(ValueError):
        runs.append_log(tmp_path, {"epoch": 1, "x": math.inf})
    assert list(tmp_path.iterdir()) == []


def begun(folder) -> Path:
    """Turns a finished run into an unfinished one."""
    (folder / "result.json").unlink()
    return folder


@pytest.mark.parametrize("change", ["train_set", "val_set", "a class", "teacher_weights", "processes", "lr"])
@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_a_run_is_resumed_or_kept_only_with_what_it_began_with(change, state, nano, monkeypatch):
    parted_folder("pictures")
    words = "--mode transfer --data pictures --epochs 1 --batch-size 4 --workers 0".split()
    call(train, *words)
    folder = run_of("distill", data="pictures")
    if state == "stopped":
        begun(folder)
    if change == "train_set":  # The names stay the same, but the images change.
        shutil.rmtree("pictures/train")
        noise_folders("pictures/train", each=4, seed=1)
    elif change == "val_set":
        shutil.copy("pictures/val/a/0.png", "pictures/val/a/9.png")
    elif change == "a class":
        for part in "train", "val":
            Path("pictures", part, "b").rename(Path("pictures", part, "c"))
    elif change == "teacher_weights":
        stand_in("deit_nano", 2)
    elif change == "processes":
        config = read_json(folder, "config.json")
        runs.write_json(folder / "config.json", config | {"made_of": config["made_of"] | {"processes": 2}})
    else:
        words += ["--lr", "0.001"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if (change, state) == ("processes", "finished"):  # The number of processes changes only rounding.
        assert "finished before" in call(train, *words)
        return
    wanted = "train_set" if change == "a class" else change
    for look in train.finished_before, lambda plan, processes: []:
        # A change that the command does not see at its start is seen when it reaches the run.
        with monkeypatch.context() as patch:
            patch.setattr(train, "finished_before", look)
            said = refused(call, train, *words)
        assert re.search(f"holds a different run: .*{wanted} .* there and .* start over with --fresh", said)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "top-1" in call(train, *words, "--fresh")


HOLDING = """
import sys, time
from pathlib import Path
from support import runs
from support.processes import Processes
with runs.lock(Path(sys.argv[1]), Processes("cpu")) as may:
    print(may, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_another_command_is_training_is_left_alone_until_that_command_ends(end, nano):
    folder = run_of("baseline")
    other = start("-c", HOLDING, folder)
    assert other.stdout.readline().strip() == "True"
    out = call(train, *BASELINE, *QUICK, "--seed", 0, 1, "--fresh")
    assert f"{folder.name}: skipped; another command is training it" in out
    assert not (folder / "config.json").exists() and (run_of("baseline", seed=1) / "result.json").is_file()
    (*_, its_row), top1 = cells_of(out), read_json(run_of("baseline", seed=1), "result.json")["top1"]
    assert its_row[-1] == f"{top1:.1f}", "the table has the other run alone"
    other.send_signal(end)
    other.wait()
    assert "top-1" in call(train, *BASELINE, *QUICK) and not list(folder.glob(".*"))


def test_a_run_that_another_command_began_with_other_settings_meanwhile_is_refused_and_stays(nano, monkeypatch):
    """Two commands share --out, and the second trains a run that the first has not reached yet."""
    train_run = train.train_run

    def meanwhile(settings, *rest):
        if settings.seed == 1:
            with monkeypatch.context() as patch:
                patch.setattr(train, "train_run", train_run)
                call(train, *BASELINE, *QUICK, "--seed", 1, "--lr", 0.001)
        train_run(settings, *rest)

    monkeypatch.setattr(train, "train_run", meanwhile)
    out, err = mistake(train, *BASELINE, *QUICK, "--seed", 0, 1)
    assert "lr 0.001 there and 0.006 here" in err and "1 of 2 runs failed" in err
    assert read_json(run_of("baseline", seed=1), "config.json")["settings"]["lr"] == 0.001


def test_a_run_that_another_command_finished_meanwhile_is_kept(nano, monkeypatch):
    call(train, *BASELINE, *QUICK)
    monkeypatch.setattr(train, "finished_before", lambda plan, processes: [])
    before = (run_of("baseline") / "student.safetensors").stat().st_mtime_ns
    assert "skipped; it is finished" in call(train, *BASELINE, *QUICK)
    assert (run_of("baseline") / "student.safetensors").stat().st_mtime_ns == before


def test_a_disk_without_locks_keeps_nobody_from_training(nano, monkeypatch):
    monkeypatch.setattr(runs.fcntl, "lockf", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    assert "top-1" in call(train, *BASELINE, *QUICK)


def test_a_finished_run_is_kept_though_its_teacher_would_have_to_be_made_again(nano, monkeypatch):
    call(train, *TRANSFER, *QUICK)
    cache_path("deit_nano").unlink()
    build_teacher = train.build_teacher
    monkeypatch.setattr(train, "build_teacher", None)
    assert "finished before" in call(train, *TRANSFER, *QUICK)
    # But if one run took its teacher from a file, the two teachers may differ.
    monkeypatch.setattr(train, "build_teacher", build_teacher)
    save_file(vit("deit_nano", 2, "teacher").state_dict(), "other.safetensors")
    call(train, *TRANSFER, *QUICK, "--weights", "other.safetensors", "--out", "others")
    monkeypatch.setattr(train, "load_teacher", lambda *words: vit("deit_nano", 1, "teacher"))
    assert "teacher_weights" in refused(call, train, *TRANSFER, *QUICK, "--out", "others")


def test_a_run_resumes_with_new_precision_workers_and_accumulation_and_records_the_precision(nano):
    call(train, *TRANSFER, *QUICK)
    begun(run_of("distill"))
    call(train, *TRANSFER, *QUICK, *"--amp bf16 --workers 1 --accumulate 2".split())
    config = read_json(run_of("distill"), "config.json")
    assert config["settings"]["amp"] == "bf16" and config["made_of"]["precision"] == "float32, then bfloat16"
    assert "finished before" in call(train, *TRANSFER, *QUICK, "--amp", "bf16")
    assert "precision bfloat16 there and float32 here" in refused(call, train, *TRANSFER, *QUICK)


def test_fresh_removes_what_killed_runs_left_but_removes_nothing_if_the_command_is_refused(nano):
    left = run_of("baseline") / ".checkpoint.pt.x1y2"
    left.mkdir(parents=True)
    (left / "checkpoint.pt").write_bytes(b"half of it")
    (kept := left.parent / ".config.json.swp").touch()  # It belongs to an editor.
    call(train, *BASELINE, *QUICK, "--fresh")
    assert list(left.parent.glob(".*")) == [kept] and student_of(left.parent)
    refused(call, train, *"--mode baseline transfer --weights nowhere.pth --fresh".split(), *QUICK)
    assert student_of(left.parent)


def test_gradients_that_never_fit_into_float16_end_the_run(nano):
    words = "--amp fp16 --weight 1e30 --epochs 12".split()
    assert "the gradients at step" in refused(call, train, *TRANSFER, *QUICK, *words)


def test_several_teachers_of_one_kind_share_a_baseline():
    names = [train.describe(settings)["name"] for settings in planned("--teacher-seed 0 1 --method copy")]
    kinds = "deit_nano-matching-baseline", "deit_nano-matching-copy", "deit_nano(seed1)-matching-copy"
    assert names == [f"{kind}-seed0" for kind in kinds]


@pytest.mark.parametrize(
    "words",
    [
        ["", "--randaugment 9 --erasing 0.5", "--no-augment", "--train-images 500", "--data-root ./data/"],
        ["--data photos", "--data ./photos/", "--data link", "--data photos/../photos"],
        ["--data ./pets", "--data pets/"],
        ["--mode transfer", *(f"--mode transfer --blocks {blocks}" for blocks in ("4", "0-3", "3,2,1,0", "0,1,2,3,"))],
        ["--mode transfer --blocks 1-2", "--mode transfer --blocks 2,1", "--mode transfer --blocks 1,1,2"],
        ["--mode transfer --blocks 2-2", "--mode transfer --blocks 2,"],
        [
            "--teacher dinov3_nano --student layerscale,rope",
            "--teacher dinov3_nano --student rope,layerscale",
            "--teacher dinov3_nano --student rope,layerscale,rope",
        ],
        [
            "--teacher beitv2_nano --student native",
            "--teacher beitv2_nano --student pos_embed,qkv_bias,rel_pos,layerscale",
        ],
        ["--init mlp,norms", "--init norms,mlp,norms"],
        ["--init all", "--init norms,mlp,attention,embeddings"],
        ["--weights file --mode transfer", "--weights ./file --mode transfer"],
        ["--lr 0.006", "--lr 6e-3", ""],
        ["--img-size 32", ""],
        ["--warmup 5", ""],
        ["--method distill", ""],
    ],
    ids=lambda words: words[0],
)
def test_a_setting_has_one_value_however_it_was_typed(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "photos", "pets":
        noise_folders(tmp_path / name)
    Path("link").symlink_to("photos")
    first, *others = map(planned, words)
    assert others == [first] * len(others)
    assert [train.complete(settings) for settings in first] == first


def test_what_is_typed_as_a_path_stays_one_and_a_data_set_is_typed_without_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise_folders(Path("pets"))
    assert [planned(f"--data {word}")[0].data for word in ("pets", "./pets", "matching")] == [
        "pets",
        str(tmp_path / "pets"),
        "matching",
    ]
    assert "there is no folder matching/" in refused(planned, "--data matching/")


def test_a_grid_goes_on_after_a_run_that_fails_says_so_and_ends_with_status_2(nano, monkeypatch):
    train_run = train.train_run

    def failing(settings, *rest):
        if settings.seed == 1:
            raise (
                UserError("the disk is full")
                if settings.mode == "baseline"
                else torch.OutOfMemoryError("CUDA out of memory.")
            )
        train_run(settings, *rest)

    monkeypatch.setattr("train.train_run", failing)
    out, err = mistake(train, "--seed", 0, 1, 2, *QUICK)
    first, second, last = (line for line in err.splitlines() if line.startswith("error"))
    assert "seed1: the disk is full" in first and "--accumulate" in second and "2 of 6 runs failed" in last
    assert "±" in cells_of(out)[2][3] and "distill-seed2" in out.splitlines()[-1]


def test_the_images_of_a_folder_are_checked_once_per_command(nano, monkeypatch):
    noise_folders("pictures", each=4)
    checked, check = [], data.check_images
    monkeypatch.setattr("support.data.check_images", lambda folder: checked.append(folder) or check(folder))
    call(train, *"--data pictures --epochs 2 --workers 0 --weights random".split())
    assert checked == [Path("pictures").resolve()]


def test_workers_start_once_per_run(nano, monkeypatch):
    noise_folders("pictures", each=4)
    started = Path("started").absolute()
    monkeypatch.setattr(data, "leave_ctrl_c", lambda worker: open(started, "a").write("."))
    call(train, *"--mode baseline --data pictures --epochs 3 --batch-size 2 --workers 1 --ema 0.5".split())
    assert started.read_text() == ".."  # One reads training images, the other held-out images.


def test_training_needs_nothing_that_only_unix_has(nano, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    for name in "resource", "fcntl", "pwd":
        monkeypatch.setitem(sys.modules, name, None)
    call(train, *TRANSFER, *QUICK)


def test_matrices_decay_and_the_rest_does_not_and_early_layers_learn_slower():
    student = vit("beitv2_nano")
    recipe = dict(lr=2.0, batch_size=128, weight_decay=0.1)  # The largest learning rate is 1.
    groups = train.parameter_groups(student, train.Settings(mode="finetune", layer_decay=0.5, **recipe))
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == len(list(student.parameters()))
    for name, parameter in student.named_parameters():
        matrix = name.endswith("weight") and "norm" not in name
        assert of[id(parameter)]["weight_decay"] == (0.1 if matrix else 0), name
    for early in student.cls_token, student.rel_pos_bias.relative_position_bias_table:
        assert of[id(early)]["peak"] == 0.5**5
    assert [of[id(block.attn.qkv.weight)]["peak"] for block in student.blocks] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert of[id(student.head.weight)]["peak"] == 1


def test_in_transfer_the_last_block_has_the_full_learning_rate_and_the_embeddings_one_factor_per_block():
    student = vit("deit_nano")  # It has 4 blocks.
    groups = train.parameter_groups(student, train.Settings(lr=2.0, batch_size=128, layer_decay=0.75))
    of = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert of[id(student.head.weight)] == of[id(student.norm.weight)] == 1
    assert [of[id(block.mlp.fc1.bias)] for block in student.blocks] == [0.75**3, 0.75**2, 0.75, 1]
    assert of[id(student.cls_token)] == of[id(student.patch_embed.proj.weight)] == 0.75**4


def test_the_learning_rate_rises_in_a_line_and_falls_as_half_a_cosine_to_its_floor():
    rates = [cosine_schedule(step, 11, 3, 0.2) for step in range(11)]
    assert rates[:3] == [0.25, 0.5, 0.75] and rates[3] == 1  # Each step adds a quarter.
    assert math.isclose(rates[7], 0.2 + 0.8 / 2)  # This is the middle of the fall.
    assert math.isclose(rates[9], 0.2 + 0.8 * (1 + math.cos(math.pi * 6 / 8)) / 2)
    assert math.isclose(cosine_schedule(11, 11, 3, 0.2), 0.2)
    assert math.isclose(cosine_schedule(9, 11, 3), (1 - 0.5**0.5) / 2)  # Without a floor, it falls to 0.


def planned(words) -> list:
    return train.plan_runs(train.parse_arguments(words.split()))


PUBLISHED = dict(batch_size=2048, mixup=0.8, cutmix=1, erasing=0.25, randaugment=9, smoothing=0.1, clip=0, ema=0.9999)
AS_DISTILL = dict(epochs=200, lr=1e-4, lr_floor=0.00125, beta2=0.95, weight_decay=0.3, warmup=20, drop_path=0.2)
AS_COPY = dict(epochs=100, lr=1e-3, lr_floor=0.25, beta2=0.999, weight_decay=0.05, warmup=5, layer_decay=0.75)
AS_MAE = dict(batch_size=1024, weight_decay=0.05, warmup=5, beta2=0.999, ema=0, randaugment=9, mixup=0.8, erasing=0.25)


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("--teacher mae_l --mode transfer", PUBLISHED | AS_DISTILL | dict(blocks="18", layer_decay=1)),
        ("--teacher mae_l --mode transfer --method copy", PUBLISHED | AS_COPY | dict(blocks="24", drop_path=0)),
        ("--teacher deit_s --mode baseline", PUBLISHED | AS_DISTILL | dict(blocks="12", method=None)),
        ("--teacher mae_l --mode finetune", AS_MAE | dict(epochs=50, lr=1e-3, layer_decay=0.75, drop_path=0.2)),
        ("--teacher mae_b --mode finetune", AS_MAE | dict(epochs=100, lr=5e-4, layer_decay=0.65, drop_path=0.1)),
        ("--teacher deit_ti --mode finetune --lr 1e-3", AS_MAE | dict(epochs=100, lr=1e-3, layer_decay=0.65)),
        ("--teacher deit_s --mode transfer --epochs 30", PUBLISHED | AS_DISTILL | dict(epochs=30, blocks="9")),
    ],
)
def test_the_published_recipe_depends_on_mode_method_and_teacher_and_a_flag_overrides_it(words, wanted):
    (settings,) = planned("--recipe paper --data cifar10 " + words)
    assert {name: getattr(settings, name) for name in wanted} == wanted
    (at_the_desk,) = planned("--data cifar10 " + words)
    assert at_the_desk.mixup == at_the_desk.ema == at_the_desk.lr_floor == 0 and at_the_desk.batch_size == 128
    assert (
        train.describe(settings)["name"] == train.describe(at_the_desk)["name"]
    )  # A value that a recipe or the method sets makes no variant.


def test_fine_tuning_ends_at_maes_smallest_learning_rate():
    for teacher in "mae_b", "mae_l":
        (settings,) = planned(f"--recipe paper --mode finetune --teacher {teacher} --data cifar10")
        assert math.isclose(settings.lr * settings.batch_size / 256 * settings.lr_floor, 1e-6)


def test_blocks_that_were_asked_for_are_named_and_the_usual_ones_are_not():
    words = "--teacher deit_s --data cifar10 --mode transfer"
    (asked,), (usual,) = planned(words + " --blocks 6"), planned(words + " --blocks 9")
    columns = [train.describe(settings)["table"]["column"] for settings in (asked, usual)]
    assert columns == ["distill blocks=6", "distill"] and [usual] == planned(words)
    assert planned("--mode transfer")[0].blocks == "4"  # For a nano teacher, all blocks are usual.


def test_the_default_warm_up_is_a_tenth_of_the_epochs():
    assert [run.warmup for run in planned("--epochs 30")] == [3, 3] and planned("--warmup 4")[0].warmup == 4


def test_published_recipes_are_compared_with_each_other_and_not_with_others():
    plan = planned("--recipe paper --teacher deit_s --data cifar10 --method copy distill")
    same = planned("--recipe paper --teacher deit_s --data cifar10 --method copy distill --epochs 100")
    other = planned("--recipe paper --teacher deit_s --data cifar10 --mode baseline --epochs 90")
    for runs_of_a_table, number in (plan, 1), (same, 1), (plan + other, 2):
        results = [result_of(settings) for settings in runs_of_a_table]
        assert len(tables.compare(results)) == number


def result_of(settings, top1=50.0) -> tables.Result:
    """Returns what a table would see of a run with these settings. Nothing is trained."""
    table = train.describe(settings)["table"]
    conditions = tuple((name, *pair) for name, pair in table["conditions"].items())
    table |= {"place": tuple(table["place"]), "conditions": conditions}
    known = dict(teacher=settings.teacher, seed=settings.seed, top1=top1, last_top1=None, teacher_top1=None)
    return tables.Result(**table, **known, weights=None)


@pytest.mark.parametrize("role", ["data", "recipe"])
def test_a_new_setting_keeps_runs_apart_in_tables_without_further_code(role):
    field = arguments.flag(role, 0.0, "What is new.")
    More = make_dataclass("More", [("new", float, field)], bases=(train.Settings,), frozen=True)
    one, same, other = (
        train.complete(More(mode="baseline", seed=seed, new=new)) for seed, new in ((0, 0), (1, 0), (2, 1))
    )
    assert len(tables.compare([result_of(one), result_of(same)])) == 1
    parted = tables.compare([result_of(one), result_of(same), result_of(other)])
    assert [dict(shared)["new"] for shared in parted] == [0.0, 1.0]
    assert [row["baseline"] for rows in parted.values() for row in rows.values()] == [[50.0, 50.0], [50.0]]
    older = result_of(train.complete(train.Settings(mode="baseline")))  # Its version does not know the setting.
    assert len(tables.compare([older, result_of(same)])) == 2


def test_a_new_variant_is_in_the_name_and_a_setting_of_the_machine_in_neither_name_nor_table():
    for role, column in ("variant", "distill new=1"), ("machine", "distill"):
        field = arguments.flag(role, 0, "What is new.")
        More = make_dataclass("More", [("new", int, field)], bases=(train.Settings,), frozen=True)
        told = train.describe(train.complete(More(mode="transfer", new=1)))
        assert told["table"]["column"] == column and ("new=1" in told["name"]) == (role == "variant")
        assert "new" not in told["table"]["conditions"] and ("new" in told["made_of"]) == (role == "variant")


def test_a_setting_without_a_role_is_no_setting():
    with pytest.raises(AssertionError, match="compared is not a role"):
        arguments.flag("compared", 0.0, "What is new.")


def test_a_recipe_sets_all_settings_with_the_role_recipe_and_no_others():
    decided = {name for recipe in train.RECIPES.values() for name in recipe}
    assert decided == set(arguments.names_of(train.Settings, "recipe"))


def test_every_32_images_are_mixed_by_a_draw_of_their_own():
    torch.manual_seed(0)
    images, labels = torch.arange(80.0).view(80, 1, 1, 1).expand(80, 3, 8, 8), torch.arange(80)
    mixed, targets = data.mixing(0.8, 0.0, 80)(images, labels)
    shares = targets.gather(1, labels[:, None]).squeeze(1)  # This is the share of each image that is left.
    assert mixed.shape == images.shape and torch.allclose(targets.sum(1), torch.ones(80))
    assert [len(set(part.tolist())) for part in shares.split(32)] == [1, 1, 1] and len(set(shares.tolist())) == 3
    for start, stop in (0, 32), (32, 64), (64, 80):  # No image is mixed with one of another part.
        assert targets[start:stop, :start].sum() == targets[start:stop, stop:].sum() == 0


@pytest.mark.parametrize("name", ["deit_ti", "mae_b"])
def test_students_at_real_size_start_as_in_the_papers_code(name):
    torch.manual_seed(0)
    student = ViT(replace(student_config(name, num_classes=1000), depth=1))
    for module in student.modules():
        if isinstance(module, torch.nn.Linear):
            assert abs(module.weight.std() / 0.02 - 1) < 0.02 and module.bias.abs().max() == 0
    convolution = student.patch_embed.proj  # It starts as in torch, uniform between these bounds.
    bound = (3 * 16 * 16) ** -0.5
    for values in convolution.weight, convolution.bias:
        assert 0.9 * bound < values.abs().max() <= bound


def test_nano_students_start_with_standard_deviations_that_follow_from_the_fan_in():
    student = ViT(student_config("deit_nano", num_classes=8))
    assert abs(student.blocks[0].mlp.fc2.weight.std() / (0.7 / 256**0.5) - 1) < 0.05
    assert abs(student.patch_embed.proj.weight.std() / (0.7 / 192**0.5) - 1) < 0.05


def test_the_head_of_a_fine_tuned_student_starts_near_zero():
    head = train.build_student(planned("--mode finetune")[0], 8, vit("deit_nano", 1, "teacher")).head
    assert 1e-5 < head.weight.std() < 3e-5 and head.bias.abs().max() == 0


def test_a_moving_average_forgets_its_start_in_a_run_of_any_length_and_is_as_published_in_a_long_one():
    for steps in 1, 2, 9, 108, 925, 23_025:
        left = math.prod(average_decay(step, steps, 0.9999) for step in range(steps))
        assert left <= 0.1 + 1e-12
    imagenet = 1_281_167
    for settings in planned("--recipe paper --teacher mae_l --data cifar10 --mode transfer --method copy distill"):
        steps = settings.epochs * math.ceil(imagenet / settings.batch_size)
        assert {average_decay(step, steps, settings.ema) for step in (0, 10, steps)} == {settings.ema}
    assert average_decay(5, 100, 0.3) == 0.3  # It is never above what was asked for.


def test_the_average_of_a_short_run_is_near_its_student_and_holds_nothing_of_its_start(nano, capsys):
    call(train, *TRANSFER, *QUICK, *"--ema 0.9999 --epochs 12".split())
    last, average = (load_file(run_of("distill") / f"student{name}.safetensors") for name in ("", "_ema"))
    first = train.build_student(planned("--mode transfer")[0], 8, None).state_dict()
    for name in "blocks.0.mlp.fc1.weight", "head.weight":
        assert (average[name] - last[name]).norm() < 0.2 * (first[name] - last[name]).norm()


def test_a_table_reports_both_accuracies_where_that_of_the_averaged_weights_differs(results):
    for name, average in ("near", 60.5), ("far", 6.2):
        write_run(results / name, 60.0, results / "d0", seed=0, what=name)
        runs.write_json(results / name / "result.json", {"top1": 60.0, "ema_top1": average})
    out = call(evaluation, "table", results)
    assert "what=far, seed 0: top-1 is 6.2 with averaged weights; the last ones have 60.0" in out
    assert "what=near, seed" not in out and "what=near" in out


def test_the_accuracy_of_a_moving_average_is_in_the_summary_and_in_the_table(nano):
    printed = call(train, "--ema", 0.5, *QUICK)
    baseline, distilled = (read_json(run_of(mode), "result.json")["ema_top1"] for mode in ("baseline", "distill"))
    for top1 in baseline, distilled:
        assert f"top-1 of the moving average {top1:.1f}" in printed
    assert cells_of(printed)[-1][3:] == [f"{baseline:.1f}", f"{distilled - baseline:+.1f}"] or "**" in printed
    assert "ema 0.5" in printed and "the accuracy is that of the average" in printed.replace("\n", " ")
    assert printed.splitlines()[-1].endswith(f"eval.py accuracy {run_of('distill')} --ema")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--teacher", "eva2_s"], "did you mean eva02_s"),
        (["--mode", "transfr"], "choose from"),
        (["--method", "coppy"], "choose from"),
        (["--data", "matchin"], "did you mean matching"),
        (["--student", "layerscal", "--teacher", "dinov2_nano"], "did you mean layerscale"),
        (["--student", "layerscale"], "deit_nano has no layerscale"),
        (["--epochs", "0"], "0 is not between 1"),
        (["--validate-every", "0"], "0 is not between 1"),
        (["--checkpoint-every", "0"], "0 is not between 1"),
        (["--checkpoint-every", "1.5"], "invalid number value"),
        (["--lr", "fast"], "invalid number value"),
        (["--lr", "nan"], "nan is not between 0"),
        (["--drop-path", "1.5"], "1.5 is not between 0 and 0.999999"),
        (["--blocks", "9"], "there are 4"),
        (["--blocks", "x"], "not a count"),
        (["--img-size", "33"], "not a multiple of 8"),
        (["--device", "cuda:9"], "device 'cuda:9' is not available"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--lr", "inf"], "inf is not between 0"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--weights", "junk.pth"], "junk.pth"),
        (["--out", "junk.pth"], "choose another --out"),
        (["--init", "mpl"], "did you mean mlp"),
        (["--data", "empty"], "has no class folders"),
        (["--train-images", "-3"], "-3 is not between 1"),
        (["--data", "a/same", "b/same"], "share a folder"),
        (["--epoch", "3"], "unrecognized arguments"),
        (["--method", "copy", "--what", "output"], "distilled, not copied"),
        (["--train-images", "1000000000", "--mode", "baseline"], "1 to 100,000"),
        (["--teacher", "deit_s", "--teacher-seed", "1", "--mode", "transfer"], "--teacher-seed is for nano teachers"),
        (["--recipe", "paper", "--epochs", "20"], "a warm-up of 20 epochs leaves none of 20"),
        (["--recipe", "copy"], "choose from 'desk', 'paper'"),
        (["--what", "q", "--loss", "kl"], "leave out loss"),
        (["--device", "meta"], "device 'meta' is not available"),
        (["--seed", str(2**64)], "between 0 and 4294967295"),
        (["--blocks", "99999999999"], "not a count"),
        (["--teacher", "deit_nano", "dino_nano", "--weights", "junk.pth"], "give one --teacher"),
        (["--mode", "finetune", "--teacher", "dinov2_nano"], "--student native"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(words, says, nano):
    Path("junk.pth").write_bytes(b"\0junk")
    for folder in "empty", "a/same/x", "b/same/x":
        Path(folder).mkdir(parents=True)
    out, err = mistake(train, *QUICK, *words)
    assert says in err and err.count("\n") == 1 and not out


def test_a_mistake_leaves_no_traceback_on_the_command_line(nano):
    ended = command("--method", "coppy")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and ended.stdout == ""


def test_help_is_printed_within_three_seconds(nano):
    start = time.perf_counter()
    assert "--teacher" in command("--help").stdout and time.perf_counter() - start < 8  # An idle machine takes 3 s.


# ---- On a GPU --------------------------------------------------------------------------------------------------------
#
# These tests run on the device "cpu" everywhere and on "cuda" where there is one, so that no part of them is tried
# only on a machine with a GPU.


def routing_on(device: str, N: int, d: int, bias: bool = False, seed: int = 0) -> Routing:
    """Returns a random routing in float32 whose q and k are not contiguous."""
    routing = random_routing(N=N, d=d, bias=bias, seed=seed, dtype=torch.float32)
    assert not routing.q.is_contiguous() or N == 1
    return Routing(*(None if part is None else part.to(device) for part in routing))


@ON
@pytest.mark.parametrize("d", [16, 64])
@pytest.mark.parametrize("N", [17, 197, 257, 1025])
def test_in_float32_both_losses_agree_in_value_and_gradient(N, d, device):
    teacher, student = routing_on(device, N, d), routing_on(device, N, d, seed=1)
    losses = []
    for loss in transfer.fused_cross_entropy, distillation_loss:
        losses.append(value_and_gradients(lambda q, k, loss=loss: loss(teacher, Routing(q, k)), student.q, student.k))
    for fused, plain in zip(*losses):
        assert fused.device.type == device and relative(fused, plain) < 1e-4


@ON
@pytest.mark.parametrize("bias", [False, True])
def test_in_float32_copying_is_the_map_times_v(bias, device):
    routing, (v, weight, _) = routing_on(device, 197, 64, bias), routing_on(device, 197, 64, seed=1)
    both = [value_and_gradients(lambda v, read=read: (read(routing, v) * weight).sum(), v) for read in (attend, copied)]
    for fused, plain in zip(*both):
        assert relative(fused, plain) < 1e-4


@ON
def test_the_main_job_in_mixed_precision_is_as_accurate_as_in_float32_on_a_cpu(device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    words = [*TRANSFER, "--out"]
    if device == "cpu":  # The full runs would take too long.
        words = [*TRANSFER, *QUICK, "--out"]
        hold_out(monkeypatch, 1000)
        monkeypatch.setitem(teachers.PRETRAINING, "steps", 20)
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(4)  # The teacher and the reference are made on the CPU.
    call(train, *words, "exact", "--device", "cpu", "--amp", "off")
    if device == "cuda":
        torch.set_num_threads(threads)
    exact = read_json(run_of("distill", "exact"), "result.json")["top1"]
    for amp in "bf16", "fp16":
        call(train, *words, amp, "--device", device, "--amp", amp)
        assert abs(read_json(run_of("distill", amp), "result.json")["top1"] - exact) < 3


@ON
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_killed_run_resumes_and_evaluation_repeats_its_accuracy(amp, device, nano, monkeypatch):
    words = [*TRANSFER, *QUICK, "--amp", amp, "--epochs", "3", "--checkpoint-every", "1", "--device", device, "--out"]
    call(train, *words, "whole")

    def killed(at, *schedule):
        if at == 4:
            raise Killed
        return cosine_schedule(at, *schedule)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("train.cosine_schedule", killed)
        call(train, *words, "broken")
    call(train, *words, "broken")
    whole, broken = run_of("distill", "whole"), run_of("distill", "broken")
    for one, other in zip(log_of(whole), log_of(broken), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6 if device == "cpu" else 0.02)
    line = call(evaluation, "accuracy", broken, "--device", device).splitlines()[1]
    assert figures(line)[0] == pytest.approx(read_json(broken, "result.json")["top1"], abs=0.01)


@ON
def test_a_compiled_student_has_the_same_losses_and_opens_without_the_compiler(device, nano, monkeypatch):
    if device == "cpu":  # Compiling for a CPU takes minutes. Only the graph is made, as on a GPU.
        compile_module = torch.nn.Module.compile
        monkeypatch.setattr(ViT, "compile", lambda student: compile_module(student, backend="eager"))
    losses = {}
    add = train.Meter.add
    for words in [], ["--compile"]:
        noted = losses.setdefault(len(words), [])
        monkeypatch.setattr(
            train.Meter, "add", lambda meter, loss, *rest: noted.append(float(loss)) or add(meter, loss, *rest)
        )
        folder = "compiled" if words else "plain"
        call(
            train,
            *BASELINE,
            *QUICK,
            "--train-images",
            "200",
            "--batch-size",
            "10",
            *words,
            "--device",
            device,
            "--epochs",
            "1",
            "--out",
            folder,
        )
    assert len(losses[0]) == len(losses[1]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if device == "cpu" else 5e-3)
    assert not any("_orig_mod" in name for name in student_of(run_of("baseline", "compiled")))
    evaluation.load_student(run_of("baseline", "compiled"))


@ON
@pytest.mark.parametrize("fused, most", [(True, 4.5), (False, 18)])
def test_memory_of_the_fused_loss_grows_with_the_tokens(fused, most, device):
    peaks = []
    for N in 257, 1025:
        teacher, student = routing_on(device, N, 64), routing_on(device, N, 64, seed=1)
        q, k = student.q.requires_grad_(), student.k.requires_grad_()
        loss = transfer.fused_cross_entropy if fused else distillation_loss
        if device == "cuda":
            loss(teacher, Routing(q, k)).backward()  # Now CUDA has what it keeps for itself.
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss(teacher, Routing(q, k)).backward()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        else:
            with Watched([*teacher[:2], q, k]) as memory:
                loss(teacher, Routing(q, k)).backward()
            peaks.append(memory.peak)
    assert peaks[1] / peaks[0] < most and (fused or peaks[1] / peaks[0] > 9)


@ON
def test_only_every_tenth_step_waits_for_the_device(device, nano, monkeypatch):
    """On a GPU, a step that waits raises an error. On a CPU, the test only counts how often this is switched on."""
    switched = []

    def watch(mode):
        switched.append(mode)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    averages, finite = train.Meter.averages, runs.Checkpoint.check_finite

    def begin(step, *schedule):
        if step > 1:  # The first steps create what the others reuse.
            watch("error")
        return cosine_schedule(step, *schedule)

    def look(meter, step):
        watch("default")
        assert step % 10 == 9 or device == "cpu"
        return averages(meter, step)

    def end(checkpoint, step):
        watch("default")
        finite(checkpoint, step)

    monkeypatch.setattr(train, "cosine_schedule", begin)
    monkeypatch.setattr(train.Meter, "averages", look)
    monkeypatch.setattr(runs.Checkpoint, "check_finite", end)
    parted_folder("pictures", 20)
    words = "--data pictures --workers 0 --epochs 2 --batch-size 1 --train-images 20 --validate-every 2".split()
    try:
        call(train, *TRANSFER, *QUICK, *words, "--amp", "bf16", "--device", device)
    finally:
        watch("default")
    assert switched.count("error") == 38


# ---- teachers.py -----------------------------------------------------------------------------------------------------

SIZES = dict(ti="tiny", s="small", b="base", l="large")
VIT = {size: f"vit_{name}_patch16_224" for size, name in SIZES.items()}
SHARED = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, global_pool="token")

# The specification of each teacher can be run: it is timm's model with this name and these arguments.
SPECIFICATIONS = {
    **{f"deit_{size}": (f"deit_{SIZES[size]}_patch16_224", {}) for size in ("ti", "s", "b")},
    **{f"deit3_{size}": (f"deit3_{SIZES[size]}_patch16_224", {}) for size in "sbl"},
    **{f"augreg_{size}": (VIT[size], {}) for size in ("ti", "s", "b")},
    **{f"dino_{size}": (VIT[size], dict(num_classes=0)) for size in "sb"},
    "mocov3_s": (VIT["s"], dict(num_heads=12)),
    "mocov3_b": (VIT["b"], {}),
    **{f"mae_{size}": (VIT[size], dict(num_classes=0)) for size in "bl"},
    **{f"{family}_{size}": (VIT[size], {}) for family in ("ibot", "msn") for size in "sbl"},
    "clip_b32": ("vit_base_patch32_clip_quickgelu_224", {}),
    "clip_b": ("vit_base_patch16_clip_quickgelu_224", {}),
    "clip_l": ("vit_large_patch14_clip_quickgelu_224", {}),
    # SigLIP was trained with this GELU, although timm's own model has the exact one.
    **dict.fromkeys(["siglip_b", "siglip2_b"], ("vit_base_patch16_siglip_224", dict(act_layer="gelu_tanh"))),
    "beit_b": ("beit_base_patch16_224", {}),
    "beitv2_b": ("beitv2_base_patch16_224", SHARED),
    "beitv2_l": ("beitv2_large_patch16_224", SHARED),
    "beit3_b": ("beit3_base_patch16_224", {}),
    **{f"dinov2_{size}": (f"vit_{SIZES[size]}_patch14_dinov2", {}) for size in "sbl"},
    **{f"dinov2_reg_{size}": (f"vit_{SIZES[size]}_patch14_reg4_dinov2", {}) for size in "sbl"},
    **{f"dinov3_{size}": (f"vit_{SIZES[size]}_patch16_dinov3", {}) for size in "sbl"},
    "dinov3_splus": ("vit_small_plus_patch16_dinov3", {}),
    **{f"eva02_{size}": (f"eva02_{name}_patch14_224", {}) for size, name in SIZES.items()},
}
OTHER_SIZE = {14: 196, 16: 160, 32: 256}  # in pixels, by patch size
CONTAINER = dict(mocov3="state_dict", ibot="state_dict", msn="target_encoder", beitv2="model", mae="model")


def publish(name: str, theirs: torch.nn.Module, folder) -> str:
    """Writes timm's model like the published file of the teacher, including the entries that are not needed."""
    tensors = {key: value.clone() for key, value in theirs.state_dict().items()}
    family, extra = TEACHERS[name].family, torch.randn(3, 4)
    if family == "clip":
        tensors = openclip(tensors)
    elif family == "mocov3":
        tensors = {"module.base_encoder." + key: value for key, value in tensors.items()}
        tensors |= {key.replace("base", "momentum"): value + 1 for key, value in tensors.items()}
        tensors["module.predictor.0.weight"] = extra
    elif family == "ibot":
        tensors |= {"masked_embed": extra, "head.mlp.0.weight": extra}
    elif family == "msn":
        tensors = {"module." + key: value for key, value in tensors.items() if not key.startswith("head.")}
        tensors |= {"module.fc.fc1.weight": extra, "module.pred.0.weight": extra}
    elif family == "beitv2":
        tensors = {key: value for key, value in tensors.items() if not key.startswith("head.")}
        tensors |= dict.fromkeys(["mask_token", "lm_head.weight", "cls_pt_layers.0.norm1.weight"], extra)
        tensors["rel_pos_bias.relative_position_index"] = torch.arange(9).view(3, 3)
    elif family == "beit":
        tensors["blocks.0.attn.relative_position_index"] = torch.arange(9).view(3, 3)
    elif family == "eva02":
        tensors["rope.pos_embed"] = extra
    if family in CONTAINER:
        torch.save({CONTAINER[family]: tensors, "epoch": 300}, path := folder / f"{name}.pth.tar")
    else:
        save_file(tensors, path := folder / f"{name}.safetensors")
    return str(path)


def openclip(tensors: dict) -> dict:
    """Renames timm's tensors to OpenCLIP's, in float16, and adds a text tower to the image tower."""
    names = [
        ("patch_embed.proj.", "conv1."),
        ("norm_pre.", "ln_pre."),
        ("blocks.", "transformer.resblocks."),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        ("norm.", "ln_post."),
        (".attn.qkv.", ".attn.in_proj_"),
        (".attn.proj.", ".attn.out_proj."),
        (".fc1.", ".c_fc."),
        (".fc2.", ".c_proj."),
        ("cls_token", "class_embedding"),
        ("pos_embed", "positional_embedding"),
    ]
    theirs = {}
    for key, value in tensors.items():
        for ours, published in names:
            key = key.replace(ours, published)
        if not key.startswith("head."):
            theirs["visual." + key] = (value.flatten() if key == "class_embedding" else value.squeeze(0)).half()
    return theirs | {
        "visual.proj": torch.randn(4, 4),
        "logit_scale": torch.tensor(4.6),
        "positional_embedding": torch.randn(77, 8),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
        "token_embedding.weight": torch.randn(9, 8),
        "ln_final.weight": torch.ones(8),
    }


def authors_waves(dim: int, side: int, row_first: bool) -> torch.Tensor:
    """Returns the fixed positions of class token and patches as MoCo v3's code (row first) or MAE's computes them."""
    rows, columns = np.divmod(np.arange(side**2), side)
    bands = 10_000 ** (np.arange(dim // 4) / (dim // 4))
    parts = []
    for places in (rows, columns) if row_first else (columns, rows):
        parts += [np.sin(places[:, None] / bands), np.cos(places[:, None] / bands)]
    return F.pad(torch.tensor(np.concatenate(parts, 1), dtype=torch.float32), (0, 0, 1, 0))[None]


def random_timm(name: str, **options) -> torch.nn.Module:
    """Returns timm's model with random parameters. timm's own draws are left out: they take longer than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in "uniform_", "normal_", "erfinv_":
            patch.setattr(torch.Tensor, draw, lambda tensor, *given, **options: tensor)
        model = timm.create_model(name, **options)
    return scramble(model).eval()


def maps_and_tokens(theirs: torch.nn.Module, images: torch.Tensor):
    """Returns timm's attention maps, taken where they pass through its dropout, and its tokens."""
    maps = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0]))
    return maps, theirs.forward_features(images)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_only_a_native_student_has_the_gelu_and_the_epsilon_of_its_teacher():
    for name, field, value in (("siglip_b", "tanh_gelu", True), ("clip_b", "norm_eps", 1e-5)):
        assert getattr(student_config(name, "native"), field) == getattr(TEACHERS[name].config, field) == value
        assert getattr(student_config(name, "standard"), field) == getattr(ViTConfig, field) != value


def test_no_teacher_is_without_a_specification():
    assert set(SPECIFICATIONS) == {name for name, entry in TEACHERS.items() if entry.url}


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_a_teacher_has_the_tensors_of_the_published_architecture(name):
    (timm_name, arguments), entry = SPECIFICATIONS[name], TEACHERS[name]
    with torch.device("meta"):
        theirs = timm.create_model(timm_name, img_size=entry.config.img_size, **arguments).state_dict()
        ours = ViT(entry.config).state_dict()
    theirs = {key: value for key, value in theirs.items() if not key.startswith(("head.", "fc_norm.", "attn_pool."))}
    theirs = teachers.convert(teachers.rename(theirs, teachers.LAYOUTS[0]), entry.config)
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", SPECIFICATIONS)
@torch.inference_mode()
def test_a_teacher_computes_what_the_published_model_computes(name, tmp_path, monkeypatch):
    (timm_name, arguments), config = SPECIFICATIONS[name], TEACHERS[name].config
    if config.dim == 1024 or (config.img_size == 518 and config.dim == 768):  # The largest have three blocks here.
        config = replace(config, depth=3)
        arguments = {**arguments, "depth": 3}
        monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], config=config))
    theirs = random_timm(timm_name, img_size=config.img_size, **arguments)
    if TEACHERS[name].family == "clip":
        theirs = theirs.half().float()  # The published tensors are in float16.
    if config.pos_embed == "sincos":  # This parameter is never random in a file.
        theirs.pos_embed.copy_(authors_waves(config.dim, config.grid, TEACHERS[name].family == "mocov3"))
    path = publish(name, theirs, tmp_path)
    for size in config.img_size, 224 if config.img_size == 518 else OTHER_SIZE[config.patch_size]:
        theirs.set_input_size(size)
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        maps, tokens = maps_and_tokens(theirs, images)
        ours = load_teacher(name, path, size)
        for number, (our_map, their_map) in enumerate(zip(ours.attention_maps(images), maps, strict=True)):
            assert (our_map - their_map).abs().max() < 1e-4, f"the map of block {number} at {size} px"
            assert their_map.max() > 3 / their_map.shape[-1]  # Uniform maps would agree by themselves.
        assert relative(ours.forward_features(images), tokens) < 1e-4, f"the tokens at {size} px"
    os.remove(path)


# ---- teachers.py: transformers as a second reference -----------------------------------------------------------------

# transformers has four things for a family: the config, the model with everything that a file holds beside the
# teacher, the teacher alone, and the values of the published config that are not the defaults.
EPSILON = dict(layer_norm_eps=1e-12)  # The authors' code has 1e-6, and so has the registry.
VIT_CLASSES = ("ViTConfig", "ViTForImageClassification", "ViTModel", EPSILON)
DECODER = dict(decoder_hidden_size=32, decoder_num_attention_heads=2, decoder_num_hidden_layers=1, mask_ratio=0.0)
BEIT_CONFIG = dict(use_relative_position_bias=True, use_mean_pooling=True, layer_scale_init_value=0.1)
IN_TRANSFORMERS = {
    "deit": VIT_CLASSES,
    "augreg": VIT_CLASSES,
    "dino": VIT_CLASSES,
    "mae": ("ViTMAEConfig", "ViTMAEForPreTraining", "ViTMAEModel", EPSILON | DECODER),
    "msn": ("ViTMSNConfig", "ViTMSNForImageClassification", "ViTMSNModel", dict(layer_norm_eps=1e-6)),
    "beit": ("BeitConfig", "BeitForImageClassification", "BeitModel", EPSILON | BEIT_CONFIG),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", "Dinov2Model", {}),
    "dinov2_reg": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersModel",
        {},
    ),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", "DINOv3ViTModel", dict(num_register_tokens=4)),
    "clip": ("CLIPVisionConfig", "CLIPModel", "CLIPVisionModel", {}),
    "siglip": ("SiglipVisionConfig", "SiglipModel", "SiglipVisionModel", {}),
}
TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=9)


def random_transformers(name: str, whole: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns transformers' random model of a teacher, alone or with what files hold beside it; and the teacher."""
    config, family = TEACHERS[name].config, TEACHERS[name].family
    kind, with_others, alone, changes = IN_TRANSFORMERS[family]
    if config.swiglu:
        changes = changes | dict(use_gated_mlp=True, hidden_act="silu")
    shape = dict(hidden_size=config.dim, num_hidden_layers=config.depth, num_attention_heads=config.heads)
    shape |= dict(
        image_size=config.img_size, patch_size=config.patch_size, intermediate_size=int(config.dim * config.mlp_ratio)
    )
    if "dinov2" in family:
        del shape["intermediate_size"]  # The config has a ratio instead.
    given = getattr(transformers, kind)(**shape, **changes, attn_implementation="eager")
    if whole and family in ("clip", "siglip"):
        both = getattr(transformers, kind.replace("Vision", ""))
        given = both(text_config=TEXT, vision_config=given.to_dict(), attn_implementation="eager")
    model = scramble(getattr(transformers, with_others if whole else alone)(given)).eval()
    [inner] = [
        module for module in model.modules() if hasattr(module, "embeddings") and "patch" in str(module.embeddings)
    ][:1]
    if family == "mae":
        model.get_parameter(("vit." if whole else "") + "embeddings.position_embeddings").copy_(
            authors_waves(config.dim, config.grid, row_first=False)
        )
    for key, parameter in model.named_parameters():
        if family == "dinov3" and re.search(r"[qv]_proj\.bias", key):
            parameter.zero_()  # It is zero in all files of models below 7B.
    return model, inner


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "alone"])
@pytest.mark.parametrize("name", [name for name in SPECIFICATIONS if TEACHERS[name].family in IN_TRANSFORMERS])
@torch.inference_mode()
def test_a_file_of_transformers_opens_and_computes_what_transformers_computes(name, whole, tmp_path, monkeypatch):
    config, family = replace(TEACHERS[name].config, depth=2), TEACHERS[name].family
    monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], config=config))
    model, inner = random_transformers(name, whole)
    model.save_pretrained(tmp_path)  # This file has the names of the hub's files.
    numbers = {}  # Older versions kept these.
    if family in ("clip", "siglip"):
        numbers = {f"{'vision_model.' if whole else ''}embeddings.position_ids": torch.arange(config.grid**2)[None]}
    torch.save(model.state_dict() | numbers, tmp_path / "pytorch_model.bin")  # Here the names are those of version 5.
    in_file, in_memory = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert (set(in_file) == set(in_memory)) == (family in ("clip", "siglip"))
    first = load_teacher(name, str(tmp_path / "model.safetensors"))
    assert same(first.state_dict(), load_teacher(name, str(tmp_path / "pytorch_model.bin")).state_dict())
    for size in [config.img_size] + ([224] if family == "dinov2_reg" else [160] if family == "dinov3" else []):
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        options = dict(noise=torch.arange(config.grid**2)[None].float()) if family == "mae" else {}  # It hides nothing.
        theirs = inner(images, output_attentions=True, **options)
        tokens = inner.post_layernorm(theirs.last_hidden_state) if family == "clip" else theirs.last_hidden_state
        ours = load_teacher(name, str(tmp_path / "model.safetensors"), size)
        for our_map, their_map in zip(ours.attention_maps(images), theirs.attentions, strict=True):
            assert relative(our_map, their_map) < 1e-4 and (our_map - their_map).abs().max() < 1e-4
            assert their_map.max() > 3 / their_map.shape[-1]
        assert relative(ours.forward_features(images), tokens) < 1e-4


# ---- teachers.py: files and downloads --------------------------------------------------------------------------------

DEIT, EVA = "deit_ti", "eva02_ti"
SMALL = {
    **{name: dict(depth=2) for name in (DEIT, EVA, "deit_s")},
    "clip_b32": dict(dim=64, heads=4, depth=2),
    **{name: dict(dim=96, depth=2) for name in ("mocov3_s", "ibot_s", "msn_s", "beitv2_b")},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Provides an empty cache, which no user setting overrides, and teachers that are quick to write and read."""
    for name, shape in SMALL.items():
        config = replace(TEACHERS[name].config, **shape)
        monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], config=config))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return tmp_path / "torch/hub/attention_transfer"


def random_tensors(name: str) -> dict:
    """Returns random tensors for a teacher, with model.py's names."""
    generator, config = torch.Generator().manual_seed(0), TEACHERS[name].config
    shapes = {key: value.shape for key, value in shell(config).state_dict().items()}
    tensors = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
    if config.pos_embed == "sincos":
        tensors["pos_embed"] = authors_waves(config.dim, config.grid, TEACHERS[name].family == "mocov3")
    return tensors


def shell(config: ViTConfig) -> ViT:
    """Returns a model that has shapes but takes no memory."""
    with torch.device("meta"):
        return ViT(config)


PREFIX = dict(mocov3="module.base_encoder.", msn="module.")  # Names in the container begin with these.
BESIDE = dict(  # These entries are not needed.
    mocov3=["module.base_encoder.head.0.weight", "module.momentum_encoder.norm.weight", "module.predictor.0.weight"],
    ibot=["masked_embed", "head.mlp.0.weight"],
    msn=["module.fc.fc1.weight", "module.pred.0.weight"],
    beitv2=["mask_token", "lm_head.weight", "cls_pt_layers.0.norm1.weight", "rel_pos_bias.relative_position_index"],
)


def published(name: str) -> dict:
    """Returns the content of the authors' pickle, including the entries that are not needed."""
    family = TEACHERS[name].family
    tensors = {PREFIX.get(family, "") + key: value for key, value in random_tensors(name).items()}
    return {
        CONTAINER[family]: tensors | dict.fromkeys(BESIDE[family], torch.ones(3)),
        "epoch": 300,
        "args": argparse.Namespace(lr=0.1),
    }


def same(one: dict, other: dict) -> bool:
    """Returns whether two models have the same tensors under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refusal(name: str, path) -> str:
    """Returns the one line with which a file is refused. It must name the file and the teacher."""
    line = refused(load_teacher, name, str(path))
    assert str(path) in line and name in line
    return line


NORM, FC1 = "norm.weight", "blocks.0.mlp.fc1.weight"
QKV, Q_PROJ = "blocks.0.attn.qkv.weight", "blocks.0.attn.q_proj.weight"
DEFECTS = {  # Each has what replaces tensors of deit_ti (None: nothing) and what the refusal says.
    "missing": ({NORM: None}, "missing: norm.weight; "),
    "many missing": ({"blocks.1.": None}, "missing: blocks.1.norm1.weight and 11 more; "),
    "left over": ({"extra": torch.ones(2)}, "left over: extra; "),
    "named twice": (
        {"blocks.0.gamma_1": torch.ones(2), "blocks.0.ls1.gamma": torch.ones(2)},
        "holds blocks.0.ls1.gamma twice",
    ),
    "shape": ({NORM: torch.ones(191)}, "wrong: norm.weight has the shape (191,), not (192,); "),
    "transposed": ({FC1: torch.ones(192, 768)}, f"wrong: {FC1} has the shape (192, 768), not (768, 192); "),
    "no dimension": ({NORM: torch.tensor(1.0)}, "wrong: norm.weight has the shape (), not"),
    "no dimension, token": ({"cls_token": torch.tensor(1.0)}, "wrong: cls_token has the shape (1, 1, 1), not"),
    "nothing in it": ({"pos_embed": torch.ones(0)}, "wrong: pos_embed has the shape (1, 1, 0), not"),
    "integers": ({NORM: torch.ones(192, dtype=torch.int64)}, "wrong: norm.weight is torch.int64; "),
    "not a number": ({NORM: torch.tensor([1.0] * 191 + [math.nan])}, "norm.weight has numbers that are not finite"),
    "q without k": ({QKV: None, Q_PROJ: torch.ones(192, 192)}, f"missing: {QKV}; left over: {Q_PROJ}; "),
    "a bias of q": ({"blocks.0.attn.q_bias": torch.ones(192)}, "left over: blocks.0.attn.q_bias; "),
}


@pytest.mark.parametrize("changes, complaint", DEFECTS.values(), ids=DEFECTS)
def test_a_file_with_one_tensor_wrong_is_refused(changes, complaint, tmp_path, cache):
    tensors, path = random_tensors(DEIT), tmp_path / "a.safetensors"
    save_file(tensors, path)
    assert same(load_teacher(DEIT, str(path)).state_dict(), tensors)
    gone = tuple(key for key, value in changes.items() if value is None)  # A key may be the beginning of names.
    kept = {key: value for key, value in tensors.items() if not key.startswith(gone)}
    wrong = kept | {key: value for key, value in changes.items() if value is not None}
    save_file(wrong, path)
    torch.save(wrong, tmp_path / "wrong.pth")
    assert complaint in refusal(DEIT, path) and complaint in refusal(DEIT, tmp_path / "wrong.pth")


@pytest.mark.parametrize("shape", [(), (1,), (7, 192), (1024, 192)], ids=str)
def test_a_joint_swiglu_layer_of_a_wrong_shape_is_refused(shape, tmp_path, cache):
    tensors, path = random_tensors(EVA), tmp_path / "a.safetensors"
    parts = [tensors.pop(f"blocks.0.mlp.fc1_{part}.weight") for part in "gx"]
    save_file(tensors | {FC1: torch.cat(parts)}, path)
    assert torch.equal(load_teacher(EVA, str(path)).blocks[0].mlp.fc1_x.weight, parts[1])
    if shape == (1024, 192):  # The shape is right, but one half is there twice.
        tensors["blocks.0.mlp.fc1_g.weight"] = parts[0]
        shape = torch.cat(parts).shape
    save_file(tensors | {FC1: torch.ones(shape)}, path)
    assert "blocks.0.mlp.fc1" in refusal(EVA, path)


@pytest.mark.parametrize("shape", [(192, 192), (), (192, 191), (5,)], ids=str)
def test_separate_q_k_and_v_are_joined_if_their_shapes_are_right_and_refused_otherwise(shape, tmp_path, cache):
    tensors, path = random_tensors(EVA), tmp_path / "a.safetensors"
    joint, stem = tensors.pop(QKV), "blocks.0.attn."
    apart = {f"{stem}{part}_proj.weight": value.clone() for part, value in zip("qkv", joint.chunk(3))}
    apart |= {f"{stem}{part}_proj.bias": tensors.pop(f"{stem}{part}_bias") for part in "qv"}
    if shape == (192, 192):
        save_file(tensors | apart, path)
        assert torch.equal(load_teacher(EVA, str(path)).blocks[0].attn.qkv.weight, joint)
    else:
        save_file(tensors | apart | {stem + "k_proj.weight": torch.ones(shape)}, path)
        assert QKV in refusal(EVA, path)


@pytest.mark.parametrize("held, asked", [(EVA, DEIT), ("deit_s", DEIT), (DEIT, EVA)])
def test_another_teachers_weights_are_refused(held, asked, tmp_path, cache):
    save_file(random_tensors(held), path := tmp_path / "other.safetensors")
    assert ("wrong: cls_token has the shape" if held == "deit_s" else "missing: ") in refusal(asked, path)


@pytest.mark.parametrize("value", [3, "text", None, [torch.ones(192)], {"data": torch.ones(192)}], ids=str)
def test_something_else_in_the_place_of_a_tensor_is_refused(value, tmp_path, cache):
    torch.save(random_tensors(DEIT) | {"norm.weight": value}, tmp_path / "wrong.pth")
    assert "missing: norm.weight; " in refusal(DEIT, tmp_path / "wrong.pth")


UNNAMED = [[torch.ones(3)], torch.ones(3), 5, {"state_dict": [1]}, {1: torch.ones(2)}, {}]


@pytest.mark.parametrize("held", UNNAMED, ids=str)
def test_a_pickle_without_named_tensors_is_refused(held, tmp_path, cache):
    torch.save(held, tmp_path / "wrong.pth")
    refusal("mocov3_s", tmp_path / "wrong.pth")


class Payload:
    """An object that makes a folder when it is unpickled without care."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["torch", "legacy torch", "pickle 2", "pickle 4"])
def test_a_pickle_that_holds_code_is_refused_without_a_warning_and_its_code_does_not_run(how, tmp_path, recwarn, cache):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    held = {"norm.weight": torch.ones(192), "evil": Payload(trace)}
    if "torch" in how:
        torch.save(held, path, _use_new_zipfile_serialization=how == "torch")
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(held["evil"], protocol=int(how[-1])))
        pickle.loads(path.read_bytes())
    trace.rmdir()  # The folder was there, so the payload works.
    recwarn.clear()
    line = refusal(DEIT, path)
    assert not trace.exists() and not recwarn.list
    assert "holds code" in line or how == "pickle 4"


def serialised(held, **options) -> bytes:
    torch.save(held, file := io.BytesIO(), **options)
    return file.getvalue()


def archive() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as opened:
        opened.writestr("readme", "no weights")
    return file.getvalue()


NO_FIT = {"norm.weight": torch.ones(192, 99)}
WRONG_FILES = {  # Each has a name and its content.
    "missing.pth": None,
    "folder.pth": None,
    "empty.pth": b"",
    "empty.safetensors": b"",
    "junk.pth": bytes(range(256)) * 9,
    "junk.safetensors": bytes(range(256)) * 9,
    "page.safetensors": b"<!doctype html><title>Log in to the network</title>",
    "zip.pth": archive(),
    # About half of each of these two is left.
    "cut.pth": serialised(NO_FIT)[:40_000],
    "cut legacy.pth": serialised(NO_FIT, _use_new_zipfile_serialization=False)[:40_000],
    "cut.safetensors": save(NO_FIT)[:-5],
    "cut header.safetensors": save(NO_FIT)[:20],
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_what_is_not_a_whole_weights_file_is_refused_in_one_line_that_names_the_right_one(name, tmp_path, capfd, cache):
    path, content = tmp_path / name, WRONG_FILES[name]
    if content is not None:
        path.write_bytes(content)
    elif name == "folder.pth":
        path.mkdir()
    line = refusal(DEIT, path)
    assert ("does not exist" if content is None else "is truncated or is not a weights file") in line
    assert TEACHERS[DEIT].url in line
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["safetensors named pth", "pickle named safetensors"])
def test_the_content_of_a_file_counts_and_not_its_name(kind, tmp_path, cache):
    tensors, path = random_tensors(DEIT), tmp_path / ("a.pth" if "named pth" in kind else "a.safetensors")
    save_file(tensors, path) if "named pth" in kind else torch.save(tensors, path)
    assert same(load_teacher(DEIT, str(path)).state_dict(), tensors)


def test_the_command_line_refuses_a_wrong_file_with_status_2_and_one_line(cache):
    cache.mkdir(parents=True)
    cache_path(DEIT).write_bytes(save(random_tensors(DEIT))[:-5])
    out, err = mistake(teachers, DEIT)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and str(cache_path(DEIT)) in err


def test_the_script_itself_ends_with_status_2_and_one_line(cache):
    ended = python(teachers.__file__, "eva2_s")
    assert (ended.returncode, ended.stdout) == (2, "") and "eva02_s" in ended.stderr
    assert ended.stderr.startswith("error: unknown teacher 'eva2_s'") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_teacher_is_frozen_in_eval_mode_and_float32_whatever_the_file_holds(dtype, tmp_path, cache):
    tensors = {key: value.to(dtype) for key, value in random_tensors(DEIT).items()}
    torch.save({key: torch.nn.Parameter(value) for key, value in tensors.items()}, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].to(memory_format=torch.channels_last)
    torch.save(tensors, tmp_path / "b.pth")
    assert len({teachers.fingerprint(load_teacher(DEIT, str(tmp_path / path))) for path in ("a.pth", "b.pth")}) == 1
    for path in "a.pth", "a.safetensors":
        model = load_teacher(DEIT, str(tmp_path / path))
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} == {torch.float32}
        assert same(model.state_dict(), {key: value.float() for key, value in tensors.items()})


def test_the_random_teacher_is_untrained_and_frozen_and_needs_no_file(cache):
    first, second = load_teacher(EVA, "random", 112), load_teacher(EVA, "random", 112)
    assert not first.training and not any(parameter.requires_grad for parameter in first.parameters())
    assert first.config == replace(TEACHERS[EVA].config, img_size=112) and not cache.exists()
    assert not torch.equal(first.blocks[0].attn.qkv.weight, second.blocks[0].attn.qkv.weight)


def test_every_nano_teacher_loads_as_it_was_saved(monkeypatch, cache):
    monkeypatch.setitem(teachers.PRETRAINING, "steps", 0)
    for name in [name for name, entry in TEACHERS.items() if not entry.url]:
        model = load_teacher(name)
        assert same(model.state_dict(), load_file(cache_path(name)))
        assert model.head.weight.shape == (TEACHERS[name].config.num_classes, 64)


def test_a_nano_teacher_is_pretrained_once_and_again_if_its_file_is_spoilt(monkeypatch, cache):
    monkeypatch.setattr(teachers, "PRETRAINING", teachers.PRETRAINING | dict(steps=1, batch=4))
    first = {key: value.clone() for key, value in load_teacher("deit_nano").state_dict().items()}
    path = cache_path("deit_nano")
    written = path.stat().st_mtime_ns
    assert same(load_teacher("deit_nano").state_dict(), first) and path.stat().st_mtime_ns == written
    path.write_bytes(b"junk")
    assert same(load_teacher("deit_nano").state_dict(), first)
    other = load_teacher("deit_nano", seed=1)  # It is kept in another file.
    assert not same(other.state_dict(), first) and same(load_teacher("deit_nano").state_dict(), first)
    assert same(load_file(cache_path("deit_nano-seed1")), other.state_dict())


# ---- teachers.py: the authors' layouts -------------------------------------------------------------------------------


def renamed(tensors: dict, *pairs) -> dict:
    """Renames tensors: each pair has a regular expression and what replaces it in the names."""
    theirs = {}
    for key, value in tensors.items():
        for ours, published in pairs:
            key = re.sub(ours, published, key)
        theirs[key] = value
    return theirs


def apart(tensors: dict, joint: str, *parts: str) -> dict:
    """Replaces each joint tensor by its parts."""
    theirs = {}
    for key, value in tensors.items():
        names = [key.replace(joint, part) for part in parts] if joint in key else [key]
        theirs |= dict(zip(names, value.chunk(len(names)), strict=True))
    return {key: value.clone() for key, value in theirs.items()}


@pytest.fixture
def short(monkeypatch):
    """Shortens published teachers to two blocks."""
    for name, entry in TEACHERS.items():
        if entry.url:
            monkeypatch.setitem(TEACHERS, name, replace(entry, config=replace(entry.config, depth=2)))


def under(prefix: str, tensors: dict) -> dict:
    return {prefix + key: value for key, value in tensors.items()}


GAMMA = (r"ls([12])\.gamma", r"gamma_\1")
BEIT_NAMES = [GAMMA, (r"attn\.rel_pos\.", "attn.")]
X = torch.ones(3)  # It stands for any tensor that is not needed.


def of_deit(held):
    return {"model": held | {"head.weight": X, "head.bias": X}}


def of_deit3(held):
    return {"model": renamed(held, GAMMA) | {"head.weight": X}}


def of_dino(held):
    other = {key: value + 1 for key, value in held.items()}
    student = under("module.backbone.", other) | {"module.head.last_layer.weight_g": X}
    teacher = under("backbone.", held) | {"head.mlp.0.weight": X}
    return {"student": student, "teacher": teacher, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 9}


def of_mae(held):
    decoder = dict.fromkeys(["decoder_embed.weight", "decoder_blocks.0.norm1.weight", "decoder_pos_embed"], X)
    return {"model": held | decoder | {"mask_token": X, "decoder_norm.bias": X}}


def of_beit(held):
    held = renamed(held, *BEIT_NAMES) | {"fc_norm.weight": X, "head.weight": X}
    return {"model": held | {"blocks.0.attn.relative_position_index": torch.arange(9)}}


def of_beitv2(held):
    held = renamed(held, GAMMA) | {"rel_pos_bias.relative_position_index": torch.arange(9), "mask_token": X}
    return {"model": held | {"lm_head.weight": X, "cls_pt_layers.0.gamma_1": X, "cls_pt_layers.0.attn.q_bias": X}}


def of_beit3(held):
    held = apart(
        apart(held, "qkv.weight", *[f"{part}_proj.A.weight" for part in "qkv"]),
        "qkv.bias",
        *[f"{part}_proj.A.bias" for part in "qkv"],
    )
    rows = torch.cat(
        (torch.rand(2, held["pos_embed"].shape[-1]), held.pop("pos_embed")[0])
    )  # The first two belong to no token.
    held = renamed(
        held,
        (r"^cls_token", "vision_embed.cls_token"),
        (r"^patch_embed\.proj", "vision_embed.proj"),
        (r"^blocks", "encoder.layers"),
        (r"norm1", "self_attn_layer_norm.A"),
        (r"norm2", "final_layer_norm.A"),
        (r"attn\.norm", "self_attn.inner_attn_ln.A"),
        (r"attn\.proj", "self_attn.out_proj.A"),
        (r"\.attn\.", ".self_attn."),
        (r"mlp\.norm", "ffn.A.ffn_layernorm"),
        (r"mlp\.", "ffn.A."),
    )
    text = {key.replace(".A.", ".B."): value + 1 for key, value in held.items() if ".A." in key}
    more = {"encoder.embed_positions.A.weight": rows, "encoder.embed_positions.B.weight": rows + 1}
    more |= {"encoder.layer_norm.A.weight": X, "text_embed.weight": X, "vision_embed.mask_token": X}
    return {"model": under("beit3.", held | text | more) | {"mlm_head.weight": X, "head.weight": X}}


def of_dinov2(held):
    return held | {"mask_token": torch.rand(1, 384)}


def of_dinov2_reg(held):
    position = torch.rand(1, 1, held["cls_token"].shape[-1])  # timm adds it to the class token and then drops it.
    held |= {"register_tokens": held.pop("reg_token"), "mask_token": torch.rand(1, 384)}
    held["cls_token"] = held["cls_token"] - position
    return held | {"pos_embed": torch.cat((position, held["pos_embed"]), 1)}


def of_dinov3(held):
    mask = torch.ones(3, held["cls_token"].shape[-1])
    mask[1] = 0
    for number in range(2):
        joint = f"blocks.{number}.attn.qkv."
        held |= {joint + "bias": torch.zeros(mask.numel()), joint + "bias_mask": mask.flatten().clone()}
    gate = [("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")] if "blocks.0.mlp.fc1_g.weight" in held else []
    more = {"mask_token": torch.rand(1, 384), "rope_embed.periods": (100 ** (torch.arange(16) / 16)).bfloat16()}
    return renamed(held, ("reg_token", "storage_tokens"), *gate) | more


def of_eva02_s(held):
    for number, kind in [(number, kind) for number in range(2) for kind in ("weight", "bias")]:
        stem = f"blocks.{number}.mlp."
        halves = [held.pop(f"{stem}fc1_{half}.{kind}") for half in "gx"]
        held[f"{stem}w12.{kind}"] = torch.cat(halves)
    return {"model": renamed(held, ("mlp.fc2", "mlp.w3")) | EVA_BESIDE}


def of_eva02_b(held):
    held = apart(held, "attn.qkv.weight", *[f"attn.{part}_proj.weight" for part in "qkv"])
    names = [
        ("fc1_g", "w1"),
        ("fc1_x", "w2"),
        ("fc2", "w3"),
        (r"attn\.norm", "attn.inner_attn_ln"),
        (r"mlp\.norm", "mlp.ffn_ln"),
    ]
    return {"module": renamed(held, *names) | EVA_BESIDE}


EVA_BESIDE = dict.fromkeys(
    ["mask_token", "lm_head.weight", "norm.weight", "norm.bias", "rope.freqs_cos", "blocks.0.attn.rope.freqs_sin"], X
)


def of_openai(held):
    numbers = {key: torch.tensor(224) for key in ("input_resolution", "context_length", "vocab_size")}
    return openclip(held) | numbers


def of_openclip_siglip(held):
    more = {"text.transformer.resblocks.0.ln_1.weight": X, "logit_bias": X, "visual.trunk.attn_pool.latent": X}
    return under("visual.trunk.", held) | more


AUTHORS = {  # Each has a teacher and the way in which its authors publish it.
    "DeiT": ("deit_s", of_deit),
    "DeiT III": ("deit3_s", of_deit3),
    "DINO, all that is needed to go on": ("dino_s", of_dino),
    "DINO, backbone": ("dino_s", dict),
    "MAE with its decoder": ("mae_b", of_mae),
    "BEiT": ("beit_b", of_beit),
    "BEiT v2": ("beitv2_b", of_beitv2),
    "BEiT-3": ("beit3_b", of_beit3),
    "DINOv2": ("dinov2_s", of_dinov2),
    "DINOv2 with registers": ("dinov2_reg_s", of_dinov2_reg),
    "DINOv3": ("dinov3_s", of_dinov3),
    "DINOv3 with a gate": ("dinov3_splus", of_dinov3),
    "EVA-02 S": ("eva02_s", of_eva02_s),
    "EVA-02 B": ("eva02_b", of_eva02_b),
    "CLIP": ("clip_b32", of_openai),
    "SigLIP of OpenCLIP": ("siglip_b", of_openclip_siglip),
    "CLIP in timm's names": ("clip_b", of_deit),
}


@pytest.mark.parametrize("layout", AUTHORS)
def test_a_file_of_the_authors_opens_with_each_tensor_in_its_place(layout, tmp_path, short):
    name, publish_as = AUTHORS[layout]
    tensors = {key: value.half().float() for key, value in random_tensors(name).items()}  # CLIP is in float16.
    torch.save(publish_as(dict(tensors)), path := tmp_path / "a.pth")
    ours = load_teacher(name, str(path)).state_dict()
    assert ours.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.allclose(ours[key], value, rtol=0, atol=3e-7), key  # With registers, the class token was a sum.


def of_transformers(held, *names):
    """Renames tensors as in transformers' files for a ViT. Pairs that are given come first."""
    held = apart(held, "attn.qkv", *[f"attention.attention.{part}" for part in ("query", "key", "value")])
    return renamed(
        held,
        *names,
        (r"attn\.proj", "attention.output.dense"),
        (r"^blocks", "vit.encoder.layer"),
        (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
        (r"^cls_token", "vit.embeddings.cls_token"),
        (r"^pos_embed", "vit.embeddings.position_embeddings"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"^norm", "vit.layernorm"),
    ) | {"classifier.weight": X}


def flat(held, stem: str = "") -> dict:
    """Returns the tensors of nested dictionaries under dotted names."""
    if isinstance(held, dict):
        return {name: value for key in held for name, value in flat(held[key], f"{stem}{key}.").items()}
    return {stem[:-1]: held} if isinstance(held, torch.Tensor) else {}


DAMAGES = "dropped renamed transposed cut integers infinite added swapped".split()


def damage(tensors: dict, kind: str, dice: random.Random) -> dict:
    """Returns the tensors with one of them damaged."""
    name = dice.choice(list(tensors))
    value, rest = tensors[name], {key: value for key, value in tensors.items() if key != name}
    if kind == "renamed":
        at = dice.randrange(len(name))
        return {**rest, name[:at] + dice.choice("abnorm.01_") + name[at + 1 :]: value}
    if kind == "added":
        return {**tensors, dice.choice(list(tensors)) + dice.choice(["x", ".bias", "_mask", ".weight"]): value}
    if kind == "swapped":
        other = dice.choice(list(tensors))
        return {**tensors, name: tensors[other], other: value}
    changed = {
        "transposed": lambda: value.mT.contiguous() if value.ndim > 1 else value[None],
        "cut": lambda: value[:-1].contiguous() if value.ndim else value[None],
        "integers": lambda: value.to(dice.choice([torch.int64, torch.bool, torch.uint8])),
        "infinite": lambda: torch.full_like(value, math.inf) if value.is_floating_point() else value,
    }
    return rest | ({name: changed[kind]()} if kind in changed else {})


def outcome(name: str, path) -> dict | None:
    """Returns the parameters with which a file opens as a teacher, or None if it is refused in one line."""
    try:
        return dict(load_teacher(name, str(path)).state_dict())
    except UserError as error:
        assert "\n" not in str(error)


FUZZED = {"transformers": ("deit_s", of_transformers), **AUTHORS}


def forms(tensors: dict) -> dict:
    """Returns types, and shapes without dimensions of one, as a class token may be a vector or (1, 1, D)."""
    return {key: (value.squeeze().shape, value.dtype) for key, value in tensors.items()}


def fuzz(layout: str, path, count: int, monkeypatch) -> int:
    """Damages a file of a layout in many ways, and returns how often it was refused."""
    name, publish_as = FUZZED[layout]
    config = replace(TEACHERS[name].config, depth=2, dim=48, heads=4, img_size=2 * TEACHERS[name].config.patch_size)
    monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], config=config))
    ours = {key: value.half().float() for key, value in random_tensors(name).items()}
    tensors = {key: value.clone() for key, value in flat(publish_as(dict(ours))).items()}
    save_file(tensors, path)
    whole, dice, refusals = path.read_bytes(), random.Random(0), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    right = {key: value.clone() for key, value in outcome(name, path).items()}
    for number in range(count):
        damaged = tensors
        if number % 2:
            content = bytearray(whole)
            for _ in range(dice.randint(1, 9)):
                content[dice.randrange(header if number % 4 == 1 else len(whole))] ^= 1 << dice.randrange(8)
            path.write_bytes(content)
        else:
            damaged = damage(tensors, DAMAGES[number // 2 % len(DAMAGES)], dice)
            save_file({key: value.clone() for key, value in damaged.items()}, path)
        found = outcome(name, path)
        refusals += found is None
        if found is not None:
            assert {key: value.shape for key, value in found.items()} == {
                key: value.shape for key, value in right.items()
            }
            # Nothing is lost: values were changed in place, or the damaged tensor is not needed.
            assert forms(damaged) == forms(tensors) or same(found, right)
    return refusals


@pytest.mark.parametrize("layout", FUZZED)
def test_a_damaged_file_is_refused_in_a_line_or_has_lost_nothing(layout, tmp_path, monkeypatch):
    assert fuzz(layout, tmp_path / "a.safetensors", 48, monkeypatch) > 20


# ---- teachers.py: wrappings, and what a file is ----------------------------------------------------------------------

WRAPPINGS = {  # Each puts something before the names or around them.
    "model": lambda tensors: {"model": tensors, "epoch": 300, "best": 71.5},
    "state_dict": lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
    "module": lambda tensors: {"module": tensors},
    "model_ema": lambda tensors: {"model": dict.fromkeys(tensors, torch.ones(3)), "model_ema": tensors},
    "teacher": lambda tensors: {
        "student": dict.fromkeys(tensors, torch.ones(3)),
        "teacher": under("backbone.", tensors),
    },
    "compiled": lambda tensors: under("_orig_mod.", tensors),
    "lightning": lambda tensors: {"state_dict": under("model.encoder.", tensors), "loops": {"epoch": {"done": 3}}},
    "open_clip": lambda tensors: under("visual.trunk.", tensors) | {"text.ln_final.weight": torch.ones(3)},
    "vit": lambda tensors: under("vit.", tensors) | {"classifier.weight": torch.ones(3)},
    "numbers": lambda tensors: tensors | {"epoch": 3, "acc": np.float64(81.5), "args": argparse.Namespace(lr=0.1)},
    "half": lambda tensors: {key: value.half() for key, value in tensors.items()},
    "optimiser": lambda tensors: {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "buffers": lambda tensors: tensors | {"blocks.0.attn.relative_position_index": torch.arange(9)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_wrapping_is_taken_off(wrapping, tmp_path, cache):
    tensors = {key: value.half().float() for key, value in random_tensors(DEIT).items()}
    torch.save(WRAPPINGS[wrapping](tensors), tmp_path / "a.pth")
    assert same(load_teacher(DEIT, str(tmp_path / "a.pth")).state_dict(), tensors)


def test_a_choice_among_the_models_of_a_file_is_reported_and_the_user_can_make_it(tmp_path, cache, capsys):
    student, teacher = random_tensors(DEIT), {key: value + 1 for key, value in random_tensors(DEIT).items()}
    held = {"student": under("module.backbone.", student), "teacher": under("backbone.", teacher), "epoch": 3}
    torch.save(held, path := tmp_path / "checkpoint.pth")
    assert same(load_teacher(DEIT, str(path)).state_dict(), teacher)
    line = f"{path} holds several models: student.module.backbone., teacher.backbone.; took teacher.backbone.\n"
    assert capsys.readouterr().err == line
    assert same(load_teacher(DEIT, f"{path}:student").state_dict(), student) and capsys.readouterr().err == ""
    line = refused(load_teacher, DEIT, f"{path}:pupil")
    assert "holds no model named pupil, but student.module.backbone., teacher.backbone." in line
    del held["teacher"]["backbone.patch_embed.proj.weight"]  # A student does not take its teacher's place.
    torch.save(held, path)
    assert "choose a model, as in FILE:student" in refusal(DEIT, path)
    assert same(load_teacher(DEIT, f"{path}:student").state_dict(), student)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_by_their_index(name, tmp_path, cache):
    tensors, (stem, suffix) = random_tensors(DEIT), name.split(".")
    halves = [dict(list(tensors.items())[part::2]) for part in range(2)]
    places = {key: f"{stem}-0000{part}.{suffix}" for part, half in enumerate(halves) for key in half}
    for part, half in enumerate(halves):
        write = save_file if suffix == "safetensors" else torch.save
        write(half | {"elsewhere": torch.ones(part + 1)}, tmp_path / f"{stem}-0000{part}.{suffix}")
    index = tmp_path / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same(load_teacher(DEIT, str(index)).state_dict(), tensors)
    (tmp_path / f"{stem}-00001.{suffix}").unlink()
    assert f"{stem}-00001.{suffix} does not exist" in refused(load_teacher, DEIT, str(index))


class Doubling(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def torchscript() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, as are the files that OpenAI published with it.
        torch.jit.save(torch.jit.script(Doubling()), file := io.BytesIO())
    return file.getvalue()


def npz() -> bytes:
    np.savez(file := io.BytesIO(), kernel=np.ones(3))
    return file.getvalue()


FOREIGN = {  # Each has its content and what the refusal says.
    "a.pt": (torchscript, "is a TorchScript program; torch.save(torch.jit.load(FILE).state_dict(), NEW)"),
    "a.npz": (npz, "is a numpy archive"),
    "a.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "is a TensorFlow or Flax file"),
    "a.msgpack": (lambda: b"\x82\xa6params" + bytes(99), "is a TensorFlow or Flax file"),
    "a.safetensors": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "config.json": (lambda: b'{"hidden_size": 384}', "is not an index of weights"),
    "loop.json": (lambda: b'{"weight_map": {"norm.weight": "loop.json"}}', "is not an index of weights"),
    "up.json": (lambda: b'{"weight_map": {"norm.weight": "../a.pth"}}', "is not an index of weights"),
    "twice.pth": (lambda: serialised({"a": {"b": 1}, "a.b": 2}), "holds two values with the same name"),
    "lines.pth": (lambda: serialised({"conv1.weight\n\x1b[2J": torch.ones(2)}), "names that cannot be printed"),
    "whole.pth": (lambda: serialised(Doubling()), "holds code and was not loaded"),
    "other.pth": (
        lambda: serialised({"conv.weight": torch.ones(2)}),
        "it has no patch embedding; it holds conv.weight",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_cannot_be_opened_is_called_what_it_is(name, tmp_path, cache):
    content, says = FOREIGN[name]
    (tmp_path / name).write_bytes(content())
    assert says in refusal(DEIT, tmp_path / name)


CONFUSED = {  # Each has the teacher of the file, the one that is asked for, and the difference.
    "dino_s as mocov3_s, with 12 heads": ("dino_s", "mocov3_s", "its positions are learned, not waves"),
    "deit_b as mae_b": ("deit_b", "mae_b", "its positions are learned, not waves"),
    "mae_b as augreg_b": ("mae_b", "augreg_b", "its positions are fixed waves"),
    "mocov3_b as dino_b": ("mocov3_b", "dino_b", "its positions are fixed waves"),
    "DINOv2 with registers as without": (
        "dinov2_reg_s",
        "dinov2_s",
        "left over: reg_token; wrong: pos_embed has the shape",
    ),
    "BEiT v2 as BEiT": ("beitv2_b", "beit_b", "missing: blocks.0.attn.rel_pos.relative_position_bias_table and 1 more"),
}


@pytest.mark.parametrize("case", CONFUSED)
def test_a_file_that_does_not_fit_a_teacher_is_refused_and_the_teachers_that_it_fits_are_named(case, tmp_path, short):
    held, asked, says = CONFUSED[case]
    tensors = random_tensors(held)
    save_file(tensors, path := tmp_path / "a.safetensors")
    assert same(load_teacher(held, str(path)).state_dict(), tensors)
    line = refusal(asked, path)
    assert says in line and re.search(rf"it has the layout of timm or of the authors and fits [^;]*\b{held}\b", line)
    assert asked not in line.split(" fits ")[1].split(";")[0]


def test_positions_that_fine_tuning_moved_are_still_waves(tmp_path, short):
    tensors = random_tensors("mae_b")
    tensors["pos_embed"] += 0.05 * torch.randn(tensors["pos_embed"].shape)
    save_file(tensors, path := tmp_path / "a.safetensors")
    assert same(load_teacher("mae_b", str(path)).state_dict(), tensors)


def test_pretrained_weights_of_beit_are_not_taken_for_beit_v2(tmp_path, short):
    """Both have one shared table and a final norm, but only BEiT v2 pretrains the class token in extra blocks."""
    tensors = random_tensors("beitv2_b") | {"lm_head.weight": torch.ones(3), "mask_token": torch.ones(3)}
    torch.save({"model": tensors}, path := tmp_path / "beit_base_patch16_224_pt22k.pth")
    for asked in "beit_b", "beitv2_b":
        refusal(asked, path)
    assert "it comes from BEiT, as it has lm_head without cls_pt_layers" in refusal("beitv2_b", path)
    torch.save({"model": tensors | {"cls_pt_layers.0.norm1.weight": torch.ones(3)}}, path)
    assert load_teacher("beitv2_b", str(path)).config.rel_pos == "shared"


OTHERS = {  # These networks are not among the teachers.
    "distilled DeiT": (lambda held: held | {"dist_token": torch.ones(1, 1, 192)}, "is a distilled DeiT"),
    "NaFlex": (lambda held: held | {"patch_embed.proj.weight": torch.ones(192, 768)}, "is a NaFlex model"),
    "another width": (lambda held: held | {"patch_embed.proj.weight": torch.ones(96, 3, 8, 8)}, "(96, 3, 8, 8)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_network_is_refused_by_name(other, tmp_path, cache):
    change, says = OTHERS[other]
    save_file(change(random_tensors(DEIT)), path := tmp_path / "a.safetensors")
    assert says in refusal(DEIT, path) and says in mistake(teachers, path)[1]


def test_a_bias_that_is_not_zero_is_never_dropped(tmp_path, short):
    """DINOv3 has no bias on q, k and v. Its files may hold a zero one, or one with a mask that hides the bias on k."""
    for name in "dinov3_s", "dinov3_splus":
        tensors, bias = random_tensors(name), torch.zeros(3 * 384)
        for number in range(2):
            tensors[f"blocks.{number}.attn.qkv.bias"] = bias.clone()
        save_file(tensors, path := tmp_path / "a.safetensors")
        load_teacher(name, str(path))
        bias[384:768] = 1.0
        tensors["blocks.1.attn.qkv.bias"] = bias
        save_file(tensors, path)
        assert "left over: blocks.1.attn.qkv.bias; " in refusal(name, path)
        save_file(tensors | {"blocks.1.attn.qkv.bias_mask": (bias == 0).float()}, path)
        load_teacher(name, str(path))
        bias[0] = 1e-6
        save_file(tensors | {"blocks.1.attn.qkv.bias_mask": torch.ones_like(bias)}, path)
        assert "left over: blocks.1.attn.qkv.bias; " in refusal(name, path)
        del tensors["blocks.1.attn.qkv.bias"]
        for value in 0.0, 1e-6:  # timm's files keep the biases of q and v like this.
            save_file(tensors | {"blocks.1.attn.v_bias": torch.full((384,), value)}, path)
            if value:
                assert "left over: blocks.1.attn.v_bias; " in refusal(name, path)
            else:
                load_teacher(name, str(path))
    tensors = random_tensors("deit_s")  # A mask means nothing to another model.
    save_file(tensors | {"blocks.1.attn.qkv.bias_mask": torch.rand(3 * 384)}, path)
    assert "left over: blocks.1.attn.qkv.bias_mask; " in refusal("deit_s", path)


TWINS = {  # Each adds a name that the teacher lacks or drops. It may point to another network.
    "a Perception Encoder as CLIP": (
        "clip_b",
        {"attn_pool.kv.weight": torch.ones(3)},
        "left over: attn_pool.kv.weight",
    ),
    "a RoPE-ViT as DeiT III": ("deit3_s", {"rope.freqs": torch.ones(2, 3)}, "left over: rope.freqs"),
    "rotary constants without rotary positions": (
        "deit_s",
        {"rope.freqs_cos": torch.ones(3)},
        "left over: rope.freqs_cos",
    ),
    "other rotary periods": ("dinov3_s", {"rope_embed.periods": torch.ones(16)}, "rotary positions have other periods"),
    "no rotary periods": ("dinov3_s", {"rope_embed.periods": torch.tensor(3.0)}, None),
}


@pytest.mark.parametrize("case", TWINS)
def test_a_name_that_points_to_another_network_is_not_dropped(case, tmp_path, short):
    name, more, says = TWINS[case]
    save_file(random_tensors(name) | more, path := tmp_path / "a.safetensors")
    if says:
        assert says in refusal(name, path)
    else:
        load_teacher(name, str(path))


def test_the_outer_one_of_two_models_is_taken_and_an_average_is_preferred_to_what_it_averages(tmp_path, cache, capsys):
    inner, outer = random_tensors(DEIT), {key: value + 1 for key, value in random_tensors(DEIT).items()}
    for held in (
        {"model": under("decoder.", inner) | outer},
        {"exp_avg": inner, "net": outer},
        {"model": inner, "ema": outer},
        {"state_dict": inner, "ema_state_dict": outer},
    ):
        torch.save(held, path := tmp_path / "a.pth")
        assert same(load_teacher(DEIT, str(path)).state_dict(), outer)
        assert "holds several models: " in capsys.readouterr().err
    torch.save(under("auxiliary.", inner) | outer, path)  # Nothing says that the model does not need it.
    assert "left over: auxiliary.cls_token" in refusal(DEIT, path) and capsys.readouterr().err
    stem = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1)}
    torch.save(stem, path)
    assert "looks like no teacher here" in refusal(DEIT, path) and capsys.readouterr().err == ""


def test_an_index_is_followed_in_the_folder_of_its_link_and_must_be_right(tmp_path, cache, monkeypatch):
    tensors = random_tensors(DEIT)
    (blobs := tmp_path / "blobs").mkdir()
    save_file(tensors, blobs / "0")
    places = dict.fromkeys(tensors, "model-1.safetensors")
    (blobs / "1").write_text(json.dumps({"weight_map": places}))
    (blobs / "2").write_text(" " + json.dumps({"weight_map": places | {"blocks.9.x": "model-1.safetensors"}}))
    for number, name in enumerate(["model-1.safetensors", "model.safetensors.index.json", "more.index.json"]):
        (tmp_path / name).symlink_to(blobs / str(number))  # The hub's client makes such links.
    index = tmp_path / "model.safetensors.index.json"
    settings = train.complete(train.Settings(DEIT, mode="transfer", weights=str(index), data="matching", img_size=32))
    assert same(load_teacher(DEIT, settings.weights).state_dict(), tensors)
    assert "names blocks.9.x, which is not in model-1.safetensors" in refusal(DEIT, tmp_path / "more.index.json")


STRANGE = {
    "quantised": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "without values": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
    "with a scale elsewhere": lambda value: value.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_are_not_plain_numbers_are_refused_by_name(kind, tmp_path, cache):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Quantised tensors will leave torch.
        torch.save(random_tensors(DEIT) | {NORM: STRANGE[kind](torch.ones(192))}, path := tmp_path / "a.pth")
        assert "holds norm.weight, which is compressed or empty" in refusal(DEIT, path)


def test_the_script_says_what_a_file_is(tmp_path, short):
    tensors = under("vit.", random_tensors("dino_s")) | {
        "classifier.weight": torch.ones(3),
        "vit.head.bias": torch.ones(3),
    }
    save_file(tensors, path := tmp_path / "a.safetensors")
    assert call(teachers, path).splitlines() == [
        f"{path}: it has the layout of timm or of the authors and fits deit_s, augreg_s, dino_s, ibot_s, msn_s",
        "not used: classifier.weight, vit.head.bias",
        f"to use it: python train.py --teacher deit_s --weights {path}",
    ]
    save_file(of_dinov3(random_tensors("dinov3_s")), other := tmp_path / "b.safetensors")
    line = call(teachers, other).splitlines()[1]
    assert line == "not used: blocks.0.attn.qkv.bias, blocks.0.attn.qkv.bias_mask, blocks.1.attn.qkv.bias and 3 more"
    save_file(random_tensors("clip_b"), other)
    assert call(teachers, other).splitlines()[1] == "not used: nothing"
    del tensors["vit.norm.weight"], tensors["vit.blocks.0.attn.proj.bias"]
    save_file(tensors | {"vit.extra": torch.ones(3)}, path)
    out, err = mistake(teachers, path)
    assert out == "" and err == (
        f"error: {path} fits no teacher: as deit_s, missing: blocks.0.attn.proj.bias and 1 more; left over: "
        "extra; it has the "
        "layout of timm or of the authors and looks like deit_s, augreg_s, dino_s, ibot_s, msn_s\n"
    )
    assert "nowhere.pth does not exist" in mistake(teachers, tmp_path / "nowhere.pth")[1]


def test_each_layout_is_called_by_its_name(tmp_path, short):
    for layout, key in zip(("timm", "OpenCLIP", "transformers", "BEiT-3"), KERNELS):
        save_file({f"some.where.{key}": torch.ones(384, 3, 16, 16)}, path := tmp_path / "a.safetensors")
        line = refusal("deit_s", path)
        assert re.search(rf"it has .*{layout}.* and looks like", line) and "missing: cls_token" in line


KERNELS = (
    "patch_embed.proj.weight",
    "conv1.weight",
    "embeddings.patch_embeddings.projection.weight",
    "vision_embed.proj.weight",
)


# ---- teachers.py: downloading ----------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """A host on the loopback that answers every request in the same way and keeps the requests."""

    def __init__(self, body=b"", status=200, headers=(), length=None, pause=0):
        self.pause = pause  # in seconds, before each answer
        self.answer, self.requests = (body, status, headers, len(body) if length is None else length), []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body, status, headers, length = self.server.answer
        self.server.requests.append(self.path)
        time.sleep(self.server.pause)
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **dict(headers)}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Starts hosts, which stop after the test."""
    started = []

    def start(*arguments, **options) -> Server:
        started.append(Server(*arguments, **options))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def download_from(server_or_url, monkeypatch, name: str) -> None:
    """Makes a host the source of a teacher."""
    url = getattr(server_or_url, "url", server_or_url)
    if TEACHERS[name].url.startswith("https://huggingface.co"):
        monkeypatch.setenv("HF_ENDPOINT", url + "/")
    else:
        monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], url=f"{url}/authors.pth"))


def test_a_file_is_downloaded_once_and_kept_as_it_is(serve, monkeypatch, cache):
    server = serve(body := save(tensors := random_tensors(DEIT)))
    download_from(server, monkeypatch, DEIT)
    assert all(same(load_teacher(DEIT).state_dict(), tensors) for _ in range(2))
    assert server.requests == ["/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors"]
    assert [path.name for path in cache.iterdir()] == ["deit_ti.safetensors"]
    assert cache_path(DEIT).read_bytes() == body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status, serve, monkeypatch, cache):
    cdn = serve(save(tensors := random_tensors(DEIT)))
    download_from(serve(status=status, headers={"Location": f"{cdn.url}/blob"}), monkeypatch, DEIT)
    assert same(load_teacher(DEIT).state_dict(), tensors) and cdn.requests == ["/blob"]


def test_clip_is_downloaded_from_the_mirror_too(serve, monkeypatch, cache):
    theirs = {key: value.half().float() for key, value in random_tensors("clip_b32").items()}
    server = serve(save({key: value.contiguous() for key, value in openclip(theirs).items()}))
    download_from(server, monkeypatch, "clip_b32")
    assert same(load_teacher("clip_b32").state_dict(), theirs)
    assert server.requests[0] == "/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors"


@pytest.mark.parametrize("name", ["mocov3_s", "ibot_s", "msn_s", "beitv2_b"])
def test_the_authors_pickle_is_converted_once_and_loads_as_the_same_teacher(name, serve, monkeypatch, cache):
    server = serve(serialised(held := published(name)))
    download_from(server, monkeypatch, name)
    first, second = load_teacher(name), load_teacher(name)
    assert len(server.requests) == 1 and [path.name for path in cache.iterdir()] == [f"{name}.safetensors"]
    assert same(load_file(cache_path(name)), dict(first.state_dict()))  # It holds what is needed, in our names.
    family = TEACHERS[name].family
    for model in first, second:
        theirs = held[CONTAINER[family]]
        assert same(model.state_dict(), {key: theirs[PREFIX.get(family, "") + key] for key in first.state_dict()})


def test_the_authors_pickle_put_into_the_cache_by_hand_is_read(cache):
    cache.mkdir(parents=True)
    cache_path("msn_s").write_bytes(serialised(held := published("msn_s")))
    assert torch.equal(load_teacher("msn_s").norm.weight, held["target_encoder"]["module.norm.weight"])


def free_port() -> int:
    """Returns a port of the loopback on which nothing listens."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


BODY = save({"norm.weight": torch.ones(100_000)})
OTHER = save({"patch_embed.proj.weight": torch.ones(8, 3, 4, 4)})
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Length": ""}
TROUBLE = {  # Each has the answer of a host and what the error line says.
    "cut short": (dict(body=BODY[:200_000], length=len(BODY)), "is truncated or is not a weights file"),
    "cut short in chunks": (dict(body=b"10\r\nabc", headers=CHUNKED), "IncompleteRead"),
    "cut short, length unknown": (dict(body=BODY[:-9], headers={"Content-Length": ""}), "is truncated or is not"),
    "empty": (dict(body=b""), "is truncated or is not a weights file"),
    "a page instead": (dict(body=b"<!doctype html><p>Log in to the network"), "is truncated or is not a weights file"),
    "another teacher": (dict(body=OTHER), "does not hold the weights of"),
    "no teacher": (dict(body=BODY), "has none of the known layouts"),
    "not there": (dict(status=404), "cannot download"),
    "behind a licence": (dict(status=401), "download it by hand"),
    "forbidden": (dict(status=403), "download it by hand"),
    "server error": (dict(status=500), "cannot download"),
    "redirects in a circle": (dict(status=302, headers={"Location": "/"}), "cannot download"),
    "strange length": (dict(body=BODY, headers={"Content-Length": "many"}), "cannot download"),
    "no network": (None, "Connection refused"),
}
OF_THE_AUTHORS = [(trouble, "ibot_s") for trouble in ("cut short", "a page instead", "no network")]


@pytest.mark.parametrize("trouble, name", [*((trouble, DEIT) for trouble in TROUBLE), *OF_THE_AUTHORS])
def test_a_failed_download_leaves_nothing_and_names_the_ways_out_in_one_line_and_the_next_succeeds(
    trouble, name, serve, monkeypatch, cache
):
    options, complaint = TROUBLE[trouble]
    download_from(serve(**options) if options else f"http://127.0.0.1:{free_port()}", monkeypatch, name)
    line = refused(load_teacher, name)
    small = f"{TEACHERS[name].family}_nano, which has the same components"
    for part in complaint, weights.address(TEACHERS[name].url), str(cache_path(name)), "--weights PATH", small:
        assert part in line
    assert list(cache.iterdir()) == []
    download_from(serve(save(tensors := random_tensors(name))), monkeypatch, name)
    assert same(load_teacher(name).state_dict(), tensors)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
def test_what_the_hubs_own_client_has_downloaded_is_used(variable, tmp_path, monkeypatch, cache, serve):
    server = serve(status=500)
    download_from(server, monkeypatch, DEIT)
    hub = tmp_path / {"HF_HOME": "hub", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(tmp_path))
    snapshots = hub / "models--timm--deit_tiny_patch16_224.fb_in1k/snapshots"
    for number, revision in enumerate(["new", "old"]):
        (snapshots / revision).mkdir(parents=True)
        save_file(
            random_tensors(DEIT) | {"norm.bias": torch.full((192,), 1.0 * number)},
            path := snapshots / revision / "model.safetensors",
        )
        os.utime(path, (0, 1000 - number))
    assert load_teacher(DEIT).norm.bias.sum() == 0 and server.requests == [] and not cache.exists()
    assert call(teachers, DEIT) == f"{DEIT}: complete, in {snapshots / 'new/model.safetensors'}\n"
    cache.mkdir(parents=True)  # The cache of this project comes first.
    save_file(random_tensors(DEIT) | {"norm.bias": torch.full((192,), 5.0)}, cache_path(DEIT))
    assert load_teacher(DEIT).norm.bias[0] == 5


@pytest.mark.parametrize("value", ["1", "True", "0"])
def test_nothing_is_asked_of_the_hub_if_the_user_is_offline(value, monkeypatch, cache, serve):
    server = serve(save(random_tensors(DEIT)))
    download_from(server, monkeypatch, DEIT)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    if value == "0":
        load_teacher(DEIT)
        assert len(server.requests) == 1
    else:
        line = refused(load_teacher, DEIT)
        assert line.startswith(f"HF_HUB_OFFLINE forbids downloading {server.url}") and "--weights PATH" in line
        assert server.requests == [] and list(cache.iterdir()) == []


@pytest.mark.parametrize("endpoint", ["", "no-address", "http:"])
def test_a_strange_hf_endpoint_gives_no_traceback(endpoint, monkeypatch, cache):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    if endpoint:
        assert f"cannot download {endpoint}" in refused(load_teacher, DEIT)
    else:
        assert weights.address(TEACHERS[DEIT].url) == TEACHERS[DEIT].url


@pytest.mark.parametrize("name", [DEIT, "deit_nano"])
def test_an_unwritable_cache_is_reported_in_one_line_before_the_work(name, tmp_path, serve, monkeypatch, cache):
    server = serve(save({}))
    download_from(server, monkeypatch, DEIT)
    monkeypatch.setattr(teachers, "matching", lambda *arguments, **options: pytest.fail("pretrains"))
    (tmp_path / "torch").write_text("a file in the place of the folder")
    line = refused(load_teacher, name)
    assert re.search("cannot write .*TORCH_HOME", line) and str(cache_path(name)) in line and server.requests == []


# ---- teachers.py: the table, and what loading costs ------------------------------------------------------------------


def test_the_table_lists_every_teacher(monkeypatch):
    monkeypatch.setattr(teachers, "cache_path", lambda name: Path(__file__ if name == DEIT else "nowhere"))
    rows = cells_of(call(teachers))
    assert [row[0] for row in rows[2:]] == list(TEACHERS)
    assert [row[0] for row in rows if "yes" in row] == [DEIT]
    [row] = [row for row in rows if row[0] == "dino_s"]
    assert row[1:] == ["DINO", "21.7M", "14 x 14 + 1", "works", "Apache-2.0", "-", "-"]


COST = """
import time, torch, teachers
from pathlib import Path
def peak():  # of this process alone, in bytes; getrusage would count what its parent held
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before, start = peak(), time.perf_counter()
model = teachers.load_teacher("dino_s")
seconds = time.perf_counter() - start
total = sum(parameter.sum() for parameter in model.parameters())  # so that every page has been read
print(seconds, peak() - before, float(total))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures memory as Linux states it")
def test_a_cached_vit_s_loads_within_a_second_and_in_less_than_two_and_a_half_times_its_size(cache):
    cache.mkdir(parents=True)
    save_file(tensors := random_tensors("dino_s"), cache_path("dino_s"))
    seconds, memory, total = map(float, python("-c", COST, check=True).stdout.split())
    assert total == pytest.approx(float(sum(value.sum() for value in tensors.values())), rel=1e-4)
    assert seconds < 1 and 0.9 < memory / sum(4 * value.numel() for value in tensors.values()) < 2.5


# ---- eval.py ---------------------------------------------------------------------------------------------------------

WORDNET = [f"n0{1440764 + number}" for number in range(8)]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Provides runs of untrained teachers on eight small class folders, in data/ and runs/. No test may write there."""
    root = tmp_path_factory.mktemp("trained")
    for part in "train", "val":
        noise_folders(root / "data" / "imagenet" / part, WORDNET, seed=len(part))
    quick = "--weights random --epochs 2 --workers 0 --device cpu --data imagenet".split()
    for words in (
        "deit_nano --mode baseline transfer --method copy distill --ema 0.5",
        "dinov2_reg_nano --mode transfer --student standard native",
        "siglip_nano --mode transfer",
    ):
        call(train, "--teacher", *words.split(), *quick, "--data-root", root / "data", "--out", root / "runs")
    return root


def run(trained, name):
    """Returns the folder of the run whose name has these words, e.g. "deit_nano copy"."""
    teacher, *words = name.split()
    teacher += "" if "baseline" in words else "(random)"
    return trained / "runs" / "-".join([teacher, "imagenet", *words, "seed0"])


def copy_of(trained, tmp_path, name):
    return shutil.copytree(run(trained, name), tmp_path / "copy")


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


@pytest.mark.parametrize("name", ["deit_nano baseline", "deit_nano copy", "deit_nano distill"])
def test_a_run_is_evaluated_to_the_result_that_training_wrote(trained, name):
    folder = run(trained, name)
    result = read_json(folder, "result.json")
    for words, prefix in ([], ""), (["--ema"], "ema_"):
        line = call(evaluation, "accuracy", folder, *words).splitlines()[1]
        assert figures(line) == [round(result[prefix + top], 2) for top in ("top1", "top5")] and " 16 " in line


def test_a_row_says_if_the_student_has_learnt_from_what_it_is_scored_on(nano, monkeypatch):
    noise_folders("photos", each=30)
    call(train, *"--mode baseline --data photos --epochs 1 --workers 0 --out runs".split())
    folder = run_of("baseline", data="photos").absolute()
    held_out = read_json(folder, "result.json")["n"]

    def row(*words) -> str:
        return call(evaluation, "accuracy", folder, *words).splitlines()[1]

    # In the run's own image folder, only held-out images are scored, whatever the path and the current folder.
    for name in "photos", "photos/", "./photos", Path("photos").absolute():
        assert f" {held_out} " in row("--data", name) and "training" not in row("--data", name)
    monkeypatch.chdir("/")
    assert f" {held_out} " in row()
    os.chdir(folder.parents[1])
    # Another folder may hold the same images, or other images with the same names.
    shutil.copytree("photos", "copied")
    assert " 60 " in row("--data", "copied") and f"({60 - held_out} of them are training images)" in row(
        "--data", "copied"
    )
    noise_folders("others", each=30, seed=1)
    assert " 60 " in row("--data", "others") and "training" not in row("--data", "others")
    # When images are added, the images that the student learnt from stay training images.
    for number in range(20):
        shutil.copy("others/a/0.png", f"photos/a/more{number}.png")
    assert "of them are training images" not in row() and "the run's images have changed since" in row()
    Path("photos").rename("elsewhere")
    assert "there is no folder" in refused(row)
    assert "the training images are gone, and some may be among these" in row("--data", "elsewhere")


def test_a_row_says_if_a_folder_holds_the_files_of_the_named_set_that_the_student_learnt_from(nano, monkeypatch):
    parted = {"train": noise_folders(Path("data/food-101/images"), each=6), "test": noise_folders(Path("held"), each=2)}

    def food(root, split, **options):
        paths = sorted(parted[split].rglob("*.png"))
        labels = ["ab".index(path.parent.name) for path in paths]
        files = [
            Path(root, "food-101/images", *path.parts[-2:]) if split == "train" else path.absolute() for path in paths
        ]
        return argparse.Namespace(classes=["a", "b"], _labels=labels, _image_files=files)

    monkeypatch.setattr("torchvision.datasets.Food101", food)
    call(train, *"--mode baseline --data food101 --epochs 1 --workers 0".split())
    folder = run_of("baseline", data="food101")
    own, images, others = (
        call(evaluation, "accuracy", folder, *words).splitlines()[1]
        for words in ([], ["--data", "data/food-101/images"], ["--data", "held"])
    )
    assert " 4 " in own and "training" not in own + others and "(12 of them are training images)" in images


def test_evaluation_uses_the_runs_precision_unless_another_is_given(nano, monkeypatch):
    asked, precision = [], train.mixed_precision
    monkeypatch.setattr(evaluation, "mixed_precision", lambda amp, device: asked.append(amp) or precision(amp, device))
    call(train, *TRANSFER, *QUICK, "--amp", "bf16")
    folder = run_of("distill")
    top1, _ = (figures(call(evaluation, "accuracy", folder, *words))[0] for words in ([], ["--amp", "off"]))
    assert asked == ["bf16", "off"] and top1 == round(read_json(folder, "result.json")["top1"], 2)


def test_maps_are_computed_in_the_runs_precision(trained, monkeypatch):
    folder = run(trained, "deit_nano distill")
    settings, student = runs.read_settings(folder, train.Settings), evaluation.load_student(folder)
    teacher, found = train.build_teacher(settings), {}
    for amp in "off", "bf16":
        found[amp] = evaluation.both_maps(replace(settings, amp=amp), student, teacher, pictures())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        routings = [transfer.in_float32(routing) for routing in student.route(pictures(), 4)]
    for full, rough, truth in zip(found["off"][1], found["bf16"][1], map(attention_map, routings)):
        assert rough.dtype == torch.float32 and torch.allclose(rough.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(rough, truth, atol=1e-6) and not torch.allclose(rough, full, atol=1e-6)


def test_several_processes_that_evaluate_print_each_row_once(trained):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", HERE / "eval.py"]
    folder = run(trained, "deit_nano distill")
    done = python(*launcher, "accuracy", folder, "--device", "cpu")
    assert done.returncode == 0 and done.stdout.count(folder.name) == 1, done.stderr
    assert figures(done.stdout.splitlines()[1])[0] == round(read_json(folder, "result.json")["top1"], 2)


def test_a_reader_that_closes_the_pipe_gets_no_traceback():
    words = [sys.executable, str(HERE / "teachers.py")]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (64, 64), (31, 32)])
def test_images_of_another_size_than_the_models_are_refused(size):
    model = vit("deit_nano")  # It takes 32 x 32 pixels, as many as 64 x 16.
    for action in model, model.attention_maps, model.forward_features:
        assert re.search(
            f"{size[0]} x {size[1]} pixels, but the model needs 32", refused(action, torch.zeros(1, 3, *size))
        )


def test_float32_products_have_full_precision_even_where_autocast_leaves_the_loss_in_float32():
    for amp, device in ("off", "cuda"), ("bf16", "cuda"), ("auto", "cpu"):
        torch.set_float32_matmul_precision("high")
        train.mixed_precision(amp, torch.device(device))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)


def test_a_copy_student_is_not_evaluated_with_another_teacher(nano):
    call(train, *COPY, *QUICK)
    save_file(vit("deit_nano", 2, "teacher").state_dict(), "other.safetensors")
    words = [evaluation, "accuracy", run_of("copy")]
    assert "trained with other weights of deit_nano" in refused(call, *words, "--weights", "other.safetensors")
    call(*words)


def test_one_student_at_a_time_is_in_memory(trained, monkeypatch):
    alive, opened = weakref.WeakSet(), []

    def load_student(folder, ema, real=evaluation.load_student):
        opened.append(len(alive))
        alive.add(student := real(folder, ema))
        return student

    monkeypatch.setattr(evaluation, "load_student", load_student)
    call(evaluation, "accuracy", run(trained, "deit_nano copy"), run(trained, "deit_nano distill"))
    assert opened == [0, 0]


def test_a_long_validation_shows_its_progress(monkeypatch, capsys):
    class Slow(torch.nn.Module):
        def forward(self, images):
            time.sleep(0.4)
            return images.flatten(1)[:, :2], images.new_zeros(())

    train.evaluate(Slow(), data.Loader([(torch.ones(3, 2, 2), 0)] * 6, 0, CPU), 1, Processes("cpu"))
    assert "validation" in capsys.readouterr().err


def test_ema_loads_the_moving_average(trained):
    folder = run(trained, "deit_nano distill")
    plain, average = evaluation.load_student(folder), evaluation.load_student(folder, ema=True)
    assert not plain.head.weight.equal(average.head.weight)
    assert average.head.weight.equal(load_file(folder / "student_ema.safetensors")["head.weight"])


@pytest.mark.parametrize(
    "name, place, classes, folders",
    [
        ("imagenet_a", "imagenet-a", [6, 1, 4], None),
        ("imagenet_r", "imagenet-r", [2, 3], None),
        ("imagenet_sketch", "sketch", range(8), None),
        ("imagenet_v2", "imagenetv2-matched-frequency-format-val", range(8), list("01234567")),
    ],
)
def test_a_student_chooses_only_among_the_classes_of_a_shifted_set(trained, tmp_path, name, place, classes, folders):
    folders = folders or [WORDNET[number] for number in classes]
    noise_folders(tmp_path / place, folders, each=3, seed=5)
    folder = run(trained, "deit_nano distill")
    line = call(evaluation, "accuracy", folder, "--data", name, "--data-root", tmp_path).splitlines()[1]
    # This is done again by hand: PIL, the teacher's normalisation, the student, and a maximum over the set's classes.
    student, right, view = evaluation.load_student(folder), [], data.plain_view("imagenet", 32)
    for number, class_folder in zip(classes, folders):
        for file in (tmp_path / place / class_folder).iterdir():
            image = data.to_floats(view(data.read_image(file)), teachers.HALF)
            scores = student(image[None])[0].detach()
            right.append(number == max(classes, key=lambda other: scores[other].item()))
    assert figures(line)[0] == pytest.approx(100 * sum(right) / len(right), abs=0.01)
    assert f" {len(right)} " in line and (f"({len(classes)}/8)" in line) == (len(classes) < 8)


def test_the_folders_of_imagenet_v2_are_read_as_numbers_and_not_sorted_by_name(tmp_path):
    noise_folders(tmp_path / evaluation.FOLDERS["imagenet_v2"], map(str, range(11)), each=1)
    settings = train.Settings(data_root=str(tmp_path), data="imagenet", img_size=32)
    known = [f"n{number:08d}" for number in range(12)]
    dataset, classes = evaluation.evaluation_set(settings, known, "imagenet_v2")
    folders = [Path(path).parent.name for path, _ in dataset.split.source]
    assert [str(classes[label]) for _, label in dataset] == folders and len(folders) == 11


@pytest.mark.parametrize("pool", ["token", "avg"])
@torch.inference_mode()
def test_a_standard_student_opens_strictly_in_timm_with_the_same_logits(trained, tmp_path, pool):
    folder = copy_of(trained, tmp_path, "deit_nano distill")
    config = runs.read_config(folder)
    config["student"]["pool"] = pool
    ours = scramble(ViT(evaluation.ViTConfig(**config["student"])))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(ours.state_dict(), folder / "student.safetensors")
    theirs, images = timm_nano(global_pool=pool), torch.randn(3, 3, 32, 32)
    theirs.load_state_dict(student_of(folder), strict=True)
    torch.testing.assert_close(evaluation.load_student(folder)(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_a_native_student_opens_with_its_components(trained):
    student = evaluation.load_student(run(trained, "dinov2_reg_nano distill native"))
    assert student.config.registers == 4 and student.config.layerscale and not student.training
    assert student(torch.zeros(1, 3, 32, 32)).shape == (1, 8)


# ---- eval.py: the table ----------------------------------------------------------------------------------------------


def write_run(folder, top1, base, made_of=None, **settings):
    """Writes the two small files of a finished run, which is like `base` but for `made_of` and the settings given."""
    folder.mkdir(parents=True)
    config = runs.read_config(base)
    config["settings"] |= settings
    described = train.describe(train.Settings(**config["settings"]))
    config |= described | {"made_of": config["made_of"] | described["made_of"] | (made_of or {})}
    runs.write_json(folder / "config.json", config)
    runs.write_json(folder / "result.json", {"top1": top1})
    (folder / "student.safetensors").touch()


@pytest.fixture
def results(trained, tmp_path):
    """Writes two seeds of a baseline, and the runs that are compared with it."""
    base, transfer = run(trained, "deit_nano baseline"), run(trained, "deit_nano distill")
    for seed, (plain, distill, native) in enumerate([(50.0, 53.0, 49.0), (52.0, 57.0, 50.5)]):
        write_run(tmp_path / "runs" / f"b{seed}", plain, base, seed=seed)
        write_run(tmp_path / "runs" / f"d{seed}", distill, transfer, seed=seed, weights=None)
        write_run(tmp_path / "runs" / f"n{seed}", native, transfer, seed=seed, weights=None, student="native")
    write_run(tmp_path / "runs" / "r", 40.0, transfer, seed=0)
    write_run(tmp_path / "runs" / "x", 51.0, transfer, seed=1, weights=None, loss="js")
    return tmp_path / "runs"


def test_the_table_holds_gains_over_the_baseline_of_the_same_seed(results, tmp_path):
    header, _, *rows = cells_of(call(evaluation, "table", results))
    shown = {row[1]: dict(zip(header, row)) for row in rows}
    assert shown["deit_nano"] == {
        "family": "DeiT",
        "teacher": "deit_nano",
        "baseline": "51.0 ± 1.4",
        "distill": "+4.0 ± 1.4",
        "native distill": "**-1.2 ± 0.4**",
        "distill loss=js": "**-1.0**",
    }
    untrained = shown["deit_nano (random)"]
    assert untrained["distill"] == "**-10.0**" and untrained["baseline"] == "51.0 ± 1.4"


def test_the_csv_has_a_line_for_each_run_with_what_the_runs_differ_in(results, tmp_path):
    call(evaluation, "table", results, "--csv", tmp_path / "t.csv")
    with open(tmp_path / "t.csv") as file:
        lines = list(csv.DictReader(file))
    always = {"teacher", "mode", "method", "student", "seed", "top1", "commit"}
    assert len(lines) == 8 and set(lines[0]) == always | {"weights", "loss"}
    found = {
        (line["mode"], line["student"], line["loss"], line["weights"], line["seed"]): line["top1"] for line in lines
    }
    assert found["baseline", "standard", "cross_entropy", "", "1"] == "52.0"
    assert found["transfer", "native", "cross_entropy", "", "0"] == "49.0"
    assert found["transfer", "standard", "js", "", "1"] == "51.0"
    assert found["transfer", "standard", "cross_entropy", "random", "0"] == "40.0"
    assert {line["commit"] for line in lines} == {runs.code_commit() or ""}


def test_a_run_without_a_baseline_of_its_seed_is_reported_with_its_accuracy(results):
    write_run(results / "alone", 61.5, results / "d0", seed=7)
    out = call(evaluation, "table", results)
    assert "distill, seed 7: top-1 61.5, but there is no baseline of that seed" in out and "+4.0 ± 1.4" in out


def test_a_baseline_has_no_row_of_its_own_beside_a_teacher_with_another_title(trained, tmp_path):
    base, transfer = run(trained, "deit_nano baseline"), run(trained, "deit_nano distill")
    write_run(tmp_path / "runs" / "b", 50.0, base)
    assert [row[1] for row in cells_of(call(evaluation, "table", tmp_path / "runs"))[2:]] == ["deit_nano"]
    write_run(tmp_path / "runs" / "own", 60.0, transfer, weights="file.pth")
    [row] = cells_of(call(evaluation, "table", tmp_path / "runs"))[2:]
    assert row == ["DeiT", "deit_nano (own file)", "50.0", "+10.0"]


def test_a_run_that_exists_twice_counts_once(results):
    write_run(results / "z", 99.0, results / "d0")
    out = call(evaluation, "table", results)
    assert f"{results / 'z'} has the settings of another run" in out and "+4.0 ± 1.4" in out


def test_families_come_in_the_order_of_the_registry(results):
    for name in "dinov2_nano", "deit_s", "mae_b", "deit_ti":
        write_run(results / name, 50.0, results / "b0", teacher=name, weights=None)
    rows = cells_of(call(evaluation, "table", results))[2:]
    expected = ["deit_ti", "deit_s", "deit_nano", "deit_nano (random)", "mae_b", "dinov2_nano"]
    assert [row[1] for row in rows] == expected


@pytest.mark.parametrize("setting, value", [("epochs", 99), ("data", "cifar10"), ("train_images", 9), ("img_size", 64)])
def test_runs_that_cannot_be_compared_have_a_table_each(results, setting, value):
    write_run(results / "other", 10.0, results / "d0", **{setting: value})
    out = call(evaluation, "table", results)
    titles = re.findall("^### (.*)", out, re.M)
    assert len(titles) == 2 and all(f"{setting} " in title for title in titles) and "-40.0" not in out


@pytest.mark.parametrize("what", ["train_set", "val_set", "precision"])
def test_runs_that_were_made_of_other_things_have_a_table_each(results, what):
    write_run(results / "other", 10.0, results / "d0", {what: "another"})
    out = call(evaluation, "table", results)
    titles = re.findall("^### (.*)", out, re.M)
    assert len(titles) == 2 and all(f"{what} " in title for title in titles) and "-40.0" not in out


def test_two_files_of_weights_are_two_teachers(results):
    for number, name in enumerate(["a.pth", "b.pth"]):
        files = dict(weights=name, made_of={"teacher_weights": f"print {name}"})
        write_run(results / name, 60.0 + number, results / "d0", **files)
    out = call(evaluation, "table", results / "..")
    rows = {row[1]: row for row in cells_of(out)}
    header, gains = rows["teacher"], ("+10.0", "+11.0")
    for name, gain in zip(["a.pth", "b.pth"], gains):
        assert rows[f"deit_nano (own file) (weights print {name})"][header.index("distill")] == gain
    assert "has the settings of another run" not in out
    assert len(rows) == len(cells_of(out)), "each teacher has one row"


# ---- eval.py: maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["deit_nano distill", "dinov2_reg_nano distill", "dinov2_reg_nano distill native", "siglip_nano distill"]
)
@torch.inference_mode()
def test_a_teachers_map_is_shown_for_the_students_tokens_only(trained, name):
    settings, student = (
        runs.read_settings(run(trained, name), train.Settings),
        evaluation.load_student(run(trained, name)),
    )
    teacher, images = train.build_teacher(settings), torch.randn(2, 3, 32, 32)
    theirs, ours = evaluation.both_maps(settings, student, teacher, images)
    kept = torch.arange(16 + teacher.config.prefix)
    if not student.config.registers:
        kept = kept[(kept < 1) | (kept > teacher.config.registers)]
    for block, whole in enumerate(teacher.attention_maps(images)):
        part = whole[..., kept[:, None], kept]
        torch.testing.assert_close(theirs[block], part / part.sum(-1, keepdim=True))
    for mine, expected in zip(ours, student.attention_maps(images), strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_maps_of_a_copy_run_are_the_teachers_only_where_it_copies(trained):
    folder = run(trained, "deit_nano copy")
    settings, student = runs.read_settings(folder, train.Settings), evaluation.load_student(folder)
    teacher, images = train.build_teacher(settings), torch.randn(2, 3, 32, 32)
    for blocks, same in (None, [True] * 4), ("1-2", [False, True, True, False]):
        theirs, ours = evaluation.both_maps(replace(settings, blocks=blocks), student, teacher, images)
        assert [torch.allclose(*pair) for pair in zip(theirs, ours)] == same


def test_agreement_prints_the_divergence_of_the_maps_by_block(trained):
    folder = run(trained, "deit_nano distill")
    shown = [float(row[1]) for row in cells_of(call(evaluation, "agreement", folder))[2:]]
    settings, student = runs.read_settings(folder, train.Settings), evaluation.load_student(folder)
    images = torch.stack([image for image, _ in train.build_data(settings).val])
    with torch.inference_mode():
        pairs = zip(train.build_teacher(settings).attention_maps(images), student.attention_maps(images), strict=True)
        expected = [transfer.kl(theirs, ours.log()).mean().item() for theirs, ours in pairs]
    assert shown == pytest.approx(expected, abs=6e-4) and max(shown) > 0.01


# ---- eval.py: pictures and speed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["maps", "deit_nano copy", "--figure", "FILE"],
        ["maps", "dinov2_reg_nano distill native", "--figure", "FILE", "--patch", "3,0"],
        ["maps", "siglip_nano distill", "--figure", "FILE", "--image", "IMAGE"],
        ["agreement", "deit_nano distill", "--figure", "FILE"],
        ["agreement", "deit_nano baseline", "--figure", "FILE"],
        ["curves", "deit_nano baseline", "deit_nano distill", "--figure", "FILE"],
        ["table", "RUNS", "--figure", "FILE"],
        ["table", "SIZES", "--figure", "FILE"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_picture_is_drawn(trained, tmp_path, words):
    image = trained / "data" / "imagenet" / "val" / WORDNET[0] / "0.png"
    for images in 100, 1000:
        for column in "baseline", "distill":
            place = tmp_path / "sizes" / f"{column}{images}"
            write_run(place, images / 20, run(trained, f"deit_nano {column}"), train_images=images)
    named = {"FILE": tmp_path / "new" / "picture.png", "IMAGE": image, "RUNS": trained / "runs"}
    named["SIZES"] = tmp_path / "sizes"
    call(evaluation, *(named.get(word) or (run(trained, word) if " " in word else word) for word in words))
    pixels = torch.tensor(list(data.read_image(named["FILE"]).convert("L").tobytes()))
    assert len(pixels) > 300_000 and (pixels < 128).float().mean() > 0.002, "more than an empty page"


def test_speed_compares_every_variant_with_the_baseline():
    printed = call(evaluation, *"speed deit_nano --batch-size 4 --device cpu".split())
    rows = {row[0]: row[1:] for row in cells_of(printed)[2:]}
    assert list(rows) == ["baseline", "copy", "distill, fused", "distill, plain"]
    assert rows["baseline"][1:] == ["1.00", "-"] and all(float(row[0]) > 0 for row in rows.values())


# ---- eval.py: what a user can get wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, expected",
    [
        (["accuracy", "NOWHERE"], "is not a run"),
        ([], "the following arguments are required: ACTION"),
        (["accuracy"], "the following arguments are required: RUN"),
        (["RUN", "--ema"], "invalid choice"),
        (["accuracy", "RUN", "--csv", "x.csv"], "unrecognized arguments: --csv x.csv"),
        (["table", "NOWHERE"], "no finished runs"),
        (["accuracy", "RUN", "--data", "imagenet_z"], "did you mean"),
        (["accuracy", "RUN", "--data", "imagenet_a", "--data-root", "NOWHERE"], "imagenet-a"),
        (["accuracy", "RUN", "--data", "matching"], "choose data with the same"),
        (["maps", "RUN", "--figure", "m.png", "--patch", "4,0"], "these go from 0,0 to 3,3"),
        (["maps", "RUN", "--figure", "m.png", "--patch", "x"], "is not the ROW,COLUMN"),
        (["maps", "RUN", "--figure", "m.png", "--image", "CONFIG"], "as an image"),
        (["maps", "RUN", "--figure", "m.what"], ".png, .svg or .pdf"),
        (["maps", "RUN", "--figure", "CONFIG/m.png"], "cannot write"),
        (["maps", "RUN"], "required: --figure"),
        (["view", "--out", "v.html"], "name a run, or a teacher"),
        (["view", "RUN", "--out", "v.html", "--image", "CONFIG"], "as an image"),
        (["view", "NOWHERE", "--out", "v.html"], "is not a run"),
        (["view", "RUN", "--out", "."], "is a folder"),
        (["view", "--teacher", "dinov2_s", "--out", "v.html"], "name one with --image"),
        (["view", "--teacher", "deit_nano", "--ema", "--out", "v.html"], "a teacher has none"),
        (["speed", "deit_nanu"], "deit_nano"),
        (["speed", "deit_nano", "--batch-size", "0"], "0 is not between 1"),
        (["accuracy", "RUN", "--batch-size", "0"], "0 is not between 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_in_one_line(trained, tmp_path, words, expected, monkeypatch):
    folder = run(trained, "deit_nano distill")
    config = folder / "config.json"
    named = {"RUN": folder, "NOWHERE": tmp_path / "nowhere", "CONFIG": config, "CONFIG/m.png": config / "m.png"}
    monkeypatch.chdir(tmp_path)
    line = refused(call, evaluation, *(named.get(word, word) for word in words))
    assert expected in line or expected.replace("RUN ", f"{shlex.quote(str(folder))} ") in line


# ---- eval.py: the page for the browser -------------------------------------------------------------------------------

STOPS = [[0, 0, 12], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]]  # Its colours run through these.
PROBE = """<script>
document.body.dataset.pixels = sides[0].heat.getContext("2d").getImageData(0, 0, grid, grid).data.join();
</script>"""  # It reads the heat of the teacher's patches.


def in_browser(page: Path, address: str, probe: str) -> str:
    """Opens a page at an address, with a probe (a script) at its end. Returns the document that they make."""
    browser = shutil.which("chromium")
    if browser is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs the browser chromium")
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text() + probe)
    calm = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync".split()
    profile = f"--user-data-dir={page.parent / 'browser'}"
    words = [browser, *calm, profile, "--disable-component-update", "--dump-dom", f"{probed.as_uri()}#{address}"]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def told_in(dom: str) -> tuple[dict[str, list[float]], list[list[int]]]:
    """Returns the numbers of a page by name, none in scientific notation, and the pixels that PROBE took."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', dom)
    numbers = {}
    for name, cells in rows:
        numbers[name] = [float(value) for value in re.findall(r"<td>([\d.]+) (?:%|nats)</td>", cells)]
    levels = list(map(int, re.search(r'data-pixels="([\d,]+)"', dom)[1].split(",")))
    return numbers, [levels[i : i + 4] for i in range(0, len(levels), 4)]


def heat_of(share: float) -> object:
    """Returns the pixel for a share, which is given relative to the largest share in the picture.

    The 8-bit codes hold the eighth root: half a step is 8 * 0.5 / 255 = 1.6 % of a share that is as large as the
    largest of its row, 1.9 % of a fifth of it, and 4 % of a thousandth. There are 4 steps from stop to stop, and in
    each a colour changes by at most 117 of 255. So 2 % are 9 of 255, and rounding adds one.
    """
    low = min(int(4 * share), 3)
    return pytest.approx([*(a + (b - a) * (4 * share - low) for a, b in zip(STOPS[low], STOPS[low + 1])), 180], abs=10)


STEPS = """<script>
const seen = [], press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
const step = (act) => { act(); seen.push(location.hash); };
for (const key of ["b", "B", "B", "h", "m", "d", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp", "c"])
  step(() => press(key));
const stage = document.querySelector(".stage"), box = stage.getBoundingClientRect();
const at = { clientX: box.left + 0.9 * box.width, clientY: box.top + 0.6 * box.height };
step(() => stage.dispatchEvent(new PointerEvent("pointerdown", at)));
step(() => sides[0].strip[2].button.click());
step(() => find("prefix").children[0].click());
step(() => { find("block").value = 1; find("block").dispatchEvent(new Event("input")); });
step(() => find("from").click());
document.body.dataset.seen = seen.join(" ");
</script>"""


def test_keys_pointer_buttons_and_sliders_of_a_page_change_its_address(tmp_path):
    call(evaluation, "view", "--teacher", "deit_nano", "--weights", "random", "--out", tmp_path / "v.html")
    found = re.search('data-seen="(.*?)"', in_browser(tmp_path / "v.html", "", STEPS))[1].replace("&amp;", "&").split()
    expected = []  # Each is block, head, token, direction. Of the 4 x 4 patches, the first is token 1.
    for words in (
        "1 0 0 from,0 0 0 from,3 0 0 from,3 1 0 from,3 mean 0 from,3 mean 0 to,3 mean 1 to,3 mean 2 to,3 mean 6 to,"
        "3 mean 2 to,3 mean 2 to,3 mean 0 to,3 mean 12 to,3 2 12 to,3 2 0 to,1 2 0 to,1 2 0 from"
    ).split(","):
        expected.append("#block={}&head={}&token={}&side={}".format(*words.split()))
    assert found == expected


def test_a_page_that_would_be_too_large_names_blocks_that_fit():
    a_block = 2 * 17 * 257 * (256 + 4 * 9)  # This is DINOv2-L at 224 px, for teacher and student.
    said = refused(evaluation.pictures.check_page_size, a_block, list(range(24)))
    blocks = choose_blocks(said.rpartition(" ")[2], 24)
    assert len(blocks) == 9 and blocks[0] == 0
    evaluation.pictures.check_page_size(a_block, blocks)


@pytest.mark.parametrize("name", ["deit_nano", "dinov2_reg_nano", "siglip_nano"])
def test_a_page_is_as_large_as_was_calculated_before_it_was_made(tmp_path, name, monkeypatch):
    counted = []
    monkeypatch.setattr(evaluation.pictures, "check_page_size", lambda *given: counted.extend(given))
    call(evaluation, "view", "--teacher", name, "--weights", "random", "--out", tmp_path / "v.html")
    content = json.loads(re.search('json" id="data">(.*?)</script>', (tmp_path / "v.html").read_text())[1])
    in_base64 = sum(len(side[key]) for side in content["sides"] for key in ("codes", "numbers"))
    # Each string has at most 2 bytes of padding.
    assert in_base64 == pytest.approx(counted[0] * len(counted[1]) * 4 / 3, abs=8)


def test_a_page_shows_patches_exactly_and_distinctly_whatever_share_a_sink_takes(tmp_path):
    config = student_config("dinov2_reg_nano", "native")
    first = config.prefix
    sinks = [(0, 0.999), (1, 1 - 1e-6), (0, 1.0)]  # Each block has a sink token, and the least that it takes.
    row, column = torch.arange(first + 16, dtype=torch.float64)[:, None], torch.arange(16)
    uneven = 0.9 ** ((row + column) % 16 + 16 * (row % 2))  # Patches differ in each row, and rows in their sums.
    maps = torch.zeros(3, first + 16, first + 16, dtype=torch.float64)
    for p, (sink, least) in zip(maps, sinks):
        p[:, first:] = (1 - least) * uneven / uneven.sum(-1).max()
        p[:, sink] = 1 - p.sum(-1)
    side = maps.float()[:, None].expand(-1, 2, -1, -1)  # The mean of one head is that head.
    numbers = evaluation.told_of(side, torch.tensor(math.nan), config)
    prefix = ["class token", *(f"register {i}" for i in range(config.registers))]
    page, image = tmp_path / "v.html", torch.zeros(3, 32, 32)
    evaluation.pictures.write_page(image, {"": (side, numbers)}, prefix, [0, 1, 2], evaluation.TOLD, page)
    for block, (p, (sink, least)) in enumerate(zip(maps, sinks)):
        for token, is_from in (first + 6, True), (first + 6, False), (sink, False):
            address = f"block={block}&head=mean&token={token}&side={'from' if is_from else 'to'}"
            numbers, pixels = told_in(in_browser(page, address, PROBE))
            looked_at = p[token, first:] if is_from else p[first:, token]
            largest = numbers["largest share that " + ("it gives to one patch" if is_from else "one patch gives to it")]
            # The page shows three digits.
            assert largest == [pytest.approx(100 * looked_at.max().item(), rel=0.0051)]
            assert numbers["share on itself"] == [pytest.approx(100 * p[token, token].item(), rel=0.0051)]
            shares = (looked_at / looked_at.max()).nan_to_num().tolist()  # A sink that takes all leaves 0 / 0.
            assert pixels == list(map(heat_of, shares))
            if token != sink:
                assert len(set(map(tuple, pixels))) == (16 if least < 1 else 1)


@pytest.mark.parametrize("name", ["a run", "dinov2_reg_nano", "siglip_nano"])
@torch.inference_mode()
def test_a_page_shows_the_numbers_of_torch_and_falls_back_from_a_malformed_address(trained, tmp_path, name):
    page, image = tmp_path / "view.html", data.matching_split(1, data.VAL_SEED, teachers.HALF).source[0][0][None]
    settings = train.Settings("deit_nano" if name == "a run" else name, weights="random", img_size=32)
    teacher = train.build_teacher(settings)
    config, words, sides = teacher.config, ["--teacher", name, "--weights", "random"], [teacher.attention_maps(image)]
    if name == "a run":
        folder = copy_of(trained, tmp_path / '<i>"a&"', "deit_nano distill")
        settings = runs.read_settings(folder, train.Settings)
        models = train.build_teacher(settings), evaluation.load_student(folder)
        image = train.build_data(settings).val[0][0][None]
        sides = [model.attention_maps(image) for model in models]
        words = [folder]
    call(evaluation, "view", *words, "--out", page)
    first = int(config.class_token)
    for address, block, head, token, is_from in (
        ("block=2&head=mean&token=7&side=from", 2, slice(None), 7, True),
        ("block=1&head=3&token=0&side=to", 1, slice(3, 4), 0, False),
        ("block=x&head=99&token=-1&side=", 0, slice(0, 1), 0, True),
    ):
        dom = in_browser(page, address, PROBE)
        numbers, pixels = told_in(dom)
        theirs, *ours = (side[block][0, head].mean(0) for side in sides)  # (N, N)
        for place, p in enumerate([theirs, *ours]):
            row, column = p[token], p[:, token]
            expected = {
                "share on the class token": 100 * row[0],
                "share on registers": 100 * row[first : config.prefix].sum(),
                "share on itself": 100 * row[token],
                "mean share that tokens give to it": 100 * column.mean(),
                "entropy of its row": -(row * row.log()).sum(),
            }
            for key in ["share on the class token"] * (1 - first) + ["share on registers"] * (not config.registers):
                assert key not in numbers and expected.pop(key) is not None
            for key, value in expected.items():
                assert numbers[key][place] == pytest.approx(value.item(), rel=0.0051)  # It shows three digits.
            looked_at = row[config.prefix :] if is_from else column[config.prefix :]
            largest = numbers["largest share that " + ("it gives to one patch" if is_from else "one patch gives to it")]
            assert largest[place] == pytest.approx(100 * looked_at.max().item(), rel=0.0051)
            if place == 0:
                assert pixels == list(map(heat_of, (looked_at / looked_at.max()).tolist()))
        if ours:
            kl = (theirs[token] * (theirs[token] / ours[0][token]).log()).sum().item()
            assert numbers["KL from the teacher's row"] == [pytest.approx(kl, rel=0.0051, abs=1e-6)]
    if name == "a run":
        assert "<i>" not in dom and folder.name in dom


@pytest.mark.parametrize(
    "name, text, words, expected",
    [
        ("student.safetensors", None, "accuracy", "is not finished; resume with: python train.py --teacher deit_nano"),
        ("student_ema.safetensors", None, "accuracy --ema", "kept no moving average"),
        ("student.safetensors", "{", "accuracy", "does not hold the student"),
        ("config.json", "{", "accuracy", "cannot be read"),
        ("config.json", "{}", "accuracy", "it comes from another version"),
        ("result.json", "{", "table", "no finished runs"),
        ("result.json", None, "table", "no finished runs"),
        ("log.jsonl", None, "curves --figure c.png", "missing"),
        ("log.jsonl", "{", "curves --figure c.png", "damaged"),
        ("log.jsonl", "5", "curves --figure c.png", "damaged"),
        ("log.jsonl", "", "curves --figure c.png", "an epoch"),
    ],
)
def test_a_damaged_or_unfinished_run_is_answered_in_one_line(trained, tmp_path, name, text, words, expected):
    folder = copy_of(trained, tmp_path, "deit_nano distill")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    assert expected in refused(call, evaluation, *words.split(), folder)


def test_a_copy_run_without_its_teachers_weights_names_the_file(trained):
    words = [evaluation, "accuracy", run(trained, "deit_nano copy"), "--weights"]
    call(*words, "random")
    assert "gone.safetensors does not exist" in refused(call, *words, "gone.safetensors")


def test_a_run_with_a_learners_function_in_it_is_refused_and_left_out_of_tables(trained, tmp_path):
    distilled = copy_of(trained, tmp_path / "distilled", "deit_nano distill")
    folder = copy_of(trained, tmp_path, "deit_nano copy")
    for place, number in (distilled, 2), (folder, 4):
        runs.write_json(place / "config.json", read_json(place, "config.json") | {"exercise": {"number": number}})
    assert "| kl " in call(evaluation, "agreement", distilled)
    assert "was trained with a learner's function" in refused(call, evaluation, "accuracy", distilled)
    for words in ["accuracy"], ["agreement"], ["view", "--out", "v.html"], ["maps", "--figure", "m.png"]:
        assert "was trained with a learner's function" in refused(call, evaluation, words[0], folder, *words[1:])
    shutil.copytree(run(trained, "deit_nano baseline"), tmp_path / "true")
    assert f"skipped: {folder} was trained with a learner's function" in call(evaluation, "table", tmp_path)


def test_a_set_of_other_classes_is_refused(trained, tmp_path):
    words = [evaluation, "accuracy", run(trained, "deit_nano distill"), "--data-root", tmp_path, "--data"]
    noise_folders(tmp_path / "imagenet-a", [*WORDNET[:2], "n09999999"])
    assert "1 of the 3 classes of imagenet_a, such as 'n09999999'" in refused(call, *words, "imagenet_a")
    noise_folders(tmp_path / evaluation.FOLDERS["imagenet_v2"], "08")
    assert "1 of the 2 classes of imagenet_v2, such as '8'" in refused(call, *words, "imagenet_v2")


def test_pictures_without_matplotlib_say_how_to_install_it(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["curves", run(trained, "deit_nano distill"), "--figure", "c.png"]
    assert "pip install matplotlib" in refused(call, evaluation, *words)


def test_a_run_of_an_earlier_version_is_refused_in_one_line_and_left_out_of_tables(trained, tmp_path, nano):
    folder = copy_of(trained, tmp_path, "deit_nano distill")
    config = runs.read_config(folder)
    config["settings"] |= {"heads": None, "temperature": 1.0}
    runs.write_json(folder / "config.json", config)
    assert re.search("another version of this project .*'heads'", refused(call, evaluation, "accuracy", folder))
    del config["table"]
    runs.write_json(folder / "config.json", config)
    for words in ["accuracy", folder], ["curves", folder, "--figure", "c.png"]:
        assert "has no table: it comes from another version" in refused(call, evaluation, *words)
    shutil.copytree(run(trained, "deit_nano baseline"), tmp_path / "true")
    assert re.search("skipped: .*another version", call(evaluation, "table", tmp_path))  # The others are shown.
    assert (folder / "student.safetensors").exists()
    begun(shutil.copytree(folder, run_of("baseline")))  # Training does not resume it either.
    assert "it comes from another version" in refused(call, train, *BASELINE, *QUICK)


@pytest.mark.parametrize("lost", ["precision", "threads", "processes", "train_set"])
def test_an_unfinished_run_that_does_not_say_what_it_was_made_of_is_refused_or_resumed(lost, nano):
    call(train, *BASELINE, *QUICK)
    folder = begun(run_of("baseline"))
    config = read_json(folder, "config.json")
    del config["made_of"][lost]
    runs.write_json(folder / "config.json", config)
    if lost in ("precision", "threads"):
        call(train, *BASELINE, *QUICK)
        assert read_json(folder, "config.json")["made_of"][lost].startswith("unknown, then ")
    else:
        assert f"{lost} None there and" in refused(call, train, *BASELINE, *QUICK)


def test_a_student_of_another_version_is_refused_in_one_line(trained, tmp_path):
    folder = copy_of(trained, tmp_path, "deit_nano distill")
    config = read_json(folder, "config.json")
    config["student"]["temperature"] = 1.0
    runs.write_json(folder / "config.json", config)
    assert "does not hold the student of its config.json" in refused(evaluation.load_student, folder)


@pytest.mark.parametrize("change", [{}, {"place": 3}, {"more": 1}], ids=str)
def test_a_run_whose_table_is_of_another_version_is_left_out_in_one_line(change, results):
    config = runs.read_config(results / "x")
    config["table"] = config["table"] | change if change else {}
    runs.write_json(results / "x" / "config.json", config)
    assert f"skipped: {results / 'x'} comes from another version" in call(evaluation, "table", results)


def test_tables_read_what_a_run_says_of_itself_and_not_the_registry(results, monkeypatch):
    before = call(evaluation, "table", results)
    monkeypatch.setattr(teachers, "TEACHERS", {})
    monkeypatch.setattr(teachers, "FAMILIES", {})
    assert call(evaluation, "table", results) == before and "| DeiT" in before


# ---- support/matching.py and support/data.py -------------------------------------------------------------------------

MEAN, STD = NORMALISATION = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
CPU = torch.device("cpu")


def write_images(folder, count, size=(40, 30), mode="RGB", suffix=".png"):
    """Writes `count` different images, each of one colour, into a class folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (8 * i, 255 - 8 * i, 100)).convert(mode).save(folder / f"{i:03}{suffix}")


def load(name, img_size=16, root="", **options):
    return data.load_data(str(name), str(root), img_size, NORMALISATION, **options)


def epoch_of(dataset, seed=0, epoch=0, workers=0):
    """Returns all images and labels of an epoch of training."""
    plan = data.plan_epoch(len(dataset), 8, seed, epoch)
    batches = list(data.Loader(dataset, workers, CPU).read(plan))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def labels_of(dataset):
    return [label for _, label in dataset.split.items]


def test_nothing_imports_torchvision_before_it_is_needed():
    assert python("-c", "import sys, train, eval; sys.exit('torchvision' in sys.modules)").returncode == 0


def test_matching_repeats_from_its_seed_and_fewer_images_are_the_first_of_more():
    images, labels = matching.matching(300, seed=5)
    assert images.shape == (300, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    for count in 300, 37:
        again, same = matching.matching(count, seed=5)
        assert torch.equal(images[:count], again) and torch.equal(labels[:count], same)


def test_matching_differs_between_seeds():
    (images, labels), (other, others) = matching.matching(300, seed=5), matching.matching(300, seed=6)
    assert (labels != others).float().mean() > 0.7
    empty = (matching.paint(matching.layout(300, seed=5)) + matching.paint(matching.layout(300, seed=6))) == 0
    assert torch.corrcoef(torch.stack([images[empty], other[empty]]))[0, 1].abs() < 0.02  # The noise differs, too.


def test_matching_makes_ten_thousand_images_a_second_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = quickest(lambda: matching.matching(5000, seed=0), 3)
    torch.set_num_threads(threads)
    assert 5000 / seconds > 10_000


def test_the_cue_has_the_colour_of_one_glyph_whose_shape_is_the_label():
    plan = matching.layout(500, seed=3)
    _, labels = matching.matching(500, seed=3)
    cells = matching.paint(plan).view(500, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(500, 16, 3, 64)
    assert torch.equal(cells[:, 0].amin(2), cells[:, 0].amax(2))  # The cue fills its cell.
    colours = cells.amax(3)  # (B, 16, 3), the colour in each cell, black if it is empty
    assert ((colours[:, 1:] > 0).any(2).sum(1) == 4).all()
    match = (colours[:, 1:] == colours[:, :1]).all(2)
    assert (match.sum(1) == 1).all()
    drawn = cells[:, 1:][match].amax(1).view(500, 8, 8) > 0  # This glyph has the cue's colour.
    for mask, label in zip(drawn, labels.tolist()):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        found = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        stencil = torch.tensor([[p == "#" for p in row] for row in matching.GLYPHS[matching.SHAPES[label]].split()])
        rows, columns = stencil.any(1), stencil.any(0)
        assert torch.equal(found, stencil[rows][:, columns])


def test_the_shapes_and_the_colours_are_far_from_each_other():
    stencils = [torch.tensor([[p == "#" for p in row] for row in g.split()]) for g in matching.GLYPHS.values()]
    assert len(matching.SHAPES) == 8 and all(s.shape == (6, 6) for s in stencils)
    assert min((a ^ b).sum() for i, a in enumerate(stencils) for b in stencils[:i]) >= 8
    with_black = torch.cat([matching.COLOURS, torch.zeros(1, 3)])
    assert len(matching.COLOURS) == 8 and torch.pdist(with_black).min() > 0.8


def test_matching_noise_has_a_standard_deviation_of_015():
    images, _ = matching.matching(500, seed=0)
    clean = matching.paint(matching.layout(500, seed=0))
    grey = clean == 0.5  # Grey is far from both ends, so it is hardly clamped.
    assert abs((images - clean)[grey].std() - 0.15) < 0.003 and abs((images - clean)[grey].mean()) < 0.003
    assert images.min() == 0 and images.max() == 1


def test_the_most_frequent_shape_is_right_for_41_percent_and_labels_are_balanced():
    plan = matching.layout(10_000, seed=0)
    _, labels = matching.matching(10_000, seed=0)
    commonest = torch.nn.functional.one_hot(plan.shapes, 8).sum(1).argmax(1)
    assert 0.38 < (commonest == labels).float().mean() < 0.44
    assert (labels.bincount(minlength=8) / 10_000 - 1 / 8).abs().max() < 0.015


def test_matching_is_loaded_normalised_and_resized():
    raw, labels = matching.matching(20, data.TRAIN_SEED)
    small, large = load("matching", 32, train_images=20), load("matching", 48, train_images=20)
    expected = (raw[7] - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(small.train[7][0], expected, atol=1e-6)
    assert small.train[7][1] == labels[7] and type(small.train[7][1]) is int
    resized = torch.nn.functional.interpolate(expected[None], (48, 48), mode="bilinear", antialias=True)[0]
    assert torch.allclose(large.train[(7, 123)][0], resized, atol=1e-5)
    assert (len(small.train), len(small.val), small.classes) == (20, 10_000, matching.SHAPES)


def test_matching_has_500_training_images_that_are_not_held_out():
    loaded = load("matching", 32)
    assert len(loaded.train) == 500
    held = {image.numpy().tobytes() for image, _ in loaded.val}
    assert len(held) == 10_000 and not any(image.numpy().tobytes() in held for image, _ in loaded.train)


def test_a_batch_of_matching_comes_within_5_ms():
    train = load("matching", 32, train_images=128 * 12).train
    batches = data.Loader(train, 0, CPU).read(data.plan_epoch(len(train), 128, 0, 0))
    assert quickest(lambda: next(batches), 12) < 0.005


def test_normalise_subtracts_the_mean_and_divides_by_the_standard_deviation():
    images = torch.rand(4, 3, 8, 8)
    for channel in range(3):
        expected = (images[:, channel] - MEAN[channel]) / STD[channel]
        assert torch.allclose(data.normalise(images, MEAN, STD)[:, channel], expected, atol=1e-6)


def test_a_folder_with_train_and_val_keeps_its_split(tmp_path):
    for part, count in [("train", 3), ("val", 2)]:
        for name in "cat", "dog":
            write_images(tmp_path / part / name, count)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.val), loaded.classes) == (6, 4, ["cat", "dog"])
    image, label = loaded.train[5]  # This is the third dog.
    assert image.shape == (3, 16, 16) and label == 1
    assert torch.allclose(image[:, 8, 8], (torch.tensor([16, 239, 100]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_a_plain_folder_is_split_and_each_class_has_images_in_both_parts(tmp_path):
    for name, count in [("cat", 21), ("dog", 2), ("eel", 10)]:
        write_images(tmp_path / name, count)
    loaded = load(tmp_path)
    assert loaded.classes == ["cat", "dog", "eel"]
    assert set(labels_of(loaded.train)) == set(labels_of(loaded.val)) == {0, 1, 2}
    chosen = [index for dataset in (loaded.train, loaded.val) for index, _ in dataset.split.items]
    assert sorted(chosen) == list(range(33))


def parted_names(names, root="/somewhere") -> list[set]:
    """Returns the names of the training images and of the held-out images."""
    source = [(f"{root}/{name}",) for name in names]
    split = data.Split(source, [(index, int(name.split("/")[0])) for index, name in enumerate(names)], root)
    return [{names[index] for index, _ in part.items} for part in data.hold_out(split)]


def test_a_tenth_of_the_images_is_held_out():
    _, held_out = parted_names([f"{label}/{number}.jpg" for label in range(10) for number in range(1000)])
    assert 900 < len(held_out) < 1100
    for count in range(2, 12):
        train, held_out = parted_names([f"{label}/{number}.jpg" for label in range(200) for number in range(count)])
        assert {name.split("/")[0] for name in train} == {name.split("/")[0] for name in held_out}


def test_a_new_image_turns_no_training_image_into_a_held_out_one_and_the_path_does_not_matter():
    names = [f"{number % 3}/{number}.jpg" for number in random.Random(0).sample(range(10**6), 400)]
    before = set()
    for count in range(30, 400):
        train, held_out = parted_names(names[:count])
        assert before <= train and parted_names(names[:count], "/mnt/elsewhere") == [train, held_out]
        before = train
    assert len(held_out) > 20


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda path: None, ""),
        (lambda path: path.rename(path.parent / "moved"), ""),
        (lambda path: shutil.rmtree(path / "train") or noise_folders(path / "train", each=4, seed=9), "train_set"),
        (lambda path: (path / "val/a/1.png").rename(path / "val/a/9.png"), "val_set"),
        (lambda path: (path / "val/a/1.png").rename(path / "val/b/1.png"), "val_set"),
        (lambda path: (path / "train/a/1.png").unlink(), "train_set"),
        (lambda path: noise_folders(path / "train", "c") and noise_folders(path / "val", "c"), "train_set val_set"),
    ],
)
def test_a_fingerprint_depends_on_names_sizes_labels_and_parts_but_not_on_the_path(change, parts, tmp_path):
    parted_folder(tmp_path / "set")
    before = data.fingerprints(load(tmp_path / "set"))
    change(tmp_path / "set")
    (place,) = tmp_path.iterdir()
    after = data.fingerprints(load(place))
    assert [name for name in before if before[name] != after[name]] == parts.split()
    assert before["train_set"].startswith("8 (")


def test_a_fingerprint_depends_on_the_order_by_which_a_subset_is_chosen(tmp_path):
    noise_folders(tmp_path, each=8)
    prints = [data.fingerprints(load(tmp_path, train_images=count))["train_set"] for count in (None, 6, 8, 8)]
    assert len(set(prints)) == 3
    sets = [data.fingerprints(load("matching", 32, train_images=count)) for count in (None, 500, 300)]
    assert sets[0] == sets[1] != sets[2] and sets[1]["val_set"] == sets[2]["val_set"]


def test_views_are_cropped_above_64_px_and_whole_below(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):  # A black image has white columns at both ends, outside its central square.
            image = Image.new("RGB", (200, 100), "white")
            image.paste("black", (20, 0, 180, 100))
            image.save(tmp_path / name / f"{i}.png")
    black = data.normalise(torch.zeros(3, 80, 80), MEAN, STD)
    assert torch.allclose(load(tmp_path, 80).val[0][0], black)
    assert load(tmp_path, 64).val[0][0][0, :, 0].min() > 2  # White is (1 - 0.5) / 0.2.


def test_evaluation_sees_the_centre_224_of_256_pixels_and_all_of_the_shorter_side_above():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    for size, side in (224, 256), (256, 256), (384, 384):
        wanted = picture.resize((side * 400 // 300, side), Image.Resampling.BICUBIC)
        left, top = round((wanted.width - size) / 2), round((wanted.height - size) / 2)
        wanted = wanted.crop((left, top, left + size, top + size))
        seen = data.plain_view("imagenet", size)(picture) / 255
        assert torch.equal((255 * seen).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(wanted)))


def textured(size=(90, 70)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(40, 216, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


FILL = (124, 116, 104)
FILLED = dict(resample=Image.BICUBIC, fillcolor=FILL)
TIMM_OPERATIONS = (
    "AutoContrast Equalize Invert PosterizeIncreasing SolarizeIncreasing SolarizeAdd Rotate ColorIncreasing "
    "ContrastIncreasing BrightnessIncreasing SharpnessIncreasing ShearX ShearY TranslateXRel TranslateYRel"
).split()


@pytest.mark.parametrize("name, theirs", list(zip(randaugment.OPERATIONS, TIMM_OPERATIONS, strict=True)))
def test_an_operation_of_randaugment_is_timms_to_the_bit_in_both_directions(name, theirs):
    assert sorted(TIMM_OPERATIONS) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)
    picture = textured()
    for strength in 0.3, 0.6, 0.9:
        drawn = set()
        for seed in range(12):
            random.seed(seed)  # It determines the direction.
            level, operation = auto_augment.LEVEL_TO_ARG[theirs], auto_augment.NAME_TO_OP[theirs]
            changed = operation(picture, *(level(10 * strength, {}) if level else ()), **FILLED)
            drawn.add(changed.tobytes())
        ours = {randaugment.operate(name, picture, sign * strength, list(FILL)).tobytes() for sign in (1, -1)}
        assert ours == drawn and picture.tobytes() not in ours


def test_randaugment_changes_images_as_much_as_timms(monkeypatch):

    def changes(augment):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        changed = [np.abs(np.asarray(augment(picture), float) - picture).mean() for _ in range(3000)]
        return np.mean(changed), np.std(changed) / 3000**0.5, np.mean(np.array(changed) == 0)

    # Pillow refuses to posterise to 0 bits, which timm asks for at full strength.
    posterize = auto_augment.ImageOps.posterize
    monkeypatch.setattr(auto_augment.ImageOps, "posterize", lambda image, bits: posterize(image, max(1, bits)))
    picture, options = textured(), dict(img_mean=FILL, interpolation=Image.BICUBIC)
    theirs = changes(auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", options))
    ours = changes(lambda image: randaugment.rand_augment(image, 9, [share / 255 for share in FILL]))
    assert abs(ours[0] - theirs[0]) < 4 * (ours[1] ** 2 + theirs[1] ** 2) ** 0.5
    assert abs(ours[2] - theirs[2]) < 0.04 and 0.25 < ours[2] < 0.33


def test_randaugment_and_erasing_follow_from_the_seed_of_the_image(tmp_path):
    loaded = load(noise_folders(tmp_path), 64, randaugment=9.0, erasing=1.0).train
    assert loaded[0, 5][0].equal(loaded[0, 5][0]) and not loaded[0, 5][0].equal(loaded[0, 6][0])


def test_erasing_fills_a_rectangle_of_at_most_a_third_with_noise():
    view = data.augmented_view("imagenet", 96, ((0, 0, 0), (1, 1, 1)), erasing=1.0)
    erased = [view(Image.new("RGB", (96, 96), "black")) for _ in range(100)]
    shares = [(image != 0).float().mean().item() for image in erased]
    noise = erased[-1][erased[-1] != 0]
    assert abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2  # It is N(0, 1).
    assert 0.015 < min(shares) < 0.05 and 0.28 < max(shares) < 0.345


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    for name in "ab":
        write_images(tmp_path / name, 2, mode=mode, suffix=suffix)
    assert Image.open(tmp_path / "a" / f"000{suffix}").mode == mode
    assert load(tmp_path).train[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("mode, suffix", [("I;16", ".png"), ("I;16", ".tif"), ("I", ".tif"), ("F", ".tif")])
def test_images_of_16_bits_are_scaled_and_those_of_32_are_refused(mode, suffix, tmp_path):
    wide = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # It is 257 times 0 to 255.
    kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    Image.fromarray(wide.astype(kinds[mode])).save(path := tmp_path / f"a{suffix}")
    if mode == "I;16":
        assert np.array_equal(np.asarray(data.read_image(path))[..., 1], wide // 257)
    else:
        assert re.search(f"{path}.*more than 16 bits", refused(data.read_image, path))


@pytest.mark.parametrize("error", [OSError, ValueError, SyntaxError, Image.DecompressionBombError, KeyError])
@pytest.mark.parametrize("kind", ["folder", "pets"])
def test_an_image_of_which_nothing_can_be_decoded_is_named_in_any_set(kind, error, tmp_path, monkeypatch):
    for name in "ab":
        write_images(tmp_path / name, 3)
    pets = argparse.Namespace(classes=["cat"], _labels=[0, 0], _images=[tmp_path / "a" / "000.png"] * 2)
    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", lambda *a, **o: pets)
    loaded = load(tmp_path) if kind == "folder" else load("pets")

    monkeypatch.setattr(Image, "open", Mock(side_effect=error("of PIL's")))
    said = refused(lambda: loaded.train[0])
    assert re.search(rf"cannot read {tmp_path}/[ab]/00\d.png as an image .*of PIL's.*; replace it", said)
    assert re.search(rf"cannot open {tmp_path}/a/00\d.png as an image", refused(data.check_images, tmp_path))


def test_an_image_of_which_no_pixel_can_be_decoded_is_refused_and_so_is_a_missing_one(tmp_path, monkeypatch):
    whole = io.BytesIO()
    textured().save(whole, "png")
    (tmp_path / "a.png").write_bytes(whole.getvalue()[: whole.getvalue().index(b"IDAT") + 4])
    assert "no part of it can be decoded" in refused(data.read_image, tmp_path / "a.png")
    whole = io.BytesIO()
    textured().convert("RGBA").save(whole, "png")  # It is not white either, as it would be if transparent.
    (tmp_path / "a.png").write_bytes(whole.getvalue()[: whole.getvalue().index(b"IDAT") + 4])
    assert "no part of it can be decoded" in refused(data.read_image, tmp_path / "a.png")
    pets = argparse.Namespace(classes=["cat"], _labels=[0, 0], _images=[tmp_path / "a.png", tmp_path / "b.png"])
    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", lambda *a, **o: pets)
    assert "only partly unpacked: 1 of 2 images" in refused(load, "pets")


class Deadly(torch.utils.data.Dataset):
    def __getitem__(self, index):
        os._exit(1)  # This is how the system ends a process that is too large.


def test_a_worker_that_dies_is_reported_with_what_to_do():
    with pytest.raises(RuntimeError) as dead:
        list(data.Loader(Deadly(), 1, CPU).read([[0]]))
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")  # torch can raise it at any time.
    for error in dead.value, killed:
        assert re.search("died.* --workers 0, or give .*/dev/shm", errors.in_a_line(error))
    with pytest.raises(RuntimeError, match="a bug"):
        errors.in_a_line(RuntimeError("a bug"))


def test_only_copies_to_cuda_are_non_blocking(monkeypatch):
    asked, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: asked.append(non_blocking) or self)
    for device in "cpu", "mps", "cuda":
        loader = data.Loader([(torch.ones(3), 1)], 0, CPU)
        loader.device = torch.device(device)
        list(loader.read([[0]]))
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert asked == [False] * 4 + [True] * 2


def test_hidden_files_and_folders_are_not_images_but_gifs_are(tmp_path):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 2, mode="P", suffix=".gif")
    write_images(tmp_path / ".thumbnails", 2)
    write_images(tmp_path / "cat" / ".thumbnails", 2)
    (tmp_path / "cat" / "._000.png").write_bytes(b"what another system keeps of a file")
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.val), loaded.classes) == (2, 2, ["cat", "dog"])


def test_a_class_without_validation_images_shifts_no_label(tmp_path):
    for name in "cat", "dog", "eel":
        write_images(tmp_path / "train" / name, 1)
    for name in "cat", "eel":
        write_images(tmp_path / "val" / name, 1)
    assert [label for _, label in load(tmp_path).val] == [0, 2]


@pytest.mark.parametrize(
    "folders, says",
    [
        ({"train/cat": 2}, "has train, but train and val are needed"),
        ({"test/cat": 2}, "has test, but train and val are needed"),
        ({"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/eel": 1}, "class 'eel' of"),
        ({"Train/a": 1, "train/a": 1, "val/a": 1}, "has both Train and train"),
        ({"train/a": 1, "train/b": 1, "valid/a": 1, "val/a": 1}, "has both val and valid"),
        ({"train/eel": 2, "val/eel": 2}, "has only one class, 'eel'"),
        ({"inside/a": 2, "inside/b": 2}, "set/inside, which has several"),
        ({"inside/train/a": 2, "inside/val/a": 2}, "set/inside, which has several"),
        ({"cat": 2, "dog": 0}, "'dog'"),
        ({"cat": 2, "dog": 1}, "class 'dog' of"),  # Some must be held out.
        ({"": 1}, "has no class folders"),
        ({}, "there is no folder"),
    ],
    ids=str,
)
def test_a_folder_without_the_images_that_are_needed_is_named_and_so_is_what_it_lacks(folders, says, tmp_path):
    for name, count in folders.items():
        write_images(tmp_path / "set" / name, count)
    said = refused(load, tmp_path / "set")
    assert says in said and f"{tmp_path}/set" in said and "'cat'" not in said


def test_a_misspelt_data_set_is_answered_with_the_nearest():
    said = refused(load, "matchin")
    assert "'matchin'" in said and "matching" in said and "folder" in said


def test_imagenet_is_read_from_its_folders_which_are_named_where_they_are_missing(tmp_path):
    said = refused(load, "imagenet", root=tmp_path)
    assert f"{tmp_path}/imagenet/train" in said and f"{tmp_path}/imagenet/val" in said
    for part in "train", "val":
        for name in "n01440764", "n02102040":
            write_images(tmp_path / "imagenet" / part / name, 1)
    assert len(load("imagenet", root=tmp_path).val) == 2


@pytest.mark.parametrize(
    "train, held_out",
    [("train", "val"), ("train", "valid"), ("train", "evaluation"), ("Train", "Val"), ("TRAINING", "Testing")],
)
def test_splits_are_known_by_their_usual_names_in_any_case(train, held_out, tmp_path):
    noise_folders(tmp_path / train, each=3)
    noise_folders(tmp_path / held_out, each=2)
    if held_out != "Testing":  # A test set is used only if there is no other held-out set.
        noise_folders(tmp_path / "test", each=5)
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.val), loaded.classes) == (6, 4, ["a", "b"])


def test_each_folder_is_read_once_whatever_links_lead_to_it(tmp_path):
    photos, elsewhere = (
        noise_folders(tmp_path / "photos", each=10),
        noise_folders(tmp_path / "elsewhere", "cd", each=10),
    )
    before = [path for path, _ in data.class_folders(photos)[0].source]
    (photos / "itself").symlink_to(photos)
    (photos / "above").symlink_to(tmp_path)
    (photos / "a" / "sister").symlink_to(photos / "b")
    (photos / "b" / "loop").symlink_to("..")
    split, classes = data.class_folders(photos)
    assert classes == ["a", "b"] and [path for path, _ in split.source] == before
    # A folder that lies elsewhere, or is hidden, is read once if a link leads to it.
    noise_folders(photos / ".store", "e", each=3) and (photos / "e").symlink_to(".store/e")
    assert data.class_folders(photos)[1] == ["a", "b", "e"]
    (photos / "e").unlink()
    (photos / "c").symlink_to(elsewhere / "c")
    (photos / "a" / "more").symlink_to(elsewhere / "d")
    (photos / "b" / "more").symlink_to(elsewhere / "d")
    split, classes = data.class_folders(photos)
    assert Counter(classes[label] for _, label in split.source) == {"a": 20, "b": 10, "c": 10}


@pytest.mark.parametrize("place", ["x", "a/x", "a/x.png"])
@pytest.mark.parametrize("leads", ["nowhere", "x.png", "x"])
def test_a_link_that_leads_nowhere_is_named(place, leads, tmp_path):
    noise_folders(tmp_path)
    (tmp_path / place).symlink_to(leads)
    assert f"{tmp_path}/{place} is a broken link" in refused(load, tmp_path)


def test_files_with_other_endings_are_counted_and_jfif_is_read(tmp_path):
    for name in "ab":
        write_images(tmp_path / name, 3, suffix=".jpg")
        (tmp_path / name / "000.jpg").rename(tmp_path / name / "000.JFIF")
        for number in range(5):
            (tmp_path / name / f"{number}.avif").touch()
    write_images(tmp_path, 2)  # These lie beside the folders of the classes.
    with pytest.warns(
        match=r"12 of 18 files, such as .*000.png, are skipped; images must lie .* and end in .jpg .jpeg .jfif .png"
    ):
        loaded = load(tmp_path)
    assert len(loaded.train) + len(loaded.val) == 6 and loaded.train[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(orientation, tmp_path):
    upright, exif = textured(), Image.Exif()
    exif[0x0112] = orientation
    # The camera stores the picture so that the rotation or reflection in EXIF restores it.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    picture = upright.transpose(stored[orientation]) if orientation in stored else upright
    picture.save(tmp_path / "x.png", exif=exif)
    assert data.read_image(tmp_path / "x.png").tobytes() == upright.tobytes()
    picture.save(tmp_path / "x.png", exif=b"Exif\0\0broken")
    assert data.read_image(tmp_path / "x.png").tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode, tmp_path):
    alpha = Image.new("L", (20, 20), 0)
    alpha.paste(255, (5, 5, 15, 15))
    if mode in ("RGBA", "LA", "PA"):
        picture = Image.new("RGBA", (20, 20), "black")
        picture.putalpha(alpha)
        picture = picture.convert(mode) if mode != "PA" else picture.convert("LA")
        picture.save(tmp_path / "x.png")
    else:  # One colour stands for transparent pixels.
        picture = Image.new("RGB", (20, 20), (9, 9, 9))
        picture.paste((0, 0, 0), (5, 5, 15, 15))
        picture = picture.convert(mode) if mode != "P" else picture.quantize(2)
        clear = picture.getpixel((0, 0))
        picture.save(tmp_path / "x.png", transparency=clear)
    seen = np.asarray(data.read_image(tmp_path / "x.png"))
    assert (seen[:5] == 255).all() and (seen[6:14, 6:14] < 5).all()


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_very_long_image_is_cut_before_it_is_made_large(size, tmp_path):
    for name in "ab":
        write_images(tmp_path / name, 2, size=size)
    loaded = load(tmp_path, 224)
    for image, _ in [loaded.val[0], loaded.train[0, 7]]:  # In full it would need 12 GB.
        assert image.shape == (3, 224, 224) and image.isfinite().all()


def test_evaluation_sees_the_middle_of_a_long_image(monkeypatch):
    monkeypatch.setattr(data, "middle", cut_off := Mock(wraps=data.middle))
    picture = textured((5000, 100))
    whole = data.plain_view("a folder", 64)(picture)  # At this size an image is seen whole.
    assert torch.equal(whole, data.plain_view("cifar10", 64)(picture))
    assert whole[:, 0, 0].tolist() != data.plain_view("a folder", 64)(data.middle(picture))[:, 0, 0].tolist()
    cut = picture.crop((2000, 0, 3000, 100))
    view = data.plain_view("a folder", 80)
    assert torch.equal(view(picture), view(cut)) and data.middle(cut) is cut
    # Two calls are made here, and one in each use of the view: the ends are cut off before the image is resized.
    assert cut_off.call_count == 4


def test_an_image_too_large_for_the_memory_is_named(tmp_path, monkeypatch):
    noise_folders(tmp_path)
    monkeypatch.setattr(Image, "open", Mock(side_effect=MemoryError))
    assert f"not enough memory to decode {tmp_path}" in refused(load(tmp_path).train.__getitem__, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named_by_the_system(tmp_path):
    noise_folders(tmp_path)
    (tmp_path / "a").chmod(0)
    assert f"cannot read {tmp_path}/a: Permission denied" in refused(load, tmp_path)


@pytest.mark.parametrize("place", ["", "a", "a/deeper", "train", "val/b"])
def test_a_folder_that_may_not_be_read_is_named(place, tmp_path, monkeypatch):
    noise_folders(tmp_path / "a", ["deeper"]) and noise_folders(tmp_path, "b")
    if place.startswith(("train", "val")):
        tmp_path = parted_folder(tmp_path / "parted")
    scandir, forbidden = os.scandir, str(tmp_path / place)

    def denied(path):
        if str(path) == forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert f"cannot read {forbidden}: Permission denied; change its permissions" in refused(load, tmp_path)


@pytest.mark.parametrize("name", ["n" * 235, os.fsdecode(b"donn\xe9es"), "photos de l'\u00e9t\u00e9 \U0001f33b"])
def test_a_folder_may_have_any_name(name, nano):
    noise_folders(Path(name), [f"a{name[:50]}", f"b{name[:50]}"], each=4)
    words = "--mode baseline --epochs 1 --workers 0 --blocks 0,2 --init norms".split()
    out = call(train, *words, "--weights", "random", "--data", name)
    (folder,) = Path("runs").iterdir()
    assert "top-1" in out and out.encode() and folder.name.endswith("-seed0")
    row = call(evaluation, "accuracy", folder).splitlines()[1]
    assert figures(row)[0] == round(read_json(folder, "result.json")["top1"], 2)
    assert "finished before" in call(train, *words, "--weights", "random", "--data", name)


def test_a_path_that_is_not_utf_8_is_refused_before_the_work(nano):
    strange = os.fsdecode(b"donn\xe9es")
    assert "is not UTF-8" in refused(call, train, *BASELINE, *QUICK, "--out", strange)
    assert not list(Path(strange).rglob("*.safetensors"))
    save_file(vit("deit_nano", 1, "teacher").state_dict(), "w.safetensors")
    Path("w.safetensors").rename(f"{strange}.safetensors")
    assert "is not UTF-8" in refused(call, train, *TRANSFER, *QUICK, "--weights", f"{strange}.safetensors")
    call(train, *BASELINE, *QUICK)
    Path("runs").rename(strange + "2")
    assert "is not UTF-8" in refused(call, evaluation, "accuracy", Path(strange + "2") / run_of("baseline").name)


def test_text_is_utf_8_whatever_the_locale():
    for path in [*HERE.glob("*.py"), *HERE.glob("support/*.py"), *HERE.glob("exercises/*.py"), HERE / "docs/study.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if name in ("read_text", "write_text") and path.name != "test_all.py":
                assert "utf-8" in ast.unparse(node), f"{path.name}: {ast.unparse(node)}"


def test_a_file_that_is_not_an_image_is_named(tmp_path):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 2)
    (tmp_path / "dog" / "001.png").write_bytes(b"nothing of the kind")
    assert "dog/001.png as an image" in refused(data.check_images, tmp_path)


def test_a_truncated_image_loads_with_a_warning_that_names_it(tmp_path):
    whole = noise_folders(tmp_path, each=3, size=(24, 24)) / "b" / "1.png"
    Image.open(whole).resize((300, 300)).save(path := whole.with_suffix(".jpg"))
    whole.unlink()
    os.truncate(path, path.stat().st_size // 2)
    train = load(tmp_path, 60).train
    paths = [train.split.source[index][0] for index, _ in train.split.items]
    with pytest.warns(UserWarning) as caught:
        image, label = train[paths.index(str(path))]
    assert len(caught) == 1 and str(path) in str(caught[0].message)
    assert label == 1 and image[:, :20].std(dim=(1, 2)).min() > 0.1  # The top was decoded.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train[0]  # The others load without a warning.


def test_too_many_or_too_few_training_images_are_answered_with_both_numbers(tmp_path):
    noise_folders(tmp_path, "abc", 4)  # 9 of these are training images.
    for name, asked, right in (tmp_path, 10, " 9 "), (tmp_path, 2, " 3 "):
        said = refused(load, name, train_images=asked)
        assert f"{asked} training" in said and right in said


def test_a_subset_is_balanced_and_the_same_at_every_call(tmp_path):
    noise_folders(tmp_path, "abc", 12)  # 30 of these are training images.
    subset = load(tmp_path, train_images=14).train
    items = subset.split.items
    assert sorted(Counter(labels_of(subset)).values()) == [4, 5, 5]
    assert len(set(items)) == 14 and items != sorted(items)
    torch.manual_seed(99)
    assert load(tmp_path, train_images=14).train.split.items == items
    assert load(tmp_path, train_images=20).train.split.items[:14] == items
    assert all(subset[i][1] == items[i][1] == subset.split.source[items[i][0]][1] for i in range(14))


@pytest.mark.parametrize("name", list(data.SOURCES))
def test_a_set_that_cannot_be_downloaded_says_where_its_files_belong(name, tmp_path, monkeypatch):
    offline = Mock(side_effect=urllib.error.URLError("no route\nto host"))
    monkeypatch.setattr(f"torchvision.datasets.{data.SOURCES[name].kind}", offline)
    said = refused(load, name, root=tmp_path)
    assert name in said and f"{tmp_path}/{data.SOURCES[name].files}" in said and "no route" in said
    assert offline.call_args.kwargs["download"] is True


@pytest.mark.parametrize("name", sorted(set(data.SOURCES) - {"svhn", "flowers102"}))  # These need scipy first.
def test_torchvision_looks_for_a_set_and_does_not_find_it(name, tmp_path):
    assert f"cannot load {name}" in refused(load, name, root=tmp_path)


def write_fashion_mnist(root):
    """Writes 20 training and 10 test images in torchvision's idx files. All pixels of image i are 10 * i."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in [("train", 20), ("t10k", 10)]:
        pixels = np.repeat(np.arange(count, dtype=np.uint8) * 10, 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + pixels.tobytes())
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels)


def test_fashion_mnist_loads_as_rgb_at_the_size_asked_for(tmp_path):
    write_fashion_mnist(tmp_path)
    loaded = load("fashion_mnist", 48, root=tmp_path)
    assert (len(loaded.train), len(loaded.val), loaded.classes[9]) == (20, 10, "Ankle boot")
    image, label = loaded.train[13]
    assert label == 3 and image.shape == (3, 48, 48) and image.dtype == torch.float32 and type(image) is torch.Tensor
    assert torch.allclose(image[:, 0, 0], (130 / 255 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_inat2018_holds_out_images_of_each_species_by_their_names(tmp_path, monkeypatch):
    monkeypatch.delitem(data.COUNTS, "inat2018")  # The few images here pass for the whole set.
    for species, count in [(0, 11), (1, 3)]:
        write_images(tmp_path / "2018" / "Birds" / str(species), count)
    loaded = load("inat2018", root=tmp_path)
    assert set(labels_of(loaded.train)) == set(labels_of(loaded.val)) == {0, 1}
    names = [name for _, name in loaded.val.split.files()]
    assert len(names) < 5 and names[0].startswith("2018/Birds/0/") and len(loaded.train) + len(names) == 14
    assert loaded.classes == ["Birds/0", "Birds/1"] and loaded.val[len(names) - 1][1] == 1


@pytest.mark.parametrize("name, folder", [("imagenette", "imagenette2-320"), ("inat2018", "2018")])
def test_a_set_that_is_only_partly_unpacked_is_refused_and_its_folder_named(name, folder, tmp_path):
    for part in ("train/n01440764", "val/n01440764") if name == "imagenette" else ("Birds/0",):
        write_images(place := tmp_path / folder / part, 2, suffix=".jpeg")
    said = refused(load, name, root=tmp_path)
    assert "only partly unpacked" in said and f"delete {tmp_path}/{folder}" in said and place.is_dir()


def test_imagenette_takes_the_first_name_of_each_class(tmp_path, monkeypatch):
    monkeypatch.delitem(data.COUNTS, "imagenette")  # The few images here pass for the whole set.
    for part in "train", "val":
        for wnid in "n01440764", "n02102040":
            write_images(tmp_path / "imagenette2-320" / part / wnid, 2, suffix=".jpeg")
    loaded = load("imagenette", root=tmp_path)
    assert loaded.classes == ["tench", "English springer"] and labels_of(loaded.train) == [0, 0, 1, 1]


def test_augmentation_is_the_same_with_0_and_2_workers(tmp_path):
    train = load(noise_folders(tmp_path, each=21)).train
    alone, labels = epoch_of(train, seed=1, epoch=2)
    helped, same = epoch_of(train, seed=1, epoch=2, workers=2)
    assert torch.equal(alone, helped) and torch.equal(labels, same) and len(alone) == len(train)


def test_augmentation_depends_on_seed_epoch_and_index(tmp_path):
    train = load(noise_folders(tmp_path, each=21)).train
    plans = [data.plan_epoch(len(train), 8, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    first, later, other = (dict(sum(plan, [])) for plan in plans)
    assert len({*first.values(), *later.values(), *other.values()}) == 3 * len(train)
    assert not torch.equal(train[(3, first[3])][0], train[(3, later[3])][0])
    assert torch.equal(train[(3, first[3])][0], train[(3, first[3])][0])


def test_images_are_augmented_only_in_training(tmp_path):
    train, plain = load(noise_folders(tmp_path)).train, load(tmp_path, augment=False).train
    assert not torch.equal(train[(0, 1)][0], train[0][0])
    assert torch.equal(train[0][0], plain[0][0]) and torch.equal(plain[(0, 1)][0], plain[0][0])


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    train = load(noise_folders(tmp_path, each=21)).train
    before = torch.get_rng_state()
    epoch_of(train, seed=0)
    epoch_of(load("matching", 32, train_images=20).train)
    assert torch.equal(torch.get_rng_state(), before)


def photograph(size: tuple, seed: int) -> Image.Image:
    """Returns an image like a photograph, with large soft shapes and noise on them."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(soft) + rng.normal(0, 12, (*size[::-1], 3))).clip(0, 255).astype(np.uint8))


SIZES_OF_PHOTOGRAPHS = [
    (500, 375),
    (375, 500),
    (333, 501),
    (640, 427),
    (97, 61),
    (61, 97),
    (64, 48),
    (224, 224),
    (31, 29),
]


@pytest.mark.parametrize("size", [*SIZES_OF_PHOTOGRAPHS, (1023, 769)], ids=str)
def test_a_training_crop_is_pils_to_within_a_few_grey_levels(size):
    """The sizes are odd and even, and small crops are enlarged."""
    picture = photograph(size, seed=sum(size))
    crop = v2.RandomResizedCrop(224, scale=(0.08, 1), interpolation=v2.InterpolationMode.BICUBIC)
    for seed in range(5):
        torch.manual_seed(seed)
        ours = data.random_crop(picture, 224, 0.08)
        torch.manual_seed(seed)
        pils = data.to_bytes(crop(picture))
        difference = (ours.float() - pils.float()).abs()
        assert ours.dtype == torch.uint8 and ours.shape == (3, 224, 224)
        assert difference.mean() < 0.5 and difference.max() <= 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("erasing", [0.0, 0.5])
def test_images_travel_as_bytes_unless_they_are_erased_and_arrive_unchanged(erasing, workers, tmp_path):
    train = load(noise_folders(tmp_path, each=4), 80, erasing=erasing).train
    items = [(number, 100 + number) for number in range(len(train))]
    travelling = train.__getitems__(items)  # Loaders call this.
    assert {image.dtype for image, _ in travelling} == {torch.float32 if erasing else torch.uint8}
    [(images, labels)] = data.Loader(train, workers, torch.device("cpu")).read([items])
    alone = [train[item] for item in items]
    assert torch.equal(images, torch.stack([image for image, _ in alone])) and images.dtype == torch.float32
    assert labels.tolist() == [label for _, label in alone]


def feeding_ratios(folder, rounds: int = 15, images: int = 40) -> dict:
    """Returns the time to prepare an image divided by timm's, the median over rounds, in this process's one thread.

    README's figures come from here: python -c "import test_all; print(test_all.feeding_ratios(FOLDER))".
    """
    posterise = ImageOps.posterize  # timm asks it for 0 bits now and then, which it refuses.
    normalisation, published = teachers.IMAGENET, dict(randaugment=9.0, erasing=0.25)
    ours = {kind: load_plain(folder, normalisation, options) for kind, options in (("desk", {}), ("paper", published))}
    theirs = partial(timm.data.create_transform, 224, interpolation="bicubic")
    theirs = {
        "desk": theirs(is_training=True, color_jitter=0),
        "paper": theirs(
            is_training=True, color_jitter=0, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel"
        ),
        "evaluation": theirs(is_training=False, crop_pct=0.875),
    }
    ratios = {kind: [] for kind in theirs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageOps, "posterize", lambda image, bits: posterise(image, max(1, bits)))
        for turn in range(rounds + 1):
            for kind, transform in theirs.items():
                train, files = ours.get(kind, ours["desk"]), ImageFolder(folder, transform)
                numbers = [number % len(train) for number in range(images)]
                random.seed(turn)
                seeds = [turn * images + number if kind in ours else None for number in range(images)]
                start = time.perf_counter()
                train.__getitems__(list(zip(numbers, seeds)))
                middle = time.perf_counter()
                [files[number] for number in numbers]
                ratios[kind].append((middle - start) / (time.perf_counter() - middle))
    return {kind: statistics.median(values[1:]) for kind, values in ratios.items()}  # The first round warms up.


def load_plain(folder, normalisation, options: dict):
    return data.load_data(str(folder), "", 224, normalisation, **options).train


def test_the_speed_of_feeding_is_measured_by_a_command_and_compared_with_timm(tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    folder = noise_folders(tmp_path, each=4)
    assert set(feeding_ratios(folder, rounds=1, images=4)) == {"desk", "paper", "evaluation"}
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 4)  # Each image seems to take 0.25 s.
    out = call(evaluation, "speed", "--data", folder)
    assert "name another data set" in mistake(evaluation, "speed", "--data", "matching")[1]
    assert out == f"{folder}, 224 px: one process prepares 3 training images a second, 3 for evaluation\n"


def test_digits_are_never_mirrored_but_other_images_are():
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1)))  # It gets brighter rightwards.
    rises = {}
    for name in "svhn", "cifar10":
        augmented = data.augmented_view(name, 32, NORMALISATION)
        torch.manual_seed(0)
        rises[name] = [bool(crop[0, 16, -1] > crop[0, 16, 0]) for crop in (augmented(ramp) for _ in range(40))]
    assert all(rises["svhn"]) and 5 < sum(rises["cifar10"]) < 35


def test_the_processes_of_an_evaluation_divide_the_set_in_order():
    shares = [sum(data.in_order(23, 4, rank, 3), []) for rank in range(3)]
    assert shares[1] == list(range(1, 23, 3))
    assert sorted(sum(shares, [])) == list(range(23))
    assert [len(batch) for batch in data.in_order(23, 4)] == [4, 4, 4, 4, 4, 3]


def indices(plan):
    return [index for batch in plan for index, _ in batch]


def test_an_epoch_has_each_image_once_and_a_shorter_last_batch():
    plan = data.plan_epoch(23, 6, seed=3, epoch=1)
    assert [len(batch) for batch in plan] == [6, 6, 6, 5] and sorted(indices(plan)) == list(range(23))


def test_a_last_batch_that_leaves_a_process_without_an_image_is_left_out():
    assert [len(batch) for batch in data.plan_epoch(25, 8, 0, 0, world=4)] == [8, 8, 8]
    assert [len(batch) for batch in data.plan_epoch(28, 8, 0, 0, world=4)] == [8, 8, 8, 4]
    said = refused(data.plan_epoch, 3, 8, 0, 0, world=4)
    assert "4 processes cannot share a batch of 3 images; raise --batch-size" in said


def test_batches_are_shuffled_by_seed_and_epoch():
    orders = [indices(data.plan_epoch(50, 8, seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len({tuple(order) for order in [*orders, range(50)]}) == 5
    assert indices(data.plan_epoch(50, 8, 1, 1)) == orders[3]


# ---- support/files.py ------------------------------------------------------------------------------------------------


def test_replacing_writes_all_or_nothing(tmp_path, cache):
    path = tmp_path / "new" / "file"
    with replacing(path) as part:
        part.write_text("old")
        assert not path.exists()
    for error in KeyboardInterrupt, ZeroDivisionError, RuntimeError, UserError:
        with pytest.raises(error), replacing(path) as part:
            part.write_text("half")
            raise error("no trouble with writing")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_replacing_leaves_errors_of_the_callers_work_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        open(tmp_path / "what the caller reads")
    with pytest.raises(ConnectionError), replacing(tmp_path / "file"):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    with pytest.raises(UserError, match="cannot write .*file: No space left"), replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_two_writers_of_one_file_have_a_temporary_file_each_and_the_umask_determines_its_mode(tmp_path):
    before = os.umask(0o027)
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        save_file({"a": torch.ones(2)}, one)
        save_file({"a": torch.zeros(2)}, other)
        assert one != other and load_file(one)["a"].sum() == 2
    os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640 and len(list(tmp_path.iterdir())) == 1


FULL_DISK = """
import resource, signal, torch
from pathlib import Path
from safetensors.torch import save_file
from support.errors import UserError
from support.runs import Checkpoint
from support.files import replacing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
big = torch.nn.Linear(100, 1000)
def file(save):
    with replacing(Path("file")) as part:
        save(part)
for write in (
    lambda: Checkpoint(Path("."), {"part": big}).save(1, 0.0),
    lambda: file(lambda part: save_file(big.state_dict(), part)),
    lambda: file(lambda part: part.write_text("a" * 100_000)),
):
    try:
        write()
    except UserError as error:
        print(error)
"""


def test_a_disk_that_fills_up_while_writing_is_reported_in_one_line_by_every_way_of_saving(tmp_path, cache):
    ended = python("-c", FULL_DISK, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    said = [line.split(":")[0] for line in ended.stdout.splitlines()]
    assert said == ["cannot write checkpoint.pt", "cannot write file", "cannot write file"]
    assert list(tmp_path.iterdir()) == []


# ---- README.md -------------------------------------------------------------------------------------------------------

README = (HERE / "README.md").read_text()
CACHE = Path(torch.hub.get_dir()).parent  # This is the user's own, not that of a test.


ADDING = (HERE / "docs/adding.md").read_text()


def blocks_of(page: str, language: str) -> list[str]:
    """Returns the blocks of code in that language."""
    return re.findall(f"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_code_of_the_method_in_readme_is_that_of_the_files():
    code = (HERE / "transfer.py").read_text()
    blocks = [block for block in blocks_of(README + ADDING, "python") if "import" not in block]
    assert len(blocks) == 4 and all(block in code for block in blocks)


def test_the_script_of_readme_trains_a_baseline_and_a_better_student_in_less_than_a_minute(tmp_path):
    (script,) = (block for block in blocks_of(README, "python") if "import" in block)
    assert script.count("\n") <= 30
    words = [sys.executable, "-c", script + "import time\nprint(time.process_time())\n"]
    # The teacher is the one that README's first command has trained.
    place = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "TORCH_HOME": str(CACHE)}
    ended = subprocess.run(words, cwd=tmp_path, env=place, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    baseline, distill, seconds = (float(number) for number in re.findall(r"(\d+\.\d+)(?: %|$)", ended.stdout, re.M))
    assert 10 < baseline < 40 and 85 < distill < 100 and seconds < 60
    told = re.search(r"It prints (\S+) % and (\S+) %", README)
    assert abs(float(told[1]) - baseline) < 5 and abs(float(told[2]) - distill) < 5


def test_readme_has_at_most_300_lines_and_so_has_the_way_to_the_method():
    ends = {"README.md": "## The same", "model.py": "# ---- The shape of a ViT", "transfer.py": "    @torch.no_grad()"}
    pages = {name: (HERE / name).read_text() for name in ends}
    read = sum(len(page[: page.index(ends[name])].rstrip().splitlines()) for name, page in pages.items())
    assert len(README.splitlines()) <= 300 and read <= 300


ADDED = """
import torch, train
from model import ViT, native_components
from teachers import TEACHERS, student_config
from transfer import AttentionTransfer, init_from, part_of

assert native_components(TEACHERS["post_nano"].config) == ["post_norm"]
assert student_config("post_nano", "post_norm") == student_config("post_nano", "native") != student_config("post_nano")
student, teacher = ViT(student_config("post_nano", "native", 8)), ViT(TEACHERS["post_nano"].config)
for model in student, teacher:
    [torch.nn.init.normal_(parameter) for name, parameter in model.named_parameters() if "post" in name]
torch.manual_seed(0)
images, parts = torch.randn(2, 3, 32, 32), {part_of(name) for name in student.state_dict() if "post" in name}
assert parts == {"norms"}
logits, loss = AttentionTransfer(student, teacher, "distill")(images)
(logits.sum() + loss).backward()
assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in student.named_parameters() if "post" in name)
ours, theirs = student.blocks[0].norm_post1.weight, teacher.blocks[0].norm_post1.weight
assert not ours.equal(theirs)
init_from(student, teacher, "norms")
assert ours.equal(theirs)
train.main()
"""


@pytest.fixture
def added(tmp_path, monkeypatch) -> Path:
    """Makes the changes of docs/adding.md to a copy of the project, and goes there."""
    for name in subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True).stdout.split("\n"):
        if name and not name.startswith("exercises/") and (HERE / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, tmp_path / name)
    for block in blocks_of(ADDING, "diff"):
        for name, changes in re.findall(r"^--- (\S+)\n(.*?)(?=^---|\Z)", block, re.M | re.S):
            for lines in changes.split("@@\n"):
                lines = lines.splitlines()
                old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
                new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
                text = (tmp_path / name).read_text()
                assert text.count(old) == 1, f"{name}: {old}"
                (tmp_path / name).write_text(text.replace(old, new))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_teacher_and_the_component_of_docs_adding_pass_the_tests_that_it_names(added):
    chosen = re.findall(r"`pytest -k \"(.+?)\"`", ADDING)
    assert len(chosen) == 2
    words = [sys.executable, "-m", "pytest", "-q", "-n0", "test_all.py", "-k", " or ".join(chosen)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    # Among these are the teacher against timm's model, and the component in the block that is written out by hand.
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 40


def test_the_component_of_docs_adding_is_in_students_runs_and_weights(added):
    words = "--teacher post_nano --weights random --mode transfer --student native --init norms --epochs 1".split()
    words += "--train-images 20 --validate-every 1".split()
    ended = subprocess.run([sys.executable, "-c", ADDED, *words], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    folder = added / "runs/post_nano(random)-matching-distill-native-init=norms-seed0"
    assert "post_norm" in read_json(folder, "config.json")["student"]


def test_a_module_of_a_block_belongs_to_the_part_that_its_name_says():
    for module, part in dict(norm3="norms", post1="attention", gate="attention", post2="mlp").items():
        assert transfer.part_of(f"blocks.0.{module}.weight") == part


def test_every_command_of_readme_can_be_read():
    lines = re.findall(r"^(?:python|torchrun(?: -\S+)+) (\w+)\.py ([^#\n&>]*)", README, re.MULTILINE)
    for script, words in lines:
        if script in ("train", "eval"):
            {"train": train, "eval": evaluation}[script].parse_arguments(shlex.split(words))
    assert len(lines) >= 15


# ---- Imports ---------------------------------------------------------------------------------------------------------


FLOORS = ["eval", "train", "teachers", "transfer", "model", "support"]


def imports_of(path: Path) -> set[str]:
    """Returns the first names of the project's own modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names & set(FLOORS)


def test_no_file_imports_one_above_it_and_support_knows_nothing_of_the_top_level():
    for number, floor in enumerate(FLOORS[:-1]):
        assert imports_of(HERE / f"{floor}.py") <= set(FLOORS[number + 1 :]), floor
    for path in (HERE / "support").glob("*.py"):
        assert imports_of(path) <= {"support"}, path


# ---- docs/ -----------------------------------------------------------------------------------------------------------


def test_the_page_of_the_study_holds_what_its_script_finds_in_its_files():
    page = (HERE / "docs" / "study.md").read_text().splitlines()
    found = subprocess.run([sys.executable, "docs/study.py"], cwd=HERE, capture_output=True, text=True, check=True)
    lines = [line for line in found.stdout.splitlines() if line]
    assert len(lines) > 50 and set(lines) <= set(page)
    table = next(number for number, line in enumerate(lines) if line.startswith("| nano families "))
    assert set(lines[table : table + 5]) <= set(README.splitlines())
