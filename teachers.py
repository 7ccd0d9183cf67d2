"""The teachers: a registry of pretrained ViTs, and the loading of their published weights, exactly.

    python teachers.py                    # the table of all teachers
    python teachers.py eva02_s dinov2_b   # download these and check them

A teacher is an entry of `TEACHERS`: an architecture that model.py can build, an address, and the way its file is laid
out. A file is read whole or refused: each of its tensors is either used or on the family's list of unwanted ones.
`<family>_nano` teachers need no download; they have their family's native architecture at nano size, and are pretrained
here, on the data set `matching`, when they are first asked for.
"""

import argparse
import hashlib
import http.client
import json
import math
import os
import re
import sys
import urllib.error
import urllib.request
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data import SHAPES, matching, normalise
from model import NATIVE_COMPONENTS, UserError, ViT, ViTConfig, native_components, unknown

# ---------------------------------------------------------------------------------------------------------------
# The registry

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of the input, per channel
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """What the teachers of one family share.

    `unwanted` lists the published tensors that a teacher does not need, as glob patterns on their names; `prefix` is
    taken off the names of the others; `container` is the entry of the authors' pickle that holds the tensors.
    `finding` is what transfer to a standard student was found to do (arXiv 2605.07191), where it is known. `img_size`
    is the image size in pixels at which both papers used the teachers, where it is not their own.
    """

    title: str
    licence: str
    normalisation: tuple = IMAGENET
    native: dict = field(default_factory=dict)  # fields of ViTConfig
    unwanted: tuple[str, ...] = ("head.*",)
    prefix: str = ""
    container: str = ""
    finding: str = ""
    img_size: int | None = None


RELATIVE = dict(qkv_bias="qv", pos_embed="none")  # BEiT's positions: relative ones only

FAMILIES = {
    "deit": Family("DeiT", "Apache-2.0", finding="works"),
    "deit3": Family("DeiT III", "Apache-2.0", native=dict(layerscale=1e-6, pos_embed="patches")),
    "augreg": Family("AugReg ViT", "Apache-2.0", HALF),
    "dino": Family("DINO", "Apache-2.0", finding="works"),
    "mocov3": Family(
        "MoCo v3",
        "CC-BY-NC-4.0",
        native=dict(pos_embed="sincos"),
        container="state_dict",
        prefix="module.base_encoder.",
        unwanted=("module.base_encoder.head.*", "module.momentum_encoder.*", "module.predictor.*"),
    ),
    "mae": Family("MAE", "CC-BY-NC-4.0", native=dict(pos_embed="sincos")),
    "ibot": Family("iBOT", "Apache-2.0", container="state_dict", unwanted=("head.*", "masked_embed")),
    "msn": Family(
        "MSN", "CC-BY-NC-4.0", container="target_encoder", prefix="module.", unwanted=("module.fc.*", "module.pred.*")
    ),
    # The file holds both towers; what does not begin with `visual.` is the text tower's.
    "clip": Family(
        "CLIP",
        "Apache-2.0",
        OPENAI,
        dict(pre_norm=True, quick_gelu=True, norm_eps=1e-5),
        prefix="visual.",
        unwanted=("visual.proj", "[!v]*"),
        finding="fails",
    ),
    "siglip": Family(
        "SigLIP", "Apache-2.0", HALF, dict(class_token=False, pool="none"), unwanted=("head.*", "attn_pool.*")
    ),
    "beit": Family(
        "BEiT",
        "Apache-2.0",
        HALF,
        dict(RELATIVE, rel_pos="block", layerscale=0.1, pool="avg"),
        unwanted=("head.*", "fc_norm.*", "*.relative_position_index"),
    ),
    "beitv2": Family(
        "BEiT v2",
        "MIT",
        native=dict(RELATIVE, rel_pos="shared", layerscale=1e-5),
        container="model",
        unwanted=("*.relative_position_index", "mask_token", "lm_head.*", "cls_pt_layers.*"),
        finding="fails",
    ),
    "beit3": Family(
        "BEiT-3", "Apache-2.0", native=dict(sub_ln="both", norm_eps=1e-5, pool="avg"), unwanted=("head.*", "fc_norm.*")
    ),
    "dinov2": Family(
        "DINOv2",
        "Apache-2.0",
        native=dict(layerscale=1e-5),
        unwanted=("head.*", "mask_token"),
        finding="fails",
        img_size=224,
    ),
    "dinov2_reg": Family(
        "DINOv2 with registers",
        "Apache-2.0",
        finding="fails",
        img_size=224,
        native=dict(layerscale=1e-5, registers=4, pos_embed="patches"),
    ),
    "dinov3": Family(
        "DINOv3",
        "DINOv3",
        unwanted=("head.*", "rope.*"),
        native=dict(layerscale=1e-5, registers=4, rope="dinov3", qkv_bias="none", pos_embed="none", norm_eps=1e-5),
    ),
    "eva02": Family(
        "EVA-02",
        "MIT",
        OPENAI,
        dict(rope="eva02", swiglu=True, mlp_ratio=8 / 3, qkv_bias="qv", pool="avg"),
        unwanted=("head.*", "fc_norm.*", "rope.*"),
    ),
}


