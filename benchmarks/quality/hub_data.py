"""Files of data sets on the hub, fetched once into its own cache."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from latentmas_core.errors import ConfigError


def hub_file(place: str) -> Path:
    """``owner/name/path/of/file.jsonl``; ConfigError where the hub does not hand it out."""
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ConfigError(
            f"hub:{place} names no file. Write hub:OWNER/NAME/FILE, with a JSONL file.",
            param="tasks",
        )
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset"))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"hub:{place} cannot be fetched ({type(error).__name__}). Check the name and the "
            "network, or give the path of a file that is here.",
            param="tasks",
        ) from error
