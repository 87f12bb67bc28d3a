"""A short run of schemathesis without Ray; the long one is ``python -m tests.openapi.fuzz``."""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import schemathesis
from hypothesis import settings

from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from tests.deployments.fake_reasoner import OFFERED, FakeReasoner
from tests.deployments.keys import ADMIN, make_access, make_app
from tests.openapi.rules import Served, bearing, obey

SERVED = Served((f"latentmas/{OFFERED[0]}", "latentmas/chat"), "/adapters/mine")

# The description is needed before there are fixtures; the database is made when it is first asked.
FOLDER = Path(tempfile.gettempdir()) / f"latentmas-openapi-{os.getpid()}"
conversations = Conversations(ConversationsConfig(url=f"sqlite:///{FOLDER}/conversations.db"))
app = make_app(FakeReasoner(), make_access(), conversations=conversations)
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture(autouse=True, scope="module")
def _closed():
    yield
    asyncio.run(conversations.close())
    shutil.rmtree(FOLDER, ignore_errors=True)  # made when a call first needs it


@schema.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
def test_every_answer_is_one_that_is_described(case):
    obey(case, SERVED)
    case.call_and_validate(headers=bearing(ADMIN))
