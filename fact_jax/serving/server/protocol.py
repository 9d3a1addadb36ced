"""Bodies of the Open Inference Protocol V2, with its extension for binary tensors.

https://github.com/kserve/open-inference-protocol, and Triton's extensions "binary tensor data" and
"model repository".
"""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float

from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import Between
from fact_jax.serving.incoming import BankTask
from fact_jax.serving.server.folder import Preprocessing
from fact_jax.serving.server.refusal import Refusal
from fact_jax.text import printable_line
from fact_jax.training.metrics import probabilities
from fact_jax.version import __version__

INPUT, OUTPUT = "images", "logits"
VERSION = "1"  # of every task
BINARY_HEADER = "inference-header-content-length"
# Parameters of a tensor that Triton's clients send, and what to do without them. To ignore them
# would answer another question.
_NOT_OFFERED = {
    "classification": "POST the picture to /v1/tasks/TASK/classify for the most probable classes",
    "shared_memory_region": "take the numbers through the body",
}


class _Tensor(TypedDict):
    name: str
    shape: Annotated[list[Annotated[int, Between(0, 2**31)]], Between(4, 4)]
    datatype: str


class InputTensor(_Tensor, total=False):
    """The images of a request: numbers, or the size of those behind the JSON text."""

    data: list[Any]
    parameters: dict[str, Any]


class _Named(TypedDict):
    name: str


class RequestedOutput(_Named, total=False):
    """An output that the client wants."""

    parameters: dict[str, Any]


class _Inputs(TypedDict):
    inputs: Annotated[list[InputTensor], Between(1, 1)]


class InferenceBody(_Inputs, total=False):
    """The JSON text of an inference request."""

    id: Annotated[str, Between(0, 200)]
    outputs: list[RequestedOutput]
    parameters: dict[str, Any]


class Inference(NamedTuple):
    """A request for logits.

    Attributes:
      images: float32 and normalised.
      id: the client's name for the request; None: it has none.
      binary: whether the logits go behind the JSON text.
    """

    images: Float[np.ndarray, "n s s 3"]
    id: str | None
    binary: bool


def parse_inference(body: bytes, header_length: int | None, side: int) -> Inference:
    """Reads an inference request.

    Args:
      body: JSON, with the tensor's bytes behind it where the client sends them so.
      header_length: bytes of the JSON text; None: all.
      side: pixels of the task's images.

    Raises:
      UserError: the JSON text is damaged or of another form.
      Refusal: the tensor is not what the task takes.
    """
    if header_length is not None and header_length > len(body):
        raise Refusal(
            400, f"{BINARY_HEADER} is {header_length:,}; the body has {len(body):,} bytes."
        )
    text, raw = body[:header_length], body[len(body) if header_length is None else header_length :]
    request: InferenceBody = read_json(
        text, name="The request", schema=InferenceBody, max_bytes=len(text)
    )
    tensor = request["inputs"][0]
    shape = tuple(tensor["shape"])
    if tensor["name"] != INPUT or tensor["datatype"] != "FP32":
        name, kind = ascii(tensor["name"][:40]), ascii(tensor["datatype"][:20])
        raise Refusal(400, f"The input is {name} of {kind}; expected '{INPUT}' of 'FP32'.")
    if shape[0] < 1 or shape[1:] != (side, side, 3):
        raise Refusal(400, f"shape is {list(shape)}; this task takes [n, {side}, {side}, 3].")
    outputs = request.get("outputs", [])
    if unknown := [o["name"] for o in outputs if o["name"] != OUTPUT]:
        raise Refusal(400, f"There is no output {ascii(unknown[0][:40])}; expected '{OUTPUT}'.")
    for asked in (tensor, *outputs):
        _check_parameters(asked.get("parameters", {}))
    images = _numbers(tensor, raw, shape)
    if not np.isfinite(images).all():
        raise Refusal(400, "The images hold numbers that are not finite.")
    wanted = outputs[0].get("parameters", {}).get("binary_data") if outputs else None
    binary = request.get("parameters", {}).get("binary_data_output") if wanted is None else wanted
    return Inference(images, request.get("id"), binary is True)


def _check_parameters(parameters: dict[str, Any]) -> None:
    """Raises Refusal for parameters of a tensor that ask for what this server cannot do."""
    for name in parameters.keys() & _NOT_OFFERED:
        raise Refusal(400, f"This server has no {name!r}: leave it out, and {_NOT_OFFERED[name]}.")


def _numbers(tensor: InputTensor, raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's numbers, float32 of this shape."""
    count = math.prod(shape)
    stated = tensor.get("parameters", {}).get("binary_data_size")
    if stated is not None:
        if stated != 4 * count or len(raw) != 4 * count:
            raise Refusal(
                400,
                f"{len(raw):,} bytes follow the JSON text; shape {list(shape)} of FP32 takes "
                f"{4 * count:,}, as binary_data_size must say.",
            )
        return np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape)
    if "data" not in tensor or raw:
        raise Refusal(400, "The input has no data; give numbers, or binary_data_size.")
    try:
        numbers = np.asarray(tensor["data"])
    except ValueError as error:
        raise Refusal(400, "data is no array: its lists differ in length.") from error
    if numbers.dtype.kind not in "iuf" or numbers.size != count:
        raise Refusal(400, f"data has other than {count:,} numbers, which its shape asks for.")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
        return numbers.astype(np.float32).reshape(shape)


def inference_answer(
    task: str, logits: Float[np.ndarray, "n c"], request: Inference
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an answer."""
    raw = logits.astype("<f4").tobytes() if request.binary else b""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(logits.shape)}
    if request.binary:
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = logits.ravel().tolist()
    answer = {"model_name": task, "model_version": VERSION, "outputs": [output]}
    if request.id is not None:
        answer["id"] = request.id
    text = json.dumps(answer, allow_nan=False).encode()
    if not request.binary:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", BINARY_HEADER: str(len(text))}
    return text + raw, headers


def server_metadata() -> dict[str, Any]:
    """The server's name, version and protocol extensions."""
    extensions = ["model_repository", "binary_tensor_data"]
    return {"name": "fact-jax", "version": __version__, "extensions": extensions}


def model_metadata(name: str, task: BankTask, steps: Preprocessing) -> dict[str, Any]:
    """Inputs and outputs of a task, with the names of its classes and its preprocessing."""
    shape = [-1, steps.image_size, steps.image_size, 3]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "fact_jax",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": shape}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(task.classes)]}],
        "parameters": {
            "labels": [printable_line(label) for label in task.classes],
            "preprocessing": steps._asdict(),
            "method": task.metadata.get("method"),
            "members": task.num_members,
        },
    }


def top_classes(
    logits: Float[np.ndarray, " c"], classes: Sequence[str], topk: int, multi_label: bool = False
) -> list[dict[str, Any]]:
    """The most probable classes with their probabilities."""
    p = probabilities(logits[None], multi_label)[0]
    order = np.argsort(-p, kind="stable")[:topk]
    return [{"class": printable_line(classes[i]), "probability": float(p[i])} for i in order]