@dataclass(frozen=True)
class Teacher:
    """An entry of the registry."""

    family: str
    config: ViTConfig
    url: str = ""  # of the published file; a nano teacher has none
    title: str = ""  # where it differs from the family's

    @property
    def normalisation(self) -> tuple:
        """Mean and standard deviation of the input, three channels each, for images from 0 to 1."""
        return FAMILIES[self.family].normalisation if self.url else HALF

    @property
    def img_size(self) -> int:
        """The image size at which train.py and eval.py use the teacher, in pixels."""
        return self.url and FAMILIES[self.family].img_size or self.config.img_size


SIZES = {
    "ti": dict(dim=192, heads=3),
    "s": dict(dim=384, heads=6),
    "b": dict(dim=768, heads=12),
    "l": dict(dim=1024, heads=16, depth=24),
}


def teacher(family: str, size: str, source: str, title: str = "", **shape) -> Teacher:
    """An entry: `source` is a repository of timm's on the hub, or the address of the authors' file."""
    if not source.startswith("https:"):
        name = "open_clip_model" if family == "clip" else "model"
        source = f"https://huggingface.co/timm/{source}/resolve/main/{name}.safetensors"
    return Teacher(family, ViTConfig(**{**SIZES[size], **FAMILIES[family].native, **shape}), source, title)


def _authors() -> dict[str, Teacher]:
    meta, ibot = "https://dl.fbaipublicfiles.com", "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive"
    beitv2 = "https://github.com/addf400/files/releases/download/BEiT-v2"
    return {
        "mocov3_s": teacher("mocov3", "s", f"{meta}/moco-v3/vit-s-300ep/vit-s-300ep.pth.tar", heads=12),
        "mocov3_b": teacher("mocov3", "b", f"{meta}/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar"),
        "ibot_s": teacher("ibot", "s", f"{ibot}/2022/ibot/vits_16/checkpoint_teacher.pth"),
        "ibot_b": teacher("ibot", "b", f"{ibot}/2022/ibot/vitb_16/checkpoint_teacher.pth"),
        "ibot_l": teacher("ibot", "l", f"{ibot}/2022/ibot/vitl_16/checkpoint_teacher.pth"),
        "msn_s": teacher("msn", "s", f"{meta}/msn/vits16_800ep.pth.tar"),
        "msn_b": teacher("msn", "b", f"{meta}/msn/vitb16_600ep.pth.tar"),
        "msn_l": teacher("msn", "l", f"{meta}/msn/vitl16_600ep.pth.tar"),
        "beitv2_b": teacher("beitv2", "b", f"{beitv2}/beitv2_base_patch16_224_pt1k.pth"),
        "beitv2_l": teacher("beitv2", "l", f"{beitv2}/beitv2_large_patch16_224_pt1k.pth"),
    }


