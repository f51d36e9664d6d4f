"""How an answer differs from the reference, element by element: what one largest error does not tell."""

from collections.abc import Mapping

import numpy as np

from frugalbench.schema import Quantity, Tier

Arrays = Mapping[str, np.ndarray]


class Agreement:
    """Collects positions of the rotation; of each figure the worst output and position counts."""

    def __init__(self) -> None:
        self._errors: dict[str, float] = {}
        self._rows = self._same = 0

    def add(self, outputs: Arrays, expected: Arrays) -> None:
        """One position. Outputs that are missing, of another shape or not finite are left to the check."""
        for name, want in expected.items():
            got = outputs.get(name)
            if got is None or got.shape != want.shape or not want.size:
                continue
            difference = np.abs(got.astype(np.float64) - want)
            if not np.isfinite(difference).all():
                continue
            scale = float(np.sqrt(np.mean(np.square(want, dtype=np.float64)))) or 1.0
            found = {"p50": np.median(difference), "p99": np.quantile(difference, 0.99), "max": difference.max()}
            for key, value in found.items():
                self._errors[key] = max(self._errors.get(key, 0.0), float(value) / scale)
            if want.ndim and want.shape[-1] > 1:
                self._count_top(got, want)

    def _count_top(self, got: np.ndarray, want: np.ndarray) -> None:
        same = got.argmax(axis=-1) == want.argmax(axis=-1)
        self._rows += same.size
        self._same += int(same.sum())

    def facts(self) -> dict[str, Quantity]:
        """Error distribution and top-1 agreement, as far as they are finite and known."""
        source = "absolute error over the reference's rms; worst output and position"
        facts = {
            f"error_{key}": Quantity(value=value, unit="1", tier=Tier.MEASURED, source=source)
            for key, value in self._errors.items()
        }
        if self._rows:
            rows = f"same largest value along the last axis in {self._same} of {self._rows} rows"
            facts["top1_agreement"] = Quantity(value=self._same / self._rows, unit="1", tier=Tier.MEASURED, source=rows)
        return facts
