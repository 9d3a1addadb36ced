"""The tuning methods in PyTorch, for the tests: a ViT of its own, and every method as its source
has it.

Tensors lie in fact-jax's layout (kernels in x out, blocks stacked), so that PyTorch's gradients
compare with ours as they are; the operations are PyTorch's. Each class names the file whose block
it follows. None of these sources but SSF's knows LayerScale: there it is part of the branch, as
stochastic depth is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_models import hugging_face_vit, nchw

from fact_jax import ViTConfig

Noise = Callable[[Tensor], Tensor]
SITES = {
    "q": "MultiHeadDotProductAttention_1/query",
    "k": "MultiHeadDotProductAttention_1/key",
    "v": "MultiHeadDotProductAttention_1/value",
    "o": "MultiHeadDotProductAttention_1/out",
    "fc1": "MlpBlock_3/Dense_0",
    "fc2": "MlpBlock_3/Dense_1",
}


def linear(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, kernel.T, bias)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class TorchViT:
    """A plain ViT; methods change its steps. `drop` is their dropout, `path` stochastic depth."""

    def __init__(self, method: Any, config: ViTConfig, base: dict, factors: dict):
        leaves = jax.tree_util.tree_leaves_with_path(base)
        self.base = {
            "/".join(k.key for k in keys): torch.from_numpy(np.array(leaf)) for keys, leaf in leaves
        }
        self.factors = {
            name: torch.from_numpy(np.array(value)).requires_grad_()
            for name, value in factors.items()
        }
        self.method, self.config = method, config
        self.drop: Noise = lambda x: x
        self.path: Noise = lambda x: x

    def weight(self, name: str, i: int | None = None) -> Tensor:
        return self.base[name] if i is None else self.base[f"Transformer/encoderblock/{name}"][i]

    def factor(self, name: str, i: int) -> Tensor:
        return self.factors[name][i]

    def norm(self, x: Tensor, name: str, i: int | None = None) -> Tensor:
        scale, bias = self.weight(f"{name}/scale", i), self.weight(f"{name}/bias", i)
        return F.layer_norm(x, x.shape[-1:], scale, bias, self.config.layer_norm_eps)

    def norm1(self, x: Tensor, i: int) -> Tensor:
        return self.norm(x, "LayerNorm_0", i)

    def norm2(self, x: Tensor, i: int) -> Tensor:
        return self.norm(x, "LayerNorm_2", i)

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        name = SITES[site]
        return linear(x, self.weight(f"{name}/kernel", i), self.weight(f"{name}/bias", i))

    def qkv(self, x: Tensor, i: int) -> list[Tensor]:
        return [self.dense(x, site, i) for site in "qkv"]

    def attn(self, x: Tensor, i: int) -> Tensor:
        heads = (y.unflatten(-1, (self.config.num_heads, -1)) for y in self.qkv(x, i))
        out = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in heads))
        return self.dense(out.transpose(1, 2).flatten(2), "o", i)

    def mlp(self, x: Tensor, i: int) -> Tensor:
        return self.dense(F.gelu(self.dense(x, "fc1", i)), "fc2", i)

    def scaled(self, x: Tensor, j: int, i: int) -> Tensor:
        return x * self.weight(f"LayerScale_{j}", i) if self.config.layer_scale else x

    def attention_branch(self, x: Tensor, i: int) -> Tensor:
        """The frozen network's addition for attention's input x, stochastic depth included."""
        return self.path(self.scaled(self.attn(x, i), 0, i))

    def mlp_branch(self, x: Tensor, i: int) -> Tensor:
        return self.path(self.scaled(self.mlp(x, i), 1, i))

    def block(self, x: Tensor, i: int) -> Tensor:
        x = x + self.attention_branch(self.norm1(x, i), i)
        return x + self.mlp_branch(self.norm2(x, i), i)

    def patches(self, images: np.ndarray) -> Tensor:
        kernel = self.weight("embedding/kernel").permute(3, 2, 0, 1)
        x = F.conv2d(
            nchw(images), kernel, self.weight("embedding/bias"), stride=self.config.patch_size
        )
        return x.flatten(2).transpose(1, 2)

    def embed(self, images: np.ndarray) -> Tensor:
        x = torch.cat([self.weight("cls").expand(len(images), -1, -1), self.patches(images)], dim=1)
        return x + self.weight("Transformer/posembed_input/pos_embedding")

    def blocks(self, x: Tensor) -> Tensor:
        for i in range(self.config.depth):
            x = self.block(x, i)
        return x

    def final(self, x: Tensor) -> Tensor:
        return self.norm(x, "Transformer/encoder_norm")

    def __call__(self, images: np.ndarray) -> Tensor:
        """Class-token features [b, d]."""
        return self.final(self.blocks(self.embed(images)))[:, 0]


class Weights(TorchViT):
    """Full fine-tuning and BitFit: the network's own parameters."""

    def __init__(self, method, config, base, factors):
        super().__init__(method, config, base, factors)
        self.base |= self.factors