TEACHERS = {
    "deit_ti": teacher("deit", "ti", "deit_tiny_patch16_224.fb_in1k"),
    "deit_s": teacher("deit", "s", "deit_small_patch16_224.fb_in1k"),
    "deit_b": teacher("deit", "b", "deit_base_patch16_224.fb_in1k"),
    "deit3_s": teacher("deit3", "s", "deit3_small_patch16_224.fb_in1k"),
    "deit3_b": teacher("deit3", "b", "deit3_base_patch16_224.fb_in1k"),
    "deit3_l": teacher("deit3", "l", "deit3_large_patch16_224.fb_in1k"),
    "augreg_ti": teacher("augreg", "ti", "vit_tiny_patch16_224.augreg_in21k"),
    "augreg_s": teacher("augreg", "s", "vit_small_patch16_224.augreg_in21k"),
    "augreg_b": teacher("augreg", "b", "vit_base_patch16_224.augreg_in21k"),
    "dino_s": teacher("dino", "s", "vit_small_patch16_224.dino"),
    "dino_b": teacher("dino", "b", "vit_base_patch16_224.dino"),
    "mae_b": teacher("mae", "b", "vit_base_patch16_224.mae"),
    "mae_l": teacher("mae", "l", "vit_large_patch16_224.mae"),
    **_authors(),
    "clip_b32": teacher("clip", "b", "vit_base_patch32_clip_224.openai", patch_size=32),
    "clip_b": teacher("clip", "b", "vit_base_patch16_clip_224.openai"),
    "clip_l": teacher("clip", "l", "vit_large_patch14_clip_224.openai", patch_size=14),
    "siglip_b": teacher("siglip", "b", "vit_base_patch16_siglip_224.webli"),
    "siglip2_b": teacher("siglip", "b", "vit_base_patch16_siglip_224.v2_webli", "SigLIP 2"),
    "beit_b": teacher("beit", "b", "beit_base_patch16_224.in22k_ft_in22k"),
    "beit3_b": teacher("beit3", "b", "beit3_base_patch16_224.pt"),
    **{
        f"dinov2_{size}": teacher("dinov2", size, f"vit_{name}_patch14_dinov2.lvd142m", patch_size=14, img_size=518)
        for size, name in (("s", "small"), ("b", "base"), ("l", "large"))
    },
    **{
        f"dinov2_reg_{size}": teacher(
            "dinov2_reg", size, f"vit_{name}_patch14_reg4_dinov2.lvd142m", patch_size=14, img_size=518
        )
        for size, name in (("s", "small"), ("b", "base"), ("l", "large"))
    },
    "dinov3_s": teacher("dinov3", "s", "vit_small_patch16_dinov3.lvd1689m", img_size=256),
    "dinov3_splus": teacher("dinov3", "s", "vit_small_plus_patch16_dinov3.lvd1689m", img_size=256, swiglu=True),
    "dinov3_b": teacher("dinov3", "b", "vit_base_patch16_dinov3.lvd1689m", img_size=256),
    "dinov3_l": teacher("dinov3", "l", "vit_large_patch16_dinov3.lvd1689m", img_size=256),
    "eva02_ti": teacher("eva02", "ti", "eva02_tiny_patch14_224.mim_in22k", patch_size=14),
    "eva02_s": teacher("eva02", "s", "eva02_small_patch14_224.mim_in22k", patch_size=14),
    "eva02_b": teacher("eva02", "b", "eva02_base_patch14_224.mim_in22k", patch_size=14, sub_ln="mlp"),
    "eva02_l": teacher("eva02", "l", "eva02_large_patch14_224.mim_in22k", patch_size=14, sub_ln="mlp"),
}


def nano(family: str, native: dict) -> Teacher:
    """The family's native architecture at nano size: 16 tokens of 8 x 8 pixels, width 64, 4 blocks, 4 heads."""
    shape = dict(img_size=32, patch_size=8, dim=64, depth=4, heads=4, num_classes=len(SHAPES))
    pool = "token" if native.get("class_token", True) else "avg"
    return Teacher(family, ViTConfig(**{**native, **shape, "pool": pool}))


TEACHERS |= {f"{name}_nano": nano(name, family.native) for name, family in FAMILIES.items()}
FAMILIES["qknorm"] = Family("ViT with qk-norm", "", native=dict(qk_norm=True))  # no published teacher has it
TEACHERS["qknorm_nano"] = nano("qknorm", FAMILIES["qknorm"].native)


def find(name: str) -> Teacher:
    """The entry of that name, or a `UserError` with the nearest names."""
    if name not in TEACHERS:
        raise unknown("teacher", name, TEACHERS)
    return TEACHERS[name]


