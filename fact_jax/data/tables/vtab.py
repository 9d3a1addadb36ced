"""The 19 tasks of VTAB-1K as a table of data.

Sources: google-research/task_adaptation d7630d3 (builders, versions, labels; split offsets from
the counts in its tests); NOAH e9c55f3, whose copies FacT's published numbers were made with.
"""

from functools import partial

from fact_jax.data import labels
from fact_jax.data.tasks import Task, make_sizes, make_splits


def _splits(
    test_size: int, val: str = "validation[:200]", test: str = "test"
) -> tuple[dict[str, str], dict[str, int]]:
    """The splits of a task, from the TFDS strings of val200 and test, and their sizes."""
    return make_splits(val, test), make_sizes(test_size)


_CLEVR = ("clevr", "3.*.*", *_splits(15000, "train[63000:63200]", "validation"))
_DSPRITES = ("dsprites", "2.*.*", *_splits(73728, "train[589824:590024]", "train[663552:]"))
# val200 comes from the first half of TFDS's test split, test is the second half.
_SMALLNORB = ("smallnorb", "2.*.*", *_splits(12150, "test[:200]", "test[50%:]"))
_RETINOPATHY = "diabetic_retinopathy_detection/btgraham-300"
_COPY = "The vtab-1k folder of NOAH in the data directory serves as well (docs/data.md)."

# Name, group, classes; builder, versions, splits and sizes.
_TASKS = (
    Task("cifar", "natural", 100, "cifar100", "3.*.*", *_splits(10000, "train[45000:45200]")),
    Task(
        *("caltech101", "natural", 102, "caltech101", "3.*.*"),
        *_splits(6084, "train[2754:2954]"),
        note="TFDS draws 30 training images a class over an unsorted directory listing: the "
        "partition can differ between file systems",
    ),
    Task("dtd", "natural", 47, "dtd", "3.*.*", *_splits(1880)),
    Task("oxford_flowers102", "natural", 102, "oxford_flowers102", "2.*.*", *_splits(6149)),
    Task(
        *("oxford_iiit_pet", "natural", 37, "oxford_iiit_pet", "3.*.*"),
        *_splits(3669, "train[2944:3144]"),
        substitutes=("4.*.*",),
        note="4.0.0 repaired corrupt images and added boxes; whether its order of examples is "
        "that of 3.2.0 is not known",
    ),
    Task("svhn", "natural", 10, "svhn_cropped", "3.*.*", *_splits(26032, "train[65931:66131]")),
    Task(
        *("sun397", "natural", 397, "sun397/tfds", "4.*.*"),
        *_splits(21750),
        dead="https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz and its copy at MIT "
        "answer 404 (github.com/pytorch/vision/issues/9348)",
        fetch="the published SUN397.tar.gz (39,077,296,924 bytes) and Partitions.zip (18,293,705 "
        "bytes; TFDS checks the SHA-256 of both) from someone who has them",
        elsewhere=_COPY,
    ),
    Task("patch_camelyon", "specialized", 2, "patch_camelyon", "2.*.*", *_splits(32768)),
    Task(
        *("eurosat", "specialized", 10, "eurosat/rgb", "2.*.*"),
        *_splits(5400, "train[16200:16400]", "train[21600:]"),
    ),
    Task(
        *("resisc45", "specialized", 45, "resisc45", "3.*.*"),
        *_splits(6300, "train[18900:19100]", "train[25200:]"),
        manual=("NWPU-RESISC45",),
        fetch="NWPU-RESISC45.rar (31,500 images in 45 folders) from "
        "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs, extracted so that the folder "
        "NWPU-RESISC45 holds airplane/airplane_001.jpg and so on",
        elsewhere=_COPY,
    ),
    Task(
        *("diabetic_retinopathy", "specialized", 5, _RETINOPATHY, "3.*.*", *_splits(42670)),
        manual=("sample", "train", "test", "trainLabels.csv"),
        fetch="sample.zip, train.zip.001 to .005, test.zip.001 to .007 and trainLabels.csv.zip "
        "from https://www.kaggle.com/c/diabetic-retinopathy-detection/data (Kaggle account, rules "
        "accepted, 88 GB), unpacked so that sample, train and test hold 10_left.jpeg and so on",
        elsewhere=_COPY,
    ),
    Task(
        *("clevr_count", "structured", 8, *_CLEVR),
        label=labels.object_count,
        label_features={"objects/pixel_coords": None},
    ),
    Task(
        *("clevr_dist", "structured", 6, *_CLEVR),
        label=labels.nearest_object,
        label_features={"objects/pixel_coords": None},
    ),
    Task("dmlab", "structured", 6, "dmlab", "2.0.1", *_splits(22735)),
    Task(
        *("kitti", "structured", 4, "kitti", "3.1.0", *_splits(711)),
        substitutes=("3.2.0", "3.3.0"),
        label=labels.nearest_vehicle,
        label_features={"objects/location": None, "objects/type": 8},
        note="task_adaptation asks for 3.1.0, NOAH and VPT for 3.2.0 (same data; the devkit's file "
        "was updated); TFDS now prepares only 3.3.0, which added names of the occlusion labels",
    ),
    Task(
        *("dsprites_loc", "structured", 16, *_DSPRITES),
        label=partial(labels.binned, feature="label_x_position", width=2.0),
        label_features={"label_x_position": 32},
        binary=True,
    ),
    Task(
        *("dsprites_ori", "structured", 16, *_DSPRITES),
        label=partial(labels.binned, feature="label_orientation", width=2.5),
        label_features={"label_orientation": 40},
        binary=True,
    ),
    Task(
        *("smallnorb_azi", "structured", 18, *_SMALLNORB),
        label=partial(labels.plain, feature="label_azimuth"),
        label_features={"label_azimuth": 18},
    ),
    Task(
        *("smallnorb_ele", "structured", 9, *_SMALLNORB),
        label=partial(labels.plain, feature="label_elevation"),
        label_features={"label_elevation": 9},
    ),
)

VTAB: dict[str, Task] = {task.name: task for task in _TASKS}
