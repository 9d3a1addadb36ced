"""The data of the offline suite (`tables/offline.py`): what is bundled, and its TFDS builders."""
