"""Registers the teachers, which are pretrained ViTs, and loads their published weights exactly.

    python teachers.py                    # Prints the table of all teachers.
    python teachers.py eva02_s dinov2_b   # Downloads these two and checks them.
    python teachers.py model.safetensors  # Says which teachers' weights a file holds.

This file is for reference: train.py and eval.py ask it for a teacher by name. First look at one entry of `TEACHERS`: it
has an architecture that model.py can build, and the URL of a file. Then look at `LAYOUTS`, which list the names that
files use for the parts of a ViT. A file is read whole or refused: each of its tensors must be used, or be on the list
of unwanted ones.

The teachers named `<family>_nano` need no download. They are small models with the native components of their family.
Each is pretrained here, on the data set `matching`, when it is first needed.
"""

import hashlib
import itertools
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file, save_model
from torch import Tensor
from tqdm import tqdm

from model import COMPONENTS, ViT, ViTConfig, native_components, sincos_positions
from support.arguments import Parser
from support.data import normalise
from support.errors import UserError, answer_mistakes, unknown
from support.files import replacing, turn
from support.matching import SHAPES, matching
from support.schedule import cosine_schedule
from support.tables import print_aligned
from support.weights import address, cache_path, download, in_hub_cache, is_safetensors, read_tensors, split_word

# ---- The registry: families ------------------------------------------------------------------------------------------

# Each of these holds the mean and the standard deviation of the input by channel, for pixel values from 0 to 1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """What all teachers of a family share."""

    title: str
    licence: str
    normalisation: tuple = IMAGENET
    finding: str = ""  # This says whether transfer to a standard student works, if known (arXiv 2605.07191).
    img_size: int | None = None  # The papers used this size in pixels, where it is not the teachers' own.


FAMILIES = {
    "deit": Family("DeiT", "Apache-2.0", finding="works"),
    "deit3": Family("DeiT III", "Apache-2.0"),
    "augreg": Family("AugReg ViT", "Apache-2.0", HALF),
    "dino": Family("DINO", "Apache-2.0", finding="works"),
    "mocov3": Family("MoCo v3", "CC-BY-NC-4.0"),
    "mae": Family("MAE", "CC-BY-NC-4.0"),
    "ibot": Family("iBOT", "Apache-2.0"),
    "msn": Family("MSN", "CC-BY-NC-4.0"),
    "clip": Family("CLIP", "Apache-2.0", OPENAI, finding="fails"),
    "siglip": Family("SigLIP", "Apache-2.0", HALF),
    "beit": Family("BEiT", "Apache-2.0", HALF),
    "beitv2": Family("BEiT v2", "MIT", finding="fails"),
    "beit3": Family("BEiT-3", "Apache-2.0"),
    "dinov2": Family("DINOv2", "Apache-2.0", finding="fails", img_size=224),
    "dinov2_reg": Family("DINOv2 with registers", "Apache-2.0", finding="fails", img_size=224),
    "dinov3": Family("DINOv3", "DINOv3"),
    "eva02": Family("EVA-02", "MIT", OPENAI),
    "qknorm": Family("ViT with qk-norm", ""),  # No published teacher has qk-norm.
}

# Each family adds these components to the standard ViT. They are fields of `ViTConfig`.
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
    url: str = ""  # This is the address of the published file. A nano teacher has none.
    title: str = ""  # A teacher without a title has that of its family.

    @property
    def normalisation(self) -> tuple:
        """The mean and the standard deviation of the input by channel, for pixel values from 0 to 1."""
        return FAMILIES[self.family].normalisation if self.url else HALF

    @property
    def img_size(self) -> int:
        """The image size in pixels at which train.py and eval.py use the teacher."""
        return (self.url and FAMILIES[self.family].img_size) or self.config.img_size


# Each size has a width, a depth and a number of heads.
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
IBOT = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
BEITV2 = "https://github.com/addf400/files/releases/download/BEiT-v2"


def entry(family: str, size: str, source: str, title: str = "", **shape) -> Teacher:
    """Makes an entry of the registry. `source` is timm's repository on the hub, or the URL of the authors' file."""
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
    "siglip_b": entry("siglip", "b", "vit_base_patch16_siglip_224.webli", tanh_gelu=True),
    "siglip2_b": entry("siglip", "b", "vit_base_patch16_siglip_224.v2_webli", "SigLIP 2", tanh_gelu=True),
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
    """Makes the entry of a family's nano teacher, a small model with the family's native components."""
    native = NATIVE.get(family, {})
    config = ViTConfig(img_size=32, patch_size=8, dim=64, depth=4, heads=4, num_classes=len(SHAPES), **native)
    return Teacher(family, replace(config, pool="token" if config.class_token else "avg"))


