"""One system of `step.py`, alone in a process: its last line is its result as JSON.

    python -m benchmarks.step_worker NAME [--batch 8] [--dtype float32] [--steps 3] [--count]

A step's time is the mean of `--steps` steps. Ours train as the sweep does, all of them in one call
of the epoch's program; full fine-tuning, an evaluation and the peers are called for each step.
With `--count` it is FLOPs alone: the program is compiled with the loop over the blocks written out,
and nothing is run.
"""

import json

from benchmarks.common import option_parser
from benchmarks.speed.systems import FORWARD, OURS, PEERS, system


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size", "batch", "dtype")
    parser.add_argument("name", choices=(*OURS, *PEERS, FORWARD))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--count", action="store_true")
    a = parser.parse_args()
    # Imported here, since PyTorch's memory is measured without JAX in the process.
    if a.name not in PEERS:
        from benchmarks.speed import step_ours

        result = step_ours.run(system(a.name), a)
    elif a.variant != "vit_b16" or a.image_size not in (0, 224):
        raise SystemExit("the peers are ViT-B/16 at 224 pixels only")
    else:
        from benchmarks.speed import torch_peers

        result = torch_peers.run(system(a.name), a)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