class Adapter(TorchViT):
    """NOAH, model/supernet_vision_transformer_timm.py (Block) and model/module/adapter_super.py:
    ``x + adapter(drop_path(mlp(norm(x))))``. Houlsby et al., figure 2: behind attention, too."""

    def adapter(self, z: Tensor, place: str, i: int, act: Noise) -> Tensor:
        down, down_bias, up, up_bias = (
            self.factor(f"{place}_{part}", i) for part in ("down", "down_bias", "up", "up_bias")
        )
        return z + linear(self.drop(act(linear(z, down, down_bias))), up, up_bias)

    def block(self, x: Tensor, i: int) -> Tensor:
        both = self.method.placement == "houlsby"
        act = F.gelu if both else quick_gelu
        z = self.attention_branch(self.norm1(x, i), i)
        x = x + (self.adapter(z, "after_attention", i, act) if both else z)
        return x + self.adapter(self.mlp_branch(self.norm2(x, i), i), "after_mlp", i, act)


class AdapterPlus(TorchViT):
    """visinf/adapter_plus, adapter_plus/vit_adapter.py (forward_post): behind the block, a drop
    path of its own, then a scale for each channel."""

    def block(self, x: Tensor, i: int) -> Tensor:
        x = super().block(x, i)
        down, down_bias, up, up_bias, channels = (
            self.factor(name, i) for name in ("down", "down_bias", "up", "up_bias", "channel_scale")
        )
        z = self.path(linear(self.drop(F.gelu(linear(x, down, down_bias))), up, up_bias))
        return x + z * channels


class AdaptFormer(TorchViT):
    """ShoufaChen/AdaptFormer, models/custom_modules.py (ffn_option 'parallel') and adapter.py there
    (adapter_layernorm_option 'none' or 'in'); PETL-ViT, binary_adapter/adaptformer.py."""

    def block(self, x: Tensor, i: int) -> Tensor:
        x = x + self.attention_branch(self.norm1(x, i), i)
        adapted = x
        if self.method.layer_norm:
            scale, bias = self.factor("norm_scale", i), self.factor("norm_bias", i)
            adapted = F.layer_norm(x, x.shape[-1:], scale, bias)  # nn.LayerNorm's default epsilon
        if self.method.form == "adaptformer":
            down = linear(adapted, self.factor("down", i), self.factor("down_bias", i))
            up = linear(self.drop(F.relu(down)), self.factor("up", i), self.factor("up_bias", i))
        else:
            down = linear(adapted, self.factor("down", i))
            up = linear(self.drop(F.relu(down)), self.factor("up", i))
        return x + self.mlp_branch(self.norm2(x, i), i) + up * self.method.scale


class LoRA(TorchViT):
    """PETL-ViT, binary_adapter/lora.py: pairs of their own, dropout between A and B."""

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        y = super().dense(x, site, i)
        if f"A_{site}" not in self.factors:
            return y
        low = self.drop(linear(x, self.factor(f"A_{site}", i)))
        return y + linear(low, self.factor(f"B_{site}", i)) * self.method.scale


class DoRA(TorchViT):
    """peft, src/peft/tuners/lora/dora.py: no gradient through the norm (DoRA, section 4.3)."""

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        if f"A_{site}" not in self.factors:
            return super().dense(x, site, i)
        increment = self.factor(f"A_{site}", i) @ self.factor(f"B_{site}", i)
        adapted = self.weight(f"{SITES[site]}/kernel", i) + self.method.scale * increment
        norm = torch.linalg.norm(adapted, dim=0).detach()
        bias = self.weight(f"{SITES[site]}/bias", i)
        return linear(x, adapted * (self.factor(f"norms_{site}", i) / norm), bias)