# Some nano teachers are the same network: DeiT, AugReg, DINO, iBOT and MSN have no native component, and MoCo v3 has
# the same one as MAE.
TEACHERS |= {f"{family}_nano": nano(family) for family in FAMILIES}


def find_teacher(name: str) -> Teacher:
    """Returns the entry with this name. Raises a `UserError` with the most similar names if there is none."""
    if name not in TEACHERS:
        raise unknown("teacher", name, TEACHERS)
    return TEACHERS[name]


def place_of(name: str) -> tuple[str, list]:
    """Returns the title of a teacher's family, and the indices of the family and the teacher in the registry."""
    family = find_teacher(name).family
    return FAMILIES[family].title, [list(FAMILIES).index(family), list(TEACHERS).index(name)]


def student_config(
    name: str, components: str = "standard", num_classes: int = 1000, img_size: int | None = None
) -> ViTConfig:
    """Returns the config of a student: it has the teacher's size and patches, and the chosen native components.

    `components` is "standard" for none, "native" for all that the teacher has, or a comma-separated list of names.
    Students of published teachers classify by the mean over patches (arXiv 2411.09702), and those of nano teachers by
    the class token if there is one.
    """
    teacher = find_teacher(name)
    theirs = teacher.config
    owned = native_components(theirs)
    chosen = {"standard": [], "native": owned}.get(components, [word.strip() for word in components.split(",")])
    for component in chosen:
        if component not in COMPONENTS:
            raise unknown("student component", component, ("standard", "native", *COMPONENTS))
        if component not in owned:
            raise UserError(f"teacher {name} has no {component}; it has {', '.join(owned) or 'no native component'}")

    # A component that was not chosen is as in the standard ViT.
    left_out = set(COMPONENTS).difference(chosen)
    if "swiglu" not in chosen:
        left_out.add("mlp_ratio")
    if components != "native":
        left_out |= {"norm_eps", "tanh_gelu"}
    standard = {field: getattr(ViTConfig, field) for field in left_out}
    pool = "avg" if teacher.url else theirs.pool
    return replace(theirs, img_size=img_size or theirs.img_size, num_classes=num_classes, pool=pool, **standard)


def name_components(name: str, components: str) -> str:
    """Returns the one spelling of a student's components: equal lists have the same, and a full list is "native"."""
    if components in ("standard", "native"):
        return components
    asked = student_config(name, components)
    if asked == student_config(name, "native"):
        return "native"
    words = [word.strip() for word in components.split(",")]
    return ",".join(component for component in COMPONENTS if component in words)


# ---- From a published file's names to ours ---------------------------------------------------------------------------
#
# The same network is published with several sets of names. A layout holds one set as patterns, which show the names
# that it uses for the parts of a ViT. The functions below change more than names. Tensors already in our form stay as
# they are, so converting twice is harmless.


@dataclass(frozen=True)
class Layout:
    """The names that files of one origin use for the parts of a ViT."""

    title: str
    kernel: str  # This pattern matches the name of the patch embedding's kernel, which identifies the layout.
    renames: dict[str, str]  # Each pattern is replaced in all names, in this order.


