"""This file is the registry of the teachers, which are pretrained ViTs, and loads their published weights exactly.

    python teachers.py                    # This prints the table of all teachers.
    python teachers.py eva02_s dinov2_b   # This downloads these two and checks them.

This file is for reference: train.py and eval.py ask it for a teacher by name. Look first at one entry of `TEACHERS`: it
has an architecture that model.py can build, and the address of a file. Then look at its family, which says how that
file is laid out. A file is read whole or refused: each of its tensors is used, or is on the family's list of unwanted
ones.

The teachers named `<family>_nano` need no download. They have the native components of their family in a small model,
and are pretrained here, on the data set `matching`, when they are first asked for.
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

# Each of these holds the mean and the standard deviation of the input by channel, for images from 0 to 1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """A family holds what its teachers share."""

    title: str
    licence: str
    normalisation: tuple = IMAGENET
    unwanted: tuple = ("head.*",)  # A teacher does not need the published tensors of these names.
    key_prefix: str = ""  # Where a file holds other models too, the teacher's names begin so.
    container: str = ""  # This entry of the authors' pickle holds the tensors.
    finding: str = ""  # If it is known, this says what transfer to a standard student does (arXiv 2605.07191).
    img_size: int | None = None  # The papers used the teachers at this size in pixels, if not at their own.


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
    """A teacher is an entry of the registry."""

    family: str
    config: ViTConfig
    url: str = ""  # This is the address of the published file. A nano teacher has none.
    title: str = ""  # A teacher without a title of its own has the family's.

    @property
    def normalisation(self) -> tuple:
        """Returns the mean and the standard deviation of the input by channel, for images from 0 to 1."""
        return FAMILIES[self.family].normalisation if self.url else HALF

    @property
    def img_size(self) -> int:
        """Returns the image size in pixels at which train.py and eval.py use the teacher."""
        return (self.url and FAMILIES[self.family].img_size) or self.config.img_size


# Each size has a width, a depth and a number of heads.
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
IBOT = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
BEITV2 = "https://github.com/addf400/files/releases/download/BEiT-v2"


def entry(family: str, size: str, source: str, title: str = "", **shape) -> Teacher:
    """Makes an entry of the registry. `source` is timm's repository on the hub, or the address of the authors' file."""
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
    """Makes the entry of a family's nano teacher, a small model that has the family's native components."""
    native = NATIVE.get(family, {})
    config = ViTConfig(img_size=32, patch_size=8, dim=64, depth=4, heads=4, num_classes=len(SHAPES), **native)
    return Teacher(family, replace(config, pool="token" if config.class_token else "avg"))


# Some nano teachers are the same network: DeiT, AugReg, DINO, iBOT and MSN have no native component, and MoCo v3 has
# that of MAE.
TEACHERS |= {f"{family}_nano": nano(family) for family in FAMILIES}


def find_teacher(name: str) -> Teacher:
    """Returns the entry of that name. If there is none, it raises a `UserError` with the nearest names."""
    if name not in TEACHERS:
        raise unknown("teacher", name, TEACHERS)
    return TEACHERS[name]


def place_of(name: str) -> tuple[str, list]:
    """Returns the title of a teacher's family, and the numbers of the family and of the teacher in the registry."""
    family = find_teacher(name).family
    return FAMILIES[family].title, [list(FAMILIES).index(family), list(TEACHERS).index(name)]


def student_config(
    name: str, components: str = "standard", num_classes: int = 1000, img_size: int | None = None
) -> ViTConfig:
    """Returns the config of a student: it has the teacher's size and patches, and the native components asked for.

    `components` is "standard" for none of them, "native" for all that the teacher has, or their names with commas
    between them. Students of published teachers average the patches (arXiv 2411.09702). Students of nano teachers read
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

    # A component that is not asked for is as in the standard ViT.
    left_out = set(COMPONENTS).difference(chosen)
    if "swiglu" not in chosen:
        left_out.add("mlp_ratio")
    if components != "native":
        left_out |= {"norm_eps", "tanh_gelu"}
    standard = {field: getattr(ViTConfig, field) for field in left_out}
    pool = "avg" if teacher.url else theirs.pool
    return replace(theirs, img_size=img_size or theirs.img_size, num_classes=num_classes, pool=pool, **standard)


def name_components(name: str, components: str) -> str:
    """Returns the one text for such a student's components: equal lists have the same, and all of them are "native"."""
    if components in ("standard", "native"):
        return components
    asked = student_config(name, components)
    if asked == student_config(name, "native"):
        return "native"
    words = [word.strip() for word in components.split(",")]
    return ",".join(component for component in COMPONENTS if component in words)


