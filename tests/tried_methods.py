"""The methods that tests go through, with factors of no special value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax import features
from fact_jax.tuning import (
    EFFT,
    SSF,
    Adapter,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    CaRA,
    Combination,
    Convpass,
    DoRA,
    FacTCP,
    FacTShared,
    FacTTK,
    FacTTT,
    Full,
    Linear,
    LoRA,
    LoRTA,
    MetaTT,
    MetaTTHeads,
    MetaTTTasks,
    RepAdapter,
    UniLoRA,
    VPTDeep,
    VPTShallow,
)

ALL = {
    "linear": Linear(),
    "full": Full(),
    "bitfit": BitFit(),
    "adapter_noah": Adapter(5),
    "adapter_houlsby": Adapter(5, "houlsby"),
    "adapter_plus": AdapterPlus(5),
    "adaptformer": AdaptFormer(5, scale=0.5),
    "adaptformer_norm": AdaptFormer(5, scale=0.5, layer_norm=True),
    "adaptformer_petl": AdaptFormer(5, scale=0.5, form="petl"),
    "lora_qv": LoRA(3),
    "lora_all": LoRA(3, sites="q,k,v,o,fc1,fc2"),
    "lora_noah": LoRA(3, sites="q,k,v", shared_input=True),
    "dora": DoRA(3),
    "ssf": SSF(),
    "convpass": Convpass(4),
    "convpass_attention": Convpass(4, attention_only=True),
    "repadapter": RepAdapter(4),
    "repadapter_attention": RepAdapter(4, attention_only=True),
    "vpt_shallow": VPTShallow(3),
    "vpt_deep": VPTDeep(3),
    "fact_tt": FacTTT(3),
    "fact_tk": FacTTK(3),
    "fact_cp": FacTCP(3),
    "fact_shared_layer": FacTShared(2),
    "fact_shared_kind": FacTShared(2, share="kind"),
    "metatt": MetaTT(3),
    "metatt_heads": MetaTTHeads(3),
    "metatt_tasks": MetaTTTasks(3),
    "metatt_tasks_heads": MetaTTTasks(3, heads=True),
    "lorta": LoRTA(3),
    "cara": CaRA(3),
    "efft": EFFT(3),
    "uni_lora": UniLoRA(50, rank=2),
}
# One for each way in which a method changes the ViT.
CHANGES = ["full", "adapter_houlsby", "lora_all", "ssf", "convpass", "repadapter", "vpt_deep"]
EVERYTHING = Combination(
    tuple(
        (name, ALL[name])
        for name in (
            "convpass",
            "adapter_houlsby",
            "adaptformer_norm",
            "repadapter",
            "vpt_shallow",
            "vpt_deep",
            "ssf",
            "lora_all",
            "fact_tt",
            "bitfit",
        )
    )
)


def method_of(name):
    return EVERYTHING if name == "everything" else ALL[name]


def random_factors(method, config, base, seed=0):
    """Every entry random: what begins at zero would hide mistakes. 0.3 changes the features."""
    rng, leaves = np.random.default_rng(seed), named(base)
    structs = jax.eval_shape(lambda b: method.init(jax.random.key(0), config, b), base)

    def factor(name, shape):
        start = leaves.get(name.rpartition("bitfit/")[2], float(name.endswith("_scale")))
        return jnp.asarray(start + 0.3 * rng.normal(size=shape), jnp.float32)

    return {name: factor(name, struct.shape) for name, struct in structs.items()}


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in keys): leaf for keys, leaf in leaves}


@functools.cache
def compiled(model):
    """``f(base, images, adaptation, key=, dropout_rate=, drop_path_rate=)``: features."""
    return jax.jit(functools.partial(features, model))


def adapted(name, model, base, images, seed=0, **training):
    """Features of a method with random factors."""
    method = method_of(name)
    factors = random_factors(method, model.config, base, seed)
    return compiled(model)(base, images, method.adaptation(factors, model.config), **training)