LAYOUTS = (
    Layout(
        "the layout of timm or of the authors",
        r"patch_embed\.proj\.weight",
        {
            r"\.gamma_([12])$": r".ls\1.gamma",  # BEiT, BEiT v2 and DeiT III use this name for LayerScale.
            r"attn\.relative_position_bias_table$": "attn.rel_pos.relative_position_bias_table",
            r"attn\.([qv])_proj\.bias$": r"attn.\1_bias",
            r"^(register|storage)_tokens$": "reg_token",  # DINOv2 and DINOv3 use these names for registers.
            # EVA-02's authors use the names below. DINOv3's gate has them, too.
            r"\.(inner_attn_ln|ffn_ln)\.": ".norm.",
            r"\.w12\.": ".fc1.",
            r"\.w1\.": ".fc1_g.",
            r"\.w2\.": ".fc1_x.",
            r"\.w3\.": ".fc2.",
        },
    ),
    Layout(
        "OpenCLIP's layout",
        r"conv1\.weight",
        {
            r"^class_embedding$": "cls_token",
            r"^positional_embedding$": "pos_embed",
            r"^conv1\.": "patch_embed.proj.",
            r"^ln_pre\.": "norm_pre.",
            r"^ln_post\.": "norm.",
            r"^transformer\.resblocks\.": "blocks.",
            r"\.ln_([12])\.": r".norm\1.",
            r"\.attn\.in_proj_": ".attn.qkv.",
            r"\.attn\.out_proj\.": ".attn.proj.",
            r"\.mlp\.c_fc\.": ".mlp.fc1.",
            r"\.mlp\.c_proj\.": ".mlp.fc2.",
        },
    ),
    Layout(
        "transformers' layout",
        r"embeddings\.patch_embeddings?(\.projection)?\.weight",
        {
            r"^embeddings\.": "",
            r"^patch_embeddings?(\.projection)?\.": "patch_embed.proj.",
            r"^class_embedding$": "cls_token",
            r"^distillation_token$": "dist_token",
            r"^position_embeddings?(\.weight)?$": "pos_embed",
            r"^register_tokens$": "reg_token",
            r"^(encoder\.|model\.)?layers?\.(\d+)\.": r"blocks.\2.",
            # Files have long names for q, k and v. Version 5 has short ones in memory, and CLIP and SigLIP have others.
            r"\.(attention\.attention|attention|self_attn)\.([qkv])(uery|ey|alue|_proj)\.": r".attn.\2_proj.",
            r"\.attn\.([qkv])_proj\.bias$": r".attn.\1_bias",
            r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.": ".attn.proj.",
            r"\.(layernorm_before|layer_norm1)\.": ".norm1.",
            r"\.(layernorm_after|layer_norm2)\.": ".norm2.",
            r"\.(layer_scale|lambda_)([12])(\.lambda1)?$": r".ls\2.gamma",
            r"\.(intermediate\.dense|mlp\.up_proj)\.": ".mlp.fc1.",
            r"\.(output\.dense|mlp\.down_proj)\.": ".mlp.fc2.",
            r"\.gate_proj\.": ".fc1_g.",
            r"^(encoder\.relative_position_bias|shared_position_bias)\.": "rel_pos_bias.",
            r"(\.attention\.attention)?\.relative_position_bias\.": ".attn.rel_pos.",
            r"^pre_layrnorm\.": "norm_pre.",
            r"^(post_)?layernorm\.": "norm.",
        },
    ),
    Layout(
        "the layout of BEiT-3's authors",
        r"vision_embed\.proj\.weight",
        {
            r"\.A\.": ".",  # A is the expert for images, and B is the one for text.
            r"^vision_embed\.proj\.": "patch_embed.proj.",
            r"^vision_embed\.": "",
            r"^encoder\.embed_positions\.weight$": "pos_embed_from_row_2",
            r"^encoder\.layer_norm\.": "norm.",
            r"^encoder\.layers\.": "blocks.",
            r"\.self_attn_layer_norm\.": ".norm1.",
            r"\.final_layer_norm\.": ".norm2.",
            r"\.self_attn\.inner_attn_ln\.": ".attn.norm.",
            r"\.self_attn\.out_proj\.": ".attn.proj.",
            r"\.self_attn\.": ".attn.",
            r"\.attn\.([qkv])_proj\.bias$": r".attn.\1_bias",
            r"\.ffn\.ffn_layernorm\.": ".mlp.norm.",
            r"\.ffn\.": ".mlp.",
        },
    ),
)

# Tensors with these names are dropped if the teacher's model has no parameter of the same name.
UNWANTED = (
    *("head.*", "fc.*", "pred.*", "proj", "pooler.*"),  # These are heads.
    *("norm.*", "fc_norm.*"),  # This norm follows the mean over patches. EVA-02 calls it norm.
    *("lm_head.*", "cls_pt_*", "mask_token", "masked_embed", "decoder*"),  # Only pretraining uses these.
    *("*position_ids", "*relative_position_index"),  # These are constants, which model.py computes.
    *("text_embed.*", "*.B.*"),  # These are BEiT-3's parts for text.
)
# These are constants, too. If the teacher has no rotary positions, they show that the file is of another network.
ROPE_CONSTANTS = ("*rope.freqs_*", "rope.pos_embed", "rope_embed.periods")

# If a file holds several models, the one whose prefix has the earliest of these words is taken.
PREFERRED = (
    "teacher target_encoder model_ema ema_model ema state_dict_ema ema_state_dict base_encoder model module state_dict "
    "student"
).split()

Tensors = dict[str, Tensor]  # The keys are names.


class Published(NamedTuple):
    """The content of a published file, with our names for the tensors of its model."""

    layout: Layout
    prefix: str  # In the file, the names of the model's tensors begin with this.
    tensors: Tensors
    others: list[str]  # These tensors have another prefix: they belong to heads or to other models.


