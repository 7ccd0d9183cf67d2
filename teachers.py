"""The teachers: a registry of pretrained ViTs, and the loading of their published weights, exactly.

    python teachers.py                    # the table of all teachers
    python teachers.py eva02_s dinov2_b   # download these and check them

This file is for reference: train.py and eval.py ask it for a teacher by name. Look first at one entry of `TEACHERS`: an
architecture that model.py can build, and the address of a file. Then look at its family, which says how that file is
laid out. A file is read whole or refused: each of its tensors is used, or is on the family's list of unwanted ones.

`<family>_nano` teachers need no download. They have the native components of their family at a size for the desk, and
are pretrained here, on the data set `matching`, when they are first asked for.
"""

import hashlib
import json
import re
import sys
import textwrap
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file, save_model
from torch import Tensor
from tqdm import tqdm

from model import COMPONENTS, ViT, ViTConfig, native_components
from support.arguments import Parser
from support.data import normalise
from support.errors import UserError, answer_mistakes, unknown
from support.files import replacing
from support.matching import SHAPES, matching
from support.schedule import cosine_schedule
from support.tables import print_aligned
from support.weights import address, cache_path, download, is_safetensors, read_tensors

# ---- The registry: families ------------------------------------------------------------------------------------------

# Mean and standard deviation of the input, by channel, for images from 0 to 1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """What the teachers of one family share."""

    title: str
    licence: str
    normalisation: tuple = IMAGENET
    unwanted: tuple[str, ...] = ("head.*",)  # patterns of published tensors that a teacher does not need
    key_prefix: str = ""  # what the names of its tensors begin with, where the file holds other models too
    container: str = ""  # the entry of the authors' pickle that holds the tensors
    finding: str = ""  # what transfer to a standard student does (arXiv 2605.07191), where it is known
    img_size: int | None = None  # the size in pixels at which the papers used the teachers, where it is not their own


BEITV2_HEADS = ("*.relative_position_index", "mask_token", "lm_head.*", "cls_pt_layers.*")
FAMILIES = {
    "deit": Family("DeiT", "Apache-2.0", finding="works"),
    "deit3": Family("DeiT III", "Apache-2.0"),
    "augreg": Family("AugReg ViT", "Apache-2.0", HALF),
    "dino": Family("DINO", "Apache-2.0", finding="works"),
    "mocov3": Family("MoCo v3", "CC-BY-NC-4.0", container="state_dict", key_prefix="module.base_encoder."),
    "mae": Family("MAE", "CC-BY-NC-4.0", container="model"),
    "ibot": Family("iBOT", "Apache-2.0", unwanted=("head.*", "masked_embed"), container="state_dict"),
    "msn": Family("MSN", "CC-BY-NC-4.0", IMAGENET, ("fc.*", "pred.*"), "module.", "target_encoder"),
    "clip": Family("CLIP", "Apache-2.0", OPENAI, ("proj",), "visual.", finding="fails"),
    "siglip": Family("SigLIP", "Apache-2.0", HALF, ("head.*", "attn_pool.*")),
    "beit": Family("BEiT", "Apache-2.0", HALF, ("head.*", "fc_norm.*", "*.relative_position_index")),
    "beitv2": Family("BEiT v2", "MIT", IMAGENET, BEITV2_HEADS, container="model", finding="fails"),
    "beit3": Family("BEiT-3", "Apache-2.0", unwanted=("head.*", "fc_norm.*")),
    "dinov2": Family("DINOv2", "Apache-2.0", unwanted=("head.*", "mask_token"), finding="fails", img_size=224),
    "dinov2_reg": Family("DINOv2 with registers", "Apache-2.0", finding="fails", img_size=224),
    "dinov3": Family("DINOv3", "DINOv3", unwanted=("head.*", "rope.*")),
    "eva02": Family("EVA-02", "MIT", OPENAI, ("head.*", "fc_norm.*", "rope.*")),
    "qknorm": Family("ViT with qk-norm", ""),  # No published teacher has it.
}

