"""Each config of the paper in turn, in its host's scope."""

from collections.abc import Iterator

import pytest
from mmengine.registry import DefaultScope

from helpers.paper_configs import NAME, PATHS, Case, load, name_of


@pytest.fixture(scope="module", params=PATHS, ids=name_of)
def case(request) -> Iterator[Case]:
    cfg = load(request.param)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield Case(request.param, cfg, NAME.fullmatch(request.param.stem).groupdict())
