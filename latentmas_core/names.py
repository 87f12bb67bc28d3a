"""What agents, nodes and pipelines may be called: safe in a URL, a metric, a file and a trace."""

from typing import Annotated

from pydantic import StringConstraints

Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", min_length=1, max_length=64)
]