def student_config(
    name: str, components: str = "standard", num_classes: int = 1000, img_size: int | None = None
) -> ViTConfig:
    """The config of a student of that teacher: its size and token grid, a new head, and native components as asked.

    `components`: "standard" for none, "native" for all that the teacher has, or a comma list of their names. Students
    of real teachers average the patches (arXiv 2411.09702), nano students read the class token if there is one.
    """
    entry = find(name)
    theirs = entry.config
    owned = native_components(theirs)
    chosen = {"standard": [], "native": owned}.get(components, [part.strip() for part in components.split(",")])
    for component in chosen:
        if component not in NATIVE_COMPONENTS:
            raise unknown("student component", component, ("standard", "native", *NATIVE_COMPONENTS))
        if component not in owned:
            raise UserError(f"teacher {name} has no {component}; it has {', '.join(owned) or 'no native component'}")
    shape = dict(
        img_size=img_size or theirs.img_size,
        patch_size=theirs.patch_size,
        dim=theirs.dim,
        depth=theirs.depth,
        heads=theirs.heads,
        class_token=theirs.class_token,
        num_classes=num_classes,
        pool="avg" if entry.url or not theirs.class_token else "token",
    )
    if "swiglu" in chosen:
        shape["mlp_ratio"] = theirs.mlp_ratio  # EVA-02's hidden layer is narrower, to have as many parameters
    if components == "native":
        shape["norm_eps"] = theirs.norm_eps
    return ViTConfig(**shape, **{component: getattr(theirs, component) for component in chosen})


# ---------------------------------------------------------------------------------------------------------------
# Reading a published file

# From the names of timm's and the authors' files to those of model.py. No name on the right is changed again, so a
# file that has been converted passes through unchanged.
RENAMES = [
    (re.compile(pattern), name)
    for pattern, name in [
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"attn\.relative_position_bias_table$", "attn.rel_pos.relative_position_bias_table"),
        # CLIP, in OpenCLIP's layout
        (r"^class_embedding$", "cls_token"),
        (r"^positional_embedding$", "pos_embed"),
        (r"^conv1\.", "patch_embed.proj."),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^transformer\.resblocks\.", "blocks."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ]
]


def convert(tensors: dict[str, Tensor], entry: Teacher) -> dict[str, Tensor]:
    """Published tensors, the wanted ones, in model.py's names and shapes and in float32. Empties `tensors`.

    What does not fit is left as it is, for `build` to refuse.
    """
    ours, dim, hidden = {}, entry.config.dim, int(entry.config.dim * entry.config.mlp_ratio)

    def put(name: str, value: Tensor) -> None:
        ours[f"{name} (twice)" if name in ours else name] = value  # a second one is left over, not the winner

    for published in list(tensors):
        value = tensors.pop(published)  # popped, so that only one tensor at a time is held twice
        name = published.removeprefix(FAMILIES[entry.family].prefix)
        for pattern, new in RENAMES:
            name = pattern.sub(new, name)
        if name in ("cls_token", "pos_embed"):
            value = value.view((1,) * (3 - value.ndim) + value.shape)
        put(name, value.float() if value.is_floating_point() else value)
    for stem in [name.removesuffix("q_proj.weight") for name in ours if name.endswith("attn.q_proj.weight")]:
        parts = [f"{stem}{part}_proj.weight" for part in "qkv"]  # EVA-02 B and L: q, k and v apart
        if ours.keys() >= {*parts, stem + "q_proj.bias", stem + "v_proj.bias"} and all(
            ours[part].shape == (dim, dim) for part in parts
        ):
            put(stem + "qkv.weight", torch.cat([ours.pop(part) for part in parts]))
            put(stem + "q_bias", ours.pop(stem + "q_proj.bias"))
            put(stem + "v_bias", ours.pop(stem + "v_proj.bias"))
    if entry.config.swiglu:
        for name in [name for name in ours if ".mlp.fc1." in name]:  # EVA-02 Ti and S: gate and value in one
            if ours[name].shape[:1] == (2 * hidden,):
                for part, value in zip(("fc1_g", "fc1_x"), ours.pop(name).chunk(2)):
                    put(name.replace("fc1", part), value)
    return ours