def recognise(path: Path) -> Published:
    """Reads a file, finds its layout and its model, and gives the model's tensors our names.

    `path` may end in :WORD. If the file holds several models, such as a student and its teacher, this chooses the one
    with this word in its prefix.
    """
    path, word = split_word(path)
    held = {name: value for name, value in read_tensors(path).items() if isinstance(value, Tensor)}
    check_plain(path, held)
    prefix, layout = find_model(path, word, held)
    beginnings = (prefix,)
    if prefix == "vit." and not any(name.startswith(("vit.encoder.", "vit.layers.", "vit.blocks.")) for name in held):
        beginnings += ("encoder.layer.",)  # The blocks of ViTMSNForImageClassification have it in transformers 5.
    own = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(beginnings)}
    others = [name for name in held if not name.startswith(beginnings)]
    try:
        return Published(layout, prefix, rename(own, layout), others)
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def check_plain(path: Path, held: Tensors) -> None:
    """Raises a `UserError` if a tensor's name cannot be printed, or if its values are not stored as plain numbers."""
    for name, value in held.items():
        if not name.isprintable():
            raise UserError(f"{path} is damaged: it holds names that cannot be printed")
        is_strange = value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested
        needs_scale = value.is_floating_point() and value.element_size() == 1  # These are the 8-bit types.
        if is_strange or needs_scale:
            raise UserError(f"{path} holds {name}, which is compressed or empty; use a file that stores plain numbers")


def find_model(path: Path, word: str, held: Tensors) -> tuple[str, Layout]:
    """Finds a file's layout and prefix by the name of its patch embedding's kernel. All of the model has this prefix.

    If there are several models, it takes one of those with `word` in the prefix, and reports on stderr which one.
    """
    found = {}
    for name, layout in itertools.product(held, LAYOUTS):
        kernel = re.fullmatch(rf"((?:.*\.)?){layout.kernel}", name)
        if kernel and (held[name].ndim == 2 or held[name].shape[1:2] == (3,)):  # It takes three colour channels.
            found[kernel[1]] = layout
    names = textwrap.shorten(", ".join(prefix or "one without a prefix" for prefix in found), 200, placeholder=" ...")
    if not found:
        first = textwrap.shorten(", ".join(list(held)[:3]) or "no tensor", 200, placeholder="...")
        raise UserError(f"{path} has none of the known layouts, as it has no patch embedding; it holds {first}")
    asked = [prefix for prefix in found if word in ("", *prefix.split("."))]
    if not asked:
        raise UserError(f"{path} holds no model named {word}, but {names}")

    def rank(name: str) -> list[bool]:
        return [preferred in name.split(".") for preferred in PREFERRED]

    prefix = max(asked, key=lambda prefix: (rank(prefix), -len(prefix)))  # Of two nested models, the outer is taken.
    for name in held:
        if not word and not name.startswith(prefix) and rank(name.split(".")[0]) > rank(prefix):
            advice = "choose a model, as in FILE:student"
            raise UserError(f"{path} holds {name}, but no patch embedding with it; {advice}")
    if len(asked) > 1:
        print(f"{path} holds several models: {names}; took {prefix or 'the one without a prefix'}", file=sys.stderr)
    return prefix, found[prefix]


def rename(tensors: Tensors, layout: Layout) -> Tensors:
    """Changes the names of tensors from those of a layout to ours."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, ours in layout.renames.items():
            name = re.sub(pattern, ours, name)
        add(renamed, name, value)
    return renamed


def add(tensors: Tensors, name: str, value: Tensor) -> None:
    if name in tensors:
        raise UserError(f"holds {name} twice")
    tensors[name] = value


def is_wanted(name: str, own: Iterable[str], config: ViTConfig) -> bool:
    """Returns False if a model whose parameters have the names `own` may drop the tensor `name`, and True otherwise."""
    unwanted = UNWANTED + ROPE_CONSTANTS * bool(config.rope)
    if not config.class_token:  # SigLIP pools by attention. A network with a class token that does so is another one.
        unwanted += ("attn_pool.*",)
    return name in own or not any(fnmatch(name, pattern) for pattern in unwanted)


def convert(tensors: Tensors, config: ViTConfig) -> Tensors:
    """Converts tensors with our names to a model's shapes, in float32. Tensors that do not fit are left as they are."""
    own = shape_of(config).state_dict()
    kept = {}
    for name, value in tensors.items():
        if is_wanted(name, own, config):
            kept[name] = value.float().contiguous() if value.is_floating_point() else value
    kept = fit_positions(kept, config)
    kept = join_qkv(kept, own)
    return split_gate(kept) if config.swiglu else kept