# What each family adds to the standard ViT: fields of `ViTConfig`.
NATIVE = {
    "deit3": dict(layerscale=1e-6, pos_embed="patches"),
    "mocov3": dict(pos_embed="sincos"),
    "mae": dict(pos_embed="sincos"),
    "clip": dict(pre_norm=True, quick_gelu=True, norm_eps=1e-5),
    "siglip": dict(class_token=False, pool="none"),
    "beit": dict(qkv_bias="qv", pos_embed="none", rel_pos="block", layerscale=0.1, pool="avg"),
    "beitv2": dict(qkv_bias="qv", pos_embed="none", rel_pos="shared", layerscale=1e-5),
    "beit3": dict(sub_ln="both", norm_eps=1e-5, pool="avg"),
    "dinov2": dict(layerscale=1e-5),
    "dinov2_reg": dict(layerscale=1e-5, registers=4, pos_embed="patches"),
    "dinov3": dict(layerscale=1e-5, registers=4, rope="dinov3", qkv_bias="none", pos_embed="none", norm_eps=1e-5),
    "eva02": dict(rope="eva02", swiglu=True, mlp_ratio=8 / 3, qkv_bias="qv", pool="avg"),
    "qknorm": dict(qk_norm=True),
}

# ---- The registry: teachers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teacher:
    """An entry of the registry."""

    family: str
    config: ViTConfig
    url: str = ""  # the address of the published file; a nano teacher has none
    title: str = ""  # the title, where it is not the family's

    @property
    def normalisation(self) -> tuple:
        """Mean and standard deviation of the input, three channels each, for images from 0 to 1."""
        return FAMILIES[self.family].normalisation if self.url else HALF

    @property
    def img_size(self) -> int:
        """The image size at which train.py and eval.py use the teacher, in pixels."""
        return (self.url and FAMILIES[self.family].img_size) or self.config.img_size


# The width, the depth and the heads by size.
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
IBOT = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
BEITV2 = "https://github.com/addf400/files/releases/download/BEiT-v2"


def entry(family: str, size: str, source: str, title: str = "", **shape) -> Teacher:
    """An entry of the registry. `source` is a repository of timm's on the hub, or the address of the authors' file."""
    if not source.startswith("https:"):
        file = "open_clip_model" if family == "clip" else "model"
        source = f"https://huggingface.co/timm/{source}/resolve/main/{file}.safetensors"
    dim, depth, heads = SIZES[size]
    shape = {"dim": dim, "depth": depth, "heads": heads, **NATIVE.get(family, {}), **shape}
    return Teacher(family, ViTConfig(**shape), source, title)


