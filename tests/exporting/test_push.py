"""An exported folder goes to the Hub verified and alone, and what goes wrong says what to do. Nothing is sent here."""
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from sf_teacher import SFTeacherError, cli
from sf_teacher.exporting import reload
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.push import push
from tests.helpers import build


class Api:
    """The client's two calls that are made, as they are documented."""

    calls: list = []        # noqa: RUF012
    error = None
    there = ('.gitattributes', 'model.safetensors', 'notes.txt', 'torchvision.pth')     # in the repository
    deleted: list = []      # noqa: RUF012

    def __init__(self, library_name):
        assert library_name == 'sf_teacher'

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(('create_repo', repo_id, private, exist_ok))
        if self.error is not None:
            raise self.error
        return huggingface_hub.RepoUrl(f'https://huggingface.co/{repo_id}')

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, delete_patterns, commit_message):
        files = huggingface_hub.utils.filter_repo_objects(
            [path.name for path in Path(folder_path).iterdir()], allow_patterns=allow_patterns)
        self.calls.append(('upload_folder', repo_id, sorted(files)))
        assert not set(files) & set(delete_patterns)
        self.deleted[:] = huggingface_hub.utils.filter_repo_objects(self.there, allow_patterns=delete_patterns)


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(Api, 'calls', [])
    monkeypatch.setattr(Api, 'error', None)
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    return Api


@pytest.fixture
def folder(tmp_path):
    path = export(build(), tmp_path / 'teacher')
    (path / '.env').write_text('HF_TOKEN=secret')
    (path / 'notes.txt').write_text('mine')
    return path


def test_what_was_exported_is_uploaded_and_nothing_else(folder, api, capsys):
    assert cli.main(['push', str(folder), 'alice/teacher', '--private']) == 0
    assert api.calls == [
        ('create_repo', 'alice/teacher', True, True),
        ('upload_folder', 'alice/teacher', ['README.md', 'config.json', 'model.safetensors', 'probe.safetensors',
                                            'teacher.pth', 'torchdistill.yaml']),
    ]
    assert api.deleted == ['torchvision.pth']   # of an earlier export
    printed = capsys.readouterr().out
    assert 'uploaded to https://huggingface.co/alice/teacher' in printed
    assert 'timm.create_model("hf-hub:alice/teacher", pretrained=True)' in printed


def test_a_dry_run_sends_nothing(folder, api, capsys):
    assert cli.main(['push', str(folder), 'alice/teacher', '--dry-run']) == 0
    assert 'verified; it would be https://huggingface.co/alice/teacher' in capsys.readouterr().out
    assert api.calls == []


def test_a_changed_folder_stays_here(folder, api):
    (folder / 'config.json').write_text((folder / 'config.json').read_text().replace('bilinear', 'nearest'))
    with pytest.raises(SFTeacherError, match='interpolation nearest, exported was bilinear'):
        push(folder, 'alice/teacher')
    assert api.calls == []


@pytest.mark.parametrize('repo', ['a/b/c', '../up', 'alice/tea cher', ''])
def test_a_name_that_cannot_be(repo, folder, api):
    with pytest.raises(SFTeacherError, match=r'repo=.* is no name of a repository, "user/name"'):
        push(folder, repo)
    assert api.calls == []


def http(status):
    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    Exception.__init__(error, f'{status} for url')
    error.response = SimpleNamespace(status_code=status)
    return error


class Unreachable(Exception):
    __module__ = 'httpx'


@pytest.mark.parametrize('error, message', [
    (errors.LocalTokenNotFoundError('Token is required'), r'does not know you .*hf auth login.*HF_TOKEN'),
    (http(401), r'does not know you .*hf auth login'),
    (http(403), r'your token may not write there .*repository of your own'),
    (http(500), r'500 for url'),
    (errors.OfflineModeIsEnabled('offline'), r'HF_HUB_OFFLINE is set: unset it'),
    (ConnectionError('no route'), r'the Hub cannot be reached \(ConnectionError: no route\)'),
    (Unreachable('name resolution'), r'the Hub cannot be reached \(Unreachable: name resolution\)'),
])
def test_errors_say_what_to_do(error, message, folder, api, monkeypatch):
    monkeypatch.setattr(Api, 'error', error)
    with pytest.raises(SFTeacherError, match=rf'was verified and not uploaded to alice/teacher: .*{message}'):
        push(folder, 'alice/teacher')
    assert [name for name, *_ in api.calls] == ['create_repo']


def test_the_real_client_offline(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(folder / 'no-token'))
    with pytest.raises(SFTeacherError, match=r'was verified and not uploaded .*(HF_HUB_OFFLINE is set|hf auth login)'):
        push(folder, 'alice/teacher')
    assert reload.PROBE in {path.name for path in folder.iterdir()}
