# Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
"""Push models and Spaces to the Hub, each in one commit."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from .card import UNKNOWN_REPOSITORY, load_card
from .files import CARD, is_removed_on_push, repository_files
from .validation import validate_repository


# Suffixes of the files of a Space.
SPACE_SUFFIXES = {".jpg", ".json", ".md", ".png", ".py", ".safetensors", ".txt"}


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Publish model, code and card",
    validate: bool = True,
) -> str:
    """
    Push a repository to the Hub in one commit.

    Only the files of a repository are pushed, see [`repository_files`]. The same commit removes files of an earlier
    push that the folder no longer holds; all other files on the Hub stay. If the push fails, a repository that was
    created for it is deleted again.

    Args:
        folder (`str` or `Path`): Folder written by [`build_repository`], or the output folder of a training script.
        repo_id (`str`): Id on the Hub, `"name"` or `"owner/name"`; the repository is created if it does not exist.
        private (`bool`, *optional*): Whether a new repository is private. Default: the owner's setting.
        token (`str`, *optional*): Access token. Default: the token of the logged-in user.
        commit_message (`str`): Message of the commit.
        validate (`bool`, defaults to `True`): Whether to call [`validate_repository`] first.

    Returns:
        `str`: the revision to pin, as in `from_pretrained(repo_id, revision=..., trust_remote_code=True)`.

    Raises:
        ValueError: if the repository is incomplete or does not run; nothing is pushed.
        HfHubHTTPError, RuntimeError: if the Hub rejects the push (`RuntimeError` for the weights); the repository on
            the Hub is unchanged.
    """
    folder = Path(folder)
    files = repository_files(folder)
    if validate:
        validate_repository(folder)
    api = HfApi(token=token)
    with _existing_or_new_repository(api, full_repository_id(repo_id, token), private) as full_id:
        present = api.repo_info(full_id)
        card = _card_of(folder / CARD, full_id, api.endpoint).encode()
        operations = [CommitOperationAdd(name, card if name == CARD else folder / name) for name in files]
        for name in (file.rfilename for file in present.siblings):
            if name not in files and is_removed_on_push(name):
                operations.append(CommitOperationDelete(name))
        # `parent_commit`: the Hub rejects the commit if somebody else has pushed since the files were listed.
        return api.create_commit(full_id, operations, commit_message=commit_message, parent_commit=present.sha).oid


def full_repository_id(repo_id: str, token: str | None = None) -> str:
    """
    `"owner/name"` of an id that may lack its owner, which defaults to the logged-in user.

    The Hub itself would resolve an id without an owner to one of its old models without owners.
    """
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def push_space(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """
    Push a folder with a Gradio app to the Hub in one commit, as [`push`] does with a model; returns the revision.

    Args:
        folder (`str` or `Path`): Folder of the app. Its files with one of [`SPACE_SUFFIXES`] are pushed, except hidden
            ones.
        repo_id, private, token: As in [`push`].
    """
    folder, api = Path(folder), HfApi(token=token)
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in SPACE_SUFFIXES]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    operations = [CommitOperationAdd(path.as_posix(), folder / path) for path in visible]
    kind = {"repo_type": "space", "space_sdk": "gradio"}
    with _existing_or_new_repository(api, full_repository_id(repo_id, token), private, **kind) as full_id:
        return api.create_commit(full_id, operations, commit_message="Publish the Space", repo_type="space").oid


@contextlib.contextmanager
def _existing_or_new_repository(
    api: HfApi, full_id: str, private: bool | None, repo_type: str = "model", **kind: str
) -> Iterator[str]:
    """Full id of a repository on the Hub. A repository that is created here is deleted again if the body fails."""
    is_new = not api.repo_exists(full_id, repo_type=repo_type)
    if is_new:  # fails if somebody else creates it at this moment, so that only our own is ever deleted
        api.create_repo(full_id, private=private, repo_type=repo_type, **kind)
    try:
        yield full_id
    except BaseException:
        if is_new:
            with contextlib.suppress(Exception):  # the first error is the one to report
                api.delete_repo(full_id, missing_ok=True, repo_type=repo_type)
        raise


def _card_of(path: Path, repo_id: str, endpoint: str) -> str:
    """A card for the Hub: the repository's id in its commands, and full addresses of the widget's images."""
    card = load_card(path)
    for example in card.data.get("widget") or []:
        if "://" not in example["src"]:
            example["src"] = f"{endpoint}/{repo_id}/resolve/main/{quote(example['src'])}"
    return re.sub(rf'"{UNKNOWN_REPOSITORY}/[^"]+"', f'"{repo_id}"', str(card))
