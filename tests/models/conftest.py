"""What the decoder's tests share."""

import pytest

from tutelage.models.fused import running


@pytest.fixture(params=["torch", "loops", "numba"])
def kernels(request):
    """Every test that asks for it runs with PyTorch's operations in a decoding step, with compiled loops, and with compiled products too."""
    with running(request.param):
        yield request.param
