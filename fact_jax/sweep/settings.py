"""The settings of a sweep, each written once: its default, its range, what it is and where it acts.

`configs/base.py` makes a config of the defaults. Methods have settings besides, in the fields of
their classes (`fact_jax.ranges.setting`).
"""

import dataclasses
import functools
from typing import Any

from fact_jax.backbone.config import ATTENTIONS, GELUS, PRECISIONS, REMATS, VARIANTS
from fact_jax.data import DataSettings
from fact_jax.images.normalise import NORMALISATIONS
from fact_jax.images.pipeline import RESIZES
from fact_jax.images.preprocessing import preprocessing_of
from fact_jax.ranges import (
    RATE,
    SHARE,
    SIZE,
    Each,
    Flag,
    Names,
    OneOf,
    OrNone,
    Text,
    Whole,
    setting,
)
from fact_jax.training.metrics import MULTI_LABEL, SINGLE_LABEL
from fact_jax.training.recipe import Recipe

PROTOCOLS = ("val", "paper")
# The warm-up of the released 100 epochs; shorter schedules have a tenth, to come to their peak.
WARMUP_EPOCHS = 10
_EPOCHS = Whole(0, 100_000)  # a thousand times the released schedule
_IMAGES = Whole(0, 10**9)  # more than any data set has
MEASURES = tuple(dict.fromkeys((*SINGLE_LABEL, *MULTI_LABEL)))
LOGGER_NAMES = ("tensorboard", "wandb", "mlflow")
_BATCH = Whole(1, 2**16)  # as large as the largest that anybody trains with

method_setting = functools.partial(setting, per_method=True)


