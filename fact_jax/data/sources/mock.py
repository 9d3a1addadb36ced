"""Random examples of the builders' true features, through `tfds.testing.mock_data`.

They check plumbing, not learning: results made with them say `mock: true` in their provenance.
"""

import io
import sys
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from PIL import Image

from fact_jax.data.labels import Example
from fact_jax.extras import require


def mocked_by_caller() -> bool:
    """Whether the caller has entered `tfds.testing.mock_data`."""
    tfds = sys.modules.get("tensorflow_datasets")  # whoever mocks has imported it
    if tfds is None:
        return False
    module: str = tfds.core.DatasetBuilder.as_dataset.__module__
    return module.endswith("testing.mocking")


def mocking(active: bool, num_examples: int = 1) -> AbstractContextManager[object]:
    """`mock_data` from the builders' code alone, if active."""
    if not active:
        return nullcontext()
    require("Mock data", "tfds", "tensorflow_datasets", "tensorflow")
    import tensorflow_datasets as tfds

    policy = tfds.testing.MockPolicy.USE_CODE
    mocked: AbstractContextManager[object] = tfds.testing.mock_data(num_examples, policy=policy)
    return mocked


def as_stored(example: Example, image_key: str) -> Example:
    """Makes a mock example look like one read from records.

    The image becomes PNG bytes, and the features of a sequence, whose lengths `mock_data` draws
    one by one, are cut to the shortest.
    """
    example = dict(example)
    image = example[image_key]
    if isinstance(image, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
        example[image_key] = buffer.getvalue()
    for name, value in example.items():
        if isinstance(value, dict):
            length = min(map(len, value.values()))
            example[name] = {key: element[:length] for key, element in value.items()}
    return example