TEACHERS = {
    "deit_ti": entry("deit", "ti", "deit_tiny_patch16_224.fb_in1k"),
    "deit_s": entry("deit", "s", "deit_small_patch16_224.fb_in1k"),
    "deit_b": entry("deit", "b", "deit_base_patch16_224.fb_in1k"),
    "deit3_s": entry("deit3", "s", "deit3_small_patch16_224.fb_in1k"),
    "deit3_b": entry("deit3", "b", "deit3_base_patch16_224.fb_in1k"),
    "deit3_l": entry("deit3", "l", "deit3_large_patch16_224.fb_in1k"),
    "augreg_ti": entry("augreg", "ti", "vit_tiny_patch16_224.augreg_in21k"),
    "augreg_s": entry("augreg", "s", "vit_small_patch16_224.augreg_in21k"),
    "augreg_b": entry("augreg", "b", "vit_base_patch16_224.augreg_in21k"),
    "dino_s": entry("dino", "s", "vit_small_patch16_224.dino"),
    "dino_b": entry("dino", "b", "vit_base_patch16_224.dino"),
    "mae_b": entry("mae", "b", "vit_base_patch16_224.mae"),
    "mae_l": entry("mae", "l", "vit_large_patch16_224.mae"),
    "mocov3_s": entry(
        "mocov3", "s", "https://dl.fbaipublicfiles.com/moco-v3/vit-s-300ep/vit-s-300ep.pth.tar", heads=12
    ),
    "mocov3_b": entry("mocov3", "b", "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar"),
    "ibot_s": entry("ibot", "s", f"{IBOT}/vits_16/checkpoint_teacher.pth"),
    "ibot_b": entry("ibot", "b", f"{IBOT}/vitb_16/checkpoint_teacher.pth"),
    "ibot_l": entry("ibot", "l", f"{IBOT}/vitl_16/checkpoint_teacher.pth"),
    "msn_s": entry("msn", "s", "https://dl.fbaipublicfiles.com/msn/vits16_800ep.pth.tar"),
    "msn_b": entry("msn", "b", "https://dl.fbaipublicfiles.com/msn/vitb16_600ep.pth.tar"),
    "msn_l": entry("msn", "l", "https://dl.fbaipublicfiles.com/msn/vitl16_600ep.pth.tar"),
    "beitv2_b": entry("beitv2", "b", f"{BEITV2}/beitv2_base_patch16_224_pt1k.pth"),
    "beitv2_l": entry("beitv2", "l", f"{BEITV2}/beitv2_large_patch16_224_pt1k.pth"),
    "clip_b32": entry("clip", "b", "vit_base_patch32_clip_224.openai", patch_size=32),
    "clip_b": entry("clip", "b", "vit_base_patch16_clip_224.openai"),
    "clip_l": entry("clip", "l", "vit_large_patch14_clip_224.openai", patch_size=14),
    "siglip_b": entry("siglip", "b", "vit_base_patch16_siglip_224.webli"),
    "siglip2_b": entry("siglip", "b", "vit_base_patch16_siglip_224.v2_webli", "SigLIP 2"),
    "beit_b": entry("beit", "b", "beit_base_patch16_224.in22k_ft_in22k"),
    "beit3_b": entry("beit3", "b", "beit3_base_patch16_224.pt"),
    "dinov2_s": entry("dinov2", "s", "vit_small_patch14_dinov2.lvd142m", patch_size=14, img_size=518),
    "dinov2_b": entry("dinov2", "b", "vit_base_patch14_dinov2.lvd142m", patch_size=14, img_size=518),
    "dinov2_l": entry("dinov2", "l", "vit_large_patch14_dinov2.lvd142m", patch_size=14, img_size=518),
    "dinov2_reg_s": entry("dinov2_reg", "s", "vit_small_patch14_reg4_dinov2.lvd142m", patch_size=14, img_size=518),
    "dinov2_reg_b": entry("dinov2_reg", "b", "vit_base_patch14_reg4_dinov2.lvd142m", patch_size=14, img_size=518),
    "dinov2_reg_l": entry("dinov2_reg", "l", "vit_large_patch14_reg4_dinov2.lvd142m", patch_size=14, img_size=518),
    "dinov3_s": entry("dinov3", "s", "vit_small_patch16_dinov3.lvd1689m", img_size=256),
    "dinov3_splus": entry("dinov3", "s", "vit_small_plus_patch16_dinov3.lvd1689m", img_size=256, swiglu=True),
    "dinov3_b": entry("dinov3", "b", "vit_base_patch16_dinov3.lvd1689m", img_size=256),
    "dinov3_l": entry("dinov3", "l", "vit_large_patch16_dinov3.lvd1689m", img_size=256),
    "eva02_ti": entry("eva02", "ti", "eva02_tiny_patch14_224.mim_in22k", patch_size=14),
    "eva02_s": entry("eva02", "s", "eva02_small_patch14_224.mim_in22k", patch_size=14),
    "eva02_b": entry("eva02", "b", "eva02_base_patch14_224.mim_in22k", patch_size=14, sub_ln="mlp"),
    "eva02_l": entry("eva02", "l", "eva02_large_patch14_224.mim_in22k", patch_size=14, sub_ln="mlp"),
}


def nano(family: str) -> Teacher:
    """The family's native architecture at nano size: 16 patches of 8 x 8 pixels, width 64, 4 blocks, 4 heads."""
    shape = dict(img_size=32, patch_size=8, dim=64, depth=4, heads=4, num_classes=len(SHAPES))
    config = ViTConfig(**{**NATIVE.get(family, {}), **shape})
    return Teacher(family, replace(config, pool="token" if config.class_token else "avg"))


# At nano size some are the same network: DeiT, AugReg, DINO, iBOT and MSN have no native component; MoCo v3 has MAE's.
TEACHERS |= {f"{family}_nano": nano(family) for family in FAMILIES}


def find_teacher(name: str) -> Teacher:
    """The entry of that name, or a `UserError` with the nearest names."""
    if name not in TEACHERS:
        raise unknown("teacher", name, TEACHERS)
    return TEACHERS[name]


def place_of(name: str) -> tuple[str, list[int]]:
    """The title of a teacher's family, and the numbers of the family and of the teacher in the registry."""
    family = find_teacher(name).family
    return FAMILIES[family].title, [list(FAMILIES).index(family), list(TEACHERS).index(name)]


