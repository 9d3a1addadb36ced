"""Uploaded pictures, and the images that a task's network takes."""

import io
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from python_multipart import multipart
from python_multipart.exceptions import FormParserError

from fact_jax.images.decoder import PictureError
from fact_jax.images.normalise import normalise
from fact_jax.images.pipeline import decode
from fact_jax.serving.server.folder import Preprocessing
from fact_jax.serving.server.refusal import Refusal

_FORM = "multipart/form-data"


class Upload(NamedTuple):
    """An encoded picture, and the fields of the form around it."""

    picture: bytes
    fields: dict[str, str]


def read_upload(body: bytes, content_type: str) -> Upload:
    """The picture of a body: the file of a form, or the body itself.

    Raises:
      Refusal: there is no picture, or the form is damaged.
    """
    if not body:
        raise Refusal(400, "The body is empty; expected an image file.")
    if content_type.partition(";")[0].strip().lower() != _FORM:
        return Upload(body, {})
    files: list[Any] = []
    fields: list[Any] = []
    settings = {
        "MAX_MEMORY_FILE_SIZE": len(body) + 1,  # nothing goes to the disk
        "MAX_FIELDS": 8,
        "MAX_FIELD_SIZE": 1000,
    }
    try:
        parser = multipart.create_form_parser(
            {"Content-Type": content_type.encode("latin-1")}, fields.append, files.append, settings
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal(400, "The body is no sound multipart form.") from error
    if len(files) != 1:
        raise Refusal(400, f"The form has {len(files)} files; expected one, the picture.")
    content: io.BytesIO = files[0].file_object
    texts = {_text(field.field_name): _text(field.value) for field in fields}
    return Upload(content.getvalue(), texts)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def prepare(picture: bytes, steps: Preprocessing, pixels: int) -> Float[np.ndarray, "1 s s 3"]:
    """The normalised image of a picture, exactly as `fact-jax predict` makes it.

    Args:
      picture: its encoded bytes.
      steps: the task's preprocessing.
      pixels: most pixels of the picture.

    Raises:
      Refusal: it is no picture that can be decoded, or too large.
    """
    try:
        size, quality = steps.image_size, steps.jpeg_quality
        image = decode(picture, size, quality, resize=steps.resize, max_pixels=pixels)
    except PictureError as error:
        raise Refusal(400, f"The picture cannot be decoded: {error}.") from error
    return np.asarray(normalise(jnp.asarray(image[None]), steps.normalisation))