class SharedLoRA(TorchViT):
    """NOAH, model/supernet_vision_transformer_timm.py (Attention): one A, and one B for qkv."""

    def qkv(self, x: Tensor, i: int) -> list[Tensor]:
        together = torch.cat([self.factor(f"B_{site}", i) for site in "qkv"], dim=1)  # [r, 3 d]
        delta = linear(linear(x, self.factor("A", i)), together) * self.method.scale
        return [y + d for y, d in zip(super().qkv(x, i), delta.chunk(3, dim=-1), strict=True)]


class SSF(TorchViT):
    """dongzelian/SSF, models/vision_transformer.py: `ssf_ada` behind every operation, before
    LayerScale."""

    def ssf(self, x: Tensor, name: str, i: int | None = None) -> Tensor:
        scale, shift = (self.factors[f"{name}_{part}"] for part in ("scale", "shift"))
        return x * scale + shift if i is None else x * scale[i] + shift[i]

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        return self.ssf(super().dense(x, site, i), site, i)

    def norm1(self, x: Tensor, i: int) -> Tensor:
        return self.ssf(super().norm1(x, i), "norm1", i)

    def norm2(self, x: Tensor, i: int) -> Tensor:
        return self.ssf(super().norm2(x, i), "norm2", i)

    def patches(self, images: np.ndarray) -> Tensor:
        return self.ssf(super().patches(images), "patches")

    def final(self, x: Tensor) -> Tensor:
        return self.ssf(super().final(x), "final")


class Convpass(TorchViT):
    """PETL-ViT, convpass/vtab/convpass.py: patches as an image, the class token as one of a single
    pixel; a drop path of its own, before the scale."""

    def bypass(self, y: Tensor, place: str, i: int) -> Tensor:
        down, down_bias, up, up_bias, conv, conv_bias = (
            self.factor(f"{place}_{part}", i)
            for part in ("down", "down_bias", "up", "up_bias", "conv", "conv_bias")
        )
        z = quick_gelu(linear(y, down, down_bias))
        kernel, side = conv.permute(3, 2, 0, 1), self.config.grid

        def convolve(tokens: Tensor, side: int) -> Tensor:
            image = tokens.transpose(1, 2).unflatten(2, (side, side))
            return F.conv2d(image, kernel, conv_bias, padding=1).flatten(2).transpose(1, 2)

        z = torch.cat([convolve(z[:, :1], 1), convolve(z[:, 1:], side)], dim=1)
        return self.path(linear(self.drop(quick_gelu(z)), up, up_bias)) * self.method.scale

    def block(self, x: Tensor, i: int) -> Tensor:
        y = self.norm1(x, i)
        x = x + self.attention_branch(y, i) + self.bypass(y, "beside_attention", i)
        y = self.norm2(x, i)
        z = self.mlp_branch(y, i)
        return x + (z if self.method.attention_only else z + self.bypass(y, "beside_mlp", i))


class RepAdapter(TorchViT):
    """luogen1996/RepAdapter, repadapter.py: two Conv1d of width 1, the second one in groups."""

    def adapter(self, y: Tensor, place: str, i: int) -> Tensor:
        down, down_bias, up, up_bias = (
            self.factor(f"{place}_{part}", i) for part in ("down", "down_bias", "up", "up_bias")
        )
        groups = len(up)  # up [g, h / g, d / g]; PyTorch's is [d, h / g, 1]
        kernel = up.transpose(1, 2).flatten(0, 1)[..., None]
        channels = y.transpose(1, 2)
        z = self.drop(F.conv1d(channels, down.T[..., None], down_bias).transpose(1, 2))
        z = F.conv1d(z.transpose(1, 2), kernel, up_bias, groups=groups)
        return (z * self.method.scale + channels).transpose(1, 2)

    def block(self, x: Tensor, i: int) -> Tensor:
        x = x + self.attention_branch(self.adapter(self.norm1(x, i), "before_attention", i), i)
        y = self.norm2(x, i)
        if not self.method.attention_only:
            y = self.adapter(y, "before_mlp", i)
        return x + self.mlp_branch(y, i)