def student_config(
    name: str, components: str = "standard", num_classes: int = 1000, img_size: int | None = None
) -> ViTConfig:
    """The config of a student of that teacher: its size and token grid, a new head, and native components as asked.

    `components`: "standard" for none, "native" for all that the teacher has, or a comma list of their names. Students
    of real teachers average the patches (arXiv 2411.09702), nano students read the class token if there is one.
    """
    theirs, is_nano = find_teacher(name).config, not find_teacher(name).url
    owned = native_components(theirs)
    chosen = {"standard": [], "native": owned}.get(components, [part.strip() for part in components.split(",")])
    for component in chosen:
        if component not in COMPONENTS:
            raise unknown("student component", component, ("standard", "native", *COMPONENTS))
        if component not in owned:
            raise UserError(f"teacher {name} has no {component}; it has {', '.join(owned) or 'no native component'}")

    # The student has the teacher's shape and a new head. What is not asked for is as in the standard ViT.
    left_out = [component for component in COMPONENTS if component not in chosen]
    if "swiglu" not in chosen:
        left_out.append("mlp_ratio")
    if components != "native":
        left_out.append("norm_eps")
    standard = {field: getattr(ViTConfig, field) for field in left_out}
    pool = "token" if is_nano and theirs.class_token else "avg"
    return replace(theirs, img_size=img_size or theirs.img_size, num_classes=num_classes, pool=pool, **standard)


# ---- From a published file's names to ours ---------------------------------------------------------------------------
#
# Each step takes tensors by name and returns them, more like ours. Names already in our form stay, so converting twice
# is harmless.

