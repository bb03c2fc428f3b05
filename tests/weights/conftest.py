"""A server that holds the stand-in checkpoint."""

import pytest
from support.servers import Server
from support.stand_in import DATA, PATH


@pytest.fixture
def server():
    with Server({PATH: DATA}) as running:
        yield running
