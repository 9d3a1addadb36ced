"""The library as people call it: eagerly, differentiated both ways, under JAX's flags, wrongly."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import arrays_of_type
from places import ROOT
from tried_methods import ALL, CHANGES

import fact_jax
from fact_jax import Adaptation, FacTTT, LoRA, UserError, ViT, ViTConfig, features
from fact_jax.backbone.vit import init_base
from fact_jax.files.factors import TrainedTask
from fact_jax.serving.predict import affordable_batch
from fact_jax.training.mesh import make_mesh, stack
from fact_jax.training.recipe import Recipe
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, train_set

CONFIG = ViTConfig(width=8, depth=3, num_heads=2, mlp_dim=32, patch_size=4, image_size=8)
METHOD = FacTTT(rank=2)


@pytest.fixture(scope="module")
def vit():
    return ViT(CONFIG), init_base(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def factors():
    begun = METHOD.init(jax.random.key(1), CONFIG)
    return {**begun, "V": begun["V"] + 0.3}


def calls(model, base, images, tmp_path):
    """Makes the calls of the README's example, but for the loop."""
    method = FacTTT(rank=2, scale=0.5)
    factors = method.init(jax.random.key(0), model.config)
    adaptation = method.adaptation(factors, model.config)
    features(model, base, images, adaptation)
    features(model, base, images, adaptation, key=jax.random.key(1), dropout_rate=0.1)
    jax.grad(lambda f: features(model, base, images, method.adaptation(f, CONFIG)).sum())(factors)
    jax.vmap(lambda x: features(model, base, x[None]))(images)
    fact_jax.absorb(base, adaptation)
    fact_jax.features(model, fact_jax.merge(base, adaptation), images)
    model.apply({"params": base}, images, mutable="intermediates")
    head = {"kernel": jnp.zeros((8, 3), jnp.float32), "bias": jnp.zeros(3, jnp.float32)}
    fact_jax.save_factors(tmp_path / "x.safetensors", method, factors, head, model.config)
    task = fact_jax.load_factors(tmp_path / "x.safetensors")
    fact_jax.Predictor(model, base, task, batch_size=2).logits(images)


def test_second_eager_calls_compile_nothing(vit, pictures, compiled, tmp_path):
    calls(*vit, pictures, tmp_path)
    assert compiled
    compiled.clear()
    calls(*vit, pictures, tmp_path)
    assert compiled == []


def direction(tree):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)


def inner(a, b):
    return sum(jnp.vdot(a[name], b[name]) for name in a)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_forward_mode_and_products_of_the_hessian(vit, pictures, factors, rate):
    """A jvp is the gradient's product with the direction; a Hessian's product its derivative.

    `jax.hessian` takes the products in a `vmap`, as here.
    """
    model, base = vit
    rates = {} if rate is None else {"dropout_rate": rate, "drop_path_rate": rate}
    key = None if rate is None else jax.random.key(0)

    def loss(factors):
        x = features(model, base, pictures, METHOD.adaptation(factors, CONFIG), key=key, **rates)
        return (x**3).sum()

    t = direction(factors)
    gradient = jax.jit(jax.grad(loss))
    both = jax.tree.map(lambda x: jnp.stack([x, -x]), t)

    @jax.jit
    def derivatives(factors):
        forward = jax.jvp(loss, (factors,), (t,))[1]
        products = jax.vmap(lambda t: jax.jvp(gradient, (factors,), (t,))[1])(both)
        return forward, products

    forward, products = derivatives(factors)
    np.testing.assert_allclose(forward, inner(gradient(factors), t), rtol=2e-5)
    step = 1e-2
    moved = [gradient({k: factors[k] + s * step * t[k] for k in factors}) for s in (1, -1)]
    for name in factors:
        differences = (moved[0][name] - moved[1][name]) / (2 * step)
        size = np.abs(differences).max()
        np.testing.assert_allclose(products[name][0], differences, atol=0.02 * size)
        np.testing.assert_allclose(products[name][1], -products[name][0], atol=1e-4 * size)


