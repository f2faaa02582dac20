"""All or nothing: where an export goes, and what a crash leaves there."""
import os

import pytest
import torch

from sf_teacher import SFTeacherError
from sf_teacher.exporting.exporter import export
from tests.exporting.folders import listed, load, logits_of
from tests.helpers import build


def fail(error):
    def function(*args, **kwargs):
        raise error
    return function


@pytest.mark.parametrize('where', ['timm.models.save_for_hf', 'torch.save', 'safetensors.torch.save_file', 'os.fsync'])
@pytest.mark.parametrize('error, raised, message', [
    (OSError('disk full'), SFTeacherError, 'cannot write .*teacher: disk full'),
    (KeyboardInterrupt('stop'), KeyboardInterrupt, 'stop'),
])
def test_a_crash_leaves_nothing(where, error, raised, message, monkeypatch, tmp_path):
    monkeypatch.setattr(where, fail(error))
    with pytest.raises(raised, match=message):
        export(build(), tmp_path / 'new' / 'teacher')
    assert not listed(tmp_path)


def test_a_crash_leaves_the_old_folder(broken, monkeypatch):
    before = {path.name: path.read_bytes() for path in broken.iterdir()}
    replace, calls = os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError('no')
        replace(source, target)
    monkeypatch.setattr('os.replace', second_fails)
    with pytest.raises(SFTeacherError, match=r'cannot write .*: no'):
        export(build('test_efficientnet'), broken, overwrite=True)
    assert len(calls) == 3      # away, the failure, and back
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == before
    assert listed(broken.parent) == ['teacher']


def test_overwrite(broken):
    with pytest.raises(SFTeacherError, match='exists and is not empty; pass overwrite=True'):
        export(build('test_efficientnet'), broken)
    assert load(broken).pretrained_cfg['architecture'] == 'test_resnet'
    with pytest.raises(SFTeacherError, match='no classifier'):
        export(build(num_classes=0), broken, overwrite=True)
    assert torch.equal(logits_of(load(broken)), logits_of(build()))
    export(build('test_efficientnet'), broken, overwrite=True)
    assert load(broken).pretrained_cfg['architecture'] == 'test_efficientnet'
    assert listed(broken.parent) == ['teacher']


def test_overwrite_spares_what_is_no_export(tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('years of work')
    with pytest.raises(SFTeacherError, match=r'is not an exported teacher .* leaves it alone'):
        export(build(), tmp_path / 'home', overwrite=True)
    assert (tmp_path / 'home' / 'thesis.tex').read_text() == 'years of work'


@pytest.mark.parametrize('foreign', ['notes.txt', 'run/checkpoint-00001.pt', 'teacher.pth/file'])
def test_overwrite_spares_what_was_put_beside_an_export(foreign, broken):
    path = broken / foreign
    if path.parent != broken:
        path.parent.unlink(missing_ok=True)
        path.parent.mkdir()
    path.write_text('mine')
    name = foreign.split('/')[0]
    with pytest.raises(SFTeacherError, match=rf'teacher holds {name}, which no export wrote: .* move it elsewhere'):
        export(build(), broken, overwrite=True)
    with pytest.raises(SFTeacherError, match=r'run/teacher: .*teacher is an exported teacher, .* choose a place'):
        export(build(), broken / 'run/teacher')
    assert path.read_text() == 'mine'


def test_empty_folder_is_used(tmp_path):
    (tmp_path / 'teacher').mkdir()
    assert load(export(build(), tmp_path / 'teacher')).num_classes == 7
    assert listed(tmp_path) == ['teacher']


def test_the_working_directory_is_not_replaced(broken, monkeypatch, tmp_path):
    (tmp_path / 'empty').mkdir()
    for place in (tmp_path / 'empty', broken):
        monkeypatch.chdir(place)
        with pytest.raises(SFTeacherError, match=rf'{place.name} is the working directory, .*: start it elsewhere'):
            export(build('test_efficientnet'), '.', overwrite=True)
    assert torch.equal(logits_of(load(broken)), logits_of(build())) and not listed(tmp_path / 'empty')


def test_places_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr('sf_teacher.exporting.normalise.plain_copy', fail(AssertionError('work was done')))
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for place, message in (
        ('link', 'link is a link: give the folder that it points to, .*elsewhere'),
        ('loop', 'loop'),
        ('nul\0', 'cannot write .*null byte'),
        ('long' * 100, 'cannot write .*too long'),
        ('/', 'exists and is not empty'),
    ):
        with pytest.raises(SFTeacherError, match=message):
            export(build(), tmp_path / place)
    (tmp_path / 'file').write_text('')
    with pytest.raises(SFTeacherError, match='file exists and is not a folder'):
        export(build(), tmp_path / 'file')
    with pytest.raises(SFTeacherError, match='file is not a folder that can be written to'):
        export(build(), tmp_path / 'file' / 'teacher')
    monkeypatch.setattr('os.access', lambda path, mode: False)      # root may write everywhere
    with pytest.raises(SFTeacherError, match='is not a folder that can be written to'):
        export(build(), tmp_path / 'teacher')
