"""Share an exported folder on the Hugging Face Hub, where timm reads it as `hf-hub:REPO`."""
import os

import huggingface_hub
from huggingface_hub import errors

from ..errors import SFTeacherError, first_line
from .verify import exported_folder, verify
from .writer import FILES


def push(
        folder: str | os.PathLike[str],
        repo: str,
        *,
        private: bool = False,
        factory: str | None = None,
        dry_run: bool = False,
) -> str:
    """Verify an exported folder and upload its files, and nothing else that lies there.

    Of an export that was uploaded to the same repository before, what this one has no longer is deleted in that commit.

    The token is that of `hf auth login` or of the environment variable ``HF_TOKEN``.

    Args:
        folder: What `export` wrote, or the folder of a run that did; ``local-dir:`` before it or not.
        repo: "user/name" or "organisation/name"; made if it does not exist.
        private: Whether a new repository is private; one that exists stays as it is.
        factory: See `verify`.
        dry_run: Check everything that can be checked here, and send nothing.

    Returns:
        Where it is, or would be.

    Raises:
        SFTeacherError: The folder is not what was exported, or the Hub does not take it; says what to do.
    """
    try:
        huggingface_hub.utils.validate_repo_id(repo)    # type: ignore[attr-defined]
    except errors.HFValidationError as e:
        raise SFTeacherError(f'repo={repo!r} is no name of a repository, "user/name": {e}') from e
    path = exported_folder(folder)
    verify(path, factory=factory)
    if dry_run:
        return f'{huggingface_hub.constants.ENDPOINT}/{repo}'
    api = huggingface_hub.HfApi(library_name='sf_teacher')
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=path, allow_patterns=list(FILES),
            delete_patterns=[name for name in FILES if not (path / name).exists()],
            commit_message='A teacher exported by sf_teacher')
    except Exception as e:
        raise SFTeacherError(f'{folder} was verified and not uploaded to {repo}: {_remedy(e)}') from e
    return str(url)


def _remedy(error: Exception) -> str:
    """What to do about what the client raises, whatever carries it over the network."""
    said = first_line(error)
    response = getattr(error, 'response', None)
    status = getattr(response, 'status_code', None)
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f'the Hub does not know you ({said}). Log in with `hf auth login`, or set HF_TOKEN to a token with ' \
               f'write access (https://huggingface.co/settings/tokens)'
    if status == 403:
        return f'your token may not write there ({said}). Make one with write access, or choose a repository of ' \
               f'your own'
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set: unset it, and try again where there is a network'
    if isinstance(error, OSError) or type(error).__module__.split('.')[0] in ('httpx', 'requests', 'urllib3'):
        return f'the Hub cannot be reached ({type(error).__name__}: {said}). Try again where there is a network; ' \
               f'what was uploaded so far is not sent twice'
    return f'{type(error).__name__}: {said}'