@pytest.mark.parametrize("name", CHANGES)
def test_jvp_through_the_vit(vit, pictures, name):
    """The derivative along a direction is the gradient's product with it."""
    model, base = vit
    method = ALL[name]

    def loss(factors):
        return (features(model, base, pictures, method.adaptation(factors, CONFIG)) ** 3).sum()

    factors = method.init(jax.random.key(0), CONFIG, base)
    t = direction(factors)
    both = jax.jit(lambda f: (jax.jvp(loss, (f,), (t,))[1], jax.grad(loss)(f)))
    tangent, gradient = both(factors)
    np.testing.assert_allclose(tangent, inner(gradient, t), rtol=1e-3, atol=1e-3)


HYPER = Hyper(*np.float32([1e-3, 1e-4, 1.0, 0.1, 0.1]))


def program(method, model, base, recipe):
    """The training program of one trial, as a jaxpr."""
    mesh = make_mesh(4, num_trials=1)
    step = TrainStep(model, method, "imagenet", 4, mesh, recipe)
    state = step.init(0, 3, 5, base)
    data = train_set(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9, np.int32), 3)
    stacks = (stack([tree], mesh) for tree in (state, Trial(data, HYPER, np.int32(0))))
    return state, jax.make_jaxpr(step.program)(base, *stacks, np.int32(0), np.int32(2))


MIXED = Recipe("sgd", False, mixup=0.8, cutmix=1.0, label_smoothing=0.1, erasing=0.2)


@pytest.mark.parametrize("name", ["fact_tt", "lora", "vpt_deep", "convpass"])
def test_the_x64_flag_changes_no_dtype(name):
    method = fact_jax.tuning.METHODS[name]()
    with jax.enable_x64(True):
        base = init_base(CONFIG, jax.random.key(0))
        factors = method.init(jax.random.key(0), CONFIG, base)
        assert {x.dtype for x in jax.tree.leaves((base, factors))} == {np.dtype("float32")}
        for recipe in (Recipe(), MIXED) if name == "fact_tt" else (Recipe(),):
            state, jaxpr = program(method, ViT(CONFIG), base, recipe)
            assert arrays_of_type(jaxpr.jaxpr, "float64") == []
            assert {x.dtype.name for x in jax.tree.leaves(state)} <= {"float32", "int32"}


def test_an_epoch_has_no_nan_of_its_own(vit):
    """`jax_debug_nans` would end at one. Two of the three steps of this stack are not taken."""
    model, base = vit
    mesh = make_mesh(2)
    step = TrainStep(model, METHOD, "imagenet", 2, mesh)
    data = train_set(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int32), 3, capacity=6)
    trees = (step.init(0, 3, 5), Trial(data, HYPER, np.int32(0)))
    stacks = [stack([tree], mesh) for tree in trees]
    with jax.debug_nans(True):
        _, losses = step.program(base, *stacks, np.int32(0), np.int32(3))
    assert losses.shape == (1, 3)
    assert losses[0, 0] > 0
    np.testing.assert_array_equal(losses[0, 1:], 0)


@dataclasses.dataclass
class Given:
    """A ViT, factors of METHOD, and calls with another part in place of the right one."""

    model: ViT
    base: dict[str, Any]
    images: np.ndarray
    factors: dict[str, Any]

    def features(self, images=None, adaptation=None, **more):
        given = {"key": jax.random.key(0), **more} if more else {}
        images = self.images if images is None else images
        return features(self.model, self.base, images, adaptation, **given)

    def adaptation(self, factors=None, scale=1.0, **changed):
        factors = {**self.factors, **changed} if factors is None else factors
        return METHOD.adaptation(factors, CONFIG, scale)

    def predictor(self, batch_size=2):
        head = {"kernel": jnp.ones((8, 2), jnp.float32), "bias": jnp.zeros(2, jnp.float32)}
        task = TrainedTask(METHOD, self.factors, head, {"vit": {}}, Path("x"))
        return fact_jax.Predictor(self.model, self.base, task, batch_size)


@pytest.fixture(scope="module")
def given(vit, pictures, factors):
    return Given(*vit, pictures, factors)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def foreign(method=METHOD, **changes):
    """An adaptation for another ViT."""
    other = CONFIG.replace(**changes)
    return method.adaptation(method.init(jax.random.key(0), other), other)


def of_another(method=METHOD, **changes):
    """Factors for another ViT, or of another method."""
    return method.init(jax.random.key(0), CONFIG.replace(**changes))


def all_but(base, name):
    """BitFit's factors without this one, and with one of no meaning."""
    factors = fact_jax.BitFit().init(jax.random.key(0), CONFIG, base)
    return {**{k: v for k, v in factors.items() if k != name}, "x": 1.0}


