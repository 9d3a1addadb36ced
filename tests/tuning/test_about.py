"""The sources of methods, as docs/methods.md shows them."""

import pytest
from places import ROOT

from fact_jax.tuning import METHODS
from fact_jax.tuning.about import FIDELITY, table


def test_the_page_has_the_table_of_the_data():
    page = (ROOT / "docs" / "methods.md").read_text()
    assert table(METHODS) in page
    assert all(f"- **{name}**: {what}." in page for name, what in FIDELITY.items())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from(name):
    about = METHODS[name].about
    assert about.fidelity in FIDELITY
    assert (about.fidelity == "code") == bool(about.code)
    assert all(text.endswith(".") and text[0].isupper() for text in about.deviations)
