import pytest

from tests.support.exemplars import KINDS, build, labelled, load, unit


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def index(tmp_path, kind):
    """400 proteins, indexed by the kind, and 20 diseases, too few for it."""
    build(
        tmp_path / "index",
        (unit(0, 250, clusters=8), labelled(250)),
        (unit(1, 170, clusters=8), labelled(20, "disease", "d") + labelled(150, prefix="f")),
        kind=kind,
    )
    return load(tmp_path / "index")