def test_what_fits_is_taken(given):
    """An empty batch; the lines that messages advise; numbers of NumPy, and traced ones."""
    assert given.features(zeros(0, 8, 8, 3)).shape == (0, 8)
    pixels = fact_jax.normalise(zeros(1, 8, 8, 3, dtype=np.uint8), "imagenet")
    for images in (pixels, zeros(1, 8, 8, 1).repeat(3, axis=-1)):
        assert given.features(images).shape == (1, 8)
    for scale in (np.float32(0.5), np.array(0.5), jnp.float32(0.5)):
        given.adaptation(scale=scale)
    jax.jit(lambda scale: given.adaptation(scale=scale))(jnp.float32(0.5))


NOT_THIS_VIT = "does not fit this ViT of 3 blocks of width 8"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        # images
        (lambda g: g.features(zeros(8, 8, 3)), r"expected a batch.*images\[None\]"),
        (lambda g: g.features(zeros(2, 8, 8, 1)), "1 channels .*expected 3.*repeat"),
        (lambda g: g.features(zeros(2, 8, 8, 4)), r"4 channels .*expected 3.*images\[\.\.\., :3\]"),
        (lambda g: g.features(zeros(2, 3, 8, 8)), r"channels first.*transpose\(0, 2, 3, 1\)"),
        (lambda g: g.features(zeros(2, 8)), r"shape 2 x 8; expected \[batch"),
        (lambda g: g.features(zeros(2, 8, 8, 3, dtype=np.uint8)), "uint8; .*fact_jax.normalise"),
        (lambda g: g.features(zeros(2, 9, 9, 3)), "9 x 9 pixels: expected .* patch size 4"),
        (lambda g: g.features(zeros(2, 8, 12, 3)), "8 x 12 pixels: expected square"),
        (lambda g: g.features([[1.0]]), "of type list; expected an array"),
        # pixels
        (lambda g: fact_jax.normalise(zeros(2, 8, 8, 3), "none"), "float32; expected uint8"),
        (lambda g: fact_jax.normalise([[1]], "none"), "of type list; expected uint8"),
        (
            lambda g: fact_jax.normalise(zeros(2, 8, 8, 4, dtype=np.uint8), "none"),
            "2 x 8 x 8 x 4; expected 3 channels, or one of grey",
        ),
        # factors
        (lambda g: g.adaptation(of_another(depth=2)), "'S' has shape"),
        (lambda g: g.adaptation(of_another(width=16, mlp_dim=64)), "'U' has"),
        (lambda g: g.adaptation(of_another(FacTTT(rank=4))), r"'U' has shape \(8, 4\)"),
        (lambda g: g.adaptation(of_another(LoRA())), "'U' is missing"),
        (lambda g: g.adaptation(W=g.factors["U"]), "'W' is unknown"),
        (lambda g: g.adaptation(U=g.factors["U"].astype(int)), "type int.*expected float32"),
        (lambda g: g.adaptation(U=g.factors["U"].tolist()), "of type list, expected float32"),
        (lambda g: g.adaptation([g.factors["U"]]), "of type list; .* expects a dict"),
        (
            lambda g: fact_jax.BitFit().adaptation(all_but(g.base, "embedding/bias"), CONFIG),
            "'embedding/bias' is missing; 'x' is unknown",
        ),
        # bases
        (lambda g: dataclasses.replace(g, base={}).features(), "load_vit, which returns"),
        (
            lambda g: dataclasses.replace(g, model=ViT(CONFIG.replace(depth=4))).features(),
            "base does not fit the model in .*: its shape is 3 x 8, expected 4 x 8",
        ),
        (lambda g: fact_jax.merge(None, g.adaptation()), "base does not hold the parameters of"),
        # adaptations
        (lambda g: g.features(adaptation=g.factors), "of type dict; expected an Adaptation"),
        (lambda g: g.features(adaptation=foreign(depth=4)), NOT_THIS_VIT),
        (lambda g: g.features(adaptation=foreign(fact_jax.VPTDeep(2), depth=4)), NOT_THIS_VIT),
        (lambda g: g.features(adaptation=foreign(fact_jax.SSF(), depth=4)), NOT_THIS_VIT),
        (lambda g: g.features(adaptation=foreign(fact_jax.Adapter(2), depth=4)), NOT_THIS_VIT),
        (lambda g: fact_jax.merge(g.base, foreign(width=16, mlp_dim=64)), NOT_THIS_VIT),
        (lambda g: fact_jax.absorb(g.base, foreign(width=16, mlp_dim=64)), NOT_THIS_VIT),
        (lambda g: fact_jax.merge(g.base, g.factors), "of type dict; expected an Adaptation"),
        (
            lambda g: fact_jax.merge(g.base, Adaptation(weights={"nothing": g.base["cls"]})),
            "'nothing', which this ViT does not have",
        ),
        (
            lambda g: g.features(adaptation=Adaptation(weights={"cls": jnp.ones(3)})),
            r"'cls' of shape \(1, 1, 8\) by one of shape \(3,\)",
        ),
        # the predictor
        (
            lambda g: g.predictor().logits(zeros(2, 8, 8, 3, dtype=np.uint8)),
            "of type uint8; .*norm",
        ),
        (lambda g: g.predictor().logits(zeros(2, 8, 8, 3, dtype=complex)), "of type complex"),
        (lambda g: g.predictor().logits(zeros(8, 8, 3)), r"For one image pass images\[None\]"),
        (lambda g: g.predictor(1.5), "batch_size is 1.5; expected a whole number"),
        # the ViT
        (lambda g: CONFIG.replace(num_heads=0), "num_heads is 0; expected a whole number from 1"),
        (lambda g: CONFIG.replace(patch_size=0), "patch_size is 0"),
        (lambda g: CONFIG.replace(width=-8), "width is -8"),
        (lambda g: CONFIG.replace(depth=1.5), "depth is 1.5"),
        (lambda g: CONFIG.replace(image_size="32"), "image_size is '32'"),
        (
            lambda g: CONFIG.replace(layer_norm_eps=float("nan")),
            "eps is nan; .* above 0 and below 1",
        ),
        (lambda g: CONFIG.replace(layer_norm_eps=-1), "layer_norm_eps is -1"),
        (lambda g: CONFIG.replace(layer_scale="x"), "layer_scale is 'x'; expected True or False"),
        (lambda g: CONFIG.replace(remat="all"), "remat is 'all'; expected one of"),
        (lambda g: CONFIG.replace(precision="medium"), "precision is 'medium'"),
        (lambda g: CONFIG.replace(dtype="float16"), "dtype is 'float16'"),
        (lambda g: CONFIG.replace(size=3), "no setting 'size'; it has width"),
        (lambda g: fact_jax.load_vit("vit_mini", depth=3), "depth=3 does not fit the weights"),
        (lambda g: fact_jax.load_vit("vit_mini", mlp_dim=128), "mlp_dim=128 does not fit the"),
        (lambda g: fact_jax.load_vit("vit_mini", image_size=64), "image_size=64 does not fit"),
    ],
)
def test_mistakes_are_named(given, call, text):
    with pytest.raises(UserError, match=text):
        call(given)