def fit_positions(tensors: Tensors, config: ViTConfig) -> Tensors:
    """Brings class token, registers and positions to the shape (1, tokens, D), with positions for the model's tokens.

    If only the patches have positions in the model, the position of the class token is added to that token. (The
    authors of DINOv2 with registers keep the two apart.)
    """
    fitted = dict(tensors)
    if "pos_embed_from_row_2" in fitted:  # BEiT-3 numbers tokens from 2.
        add(fitted, "pos_embed", fitted.pop("pos_embed_from_row_2")[2:])
    for name in ("cls_token", "reg_token", "pos_embed"):
        while name in fitted and fitted[name].ndim < 3:
            fitted[name] = fitted[name][None]
    if config.pos_embed == "patches" and {"cls_token", "pos_embed"} <= fitted.keys():
        own, patches = fitted["pos_embed"].tensor_split([-(config.grid**2)], dim=1)
        if own.shape == fitted["cls_token"].shape:
            fitted |= {"cls_token": fitted["cls_token"] + own, "pos_embed": patches.contiguous()}
    return fitted


BIASES = r"\.attn\.(qkv\.|[qkv]_)bias"


def join_qkv(tensors: Tensors, own: Iterable[str]) -> Tensors:
    """Joins the matrices of q, k and v, each (D, D), into one of (3 D, D), and their biases into one of (3 D,).

    A bias of zeros adds nothing. It is dropped if the model has no such bias: DINOv3's are said to be zero below 7B.
    Any other bias stays, and the file is refused.
    """
    joined = dict(tensors)
    for stem in [name.removesuffix("proj.weight") for name in tensors if name.endswith(".attn.proj.weight")]:
        for apart, joint in (("_proj.weight", "qkv.weight"), ("_bias", "qkv.bias")):
            names = [f"{stem}{letter}{apart}" for letter in "qkv"]
            parts = [tensors[name] for name in names if name in tensors]
            # If one is missing or has another shape, the joint one will be reported as missing.
            if len(parts) == 3 and len({part.shape for part in parts}) == 1:
                add(joined, stem + joint, torch.cat(parts))
                joined = {name: value for name, value in joined.items() if name not in names}
        bias = stem + "qkv.bias"
        mask = joined.get(bias + "_mask")  # DINOv3's authors mask the bias of k with it.
        if mask is not None and bias not in own and bias in joined and joined[bias].shape == mask.shape:
            joined[bias] = joined[bias] * joined.pop(bias + "_mask")
    lacking = [name for name in joined if re.search(BIASES + "$", name) and name not in own]
    return {name: value for name, value in joined.items() if name not in lacking or value.any()}


def split_gate(tensors: Tensors) -> Tensors:
    """Names the halves of SwiGLU's first layer: the gate, and the values that it scales. A layer with both is split.

    EVA-02 Ti and S store the gate first. transformers names the gate, and gives the values the layer's name.
    """
    split = {}
    for name, value in tensors.items():
        gate = name.replace(".mlp.fc1.", ".mlp.fc1_g.")
        passes = name.replace(".mlp.fc1.", ".mlp.fc1_x.")
        if gate != name and gate not in tensors and value.ndim and len(value) > 1:
            add(split, gate, value.chunk(2)[0].contiguous())
            add(split, passes, value.chunk(2)[1].contiguous())
        else:
            add(split, passes if gate in tensors else name, value)
    return split


# ---- Loading ---------------------------------------------------------------------------------------------------------


def load_teacher(name: str, weights: str | None = None, img_size: int | None = None, seed: int = 0) -> ViT:
    """Returns the teacher, frozen and in eval mode.

    `weights` is a file in any known layout, or "random" for an untrained teacher, as a control. By default,
    the file is taken from the cache, or fetched into it. `seed` is the seed for pretraining a nano teacher. If
    `img_size` is not the teacher's own size, its positions are resampled. The function raises a `UserError` for any
    mistake that the caller can correct.
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
            raise UserError(f"{error}; use the file of {name} instead: {source}") from error
    return model.eval().requires_grad_(False)


def open_file(name: str, path: Path, config: ViTConfig) -> ViT:
    """Returns the teacher with a file's weights, at the image size of `config`. It refuses a file that does not fit."""
    teacher = find_teacher(name)
    file = recognise(path)
    tensors, faults = fit(file, name)
    if faults:
        raise UserError(
            f"{path} does not hold the weights of {name}: {summary(faults)}; {likeness(file, nearest(file))}"
        )
    model = with_tensors(teacher.config, tensors)
    if config.grid != teacher.config.grid:
        resampled = {key: resample(key, value, teacher.config.grid, config.grid) for key, value in tensors.items()}
        model = with_tensors(config, resampled)
    return model


