"""What all figures share."""

from __future__ import annotations

import io
from typing import Any

from etils import epath


def save_figure(figure: Any, path: epath.Path) -> None:
    """Writes a matplotlib figure in the format of its file's suffix, to a bucket, too."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."), dpi=150)
    path.write_bytes(content.getvalue())
