"""What the decoder's tests share."""

import pytest

from tutelage.models.fused import running


@pytest.fixture(params=["torch", "numba"])
def kernels(request):
    """Every test that asks for it runs twice: with PyTorch's operations in a decoding step, and with the compiled kernels."""
    with running(request.param):
        yield request.param
