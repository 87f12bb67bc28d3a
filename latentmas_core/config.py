"""Frozen options, validated once at the edge. Knows no torch and loads nothing."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, StringConstraints

MAX_LATENT_STEPS = 512
MAX_TOP_K = 2**31 - 1
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2 * 10**19  # any of 64 bits, and a number that readers of JSON agree on
MAX_ADAPTER_WEIGHT = 100.0

# The constraint also refuses lone surrogates, which no tokenizer can read.
Text = Annotated[str, StringConstraints(min_length=1)]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Types as JSON has them: "5" is no number, 1 is not true, and 5.0 is an integer.
JsonNumber = Annotated[float, Strict()]
JsonInt = Annotated[int, Strict(), BeforeValidator(_whole)]
JsonBool = Annotated[bool, Strict()]
NumTokens = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
NumSteps = Annotated[int, Field(strict=True, ge=0, le=MAX_LATENT_STEPS), BeforeValidator(_whole)]
NumLogprobs = Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS), BeforeValidator(_whole)]
TopK = Annotated[int, Field(strict=True, ge=1, le=MAX_TOP_K), BeforeValidator(_whole)]
Seed = Annotated[int, Field(strict=True, ge=-MAX_SEED, le=MAX_SEED), BeforeValidator(_whole)]

# The name of a loaded adapter, or several, each with its weight.
AdapterWeight = Annotated[
    JsonNumber, Field(ge=-MAX_ADAPTER_WEIGHT, le=MAX_ADAPTER_WEIGHT, allow_inf_nan=False)
]
AdapterChoice = Text | Annotated[dict[Text, AdapterWeight], Field(min_length=1)]


class FrozenModel(BaseModel):
    """Base of all options: immutable, and an unknown field is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LoRAConfig(FrozenModel):
    """How many adapters are kept where."""

    max_loaded_adapters: int = Field(default=20, ge=0)
    """Adapters on the device. Each takes blocks of the KV pool; raise it when `num_evictions_total`
    of `/v1/stats` keeps growing."""
    max_cpu_adapters: int = Field(default=100, ge=1)
    """Adapters in host memory, from where they come to the device; others are read from disk when
    they are needed."""
    max_lora_rank: int = Field(default=256, ge=1)
    """The highest rank that an adapter may have; a higher one is refused."""


class EngineConfig(FrozenModel):
    """What an engine is made of and how much it may take."""

    model_name: str = "embedded:smollm2-135m-instruct"
    """A folder, a model of the hub, or `embedded:...`, the model that needs no hub."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`."""
    num_devices: int = Field(default=1, ge=1)
    """Cards, from `device` on, over which the layers are spread: for models that do not fit one."""
    device_memory_share: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of each card's memory that this process may take, weights and pool together; null: all
    of it."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and computation; `auto` is float32 on a CPU, bfloat16 on a GPU (float16 on one
    without it)."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Store the weights in so many bits: less memory, rounded weights. Adapters work on top."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the computation on a CPU; null: `num_cpus` of the group, in a program of your own
    as many as torch takes."""

    latent_realign: bool = True
    """Map a thought onto the input embeddings before it is fed back. Off only to compare."""
    max_latent_steps: int = Field(default=128, ge=0, le=MAX_LATENT_STEPS)
    """The most latent steps that a request or an agent may ask for."""

    block_size: int | None = Field(default=None, ge=1, le=1024)
    """Positions of one block of the KV pool; null: as suits the device. The paged kernels of a GPU
    take multiples of their page alone."""
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Bytes of the KV pool; null: `memory_share` of what is free."""
    memory_share: float = Field(default=0.5, gt=0.0, le=0.95)
    """Share of the memory that is free once the model is loaded which the KV pool takes: of the
    card, or of the host, where it takes at most 1 GiB. Only without `kv_cache_bytes`."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Turns in one batch; more of them wait. Raise it for throughput, lower it for time per
    token."""
    max_num_batched_tokens: int = Field(default=512, ge=1)
    """Rows of one step, prompts included; a longer prompt is read in several steps. Lower it where
    long prompts hold up answers that are being written."""
    max_waiting_seqs: int = Field(default=1024, ge=1)
    """Turns in the queue; more are refused with 503."""
    has_prefix_cache: bool = True
    """Keep the beginnings of prompts for later ones that begin alike."""
    transfer_dtype: Literal["model", "int8"] = "model"
    """How keys and values travel to other replicas: as the model has them, or rounded to 8 bits
    (`int8`), which takes fewer bytes. Where nothing is moved, nothing is rounded."""
    stall_timeout_s: float = Field(default=60.0, gt=0.0, allow_inf_nan=False)
    """Seconds after which a step counts as stuck, and the replica as unhealthy. Above the longest
    step, a first one with compilation included."""

    lora: LoRAConfig = LoRAConfig()
    """How many adapters are kept where."""


class SamplingParams(FrozenModel):
    """How an answer is sampled."""

    max_tokens: int = Field(default=512, ge=1)
    """The most tokens that are written."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 takes the likeliest token each time."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw from the likeliest tokens that together have this share of the probability."""
    top_k: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    """Draw from so many of the likeliest tokens; null: from all."""
    seed: int | None = None
    """The same seed draws the same random numbers; null: others each time."""
    stop: tuple[Text, ...] = ()
    """The text ends in front of the first of these."""
    ignore_eos: bool = False
    """Write `max_tokens` tokens even where the model would end."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Tell each token's log-probability, and so many of the likeliest beside it."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0
