"""Where tests find the shared golden numbers and real scans; absent folders skip with a reason."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("NNSSL_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """Loader of one file of golden numbers."""

    def load(name: str) -> Any:
        path = SHARED / "golden" / name
        if not path.is_file():
            pytest.skip(f"golden numbers are absent: {path} (set NNSSL_SHARED)")
        return np.load(path) if path.suffix == ".npz" else path.read_text(encoding="utf-8")

    return load


@pytest.fixture
def shared_data() -> Path:
    """A read-only nnUNet_raw folder with real scans."""
    path = SHARED / "data" / "nnUNet_raw"
    if not path.is_dir():
        pytest.skip(f"real scans are absent: {path} (set NNSSL_SHARED)")
    return path