def recipe_setting(name: str, what: str, **metadata: Any) -> Any:
    """A choice of the training's program, with the default and the range that `Recipe` has."""
    field = Recipe.__dataclass_fields__[name]
    return setting(field.default, field.metadata["allowed"], what, **metadata)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings that a result depends on: a finished cell is only reused when all are equal.

    Metadata of a field besides its range and `what` it is (one sentence without a full stop):
      per_method: a method, or one of its tasks, may have a value of its own. All other settings
        must be equal in a table, or else its rows do not compare.
      grid: a method may list candidates, to choose from on validation data.
      column: its place in results.csv.
      before: the value that stands for what earlier versions did, which had no such setting. A
        setting of this value is not stored, so that results, checkpoints and plans stay valid.

    The order of the fields is that of a stored result's `settings`.
    """

    variant: str = setting("vit_b16", OneOf(VARIANTS), "the Vision Transformer")
    gelu: str = setting("", OneOf(("", *GELUS)), "empty: what the weights say")
    dtype: str = setting(
        "float32", OneOf(("float32", "bfloat16")), "type that the network computes in", column=4
    )
    # 'highest': true float32 on TPU and GPU.
    precision: str = setting("default", OneOf(PRECISIONS), "of float32 products")
    # None: what the ViT's weights were trained with, 224 for most and 32 for vit_mini.
    image_size: int = setting(
        None, OrNone(Whole(1, 4096)), "pixels along a side of the network's input", column=3
    )
    # 'crop': both sides to 256/224 of the size, then the middle.
    resize: str = setting("square", OneOf(RESIZES), "how pictures are brought to that size")
    normalisation: str = setting(
        "imagenet", OneOf(NORMALISATIONS), "mean and deviation of the pixels", column=5
    )
    # 75: the copies that FacT's numbers were made with.
    jpeg_quality: int = setting(0, Whole(0, 95), "of JPEG copies; 0: none", column=6)
    protocol: str = setting(
        "val", OneOf(PROTOCOLS), "how candidates are chosen and what is reported"
    )
    epochs: int = method_setting(
        100, Whole(1, _EPOCHS.high), "passes over the training images", column=0
    )
    warmup_epochs: int = method_setting(
        None, OrNone(_EPOCHS), "epochs in which the rate rises; None: a tenth", column=1
    )
    batch_size: int = setting(64, _BATCH, "training images of a step", column=2)
    learning_rate: float = method_setting(1e-3, RATE, "peak of the schedule", grid=True)
    weight_decay: float = method_setting(1e-4, RATE, "of the trained numbers", grid=True)
    dropout_rate: float = method_setting(
        0.1, SHARE, "share of hidden values that are left out", column=8
    )
    drop_path_rate: float = method_setting(
        0.1, SHARE, "share of images that skip a branch of a block", column=9
    )
    optimizer: str = recipe_setting(
        "optimizer", "'sgd' has momentum 0.9", per_method=True, column=7
    )
    decay_vectors: bool = recipe_setting(
        "decay_vectors", "whether biases, scales and shifts decay, too", per_method=True
    )
    augment: bool = setting(False, Flag(), "whether few-shot images are augmented", column=10)
    mixup: float = recipe_setting("mixup", "parameter of mixup's Beta distribution; 0: none")
    cutmix: float = recipe_setting("cutmix", "parameter of CutMix's Beta distribution; 0: none")
    label_smoothing: float = recipe_setting(
        "label_smoothing", "share of the uniform distribution in the targets"
    )
    erasing: float = recipe_setting("erasing", "probability that a part of an image is erased")
    start_from: str = method_setting(
        "", Text(), "folder of factor files, named as the cells, to go on from", before=""
    )
    # 'learn': the tasks of the sweep learn it together.
    shared: str = method_setting(
        "", Text(), "dictionary of factors that tasks share, a file", before=""
    )
    class_weights: str = method_setting(
        "", OneOf(("", "balanced")), "of the loss; 'balanced': rare classes count more", before=""
    )
    select_by: str = setting(
        "", OneOf(("", *MEASURES)), "measure on validation data; empty: the task's own", before=""
    )
    factor_bits: int = recipe_setting(
        "factor_bits", "of a number of the factors; 0: float32", per_method=True, before=0
    )
    head_bits: int = recipe_setting(
        "head_bits", "of a number of the head's kernel; 0: float32", per_method=True, before=0
    )
    # PACE: the logits under two draws of noise of the increments shall agree.
    consistency: str = recipe_setting(
        "consistency", "form of the loss of consistency; empty: none", per_method=True, before=""
    )
    consistency_weight: float = method_setting(
        1.0, RATE, "of the loss of consistency beside the cross-entropy", grid=True, before=1.0
    )
    consistency_noise: float = method_setting(
        1.0,
        RATE,
        "deviation of consistency's noise in the first block that has it",
        grid=True,
        before=1.0,
    )
    # Rank-adaptive training: the ranks before the method's own.
    start_ranks: tuple[int, ...] = method_setting(
        (), Each(SIZE, least=0), "ranks that training begins with, such as (32, 24)", before=()
    )
    round_epochs: tuple[int, ...] = method_setting(
        (), Each(_EPOCHS, least=0), "epochs after which the next rank begins", before=()
    )
    eval_every: int = method_setting(
        10, _EPOCHS, "epochs between protocol 'paper's test evaluations; 0: one"
    )
    train_limit: int = setting(0, _IMAGES, "training images at most; 0: all", column=11)
    eval_limit: int = setting(0, _IMAGES, "test images at most; 0: all", column=12)
    mock_data: bool = setting(False, Flag(), "whether examples are random", column=13)

    def __post_init__(self) -> None:
        if self.warmup_epochs is None:
            tenth = min(WARMUP_EPOCHS, self.epochs // WARMUP_EPOCHS)
            object.__setattr__(self, "warmup_epochs", tenth)
        for name in ("start_ranks", "round_epochs"):  # lists, as JSON has them
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.image_size is None:
            size = preprocessing_of(self.variant).image_size
            object.__setattr__(self, "image_size", size)

    def stored(self) -> dict[str, Any]:
        """The settings as a result has them, without those that are as they were `before`, and
        without numbers of a consistency that there is none of."""
        values, fields = dataclasses.asdict(self), dataclasses.fields(self)
        before = {f.name: f.metadata["before"] for f in fields if "before" in f.metadata}
        idle = () if self.consistency else CONSISTENCY_NUMBERS
        return {
            k: v for k, v in values.items() if k not in idle and (k not in before or v != before[k])
        }

    @property
    def network(self) -> dict[str, Any]:
        """Fields of the `ViTConfig` that are set here."""
        names = ("gelu", "dtype", "precision")
        return {name: value for name in names if (value := getattr(self, name))}


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """Settings of a whole sweep, and the `run` of cells whose method has nothing else.

    Metadata of a field besides its range and what it is:
      optional: a config may be without it.
    """

    tasks: str | tuple[str, ...] = setting("all", Names())  # 'all': VTAB-1K's 19
    methods: str | tuple[str, ...] = setting("", Names())  # each with its settings under its name
    seeds: tuple[int, ...] = setting(
        (42,), Each(Whole(0, 2**31 - 1)), "of the random numbers, such as (0, 1, 2)"
    )
    shots: tuple[int, ...] = setting(
        (), Each(Whole(1, 9999), least=0), "images a class, such as (1, 2, 4)", optional=True
    )
    weights: str = setting("", Text(), "its weights: a file, a folder, hf:owner/name, or empty")
    # Rematerialisation: less memory, more time (docs/performance.md).
    remat: str = setting("none", OneOf(REMATS), "what the backward pass computes again")
    # 'cudnn': the fused kernel of NVIDIA GPUs, in bfloat16.
    attention: str = setting("xla", OneOf(ATTENTIONS), "who computes attention")
    trials_per_device: int = setting(
        0, Whole(0, 1000), "trials that train together at most; 0: what fits"
    )
    tensorboard: bool = setting(False, Flag(), "whether scalars are written for TensorBoard")
    # As one text, "wandb,mlflow", or a tuple.
    loggers: str | tuple[str, ...] = setting(
        "", Names(LOGGER_NAMES), "programs that get the curves", optional=True
    )
    data_dir: str = setting("", Text(), "folder of the data sets; empty: TFDS's default")
    data_cache: str = setting("", Text(), "folder for decoded images; empty: none")
    download: bool = setting(False, Flag(), "whether TFDS may download what is missing")
    skip_damaged: bool = setting(
        False, Flag(), "whether damaged pictures are left out", optional=True
    )
    eval_batch_size: int = setting(256, _BATCH, "test images at a time")
    run: RunSettings = dataclasses.field(default_factory=RunSettings)

    @property
    def logger_names(self) -> tuple[str, ...]:
        """The loggers, each once; `tensorboard` is an older name for one of them."""
        given = self.loggers.split(",") if isinstance(self.loggers, str) else self.loggers
        names = [name.strip() for name in given if name.strip()]
        return tuple(dict.fromkeys([*(["tensorboard"] if self.tensorboard else []), *names]))

    @property
    def data(self) -> DataSettings:
        """The settings by which data are found and decoded."""
        return DataSettings(
            data_dir=self.data_dir or None,
            image_size=self.run.image_size,
            jpeg_quality=self.run.jpeg_quality or None,
            resize=self.run.resize,
            cache_dir=self.data_cache or None,
            download=self.download,
            mock=self.run.mock_data,
            skip_damaged=self.skip_damaged,
        )


_RUN = dataclasses.fields(RunSettings)
RUN_SETTINGS = tuple(f.name for f in _RUN)
METHOD_SETTINGS = tuple(f.name for f in _RUN if f.metadata.get("per_method"))
COMPARABLE = tuple(f.name for f in _RUN if not f.metadata.get("per_method"))
_PLACES = {f.name: f.metadata["column"] for f in _RUN if "column" in f.metadata}
COLUMNS = tuple(sorted(_PLACES, key=_PLACES.__getitem__))
# Lists of candidates in a method's settings, and what they are candidates for: numbers of the run,
# and the scale, which each method has.
GRID = {f"{name}s": name for name in ("scale", *(f.name for f in _RUN if f.metadata.get("grid")))}
# Without sense in a training without consistency.
CONSISTENCY_NUMBERS = ("consistency_weight", "consistency_noise")
# All that a config has, by name, but for the methods' settings.
SETTINGS = {
    f.name: f for f in (*dataclasses.fields(SweepSettings), *_RUN) if "allowed" in f.metadata
}