def refused(path: Path, name: str, problem: str) -> UserError:
    """The error for a file that is not the teacher's."""
    source = find(name).url or f"a pretrained {name}"
    return UserError(f"{path} {problem}; put the file of {name} in its place: {source}")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of the header in 8 bytes, then the header, in JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read(path: Path, name: str) -> dict[str, Tensor]:
    """The teacher's tensors from a published file: safetensors, or the authors' pickle, which may run no code."""
    entry = find(name)
    family = FAMILIES[entry.family]

    def wanted(key: str) -> bool:  # a nano teacher wants all: it has a head, too
        return not entry.url or not any(fnmatch(key, pattern) for pattern in family.unwanted)

    if not os.path.isfile(path):
        raise refused(path, name, "is not there, or is no file")
    try:
        if is_safetensors(path):
            with safe_open(path, "pt") as file:
                held = {key: file.get_tensor(key) for key in file.keys() if wanted(key)}
        else:  # argparse.Namespace holds the settings of some authors' runs, and nothing that runs
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles that are refused anyway
                with open(path, "rb") as file:
                    held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle makes its reader stumble over
        problem = "is cut short or is no weights file"
        if isinstance(error, PermissionError):
            problem = "is not yours to read"
        elif "GLOBAL" in str(error):
            problem = "holds code and was not loaded"
        raise refused(path, name, problem) from error
    if isinstance(held, dict) and family.container in held:
        held = held[family.container]
    if not isinstance(held, dict):
        raise refused(path, name, "holds no named tensors")
    held = {str(key): value for key, value in held.items() if wanted(str(key))}
    strange = [key for key, value in held.items() if not isinstance(value, Tensor)]
    if strange:
        raise refused(path, name, f"holds more than tensors: {first(strange)}")
    return convert(held, entry)


def first(keys: list[str]) -> str:
    """The first few of many."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def build(name: str, path: Path, config: ViTConfig) -> ViT:
    """The teacher with the weights of a file, at the size that `config` says. Refuses a file that does not fit."""
    entry, tensors = find(name), read(path, name)
    with torch.device("meta"):  # shapes without memory: the tensors that were read become the parameters
        model = ViT(entry.config)
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    both = sorted(expected.keys() & tensors.keys())
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} and not {tuple(expected[key].shape)}"
        for key in both
        if tensors[key].shape != expected[key].shape
    ]
    types = [f"{key} is {tensors[key].dtype}" for key in both if tensors[key].dtype != torch.float32]
    for problem, keys in (
        ("lacks", missing),
        ("has the unknown", extra),
        ("has wrong shapes:", shapes),
        ("has wrong types:", types),
    ):
        if keys:
            raise refused(path, name, f"does not hold the weights of {name}: it {problem} {first(keys)}")
    if config.grid != entry.config.grid:
        tensors = {key: resample(key, value, entry.config, config) for key, value in tensors.items()}
        with torch.device("meta"):
            model = ViT(config)
    model.load_state_dict(tensors, assign=True)
    return model


def resample(name: str, value: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """A tensor of positions, for another grid of patches, as timm does it; any other tensor as it is."""
    if name == "pos_embed":
        tokens, patches = value.split((value.shape[1] - old.grid**2, old.grid**2), dim=1)
        patches = patches.view(1, old.grid, old.grid, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=(new.grid, new.grid), mode="bicubic", antialias=True)
        return torch.cat((tokens, patches.flatten(2).transpose(1, 2)), dim=1)
    if name.endswith("relative_position_bias_table"):
        offsets, side = value[:-3], 2 * old.grid - 1  # the last three rows are the class token's
        weights = offset_weights(old.grid, new.grid)
        offsets = torch.einsum("ij,jkh,lk->ilh", weights, offsets.view(side, side, -1), weights).flatten(0, 1)
        return torch.cat((offsets, value[-3:]))
    return value


def offset_weights(old: int, new: int) -> Tensor:
    """(2 new - 1, 2 old - 1) weights that interpolate a bias over offsets to another grid (BEiT's released code).

    The old offsets are laid out at growing distances, in a geometric progression that spans the new ones, so that
    near offsets keep their meaning; between them the bias is interpolated linearly.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1 else (ratio, high)
    steps = torch.cumsum(ratio ** torch.arange(old - 1, dtype=torch.float64), 0)
    places = torch.cat((-steps.flip(0), steps.new_zeros(1), steps))
    wanted = torch.arange(1 - new, new, dtype=torch.float64).clamp(places[0], places[-1])
    right = torch.searchsorted(places, wanted).clamp(1, len(places) - 1)
    share = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    weights = torch.zeros(2 * new - 1, 2 * old - 1, dtype=torch.float64)
    row = torch.arange(2 * new - 1)
    weights[row, right - 1], weights[row, right] = 1 - share, share
    return weights.float()


# ---------------------------------------------------------------------------------------------------------------
# Fetching


def cache_path(name: str) -> Path:
    """Where a teacher's file is kept."""
    return Path(torch.hub.get_dir()) / "attention_transfer" / f"{name}.safetensors"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which becomes `path` if all goes well and vanishes if not.

    Raises `UserError` if there is no writing there, before the caller's work where that can be told, or no room.
    """
    if not path.name or path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the path of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.touch()
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and "inline_container" not in str(error):  # torch.save's word for a full disk
            raise
        raise UserError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}; make room there, or choose "
            f"another place (the variable TORCH_HOME moves the weights)"
        ) from error


def fetch(name: str) -> Path:
    """The teacher's file in the cache; downloaded, or for a nano teacher pretrained, if it is not there."""
    entry, path = find(name), cache_path(name)
    if not entry.url:
        return pretrain(name, path)
    if os.path.isfile(path):
        return path
    with replacing(path) as part:
        with open(part, "wb") as file:
            file.writelines(download(name))
        try:
            model = build(name, part, entry.config)
        except UserError as error:  # and a later run does not find it
            problem = str(error).removeprefix(f"{part} ")
            raise UserError(f"what {address(entry.url)} sends {problem}; {otherwise(path)}") from error
        if not is_safetensors(part):  # the authors' pickle is opened once, and kept as tensors
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, part)
    return path


