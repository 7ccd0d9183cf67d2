"""The tests, one section per file. Each test's name is the sentence that it proves."""

import timm
import torch
import pytest
from safetensors.torch import save_file

import model
import teachers
from model import UserError, ViT, ViTConfig
from teachers import TEACHERS, load_teacher


@torch.no_grad()
def scramble(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter random values of a size that keeps signals alive; nothing stays at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and name.endswith("weight"):
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.3 * noise + (1 if name.endswith("norm.weight") else 0.2))
    return module


# ---------------------------------------------------------------------------------------------------------------
# teachers.py

VIT = {"ti": "vit_tiny_patch16_224", "s": "vit_small_patch16_224", "b": "vit_base_patch16_224",
       "l": "vit_large_patch16_224"}
DINOV2 = {"s": "vit_small_patch14{}_dinov2", "b": "vit_base_patch14{}_dinov2", "l": "vit_large_patch14{}_dinov2"}
SHARED = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, global_pool="token")

# The executable specification of each teacher: timm's model of that name and those arguments.
SPECIFICATIONS = {
    **{f"deit_{size}": (f"deit_{name}_patch16_224", {}) for size, name in
       {"ti": "tiny", "s": "small", "b": "base"}.items()},
    **{f"deit3_{size}": (f"deit3_{name}_patch16_224", {}) for size, name in
       {"s": "small", "b": "base", "l": "large"}.items()},
    **{f"augreg_{size}": (VIT[size], {}) for size in ("ti", "s", "b")},
    "dino_s": (VIT["s"], dict(num_classes=0)), "dino_b": (VIT["b"], dict(num_classes=0)),
    "mocov3_s": (VIT["s"], dict(num_heads=12)), "mocov3_b": (VIT["b"], {}),
    "mae_b": (VIT["b"], dict(num_classes=0)), "mae_l": (VIT["l"], dict(num_classes=0)),
    **{f"ibot_{size}": (VIT[size], {}) for size in ("s", "b", "l")},
    **{f"msn_{size}": (VIT[size], {}) for size in ("s", "b", "l")},
    "clip_b32": ("vit_base_patch32_clip_quickgelu_224", {}), "clip_b": ("vit_base_patch16_clip_quickgelu_224", {}),
    "clip_l": ("vit_large_patch14_clip_quickgelu_224", {}),
    "siglip_b": ("vit_base_patch16_siglip_224", {}), "siglip2_b": ("vit_base_patch16_siglip_224", {}),
    "beit_b": ("beit_base_patch16_224", {}),
    "beitv2_b": ("beitv2_base_patch16_224", SHARED), "beitv2_l": ("beitv2_large_patch16_224", SHARED),
    "beit3_b": ("beit3_base_patch16_224", {}),
    **{f"dinov2_{size}": (DINOV2[size].format(""), {}) for size in DINOV2},
    **{f"dinov2_reg_{size}": (DINOV2[size].format("_reg4"), {}) for size in DINOV2},
    "dinov3_s": ("vit_small_patch16_dinov3", {}), "dinov3_splus": ("vit_small_plus_patch16_dinov3", {}),
    "dinov3_b": ("vit_base_patch16_dinov3", {}), "dinov3_l": ("vit_large_patch16_dinov3", {}),
    **{f"eva02_{size}": (f"eva02_{name}_patch14_224", {}) for size, name in
       {"ti": "tiny", "s": "small", "b": "base", "l": "large"}.items()},
}
OTHER_SIZE = {14: 196, 16: 160, 32: 256}  # pixels, by patch size


def publish(name: str, theirs: torch.nn.Module, folder) -> str:
    """Writes timm's model as the file that was published of that teacher, with the entries that nobody wants."""
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
        tensors |= {"rel_pos_bias.relative_position_index": torch.arange(9).view(3, 3), "mask_token": extra,
                    "lm_head.weight": extra, "cls_pt_layers.0.norm1.weight": extra}
    elif family == "beit":
        tensors["blocks.0.attn.relative_position_index"] = torch.arange(9).view(3, 3)
    elif family == "eva02":
        tensors["rope.pos_embed"] = extra
    container = {"mocov3": "state_dict", "ibot": "state_dict", "msn": "target_encoder", "beitv2": "model"}.get(family)
    if container:
        path = folder / f"{name}.pth.tar"
        torch.save({container: tensors, "epoch": 300}, path)
    else:
        path = folder / f"{name}.safetensors"
        save_file(tensors, path)
    return str(path)


def openclip(tensors: dict) -> dict:
    """timm's names to OpenCLIP's, in float16, with a text tower beside the image tower."""
    names = [("patch_embed.proj.", "conv1."), ("norm_pre.", "ln_pre."), ("blocks.", "transformer.resblocks."),
             (".norm1.", ".ln_1."), (".norm2.", ".ln_2."), ("norm.", "ln_post."), (".attn.qkv.", ".attn.in_proj_"),
             (".attn.proj.", ".attn.out_proj."), (".fc1.", ".c_fc."), (".fc2.", ".c_proj."),
             ("cls_token", "class_embedding"), ("pos_embed", "positional_embedding")]
    theirs = {}
    for key, value in tensors.items():
        for ours, published in names:
            key = key.replace(ours, published)
        if not key.startswith("head."):
            theirs["visual." + key] = (value.flatten() if key == "class_embedding" else value.squeeze(0)).half()
    return theirs | {"visual.proj": torch.randn(4, 4), "logit_scale": torch.tensor(4.6),
                     "positional_embedding": torch.randn(77, 8), "transformer.resblocks.0.ln_1.weight": torch.ones(8),
                     "token_embedding.weight": torch.randn(9, 8), "ln_final.weight": torch.ones(8)}


def maps_and_tokens(theirs: torch.nn.Module, images: torch.Tensor):
    """timm's attention maps, taken where they pass through its dropout, and its tokens."""
    maps = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0]))
    return maps, theirs.forward_features(images)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_no_teacher_is_without_a_specification():
    assert set(SPECIFICATIONS) == {name for name, entry in TEACHERS.items() if entry.url}


@pytest.mark.parametrize("name", SPECIFICATIONS)
@torch.inference_mode()
def test_a_teacher_computes_what_the_published_model_computes(name, tmp_path):
    config = TEACHERS[name].config
    timm_name, arguments = SPECIFICATIONS[name]
    theirs = scramble(timm.create_model(timm_name, img_size=config.img_size, **arguments)).eval()
    if TEACHERS[name].family == "clip":
        theirs = theirs.half().float()  # the published tensors are float16
    path = publish(name, theirs, tmp_path)
    for size in config.img_size, 224 if config.img_size == 518 else OTHER_SIZE[config.patch_size]:
        theirs.set_input_size(size)
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        maps, tokens = maps_and_tokens(theirs, images)
        ours = load_teacher(name, path, size)
        for number, (our_map, their_map) in enumerate(zip(ours.attention_maps(images), maps, strict=True)):
            assert (our_map - their_map).abs().max() < 1e-4, f"the map of block {number} at {size} px"
        assert relative(ours.forward_features(images), tokens) < 1e-4, f"the tokens at {size} px"
