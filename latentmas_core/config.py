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
    """How many adapters are kept where. Each also takes blocks of the engine's pool.

    ``max_loaded_adapters`` on the device, ``max_cpu_adapters`` in host memory; all others are read
    from disk when they are needed.
    """

    max_loaded_adapters: int = Field(default=20, ge=0)
    max_cpu_adapters: int = Field(default=100, ge=1)
    max_lora_rank: int = Field(default=256, ge=1)


class EngineConfig(FrozenModel):
    """What an engine is made of and how much it may take.

    With ``num_devices`` above 1 the layers of the model are spread over so many cards, from
    ``device`` on: for models that do not fit one. ``device_memory_share`` is the share of each
    card's memory that this process may take, weights and pool together; left out, all of it.

    ``kv_cache_bytes`` fixes the size of the KV pool; left out, the pool takes ``memory_share`` of
    the memory that is free once the model is loaded (on a GPU: of the card, on a CPU: of the host,
    at most 1 GiB there). ``stall_timeout_s``: a step that takes longer means that it is stuck.
    ``transfer_dtype``: how keys and values travel to other replicas, in the model's dtype or
    rounded to 8 bits; where nothing is moved, nothing is rounded.
    """

    model_name: str = "embedded:smollm2-135m-instruct"
    device: str = "auto"
    num_devices: int = Field(default=1, ge=1)
    device_memory_share: float | None = Field(default=None, gt=0.0, le=1.0)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Literal["4bit", "8bit"] | None = None
    num_threads: int | None = Field(default=None, ge=1)

    latent_realign: bool = True
    max_latent_steps: int = Field(default=128, ge=0, le=MAX_LATENT_STEPS)

    block_size: int | None = Field(default=None, ge=1, le=1024)
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    memory_share: float = Field(default=0.5, gt=0.0, le=0.95)
    max_num_seqs: int = Field(default=64, ge=1)
    max_num_batched_tokens: int = Field(default=512, ge=1)
    max_waiting_seqs: int = Field(default=1024, ge=1)
    has_prefix_cache: bool = True
    transfer_dtype: Literal["model", "int8"] = "model"
    stall_timeout_s: float = Field(default=60.0, gt=0.0, allow_inf_nan=False)

    lora: LoRAConfig = LoRAConfig()


class SamplingParams(FrozenModel):
    """How an answer is sampled. ``temperature=0`` is greedy; ``ignore_eos`` forces the length.

    With ``logprobs`` each token comes with its log-probability and so many of the likeliest.
    """

    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    seed: int | None = None
    stop: tuple[Text, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0
