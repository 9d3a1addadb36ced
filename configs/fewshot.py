"""Few-shot fine-grained recognition, the paper's second experiment, with any method.

    configs/fewshot.py:lora,noah       names of methods, with commas between them; or all:
                                       the sixteen of configs/compare.py
    configs/fewshot.py:lora,plain      without augmentation
    configs/fewshot.py:quickstart      all methods, small: offline tasks on the bundled ViT

Five data sets, 1 to 16 images a class, seeds 0, 1, 2, ViT-B/16. The protocol is that of NOAH's code
(ZhangYuanhan-AI/NOAH): AdamW at 5e-3, batch 64, 100 epochs, its augmentation; the test images are
resized to 256 and cut to 224. FacT's few-shot code was not released: its transform, rate and scale
are not known, and these are NOAH's. What differs from NOAH: the last epoch is reported and not the
best test evaluation (protocol 'paper' does that); a list shorter than a batch is one short batch,
where NOAH's loader would give none; NOAH searched on seed 0 only and retrained what it found with
all three, here each seed is searched. RepAdapter has its own code's rate, 1e-3, and scale, 1 for
all five sets, and its biases decay; that code does not cut the test images, and its loader is not
told the number of shots (luogen1996/RepAdapter, train.py, dataset.py, configs/repblock_few_shot).
VPT's number of tokens and the rate of full fine-tuning are our choice. Every setting of a method
can be changed, or chosen on val where several are given:
--config.fact_tt.rank=8 --config.fact_tt.scales=0.1,1,10

`quickstart`: digits, fashion and location at the same shots and seeds, with what configs/compare.py
has for `vit_mini`: 20 epochs, every method's size, the middle one of its three rates. No
augmentation: its flip changes digits. Nothing is chosen on data, but NOAH's architecture on the 200
images of val.
"""

from ml_collections import ConfigDict

from configs import base, compare

# What of a method's settings is not its class's default.
_METHODS = {
    "full": {"learning_rate": 5e-4},  # a tenth of the others', as in configs/compare.py
    "fact_tt": {"rank": 16},
    "fact_tk": {"rank": 32},
    "lora": {"sites": "q,k,v", "shared_input": True},
    "vpt_deep": {"num_tokens": 8},
    "repadapter": {"learning_rate": 1e-3, "decay_vectors": True},
    # A search space of its own, up to width 100, and 300 epochs.
    "noah": {"widths": (5, 10, 50, 100), "supernet_epochs": 300},
}


SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)


def _quickstart() -> ConfigDict:
    config = compare.get_config("quickstart")
    config.shots, config.seeds = SHOTS, SEEDS
    config.noah.supernet_epochs = 3 * config.epochs  # as above
    config.decay_vectors = False
    for name in compare.SMALL | compare.FAMILY:
        rates = config[name].learning_rates
        config[name].learning_rates = (rates[len(rates) // 2],)
    return config


def get_config(arg: str = "fact_tt") -> ConfigDict:
    if arg == "quickstart":
        return _quickstart()
    config = base.get_config()
    names = arg.split(",")
    plain = "plain" in names
    methods = [name for name in names if name != "plain"]
    methods = list(compare.SMALL) if methods == ["all"] else methods
    config.tasks = "food101,stanford_cars,oxford_flowers,fgvc_aircraft,oxford_pets"
    config.shots, config.seeds = SHOTS, SEEDS
    config.methods = ",".join(methods)
    for name in {part for method in methods for part in method.split("+")}:
        config[name] = base.method(name, **_METHODS.get(name, {}))
    config.resize = "crop"
    config.learning_rate = 5e-3
    config.decay_vectors = False
    if not plain:
        config.augment = True
        config.mixup, config.cutmix, config.label_smoothing = 0.8, 1.0, 0.1
        config.erasing = 0.25
    return config
