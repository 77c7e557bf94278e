"""Find a model in a folder, the cache or the Hugging Face Hub, or say in one line why it is not there."""

import re
from pathlib import Path
from typing import Any

from vidsieve.checks import require
from vidsieve.errors import VidsieveError

SECONDS = 5.0  # for the Hub to answer; without a limit its library retries for half a minute


def find(name: str) -> dict[str, Any]:
    """Find the arguments of `from_pretrained` besides the name. Raises `VidsieveError` if nothing has that name."""
    if Path(name).is_dir():
        return {}
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII):
        raise VidsieveError(
            f"model {name!r}: {'is a file' if Path(name).exists() else 'no such folder'}; "
            "expected a folder with a checkpoint, or a name on the Hugging Face Hub such as Qwen/Qwen2.5-VL-7B-Instruct"
        )
    hub = require("huggingface_hub", "hf")
    reason = "HF_HUB_OFFLINE forbids to ask the Hugging Face Hub" if hub.is_offline_mode() else _unavailable(hub, name)
    if reason is None:
        return {}
    if isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
        return {"local_files_only": True}
    raise VidsieveError(f"model {name!r}: no such folder, no copy of it in the cache, and {reason}")


def _unavailable(hub: Any, name: str) -> str | None:
    """Say why the model cannot be loaded from the Hub; None if it can."""
    import httpx  # which the Hub's own library brings

    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=SECONDS)
    except httpx.TransportError as error:
        return f"the Hugging Face Hub cannot be reached ({str(error) or type(error).__name__})"
    except hub.errors.GatedRepoError:
        return "the Hugging Face Hub gives it to those alone who asked for it on its page and are logged in"
    except hub.errors.RepositoryNotFoundError:
        return "the Hugging Face Hub knows no such model, or shows it only to those who are logged in"
    except hub.errors.EntryNotFoundError:
        return "what the Hugging Face Hub has by that name has no config.json, so transformers cannot load it"
    except hub.errors.HfHubHTTPError as error:
        return f"the Hugging Face Hub refused ({str(error).splitlines()[0]})"
    return None
