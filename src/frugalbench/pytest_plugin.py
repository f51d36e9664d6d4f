"""The ``frugal`` fixture: a callable measured by this engine inside a user's own tests. Imports nothing until used."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from frugalbench.cli.fixture import Frugal


@pytest.fixture
def frugal(tmp_path_factory: pytest.TempPathFactory) -> "Frugal":
    """``frugal(fn, against=other)`` measures both turn by turn, ``frugal.time(fn)`` one alone."""
    from frugalbench.cli.fixture import Frugal

    return Frugal(tmp_path_factory)