RENAMES = [
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # LayerScale of BEiT and BEiT v2
    (r"attn\.relative_position_bias_table$", "attn.rel_pos.relative_position_bias_table"),
    (r"attn\.([qv])_proj\.bias$", r"attn.\1_bias"),  # EVA-02 B and L
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


Tensors = dict[str, Tensor]  # by name


def convert(tensors: Tensors, teacher: Teacher) -> Tensors:
    """A published file's tensors in model.py's names and shapes, in float32. What does not fit is left as it is."""
    tensors = join_qkv(rename(wanted(tensors, teacher)))
    return split_gate(tensors) if teacher.config.swiglu else tensors


def wanted(tensors: Tensors, teacher: Teacher) -> Tensors:
    """The teacher's tensors, without those on the family's list of unwanted ones. A nano teacher wants its head."""
    family = FAMILIES[teacher.family]
    # Where some names begin with the prefix, the other tensors belong to other models.
    prefix = family.key_prefix if any(name.startswith(family.key_prefix) for name in tensors) else ""
    kept = {}
    for published, value in tensors.items():
        name = published.removeprefix(prefix)
        unwanted = teacher.url and any(fnmatch(name, pattern) for pattern in family.unwanted)
        if published.startswith(prefix) and not unwanted:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise UserError(f"{name} is {getattr(value, 'dtype', type(value).__name__)}")
            kept[name] = value
    return kept


def rename(tensors: Tensors) -> Tensors:
    """Our names, contiguous float32, and three dimensions for the class token and the positions."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        if name in ("cls_token", "pos_embed"):
            value = value.view((1,) * (3 - value.ndim) + value.shape)
        add(renamed, name, value.float().contiguous())
    return renamed


def join_qkv(tensors: Tensors) -> Tensors:
    """EVA-02 B and L keep q, k and v apart; here they are one matrix."""
    joined = dict(tensors)
    for name in tensors:
        if name.endswith("attn.q_proj.weight"):
            stem = name.removesuffix("q_proj.weight")
            q_k_v = [joined.pop(f"{stem}{letter}_proj.weight", torch.empty(0)) for letter in "qkv"]
            if len({matrix.shape for matrix in q_k_v}) == 1:  # Otherwise the joint matrix will be missed.
                add(joined, stem + "qkv.weight", torch.cat(q_k_v))
    return joined


def split_gate(tensors: Tensors) -> Tensors:
    """EVA-02 Ti and S keep the gate of SwiGLU in one matrix, above what passes it; here they are two."""
    split = {}
    for name, value in tensors.items():
        if ".mlp.fc1." in name and value.ndim and len(value) > 1:
            gate, passes = value.chunk(2)
            add(split, name.replace("fc1", "fc1_g"), gate)
            add(split, name.replace("fc1", "fc1_x"), passes)
        else:
            add(split, name, value)
    return split


def add(tensors: Tensors, name: str, value: Tensor) -> None:
    if name in tensors:
        raise UserError(f"holds {name} twice")
    tensors[name] = value


# ---- Loading ---------------------------------------------------------------------------------------------------------


def load_teacher(name: str, weights: str | None = None, img_size: int | None = None, seed: int = 0) -> ViT:
    """The teacher, frozen and in eval mode.

    `weights` is a file in the published layout. Without it the file is taken from the cache, or fetched into it;
    "random" leaves the teacher untrained, as a control. `seed` is that of a nano teacher's pretraining. At another
    `img_size` than its own, its positions are resampled. Raises a `UserError` for whatever the caller can mend.
    """
    teacher = find_teacher(name)
    config = replace(teacher.config, img_size=img_size or teacher.config.img_size)
    if weights == "random":
        model = ViT(config)
    else:
        path = Path(weights) if weights else fetch(name, seed)
        try:
            model = open_file(name, path, config)
        except UserError as error:
            source = teacher.url or f"a pretrained {name}"
            raise UserError(f"{error}; put the file of {name} in its place: {source}") from error
    return model.eval().requires_grad_(False)


def open_file(name: str, path: Path, config: ViTConfig) -> ViT:
    """The teacher with the weights of a file, at the size that `config` says. Refuses a file that does not fit."""
    teacher = find_teacher(name)
    tensors = read_tensors(path, FAMILIES[teacher.family].container)
    try:
        tensors = convert(tensors, teacher)
        for tensor_name, value in tensors.items():
            if not value.isfinite().all():
                raise UserError(f"{tensor_name} has numbers that are not finite")
        model = with_tensors(teacher.config, tensors)
        if config.grid != teacher.config.grid:
            resampled = {key: resample(key, value, teacher.config, config) for key, value in model.state_dict().items()}
            model = with_tensors(config, resampled)
    except (UserError, RuntimeError) as error:
        # torch's report names every tensor, of which the first few will do.
        report = str(error).partition(":\n\t")[2] or str(error)
        report = textwrap.shorten(report, 300, placeholder=" ...")
        raise UserError(f"{path} does not hold the weights of {name}: {report}") from error
    return model


def fingerprint(teacher: ViT) -> str:
    """A hash of the teacher's weights, by which a run knows its teacher again."""
    digest = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        # Positions may have been resampled, whose last digits depend on the machine.
        if not name.endswith(("pos_embed", "bias_table")):
            digest.update(save({name: value}))
    return digest.hexdigest()


def shape_of(config: ViTConfig) -> ViT:
    """A model that has shapes, and neither values nor memory."""
    with torch.device("meta"):
        return ViT(config, initialise=False)


def with_tensors(config: ViTConfig, tensors: Tensors) -> ViT:
    """A model whose parameters are those tensors. Raises a RuntimeError unless they are all of them and no others."""
    model = shape_of(config)
    model.load_state_dict(tensors, assign=True)  # The tensors become the parameters, without a copy.
    model.fill_buffers()
    return model


def resample(name: str, value: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """A tensor of positions, for another grid of patches, as timm does it; any other tensor as it is."""
    if name == "pos_embed":
        tokens, patches = value.split((value.shape[1] - old.grid**2, old.grid**2), dim=1)
        patches = patches.view(1, old.grid, old.grid, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=(new.grid, new.grid), mode="bicubic", antialias=True)
        return torch.cat((tokens, patches.flatten(2).transpose(1, 2)), dim=1)
    if name.endswith("relative_position_bias_table"):
        offsets, class_token_rows = value[:-3], value[-3:]
        side, weights = 2 * old.grid - 1, offset_weights(old.grid, new.grid)
        offsets = torch.einsum("ij,jkh,lk->ilh", weights, offsets.view(side, side, -1), weights)
        return torch.cat((offsets.flatten(0, 1), class_token_rows))
    return value


def offset_weights(old: int, new: int) -> Tensor:
    """(2 new - 1, 2 old - 1) weights that interpolate a bias over offsets to another grid (BEiT's released code).

    The old offsets are laid out at growing distances, in a geometric progression that spans the new ones, so that near
    offsets keep their meaning. Between them the bias is interpolated linearly.
    """
    # The ratio of the progression is found by bisection: the sum of its old - 1 steps is to be new - 1.
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        too_far = (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1
        low, high = (low, ratio) if too_far else (ratio, high)
    steps = torch.cumsum(ratio ** torch.arange(old - 1, dtype=torch.float64), 0)  # (old - 1,)
    places = torch.cat((-steps.flip(0), steps.new_zeros(1), steps))  # (2 old - 1,)

    # Each new offset has entered each interval between two old ones so far, from 0 to 1. An old offset weighs as much
    # as its interval has been entered, minus what the next one has.
    wanted = torch.arange(1 - new, new)  # (2 new - 1,)
    entered = ((wanted[:, None] - places[:-1]) / places.diff()).clamp(0, 1)
    return (F.pad(entered, (1, 0), value=1.0) - F.pad(entered, (0, 1))).float()


def fetch(name: str, seed: int = 0) -> Path:
    """The teacher's file in the cache. If it is not there, it is downloaded, or a nano teacher is pretrained."""
    teacher, path = find_teacher(name), cache_path(f"{name}-seed{seed}" if seed else name)
    if not teacher.url:
        return pretrain(name, path, seed)
    if path.is_file():
        return path
    url = address(teacher.url)
    otherwise = (
        f"download it by hand to {path}, or name it with --weights PATH; or take a teacher without, as deit_nano"
    )
    with replacing(path) as temporary:
        print(f"downloading {url}", file=sys.stderr)
        download(url, temporary, otherwise)
        # A file that is not the teacher's must not stay, or the next run would find it.
        try:
            model = open_file(name, temporary, teacher.config)
        except UserError as error:
            problem = str(error).removeprefix(f"{temporary} ")
            raise UserError(f"what {url} sends {problem}; {otherwise}") from error
        if not is_safetensors(temporary):  # The authors' pickle is opened once, and kept as tensors.
            save_model(model, str(temporary))
    return path


# ---- Pretraining nano teachers ---------------------------------------------------------------------------------------

PRETRAINING = dict(steps=1200, batch=64, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05, warmup=0.1, clip=1.0, seed=0)


def pretrain(name: str, path: Path, seed: int = 0) -> Path:
    """Trains a nano teacher on fresh images of `matching`, in half a minute, or finds it in the cache."""
    config, recipe = find_teacher(name).config, PRETRAINING | {"seed": seed}
    stamp = json.dumps([repr(config), recipe])
    if stamp_of(path) == stamp:
        return path
    steps, batch, peak = recipe["steps"], recipe["batch"], recipe["lr"]
    with replacing(path) as temporary, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViT(config)
        optimiser = torch.optim.AdamW(model.parameters(), peak, recipe["betas"], weight_decay=recipe["weight_decay"])
        for step in tqdm(range(steps), desc=f"pretrain {path.stem}"):
            optimiser.param_groups[0]["lr"] = peak * cosine_schedule(step, steps, recipe["warmup"] * steps)
            # The images differ between seeds, and none of them is among the students'.
            images, labels = matching(batch, seed=1_000_000 * (seed + 1) + step)
            loss = F.cross_entropy(model(normalise(images, *HALF)), labels)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
            optimiser.step()
        save_file(model.state_dict(), temporary, metadata={"format": "pt", "recipe": stamp})
    return path


def stamp_of(path: Path) -> str | None:
    """The recipe by which a nano teacher's file was made, or None where there is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("recipe")
    except (SafetensorError, OSError):  # The teacher is trained again, and the file replaced.
        return None


# ---- The table of teachers -------------------------------------------------------------------------------------------


def print_table() -> None:
    lines = [["id", "family", "parameters", "tokens", "transfer", "licence", "cached", "native components"]]
    for name, teacher in TEACHERS.items():
        config, family = teacher.config, FAMILIES[teacher.family]
        parameters = sum(parameter.numel() for parameter in shape_of(config).parameters())
        published = [family.finding or "-", family.licence] if teacher.url else ["-", "-"]
        size = [f"{parameters / 1e6:.1f}M", f"{config.grid} x {config.grid} + {config.prefix}"]
        cached = "yes" if cache_path(name).is_file() else "-"
        components = ", ".join(native_components(config)) or "-"
        lines.append([name, teacher.title or family.title, *size, *published, cached, components])
    print_aligned(lines)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="TEACHER", help="Download the weights of these teachers and check them."
    )
    names = parser.parse_args().names
    for name in names:
        find_teacher(name)  # A mistake is answered before a download.
    for name in names:
        load_teacher(name)
        print(f"{name}: complete, in {cache_path(name)}")
    if not names:
        print_table()


if __name__ == "__main__":
    answer_mistakes(main)
