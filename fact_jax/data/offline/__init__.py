"""The data of the offline suite (`tables/offline.py`): the examples, and TFDS builders of them."""