def otherwise(path: Path) -> str:
    return f"put the file at {path}, or name it with --weights PATH, or use a teacher that needs none, as deit_nano"


HUB = "https://huggingface.co"


def address(url: str) -> str:
    """The address, at the mirror of the hub that HF_ENDPOINT names if there is one."""
    return url.replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the checksum that the hub states in the first answer only."""

    sha256 = ""

    def redirect_request(self, request, file, code, message, headers, url):
        self.sha256 = self.sha256 or (headers.get("X-Linked-Etag") or "").strip('"')
        return super().redirect_request(request, file, code, message, headers, url)


def download(name: str) -> Iterator[bytes]:
    """The teacher's published file, in pieces, with a progress bar; checks its length and, if stated, its SHA-256.

    A token in HF_TOKEN is shown to the hub, or, as by the hub's own client, to the mirror that HF_ENDPOINT puts in its
    place; but not to the host that it redirects to. Every trouble of the network is a `UserError`.
    """
    url, token = address(find(name).url), os.environ.get("HF_TOKEN", "").strip()
    redirects, digest = Redirects(), hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "attention-transfer"})
        if token and find(name).url.startswith(HUB):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.build_opener(redirects).open(request, timeout=60) as answer:
            sha256 = redirects.sha256 or (answer.headers.get("X-Linked-Etag") or "").strip('"')
            length = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=length or None, unit="B", unit_scale=True, desc=f"download {name}") as bar:
                while piece := answer.read(1 << 20):
                    digest.update(piece)
                    bar.update(len(piece))
                    yield piece
        if length and bar.n != length:
            raise ConnectionError(f"the transfer ended after {bar.n} of {length} bytes")
        if len(sha256) == 64 and digest.hexdigest() != sha256:
            raise ConnectionError(f"its SHA-256 is {digest.hexdigest()[:12]}... and not {sha256[:12]}..., as stated")
    except urllib.error.HTTPError as error:
        licence = "the file is behind a licence: accept it on the hub and put your token into HF_TOKEN"
        why = {401: licence, 403: licence, 404: "the file is not there any more"}.get(error.code, "try again later")
        raise UserError(f"{url} answers {error.code}; {why}, or {otherwise(cache_path(name))}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # a ValueError: HF_ENDPOINT is no address
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download {url} ({reason}); {otherwise(cache_path(name))}") from error


# ---------------------------------------------------------------------------------------------------------------
# Nano teachers

PRETRAINING = dict(steps=1200, batch=64, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05, warmup=0.1, clip=1.0, seed=0)


def pretrain(name: str, path: Path) -> Path:
    """Trains a nano teacher on fresh images of `matching` (about a minute on two cores), or finds it in the cache."""
    config, recipe = find(name).config, PRETRAINING
    stamp = json.dumps([repr(config), recipe])
    if os.path.isfile(path):
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("recipe") == stamp:
                    return path
        except (SafetensorError, OSError):
            pass  # no file of ours: train again and replace it
    with replacing(path) as part, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe["seed"])
        model = ViT(config)
        optimiser = torch.optim.AdamW(
            model.parameters(), recipe["lr"], recipe["betas"], weight_decay=recipe["weight_decay"]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: cosine_schedule(step, recipe["steps"], recipe["warmup"] * recipe["steps"])
        )
        for step in (bar := tqdm(range(recipe["steps"]), desc=f"pretrain {name}", unit="step")):
            images, labels = matching(recipe["batch"], seed=1_000_000 + step)
            loss = F.cross_entropy(model(normalise(images, *HALF)), labels)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
            optimiser.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
        save_file(model.state_dict(), part, metadata={"format": "pt", "recipe": stamp})
    return path


def cosine_schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# ---------------------------------------------------------------------------------------------------------------
# What others call


def load_teacher(name: str, weights: str | None = None, img_size: int | None = None) -> ViT:
    """The teacher, frozen and in eval mode.

    `weights` is a file in the published layout; without it the file is taken from the cache, or fetched into it;
    "random" leaves the teacher untrained, as a control. At another `img_size` than the teacher's own, its positions
    are resampled. Raises `UserError` for whatever the caller can mend.
    """
    config = find(name).config
    config = replace(config, img_size=img_size or config.img_size)
    model = ViT(config) if weights == "random" else build(name, Path(weights) if weights else fetch(name), config)
    return model.eval().requires_grad_(False)


def count_parameters(config: ViTConfig) -> int:
    """How many parameters a ViT of that config has, counted without building it."""
    dim, hidden, patches = config.dim, int(config.dim * config.mlp_ratio), config.grid**2
    norm, table = 2 * dim, ((2 * config.grid - 1) ** 2 + 3) * config.heads
    attention = 3 * dim * dim + {"qkv": 3, "qv": 2, "none": 0}[config.qkv_bias] * dim + dim * dim + dim
    attention += 4 * dim // config.heads * config.qk_norm + norm * (config.sub_ln == "both")
    mlp = (1 + config.swiglu) * (dim * hidden + hidden) + 2 * hidden * (config.sub_ln is not None) + hidden * dim + dim
    block = 2 * norm + attention + mlp + 2 * dim * (config.layerscale is not None) + table * (config.rel_pos == "block")
    positions = {"none": 0, "patches": patches}.get(config.pos_embed, patches + config.class_token)
    embedding = 3 * config.patch_size**2 * dim + (norm if config.pre_norm else dim)
    embedding += (config.class_token + config.registers + positions) * dim + table * (config.rel_pos == "shared")
    head = config.num_classes * (dim + 1) + norm * (config.pool != "avg" or config.num_classes > 0)
    return embedding + config.depth * block + head


# ---------------------------------------------------------------------------------------------------------------
# Command line


class Arguments(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> None:
        raise UserError(message)


def one_of(kind: str, choices) -> Callable[[str], str]:
    """An argparse type: one of the choices, or an error with the nearest."""

    def check(word: str) -> str:
        if word not in choices:
            raise argparse.ArgumentTypeError(str(unknown(kind, word, choices)))
        return word

    return check


def number_from(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def check(word: str) -> float:
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            span = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
            raise argparse.ArgumentTypeError(f"'{word}' is not {'a whole' if kind is int else 'a'} number {span}")
        return value

    return check


def answer_mistakes(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a user's mistake ends it with one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        last = str(error).rstrip().rpartition("\n")[2]  # one from a worker process comes with its traceback before it
        print(f"error: {last.removeprefix('model.UserError: ')}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    parser = Arguments(description="The table of teachers; with names, downloads those and checks them.")
    parser.add_argument("names", nargs="*", metavar="TEACHER")
    names = parser.parse_args().names
    for name in names:
        find(name)
    for name in names:
        count = sum(parameter.numel() for parameter in load_teacher(name).parameters())
        print(f"{name}: {count:,} parameters, complete, in {cache_path(name)}")
    if not names:
        print(
            f"{'id':15} {'family':21} {'params':>7} {'tokens':9} {'transfer':8} {'licence':13} {'cached':6} "
            f"native components"
        )
        for name, entry in TEACHERS.items():
            config, family = entry.config, FAMILIES[entry.family]
            print(
                f"{name:15} {entry.title or family.title:21} {count_parameters(config) / 1e6:6.1f}M "
                f"{config.grid:2} x {config.grid:<2}+{config.prefix} {entry.url and family.finding or '-':8} "
                f"{entry.url and family.licence or '-':13} {'yes' if os.path.isfile(cache_path(name)) else '-':6} "
                f"{', '.join(native_components(config)) or '-'}"
            )


if __name__ == "__main__":
    answer_mistakes(main)
