"""The 19 tasks of VTAB-1K as a table of data.

Sources: google-research/task_adaptation d7630d3 (builders, versions, labels; split offsets from
the counts in its tests); NOAH e9c55f3, whose copies FacT's published numbers were made with.
"""

from functools import partial
from typing import Any

from fact_jax.data import labels
from fact_jax.data.tasks import Task, make_sizes, make_splits


def _label(num_classes: int, feature: str = "label") -> dict[str, Any]:
    """The class is stored in one feature."""
    return {
        "num_classes": num_classes,
        "label": partial(labels.plain, feature=feature),
        "label_features": {feature: num_classes},
    }


def _tfds(
    builder: str, versions: str, test_size: int, val: str, test: str = "test"
) -> dict[str, Any]:
    """A builder, and the TFDS strings of val200 and test."""
    sizes = make_sizes(test_size)
    return {
        "builder": builder,
        "versions": versions,
        "splits": make_splits(val, test),
        "sizes": sizes,
    }


_CLEVR = _tfds("clevr", "3.*.*", 15000, "train[63000:63200]", "validation")
_CLEVR["label_features"] = {"objects/pixel_coords": None}
_DSPRITES: dict[str, Any] = {
    "num_classes": 16,
    "binary": True,
    **_tfds("dsprites", "2.*.*", 73728, "train[589824:590024]", "train[663552:]"),
}
# val200 comes from the first half of TFDS's test split, test is the second half.
_SMALLNORB = _tfds("smallnorb", "2.*.*", 12150, "test[:200]", "test[50%:]")
_VALIDATION = "validation[:200]"
_COPY = "The vtab-1k folder of NOAH in the data directory serves as well (docs/data.md)."

_TASKS = (
    Task(
        "cifar", "natural", **_label(100), **_tfds("cifar100", "3.*.*", 10000, "train[45000:45200]")
    ),
    Task(
        "caltech101",
        "natural",
        **_label(102),
        **_tfds("caltech101", "3.*.*", 6084, "train[2754:2954]"),
        note="TFDS draws 30 training images a class over an unsorted directory listing: the "
        "partition can differ between file systems",
    ),
    Task("dtd", "natural", **_label(47), **_tfds("dtd", "3.*.*", 1880, _VALIDATION)),
    Task(
        "oxford_flowers102",
        "natural",
        **_label(102),
        **_tfds("oxford_flowers102", "2.*.*", 6149, _VALIDATION),
    ),
    Task(
        "oxford_iiit_pet",
        "natural",
        **_label(37),
        **_tfds("oxford_iiit_pet", "3.*.*", 3669, "train[2944:3144]"),
        substitutes=("4.*.*",),
        note="4.0.0 repaired corrupt images and added boxes; whether its order of examples is "
        "that of 3.2.0 is not known",
    ),
    Task(
        "svhn",
        "natural",
        **_label(10),
        **_tfds("svhn_cropped", "3.*.*", 26032, "train[65931:66131]"),
    ),
    Task(
        "sun397",
        "natural",
        **_label(397),
        **_tfds("sun397/tfds", "4.*.*", 21750, _VALIDATION),
        dead="https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz and its copy at MIT "
        "answer 404 (github.com/pytorch/vision/issues/9348)",
        fetch="the published SUN397.tar.gz (39,077,296,924 bytes) and Partitions.zip (18,293,705 "
        "bytes; TFDS checks the SHA-256 of both) from someone who has them",
        elsewhere=_COPY,
    ),
    Task(
        "patch_camelyon",
        "specialized",
        **_label(2),
        **_tfds("patch_camelyon", "2.*.*", 32768, _VALIDATION),
    ),
    Task(
        "eurosat",
        "specialized",
        **_label(10),
        **_tfds("eurosat/rgb", "2.*.*", 5400, "train[16200:16400]", "train[21600:]"),
    ),
    Task(
        "resisc45",
        "specialized",
        **_label(45),
        **_tfds("resisc45", "3.*.*", 6300, "train[18900:19100]", "train[25200:]"),
        manual=("NWPU-RESISC45",),
        fetch="NWPU-RESISC45.rar (31,500 images in 45 folders) from "
        "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs, extracted so that the folder "
        "NWPU-RESISC45 holds airplane/airplane_001.jpg and so on",
        elsewhere=_COPY,
    ),
    Task(
        "diabetic_retinopathy",
        "specialized",
        **_label(5),
        **_tfds("diabetic_retinopathy_detection/btgraham-300", "3.*.*", 42670, _VALIDATION),
        manual=("sample", "train", "test", "trainLabels.csv"),
        fetch="sample.zip, train.zip.001 to .005, test.zip.001 to .007 and trainLabels.csv.zip "
        "from https://www.kaggle.com/c/diabetic-retinopathy-detection/data (Kaggle account, rules "
        "accepted, 88 GB), unpacked so that sample, train and test hold 10_left.jpeg and so on",
        elsewhere=_COPY,
    ),
    Task("clevr_count", "structured", 8, label=labels.object_count, **_CLEVR),
    Task("clevr_dist", "structured", 6, label=labels.nearest_object, **_CLEVR),
    Task("dmlab", "structured", **_label(6), **_tfds("dmlab", "2.0.1", 22735, _VALIDATION)),
    Task(
        "kitti",
        "structured",
        4,
        **_tfds("kitti", "3.1.0", 711, _VALIDATION),
        substitutes=("3.2.0", "3.3.0"),
        label=labels.nearest_vehicle,
        label_features={"objects/location": None, "objects/type": 8},
        note="task_adaptation asks for 3.1.0, NOAH and VPT for 3.2.0 (same data; the devkit's file "
        "was updated); TFDS now prepares only 3.3.0, which added names of the occlusion labels",
    ),
    Task(
        "dsprites_loc",
        "structured",
        label=partial(labels.binned, feature="label_x_position", width=2.0),
        label_features={"label_x_position": 32},
        **_DSPRITES,
    ),
    Task(
        "dsprites_ori",
        "structured",
        label=partial(labels.binned, feature="label_orientation", width=2.5),
        label_features={"label_orientation": 40},
        **_DSPRITES,
    ),
    Task("smallnorb_azi", "structured", **_label(18, "label_azimuth"), **_SMALLNORB),
    Task("smallnorb_ele", "structured", **_label(9, "label_elevation"), **_SMALLNORB),
)

VTAB: dict[str, Task] = {task.name: task for task in _TASKS}