Faults = dict[str, list[str]]  # This lists all that is wrong with a file, by kind.


def fit(file: Published, name: str) -> tuple[Tensors, Faults]:
    """Returns a file's tensors as parameters of a teacher, and everything that does not fit."""
    config = find_teacher(name).config
    own = shape_of(config).state_dict()
    try:
        tensors = convert(file.tensors, config)
    except (UserError, RuntimeError) as error:  # torch cannot join or split tensors of odd shapes.
        return {}, {"wrong": [str(error)]}
    faults = {
        "missing": [key for key in own if key not in tensors],
        "left over": [key for key in tensors if key not in own],
        "wrong": [],
    }
    for key, value in file.tensors.items():  # Joining can make floats of them, so types are checked here.
        if is_wanted(key, own, config) and not value.is_floating_point():
            faults["wrong"].append(f"{key} is {value.dtype}")
    for key in [key for key in own if key in tensors]:
        if tensors[key].shape != own[key].shape:
            faults["wrong"].append(f"{key} has the shape {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}")
        elif not tensors[key].isfinite().all():
            faults["wrong"].append(f"{key} has numbers that are not finite")
    faults["wrong"] += contradictions(file, tensors, name)
    return tensors, {kind: found for kind, found in faults.items() if found}


def contradictions(file: Published, tensors: Tensors, name: str) -> list[str]:
    """Lists what rules out a teacher apart from names and shapes. (Most files do not show the number of heads.)"""
    config = find_teacher(name).config
    found = []
    waves = sincos_positions(config)
    patches = tensors.get("pos_embed", torch.empty(0, 0, 0))[:, -(config.grid**2) :]
    if patches.shape == waves.shape and patches.is_floating_point():
        # MoCo v3 puts the row before the column. Fine-tuning changes the waves a little.
        distance = min((patches - each).norm() / each.norm() for each in (waves, waves.roll(config.dim // 2, -1)))
        if (distance < 0.3) != (config.pos_embed == "sincos"):
            found.append("its positions are " + ("fixed waves, as in MAE" if distance < 0.3 else "learned, not waves"))
    periods = file.tensors.get("rope_embed.periods")
    if periods is not None and periods.ndim == 1:
        steps = torch.arange(len(periods)) / len(periods)
        if not torch.allclose(periods.float(), 100**steps, rtol=0.01):  # DINOv3's authors round them to bfloat16.
            found.append("its rotary positions have other periods")
    # BEiT's own pretraining has the network of BEiT v2. But BEiT v2 also trains the class token, in separate blocks.
    heads = {key.partition(".")[0] for key in file.tensors}
    if find_teacher(name).family == "beitv2" and "lm_head" in heads and "cls_pt_layers" not in heads:
        found.append("it comes from BEiT, as it has lm_head without cls_pt_layers")
    return found


def summary(faults: Faults) -> str:
    """Says in one line what is wrong with a file: the first fault of each kind, and how many more there are."""
    parts = []
    for kind, found in faults.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        parts.append(f"{kind}: {textwrap.shorten(found[0], 150, placeholder=' ...')}{more}")
    return "; ".join(parts)


def nearest(file: Published) -> dict[str, Faults]:
    """Returns the teachers that a file fits with the fewest faults, and the faults. All have its width and patches."""
    kernel = file.tensors["patch_embed.proj.weight"].shape
    faults = {}
    for name, teacher in TEACHERS.items():
        config = teacher.config
        if kernel == (config.dim, 3, config.patch_size, config.patch_size):
            faults[name] = fit(file, name)[1]
    # A fault that all blocks share counts once.
    kinds = {name: {re.sub(r"\d+", "", text) for text in sum(found.values(), [])} for name, found in faults.items()}
    numbers = {name: len(found) for name, found in kinds.items()}
    return {name: faults[name] for name, number in numbers.items() if number == min(numbers.values())}


def likeness(file: Published, near: dict[str, Faults]) -> str:
    """Says in one line which layout a file has, and which of the `nearest` teachers it fits or looks like."""
    kernel = tuple(file.tensors["patch_embed.proj.weight"].shape)
    if "dist_token" in file.tensors:
        what = "is a distilled DeiT, a different network with a second class token"
    elif len(kernel) == 2:
        what = "is a NaFlex model, a different network for images of any shape"
    elif near:
        what = ("looks like " if any(near.values()) else "fits ") + ", ".join(near)
    else:
        what = f"looks like no teacher here: its patch embedding has the shape {kernel}"
    return f"it has {file.layout.title} and {what}"


def fingerprint(teacher: ViT) -> str:
    """Returns a hash of the teacher's weights, by which a run recognises its teacher."""
    digest = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        # Positions are skipped: if they were resampled, their last digits depend on the machine.
        if not name.endswith(("pos_embed", "bias_table")):
            digest.update(save({name: value}))
    return digest.hexdigest()[:16]


def shape_of(config: ViTConfig) -> ViT:
    """Returns a model whose tensors have shapes, but no values and no memory."""
    with torch.device("meta"):
        return ViT(config, initialise=False)


def with_tensors(config: ViTConfig, tensors: Tensors) -> ViT:
    """Returns a model with these parameters. Raises a RuntimeError if one is missing, left over or of wrong shape."""
    model = shape_of(config)
    model.load_state_dict(tensors, assign=True)  # The tensors become the parameters, without a copy.
    model.fill_buffers()
    return model


def resample(name: str, value: Tensor, old: int, new: int) -> Tensor:
    """Resamples positions from old x old patches to new x new, as timm does. Any other tensor stays as it is.

    The authors of DINOv2 without registers do this without antialiasing, and with an offset of 0.1 patches.
    """
    if name == "pos_embed":
        tokens, patches = value.tensor_split([-(old**2)], dim=1)
        patches = patches.mT.unflatten(2, (old, old))
        patches = F.interpolate(patches, new, mode="bicubic", antialias=True)
        return torch.cat((tokens, patches.flatten(2).mT), dim=1)
    if name.endswith("relative_position_bias_table"):
        offsets, class_token_rows = value.tensor_split([-3])
        weights = offset_weights(old, new)
        side = weights.shape[1]
        offsets = torch.einsum("ij,jkh,lk->ilh", weights, offsets.view(side, side, -1), weights)
        return torch.cat((offsets.flatten(0, 1), class_token_rows))
    return value


def offset_weights(old: int, new: int) -> Tensor:
    """Returns (2 new - 1, 2 old - 1) weights that interpolate a bias over offsets as BEiT's released code does.

    The old offsets are placed at growing distances, in a geometric progression that spans the new ones. So small
    offsets keep their meaning. Between the old offsets, the bias is interpolated linearly.
    """
    # Bisection finds the ratio of the progression for which the old - 1 steps add up to new - 1.
    low = 1.01
    high = 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        too_far = (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1
        if too_far:
            high = ratio
        else:
            low = ratio
    steps = torch.cumsum(ratio ** torch.arange(old - 1, dtype=torch.float64), 0)  # (old - 1,)
    places = torch.cat((-steps.flip(0), steps.new_zeros(1), steps))  # (2 old - 1,)

    # The value `entered` says how far a new offset lies inside the interval between two old ones: 0 is before it and 1
    # after it. The weight of an old offset is this value for the interval before it minus that for the one after it.
    wanted = torch.arange(1 - new, new)  # (2 new - 1,)
    entered = ((wanted[:, None] - places[:-1]) / places.diff()).clamp(0, 1)
    return (F.pad(entered, (1, 0), value=1.0) - F.pad(entered, (0, 1))).float()


def kept_at(name: str, seed: int = 0) -> Path:
    """Returns the path of the teacher's file in the cache, or in that of the hub's own client if it is only there."""
    path = cache_path(f"{name}-seed{seed}" if seed else name)
    elsewhere = None if path.is_file() else in_hub_cache(find_teacher(name).url)
    return elsewhere or path


def fetch(name: str, seed: int = 0) -> Path:
    """Returns the path of the teacher's file in the cache. A missing file is downloaded, or made by pretraining."""
    teacher = find_teacher(name)
    path = kept_at(name, seed)
    if not teacher.url:
        return pretrain(name, path, seed)
    if path.is_file():
        return path
    with turn(path):
        return path if path.is_file() else fetch_to(path, name)


def fetch_to(path: Path, name: str) -> Path:
    """Downloads a teacher's file to `path`, and keeps it only if it holds the teacher."""
    teacher = find_teacher(name)
    url = address(teacher.url)
    small = f"{teacher.family}_nano, which has the same components and needs no download"
    otherwise = f"download it by hand to {path}, or name it with --weights PATH; or use {small}"
    with replacing(path) as temporary:
        print(f"downloading {url}", file=sys.stderr)
        download(url, temporary, otherwise)
        # A file that does not hold the teacher must not stay in the cache, where the next run would find it.
        try:
            model = open_file(name, temporary, teacher.config)
        except UserError as error:
            problem = str(error).removeprefix(f"{temporary} ")
            raise UserError(f"the file from {url} {problem}; {otherwise}") from error
        if not is_safetensors(temporary):  # The authors' pickle is opened once and kept as safetensors.
            save_model(model, str(temporary))
    return path


# ---- Pretraining nano teachers ---------------------------------------------------------------------------------------

PRETRAINING = dict(steps=1200, batch=64, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05, warmup=0.1, clip=1.0, seed=0)


def pretrain(name: str, path: Path, seed: int = 0) -> Path:
    """Trains a nano teacher on new images of `matching`, in under a minute, unless the file `path` holds it already."""
    config = find_teacher(name).config
    recipe = PRETRAINING | {"seed": seed}
    stamp = json.dumps([repr(config), recipe])
    if stamp_of(path) == stamp:
        return path
    steps = recipe["steps"]
    peak = recipe["lr"]
    with turn(path), torch.random.fork_rng(devices=[]):
        if stamp_of(path) == stamp:
            return path  # Another process has trained it in the meantime.
        torch.manual_seed(seed)
        model = ViT(config)
        optimiser = torch.optim.AdamW(model.parameters(), peak, recipe["betas"], weight_decay=recipe["weight_decay"])
        for step in tqdm(range(steps), desc=f"pretrain {path.stem}"):
            optimiser.param_groups[0]["lr"] = peak * cosine_schedule(step, steps, recipe["warmup"] * steps)
            # The images differ between seeds, and students train on none of them.
            images, labels = matching(recipe["batch"], seed=1_000_000 * (seed + 1) + step)
            loss = F.cross_entropy(model(normalise(images, *HALF)), labels)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
            optimiser.step()
        with replacing(path) as temporary:
            save_file(model.state_dict(), temporary, metadata={"format": "pt", "recipe": stamp})
    return path


def stamp_of(path: Path) -> str | None:
    """Returns the recipe with which a nano teacher's file was made, or None if there is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("recipe")
    except (SafetensorError, OSError):  # The teacher will be trained again and the file replaced.
        return None


# ---- The table of teachers -------------------------------------------------------------------------------------------


def print_table() -> None:
    lines = [["id", "family", "parameters", "tokens", "transfer", "licence", "cached", "native components"]]
    for name, teacher in TEACHERS.items():
        config = teacher.config
        family = FAMILIES[teacher.family]
        parameters = sum(parameter.numel() for parameter in shape_of(config).parameters())
        cells = [
            name,
            teacher.title or family.title,
            f"{parameters / 1e6:.1f}M",
            f"{config.grid} x {config.grid} + {config.prefix}",
            teacher.url and family.finding,
            teacher.url and family.licence,
            kept_at(name).is_file() and "yes",
            ", ".join(native_components(config)),
        ]
        lines.append([cell or "-" for cell in cells])
    print_aligned(lines)


def describe(path: Path) -> None:
    """Prints what a file of weights is, and which teachers it fits. Raises a `UserError` if it fits none."""
    file = recognise(path)
    near = nearest(file)
    name = next(iter(near), None)
    if name is None or near[name]:
        faults = f"as {name}, {summary(near[name])}; " if near else ""
        raise UserError(f"{path} fits no teacher: {faults}{likeness(file, near)}")
    used = fit(file, name)[0]
    unused = list(file.others)
    has_biases = any(re.search(BIASES, key) for key in used)
    for key in file.tensors:
        is_zero_bias = re.search(BIASES, key) and not has_biases
        if is_zero_bias or not is_wanted(key, used, find_teacher(name).config):
            unused.append(file.prefix + key)
    print(f"{path}: {likeness(file, near)}")
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    print("not used: " + (", ".join(unused[:3]) or "nothing") + more)
    print(f"to use it: python train.py --teacher {name} --weights {shlex.quote(str(path))}")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="TEACHER",
        help="Download the weights of these teachers and check them. For a FILE, say which teachers' weights it holds.",
    )
    names = parser.parse_args().names
    for name in names:
        if name.isidentifier() and not Path(name).exists():
            find_teacher(name)  # A wrong name is reported before the first download.
    for name in names:
        if name in TEACHERS:
            load_teacher(name)
            print(f"{name}: complete, in {kept_at(name)}")
        else:
            describe(Path(name))
    if not names:
        print_table()


if __name__ == "__main__":
    answer_mistakes(main)