# ---- From a published file's names to ours ---------------------------------------------------------------------------
#
# Each step takes tensors by name and brings them nearer to our form. A name that is in our form stays, so it does no
# harm to convert tensors twice.

RENAMES = [
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # BEiT and BEiT v2 name LayerScale so.
    (r"attn\.relative_position_bias_table$", "attn.rel_pos.relative_position_bias_table"),
    (r"attn\.([qv])_proj\.bias$", r"attn.\1_bias"),  # EVA-02 B and L name these biases so.
    # The names below are those of CLIP in OpenCLIP's files.
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


Tensors = dict[str, Tensor]  # The keys are names.


def convert(tensors: Tensors, teacher: Teacher) -> Tensors:
    """Brings a published file's tensors to model.py's names and shapes, in float32. It leaves what does not fit."""
    tensors = join_qkv(rename(wanted(tensors, teacher)))
    return split_gate(tensors) if teacher.config.swiglu else tensors


def wanted(tensors: Tensors, teacher: Teacher) -> Tensors:
    """Returns the teacher's tensors without the family's unwanted ones. A nano teacher wants all, its head too."""
    family = FAMILIES[teacher.family]
    prefix = family.key_prefix
    # If some names begin with the prefix, the other tensors belong to other models.
    with_prefix = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    kept = {}
    for published, value in (with_prefix or tensors).items():
        name = published.removeprefix(prefix)
        unwanted = teacher.url and any(fnmatch(name, pattern) for pattern in family.unwanted)
        if not unwanted:
            if not (isinstance(value, Tensor) and value.is_floating_point()):
                raise UserError(f"{name} is {getattr(value, 'dtype', type(value).__name__)}")
            kept[name] = value
    return kept


def rename(tensors: Tensors) -> Tensors:
    """Gives tensors our names, makes them float32, and gives the class token and the positions three dimensions."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        while name in ("cls_token", "pos_embed") and value.ndim < 3:
            value = value[None]
        add(renamed, name, value.float().contiguous())
    return renamed


def join_qkv(tensors: Tensors) -> Tensors:
    """Joins the matrices of q, k and v, which EVA-02 B and L keep apart."""
    joined = dict(tensors)
    for name in tensors:
        if name.endswith("attn.q_proj.weight"):
            stem = name.removesuffix("q_proj.weight")
            q_k_v = [joined.pop(f"{stem}{letter}_proj.weight", torch.empty(0)) for letter in "qkv"]
            if len({matrix.shape for matrix in q_k_v}) == 1:  # If not, the model will miss the joint matrix.
                add(joined, stem + "qkv.weight", torch.cat(q_k_v))
    return joined


def split_gate(tensors: Tensors) -> Tensors:
    """Splits the first matrix of SwiGLU, in which EVA-02 Ti and S keep the gate above what passes it."""
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
    """Returns the teacher, frozen and in eval mode.

    `weights` is a file in the published layout, or "random" for an untrained teacher, which is a control. Without it
    the file is taken from the cache, or fetched into it. `seed` is the seed of a nano teacher's pretraining. If
    `img_size` is not the teacher's own size, its positions are resampled. The function raises a `UserError` for
    whatever the caller can mend.
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
    """Returns the teacher with a file's weights, at the image size of `config`. It refuses a file that does not fit."""
    teacher = find_teacher(name)
    tensors = read_tensors(path, FAMILIES[teacher.family].container)
    try:
        tensors = convert(tensors, teacher)
        for tensor_name, value in tensors.items():
            if not value.isfinite().all():
                raise UserError(f"{tensor_name} has numbers that are not finite")
        model = with_tensors(teacher.config, tensors)
        if config.grid != teacher.config.grid:
            resampled = {key: resample(key, value, teacher.config.grid, config.grid) for key, value in tensors.items()}
            model = with_tensors(config, resampled)
    except (UserError, RuntimeError) as error:
        # torch's report names every tensor, but the first few of them are enough.
        report = str(error).partition(":\n\t")[2] or str(error)
        report = textwrap.shorten(report, 300, placeholder=" ...")
        raise UserError(f"{path} does not hold the weights of {name}: {report}") from error
    return model


def fingerprint(teacher: ViT) -> str:
    """Returns a hash of the teacher's weights, by which a run knows its teacher again."""
    digest = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        # Positions are left out: if they were resampled, their last digits depend on the machine.
        if not name.endswith(("pos_embed", "bias_table")):
            digest.update(save({name: value}))
    return digest.hexdigest()[:16]


def shape_of(config: ViTConfig) -> ViT:
    """Returns a model whose tensors have shapes, but neither values nor memory."""
    with torch.device("meta"):
        return ViT(config, initialise=False)


def with_tensors(config: ViTConfig, tensors: Tensors) -> ViT:
    """Returns a model with those parameters. It raises a RuntimeError if one is missing, left over or misshapen."""
    model = shape_of(config)
    model.load_state_dict(tensors, assign=True)  # The tensors become the parameters, without a copy.
    model.fill_buffers()
    return model


def resample(name: str, value: Tensor, old: int, new: int) -> Tensor:
    """Resamples positions from old x old patches to new x new, as timm does. Any other tensor stays as it is."""
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
    """Returns (2 new - 1, 2 old - 1) weights, which interpolate a bias over offsets as BEiT's released code does.

    The old offsets are laid out at growing distances, in a geometric progression that spans the new ones, so that near
    offsets keep their meaning. Between them the bias is interpolated linearly.
    """
    # Bisection finds the ratio of the progression, whose old - 1 steps have the sum new - 1.
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
    # behind it. The weight of an old offset is this value for the interval before it, minus that for the one behind it.
    wanted = torch.arange(1 - new, new)  # (2 new - 1,)
    entered = ((wanted[:, None] - places[:-1]) / places.diff()).clamp(0, 1)
    return (F.pad(entered, (1, 0), value=1.0) - F.pad(entered, (0, 1))).float()


def kept_at(name: str, seed: int = 0) -> Path:
    """Returns the path of the teacher's file in the cache."""
    return cache_path(f"{name}-seed{seed}" if seed else name)


def fetch(name: str, seed: int = 0) -> Path:
    """Returns the path of the teacher's file in the cache. A file that is not there is downloaded or pretrained."""
    teacher = find_teacher(name)
    path = kept_at(name, seed)
    if not teacher.url:
        return pretrain(name, path, seed)
    if path.is_file():
        return path
    url = address(teacher.url)
    small = f"{teacher.family}_nano, which has the same components and needs no download"
    otherwise = f"download it by hand to {path}, or name it with --weights PATH; or take {small}"
    with replacing(path) as temporary:
        print(f"downloading {url}", file=sys.stderr)
        download(url, temporary, otherwise)
        # A file that does not hold the teacher must not stay in the cache, where the next run would find it.
        try:
            model = open_file(name, temporary, teacher.config)
        except UserError as error:
            problem = str(error).removeprefix(f"{temporary} ")
            raise UserError(f"what {url} sends {problem}; {otherwise}") from error
        if not is_safetensors(temporary):  # The authors' pickle is opened once and kept as safetensors.
            save_model(model, str(temporary))
    return path


# ---- Pretraining nano teachers ---------------------------------------------------------------------------------------

PRETRAINING = dict(steps=1200, batch=64, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05, warmup=0.1, clip=1.0, seed=0)


def pretrain(name: str, path: Path, seed: int = 0) -> Path:
    """Trains a nano teacher on new images of `matching` for half a minute, unless the file `path` holds it."""
    config = find_teacher(name).config
    recipe = PRETRAINING | {"seed": seed}
    stamp = json.dumps([repr(config), recipe])
    if stamp_of(path) == stamp:
        return path
    steps = recipe["steps"]
    peak = recipe["lr"]
    with replacing(path) as temporary, torch.random.fork_rng(devices=[]):
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
        save_file(model.state_dict(), temporary, metadata={"format": "pt", "recipe": stamp})
    return path


def stamp_of(path: Path) -> str | None:
    """Returns the recipe by which a nano teacher's file was made, or None if there is no such file."""
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
            cache_path(name).is_file() and "yes",
            ", ".join(native_components(config)),
        ]
        lines.append([cell or "-" for cell in cells])
    print_aligned(lines)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="TEACHER", help="Download the weights of these teachers and check them."
    )
    names = parser.parse_args().names
    for name in names:
        find_teacher(name)  # A mistake in a name is answered before the first download.
    for name in names:
        load_teacher(name)
        print(f"{name}: complete, in {cache_path(name)}")
    if not names:
        print_table()


if __name__ == "__main__":
    answer_mistakes(main)
