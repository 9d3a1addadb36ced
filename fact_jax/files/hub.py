"""Uploading a trained task, or a folder that `export --format` wrote, to the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path

from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask

_MOST_FILES = 200
_CARD = "README.md"
TASK = "task.safetensors"  # one name for all, so that a second task replaces the first
# One of these is in every folder that `export --format` writes.
_EXPORTED = ("config.json", "adapter_config.json", "model.json")


def task_files(task: TrainedTask, card: str) -> dict[str, bytes]:
    """The files of a repository that holds a factor file.

    Args:
      task: whose file, with the dictionary beside it if it shares one.
      card: the text of the card.
    """
    files = {_CARD: card.encode(), TASK: task.path.read_bytes()}
    if task.dictionary is not None:
        files[task.dictionary.file_name] = task.dictionary.content
    return files


def folder_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that `export --format` wrote.

    Raises:
      UserError: it is no such folder.
    """
    if not any((folder / name).is_file() for name in _EXPORTED):
        raise UserError(
            f"{folder} holds none of {', '.join(_EXPORTED)}. Give a factor file, or a folder that "
            "`export --format` wrote."
        )
    inside = sorted(folder.iterdir())
    strange = [path.name for path in inside if path.is_symlink() or not path.is_file()]
    if strange or len(inside) > _MOST_FILES:
        what = f"{strange[0]!r}, which is no plain file" if strange else f"{len(inside)} files"
        raise UserError(f"{folder} holds {what}; expected what `export --format` wrote, alone.")
    return {path.name: path.read_bytes() for path in inside}


def push(files: Mapping[str, bytes], repo: str, *, private: bool, message: str) -> str:
    """Uploads files as one commit; makes the repository if there is none.

    The token is that of huggingface_hub: $HF_TOKEN, or what `hf auth login` stored. It is neither
    printed nor stored here.

    Args:
      files: contents by their names.
      repo: OWNER/NAME.
      private: whether a new repository is private.
      message: of the commit.

    Returns:
      The address of the commit.

    Raises:
      UserError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name="fact-jax")
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, added, commit_message=message).commit_url)
    except HFValidationError as error:
        raise UserError(
            f"--repo {repo!r} is not a name on the hub; expected owner/name."
        ) from error
    except LocalTokenNotFoundError as error:
        raise UserError(_LOGIN) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(f"The hub refuses to write to {repo} ({status}). {_LOGIN}") from error
        raise UserError(f"The hub did not take the files for {repo} (status {status}).") from error
    except Exception as error:  # of whichever HTTP client the installed huggingface_hub has
        what = f"The upload to {repo} failed ({type(error).__name__})."
        raise UserError(f"{what} Is the hub reachable?") from error


_LOGIN = (
    "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write to the repository."
)