def changed(base, name, value):
    """The base with another leaf of this name, or without it."""
    head, _, rest = name.partition("/")
    if not rest:
        return {k: v for k, v in {**base, head: value}.items() if v is not None}
    return {**base, head: changed(base[head], rest, value)}


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("cls", None, "it is missing"),
        ("Transformer/encoder_norm/scale", None, "it is missing"),
        ("Transformer/posembed_input/pos_embedding", zeros(1, 4, 8), "1 x 4 x 8"),
        ("Transformer/encoderblock/LayerNorm_0/bias", zeros(3, 8, dtype=int), "of type int"),
        ("Transformer/encoderblock/MlpBlock_3/Dense_1/kernel", "x", "single number"),
    ],
)
def test_the_first_leaf_of_a_base_that_differs_is_named(given, name, value, fault):
    with pytest.raises(UserError, match=f"base does not fit the model in '{name}': .*{fault}"):
        dataclasses.replace(given, base=changed(given.base, name, value)).features()


@pytest.mark.parametrize("value", ["1", [1.0], {}, True, 1 + 2j, np.ones(2), jnp.float32(np.nan)])
def test_scales_and_rates_are_numbers_of_their_range(given, value):
    with pytest.raises(UserError, match="scale is .*; expected a finite number"):
        given.adaptation(scale=value)
    for wrong in (value, 2.0, 1, -0.5):
        for rate in ("dropout_rate", "drop_path_rate"):
            with pytest.raises(UserError, match=f"{rate} is .*; expected .* from 0 to below 1"):
                given.features(**{rate: wrong})


