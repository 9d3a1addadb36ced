"""Whether a builder's data are what a task says, and the record of where they come from."""

import hashlib
from typing import Any

from fact_jax.data.offline.bundled import BundledBuilder
from fact_jax.data.prepare import Found
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError


def check_features(task: Task, builder: Any) -> None:
    """UserError if a feature that the task reads is missing or has another class count."""
    for path in (task.image_key, *task.label_features):
        feature = builder.info.features
        for name in path.split("/"):
            feature = getattr(feature, "feature", feature)  # a Sequence's elements
            if name not in feature:
                raise UserError(
                    f"Task {task.name} reads feature {path!r}, which {builder.info.full_name} "
                    f"does not have (it has {', '.join(builder.info.features)})."
                )
            feature = feature[name]
        expected = task.label_features.get(path)
        if expected is not None and feature.num_classes != expected:
            raise UserError(
                f"Task {task.name}: class count does not match: {builder.info.full_name} declares "
                f"{feature.num_classes} classes for {path!r}, the task expects {expected}. Use "
                f"the version {task.versions} of the data set, or correct the task."
            )


def check_sizes(task: Task, builder: Any) -> None:
    """UserError if a split of the prepared data has another size than the task's."""
    for split, expected in task.sizes.items():
        if split not in task.splits:
            continue
        try:
            found = builder.info.splits[task.splits[split]].num_examples
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"Task {task.name}: split {split} ({task.splits[split]}) cannot be taken from "
                f"{builder.data_path}, which has {', '.join(builder.info.splits)} ({error}). "
                f"Delete that directory and prepare the data again."
            ) from error
        if found != expected:
            raise UserError(
                f"Task {task.name}: split {split} ({task.splits[split]}) of {builder.data_path} "
                f"has {found} examples, expected {expected}. The data were prepared from an "
                f"incomplete or different source; delete that directory and prepare them again."
            )


def source_record(task: Task, found: Found, mocked: bool) -> dict[str, Any]:
    """JSON-able record of the source; its fingerprint is that of TFDS's record of the files."""
    import PIL

    if bundled := isinstance(found.builder, BundledBuilder):
        fingerprint = found.builder.fingerprint
    elif not mocked:
        record = (found.builder.data_path / "dataset_info.json").read_bytes()
        fingerprint = hashlib.sha256(record).hexdigest()[:16]
    return {
        "task": task.name,
        "builder": task.builder,
        "requested_version": task.versions,
        "used_version": found.version,
        "mapped": found.request != task.versions,
        "note": task.note,
        "file_format": str(getattr(found.builder.info.file_format, "value", None)),
        "splits": dict(task.splits),
        "mock": mocked,
        "data_dir": None if mocked or bundled else str(found.builder.data_path),
        "fingerprint": None if mocked else fingerprint,
        "tfds": None if bundled else _tfds_version(),
        "pillow": PIL.__version__,
    }


def _tfds_version() -> str:
    import tensorflow_datasets as tfds

    return tfds.__version__
