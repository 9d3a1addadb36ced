"""Tests of the programs; the library's tests import none of this."""