class VPT(TorchViT):
    """KMnP/vpt, src/models/vit_prompt/vit.py: prompts after the class token, put in after the
    position table; VPT-deep replaces them before every later block."""

    def blocks(self, x: Tensor) -> Tensor:
        prompts = self.factors["tokens"]  # [1 or l, p, d]
        after = 1
        for i in range(self.config.depth):
            if i < len(prompts):
                own = self.drop(prompts[i].expand(len(x), -1, -1))
                x = torch.cat([x[:, :1], own, x[:, after:]], dim=1)
                after = 1 + prompts.shape[1]
            x = self.block(x, i)
        return x


class _Slices(TorchViT):
    """FacT's relatives: fc1 in pieces along its output, fc2 along its input."""

    def increment(self, x: Tensor, i: int, s: int) -> Tensor:
        """The increment of slice s of block i, [..., d] -> [..., d]."""
        raise NotImplementedError

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        width, pieces = self.config.width, self.config.mlp_dim // self.config.width
        if site == "fc1":
            change = torch.cat([self.increment(x, i, 4 + g) for g in range(pieces)], dim=-1)
        elif site == "fc2":
            parts = enumerate(x.split(width, dim=-1))
            change = sum(self.increment(part, i, 4 + pieces + g) for g, part in parts)
        else:
            change = self.increment(x, i, "qkvo".index(site))
        return super().dense(x, site, i) + self.method.scale * change


class FacTCP(_Slices):
    """``U diag(c) V``; FacT's own forms are in torch_fact.py."""

    def increment(self, x, i, s):
        f = self.factors
        return linear(linear(x, f["U"]) * f["C"][i, s], f["V"])


class FacTShared(_Slices):
    """``U_n S V_n``, n the layer or the kind of slice."""

    def increment(self, x, i, s):
        n, f = (i if self.method.share == "layer" else s), self.factors
        return linear(linear(linear(x, f["U"][n]), f["S"][i, s]), f["V"][n])


class MetaTT(_Slices):
    """``U G_l T M_i H_j V``, T for the task and H for the head where there are such cores."""

    def increment(self, x, i, s):
        f = self.factors
        z = linear(linear(x, f["U"]), f["G"][i])
        z = linear(linear(z, f["T"]) if "T" in f else z, f["M"][s])
        heads = [linear(z, head) for head in f["H"]] if "H" in f else [z]
        return torch.cat([linear(z, f["V"]) for z in heads], dim=-1)


class LoRTA(TorchViT):
    """One CP tensor over (width, head's width, heads, layers, 4); o has its transpose."""

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        if site not in "qkvo":
            return super().dense(x, site, i)
        f, kind = self.factors, "qkvo".index(site)
        weights = f["G"][i] * f["M"][kind]
        increment = torch.einsum("dr,hr,fr,r->dhf", f["A"], f["H"], f["B"], weights).flatten(1)
        increment = increment.T if site == "o" else increment
        return super().dense(x, site, i) + self.method.scale * linear(x, increment)


class CaRA(_Slices):
    """BonnBytes/CaRA, src/cara/cara.py: two CP tensors, and biases that all layers share."""

    def increment(self, x, i, s):
        f, depth = self.factors, self.config.depth
        if s < 3:
            weights = f["R1"] * f["A1"].unflatten(0, (depth, 3))[i, s]
            heads = torch.einsum("r,dr,hr,fr->dhf", weights, f["A2"], f["A3"], f["A4"])
            return linear(x, heads.flatten(1))
        weights = f["R2"] * f["P1"].unflatten(0, (depth, -1))[i, s - 3]
        stored = torch.einsum("r,ar,br->ab", weights, f["P2"], f["P3"])
        last = 4 + self.config.mlp_dim // self.config.width
        return linear(x, stored if s >= last else stored.T)

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        y, bias = super().dense(x, site, i), self.factors.get(f"bias_{site}")
        return y if bias is None else y + self.method.scale * bias


