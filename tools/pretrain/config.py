"""Pre-training of the bundled ViT, `vit_mini`, on glyphs and emoji.

    python -m tools.pretrain --config tools/pretrain/config.py --workdir DIR

docs/bundled_model.md says where the pictures come from and what other recipes gave. Not a recipe
of the paper, whose ViT-B/16 was pre-trained on ImageNet-21k.
"""

import ml_collections


def get_config():
    return ml_collections.ConfigDict(
        dict(
            variant="vit_mini",
            teacher="",  # a DINOv2-S safetensors file: distil from it instead
            fonts="pretrain/fonts",
            emoji=(
                "pretrain/emoji-datasource-google/package/img/google/64",
                "pretrain/fluent-emoji-3d/package/assets",
            ),
            shares=(0.6, 0.4),  # of the images: glyphs, emoji
            batch_size=64,
            steps=10_000,
            warmup_steps=200,
            strength=0.7,  # of the augmentation, reached after ramp_steps
            ramp_steps=4_000,
            muon_learning_rate=0.02,
            adam_learning_rate=2e-3,
            weight_decay=0.05,
            label_smoothing=0.1,
            portrait_weight=1.0,
            drop_path_rate=0.0,
            seed=0,
            log_every=100,
            save_every=1000,
        )
    )
