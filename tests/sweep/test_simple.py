"""Settings for a task that nobody chose settings for."""

import pytest

from fact_jax.sweep.simple import simple_settings


@pytest.mark.parametrize(
    ("pictures", "batch_size", "epochs"),
    [(1, 16, 100), (96, 16, 50), (128, 32, 75), (1000, 64, 20), (100_000, 64, 10)],
)
def test_settings_follow_the_number_of_pictures(pictures, batch_size, epochs):
    assert simple_settings(pictures)[:2] == (batch_size, epochs)