class EFFT(TorchViT):
    """``U C_i V`` for attention, ``U' C' V'`` for fc1 and its transpose for fc2, in all layers."""

    def dense(self, x: Tensor, site: str, i: int) -> Tensor:
        f, s = self.factors, (*SITES,).index(site)
        if s < 4:
            increment = f["U"] @ f["C"][s] @ f["V"]
        else:
            increment = f["U_mlp"] @ f["C_mlp"][s - 4] @ f["V_mlp"]
        increment = increment.T if site == "fc2" else increment
        return super().dense(x, site, i) + self.method.scale * linear(x, increment)


MODELS = {
    "Adapter": Adapter,
    "AdapterPlus": AdapterPlus,
    "AdaptFormer": AdaptFormer,
    "BitFit": Weights,
    "CaRA": CaRA,
    "Convpass": Convpass,
    "DoRA": DoRA,
    "EFFT": EFFT,
    "FacTCP": FacTCP,
    "FacTShared": FacTShared,
    "Full": Weights,
    "Linear": TorchViT,
    "LoRA": LoRA,
    "LoRTA": LoRTA,
    "MetaTT": MetaTT,
    "MetaTTHeads": MetaTT,
    "MetaTTTasks": MetaTT,
    "RepAdapter": RepAdapter,
    "SSF": SSF,
    "VPTDeep": VPT,
    "VPTShallow": VPT,
}


def build(method: Any, config: ViTConfig, base: dict, factors: dict) -> TorchViT:
    shared = getattr(method, "shared_input", False)
    model = SharedLoRA if shared else MODELS[type(method).__name__]
    return model(method, config, base, factors)


def loss(features: Tensor, head: dict, labels: np.ndarray) -> Tensor:
    logits = features @ torch.from_numpy(head["kernel"]) + torch.from_numpy(head["bias"])
    return F.cross_entropy(logits, torch.from_numpy(labels))


def outputs(model: TorchViT, head: dict, images, labels) -> dict[str, np.ndarray]:
    """{"features", and the gradient of the mean cross-entropy by each factor's name}."""
    features = model(images)
    if model.factors:
        loss(features, head, labels).backward()
    grads = {name: factor.grad.numpy() for name, factor in model.factors.items()}
    return {"features": features.detach().numpy(), **grads}


# --- Hugging Face's own LoRA

_PEFT_NAMES = {
    **{site: f"attention.{site}_proj" for site in "qkvo"},
    **{site: f"mlp.{site}" for site in ("fc1", "fc2")},
}


def peft_outputs(method: Any, config: ViTConfig, base, factors, head, images, labels) -> dict:
    """`outputs` of peft's LoRA or DoRA on transformers' ViT; alpha / r is its scale."""
    import peft

    sites = method.sites.split(",")
    model = hugging_face_vit(config, base, head)
    settings = peft.LoraConfig(
        r=method.rank,
        lora_alpha=method.scale * method.rank,  # type: ignore[arg-type]  # it takes any number
        target_modules=[_PEFT_NAMES[site].rpartition(".")[2] for site in sites],
        use_dora="norms_q" in factors,
    )
    model = peft.get_peft_model(model, settings)
    trained = dict(model.named_parameters())
    pairs = {}
    for i in range(config.depth):
        for site in sites:
            for side in "AB":
                (name,) = (n for n in trained if f"layers.{i}.{_PEFT_NAMES[site]}.lora_{side}" in n)
                trained[name].data = torch.from_numpy(factors[f"{side}_{site}"][i].T.copy())
                pairs[f"{side}_{site}", i] = trained[name]
            if f"norms_{site}" in factors:
                end = f"layers.{i}.{_PEFT_NAMES[site]}.lora_magnitude_vector"
                (name,) = (n for n in trained if end in n)
                trained[name].data = torch.from_numpy(factors[f"norms_{site}"][i].copy())
                pairs[f"norms_{site}", i] = trained[name]
    assert len(pairs) == sum(p.requires_grad for p in trained.values())
    features = model.base_model.model.vit(nchw(images)).last_hidden_state[:, 0]
    loss(features, head, labels).backward()
    grads = {
        name: np.stack([pairs[name, i].grad.numpy().T for i in range(config.depth)])
        for name in factors
    }
    return {"features": features.detach().numpy(), **grads}
