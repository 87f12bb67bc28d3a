"""The one exception tree of the product; knows nothing of HTTP.

LatentMASError
├── ConfigError            options or a request that cannot be meant: a wrong value, a contradiction
│   ├── PipelineError      a pipeline that is no valid DAG with one speaker
│   └── DocumentError      a document that cannot be read or fetched, or is larger than allowed
├── NotFoundError          a pipeline, agent, mode, adapter or conversation that does not exist here
├── ConflictError          something that others are at, or that they have taken over meanwhile
├── StoreError             the database of the conversations does not answer or cannot be used
├── ContextLengthError     prompt + memory + steps + answer do not fit the positions or the KV pool
├── ModelError             a model that is missing, broken or cannot be run exactly
├── AdapterError           an adapter that is missing, broken, unsupported or made for another base
│   └── HubError           an adapter that the hub did not hand out: unreachable, refused, unknown
├── SegmentError           latent memory that does not fit: another model, a gap, a forbidden join
├── EngineError            the engine cannot serve: it is closed, overloaded or its step failed
│   └── LostError          what ran a stage is gone; running it again from its inputs may work
│       └── MemoryLostError  a memory that a stage was to read is gone: who made it runs again
├── DeadlineError          a request or a stage that did not end in its time
└── ToolError              a tool that cannot do what it was called for; only its model is told

Every message names the field, the value, the limit and the remedy.
"""


class LatentMASError(Exception):
    """Base of all errors that a caller may see.

    ``param`` is the name of the field that is wrong, where there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders by pickle, which forgets keyword-only arguments.
        return (_rebuild, (type(self), self.message, self.param))


def _rebuild(kind: type[LatentMASError], message: str, param: str | None) -> LatentMASError:
    return kind(message, param=param)


class ConfigError(LatentMASError):
    """Options or a request that cannot be meant."""


class PipelineError(ConfigError):
    """A pipeline that is no valid DAG with one speaker."""


class DocumentError(ConfigError):
    """A document that cannot be read or fetched, or is larger than allowed."""


class NotFoundError(LatentMASError):
    """A pipeline, agent, mode, adapter or conversation that does not exist here."""


class ConflictError(LatentMASError):
    """Something that others are at, or that they have taken over meanwhile."""


class StoreError(LatentMASError):
    """The database of the conversations does not answer or cannot be used."""


class ContextLengthError(LatentMASError):
    """A request that does not fit the model's positions or the KV pool."""


class ModelError(LatentMASError):
    """A model that is missing, broken or cannot be run exactly."""


class AdapterError(LatentMASError):
    """An adapter that is missing, broken, unsupported or made for another base model."""


class HubError(AdapterError):
    """An adapter that the hub did not hand out: unreachable, refused or unknown there."""


class SegmentError(LatentMASError):
    """Latent memory that does not fit where it is to be used."""


class EngineError(LatentMASError):
    """The engine cannot serve this request: closed, overloaded or failed."""


class LostError(EngineError):
    """What ran this is gone: a replica that died, an engine that was closed."""


class MemoryLostError(LostError):
    """A memory that was to be read is gone, with the node that held it."""


class DeadlineError(LatentMASError):
    """A request or a stage that did not end in its time."""


class ToolError(LatentMASError):
    """A tool that cannot do what it was called for. Its message goes to the model that called."""
