"""peft's `adapter_names` on transformers' ViT-B/16, alone in a process: the peer of `bank.py`.

    python -m benchmarks.bank_peer [--batch 16] [--tasks 16]

A LoRA of rank 8 on query and value for each task, and an image of each in a batch. The head is one
for all, because peft has none by image for this ViT. It says "ready" with the versions as JSON;
then each line that it reads makes it run one batch and print its seconds.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.common import CLASSES, option_parser
from benchmarks.speed.torch_peers import prepare_torchvision


def mixed_batch(batch: int, tasks: int) -> tuple[Callable[[], torch.Tensor], dict[str, str]]:
    """A call that computes a batch over the tasks, and the versions of what computes it."""
    prepare_torchvision()
    import peft
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=CLASSES))
    names = {n.rsplit(".", 1)[-1] for n, _ in model.named_modules()}
    targets = ["q_proj", "v_proj"] if "q_proj" in names else ["query", "value"]
    lora = peft.LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, lora, adapter_name="task0")
    for i in range(1, tasks):
        wrapped.add_adapter(f"task{i}", lora)
    wrapped.eval()
    images = torch.randn(batch, 3, 224, 224)
    adapters = [f"task{i % tasks}" for i in range(batch)]

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return wrapped(pixel_values=images, adapter_names=adapters).logits

    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    return call, versions


def main() -> None:
    parser = option_parser(__doc__, "batch", batch=16)
    parser.add_argument("--tasks", type=int, default=16)
    a = parser.parse_args()
    call, versions = mixed_batch(a.batch, a.tasks)
    call()
    print("ready", json.dumps(versions), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
