"""A target of the fuzzer: one kind of file and its reader."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Target(NamedTuple):
    """One kind of file.

    Attributes:
      suffix: of the files, or of the folder if `load` wants to make one of the bytes.
      seeds: makes sound files, which `load` accepts.
      mutate: another file made of a sound one, by the random numbers given.
      load: reads a file to its end. Returns, or raises UserError; all else is a violation.
      share: part of the number of cases, for slow readers.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes], bytes]
    load: Callable[[Path], None]
    share: float = 1.0
