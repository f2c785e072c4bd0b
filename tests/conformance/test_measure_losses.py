"""What a type would cost a tensor is a number, or an error that names both."""

import numpy as np
import pytest

from ggufsmith.calibrate.measure import Measuring, Sample
from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import BY_NAME
from ggufsmith.pipeline.encoder import RowRange
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.recipes.assign import Stored

pytestmark = pytest.mark.conformance

NAME = "blk.0.ffn_up.weight"


@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_too_large_for_a_number_is_an_error(whole: bool) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    metric = np.full(32, 1e30, np.float32)
    measuring = Measuring({NAME: Stored(NAME, weights.shape, BY_NAME["F32"])}, None, 1)

    def measure(metric: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", shares: float) -> None:
        sample = Sample(RowRange(NAME, NAME, 0, 4), weights, np.full(4, shares), metric)
        measuring.measure({NAME: [sample]}, GGML, {})

    measure(np.ones(32, np.float32), 0.25)
    assert all(np.isfinite(loss) for loss in measuring.losses[NAME].values())
    known = dict(measuring.losses[NAME])
    with pytest.raises(Malformed, match=f"would cost {NAME} is NaN, infinite or too large"):
        measure(np.diag(metric) if whole else metric, np.inf)
    assert measuring.losses[NAME] == known
