"""A short run of schemathesis without Ray; the long one is ``python -m tests.openapi.fuzz``."""

import schemathesis
from hypothesis import settings

from tests.deployments.fake_reasoner import OFFERED, FakeReasoner
from tests.deployments.keys import ADMIN, make_access, make_app
from tests.openapi.rules import Served, bearing, obey

SERVED = Served((f"latentmas/{OFFERED[0]}", "latentmas/chat"), "/adapters/mine")

schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(FakeReasoner(), make_access()))


@schema.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
def test_every_answer_is_one_that_is_described(case):
    obey(case, SERVED)
    case.call_and_validate(headers=bearing(ADMIN))