@pytest.mark.parametrize(
    ("name", "image_size", "devices", "batch"),
    [
        ("vit_b16", 224, 1, 64),
        ("vit_mini", 600, 1, 2),  # 5,626 tokens
        ("vit_mini", 600, 8, 16),
        ("vit_h14", 1022, 1, 1),
        ("vit_h14", 1022, 8, 8),
    ],
)
def test_batches_of_large_images_are_small(name, image_size, devices, batch):
    assert affordable_batch(fact_jax.get_variant(name), image_size, devices) == batch


def test_saved_factors_are_what_a_sweep_s_file_is(vit, pictures, factors, tmp_path):
    model, base = vit
    head = {"kernel": np.ones((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    path = tmp_path / "mine.safetensors"
    names = ["café", "=1+1"]
    entries = {"class_names": names, "normalisation": "imagenet", "image_size": 8, "mine": [1]}
    entries["variant"] = "a ViT of one's own"
    checksum = fact_jax.checksum(base)
    fact_jax.save_factors(path, METHOD, factors, head, CONFIG, weights_sha256=checksum, **entries)
    task = fact_jax.load_factors(path)
    assert (task.method, task.metadata["class_names"], task.num_classes) == (METHOD, names, 2)
    assert task.metadata["mine"] == [1]
    fact_jax.check_fits(task, CONFIG, checksum)
    x = features(model, base, pictures, METHOD.adaptation(factors, CONFIG))
    logits = fact_jax.Predictor(model, base, task).logits(pictures)
    np.testing.assert_allclose(logits, x @ head["kernel"], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"head": {"kernel": np.ones((9, 2), np.float32), "bias": np.zeros(2)}}, "head/kernel is"),
        ({"head": {"bias": np.zeros(2, np.float32)}}, "the head has no 'kernel'"),
        ({"head": {"kernel": np.ones((8, 2), np.float32)}}, "the head has no 'bias'"),
        ({"head": {"kernel": [[1.0]], "bias": [0.0]}}, "the head is no dict of arrays"),
        ({"method": "fact_tt"}, "method is 'fact_tt'; expected one such as FacTTT"),
        ({"config": ViT(CONFIG)}, "config is of type ViT, expected a ViTConfig"),
        ({"image_size": 9}, "image_size 9 is not a multiple of the ViT's patch size 4"),
        ({"variant": "vit_mini"}, "variant is 'vit_mini', whose width is not the config's"),
        ({"mine": functools.reduce(lambda a, _: [a], range(5000), [])}, "recursion|nested deeper"),
        ({"path": None}, "ends in .safetensors"),
        ({"head": {"kernel": np.ones((8, 0)), "bias": np.zeros(0)}}, "0 classes"),
        ({"config": CONFIG.replace(depth=2)}, "factors/S is"),
        ({"method": FacTTT(rank=4)}, "factors/U is"),
        ({"image_size": "big"}, "image_size is 'big', expected a whole number"),
        ({"class_names": ["one"]}, "class_names are not 2 texts"),
        ({"normalisation": "x"}, "normalisation is 'x'; expected one of"),
        ({"num_classes": 3}, "num_classes is not for callers"),
        ({"mine": {1, 2}}, "set is not JSON serializable"),
        ({"path": "x.npz"}, "ends in .safetensors"),
        ({"factors": "nan"}, "'factors/U' has non-finite numbers"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(factors, tmp_path, change, text):
    head = {"kernel": np.ones((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    values = {"method": METHOD, "factors": factors, "head": head, "config": CONFIG, **change}
    if values["factors"] == "nan":
        values["factors"] = {**factors, "U": factors["U"] * jnp.nan}
    path = values.pop("path", "x.safetensors")
    path = path and tmp_path / path
    with pytest.raises(UserError, match=text):
        fact_jax.save_factors(path, **values)
    assert list(tmp_path.iterdir()) == []


def test_the_methods_of_the_reference_are_imported_from_the_package():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    section = page.split("## Tuning methods")[1].split("\n## ")[0]
    named = re.findall(r"\[`(\w+)`\]\[fact_jax\.tuning\.(?!method\.)", section)
    assert len(named) > 20
    assert set(named) <= set(fact_jax.__all__)
    assert all(hasattr(fact_jax, name) for name in fact_jax.__all__)
