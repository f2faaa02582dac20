"""What is written is there as a whole or not at all, and nothing is written, made or removed through a link."""
import os

import pytest
from safetensors import SafetensorError

from sf_teacher import SFTeacherError
from sf_teacher.files import remove_leftovers, write_atomically, written_at_once


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def put(text):
    return lambda file: file.write(text.encode())


def test_a_file_replaces_the_one_before(tmp_path):
    for text in ('first', 'second'):
        write_atomically(tmp_path / 'file', put(text))
        assert (tmp_path / 'file').read_text() == text and names(tmp_path) == ['file']


@pytest.mark.parametrize('error, raised, message', [
    (OSError(28, 'No space left on device'), SFTeacherError, 'cannot write .*file: .*No space left.*complete'),
    (RuntimeError('PytorchStreamWriter failed'), SFTeacherError, 'cannot write .*file: PytorchStreamWriter failed'),
    (SafetensorError('I/O error: no space'), SFTeacherError, 'cannot write .*file: I/O error: no space'),
    (KeyboardInterrupt('stop'), KeyboardInterrupt, 'stop'),
])
def test_a_failed_write_leaves_the_file_as_it_was(error, raised, message, tmp_path):
    (tmp_path / 'file').write_text('first')

    def fails(file):
        file.write(b'some of it')
        raise error
    with pytest.raises(raised, match=message):
        write_atomically(tmp_path / 'file', fails)
    assert (tmp_path / 'file').read_text() == 'first' and names(tmp_path) == ['file']


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('mine')
    (tmp_path / 'file').symlink_to(tmp_path / 'precious')
    write_atomically(tmp_path / 'file', put('new'))
    assert (tmp_path / 'precious').read_text() == 'mine'
    assert not (tmp_path / 'file').is_symlink() and (tmp_path / 'file').read_text() == 'new'


@pytest.mark.parametrize('at_home', [True, False])
def test_a_link_at_the_temporary_name_is_never_written_through(at_home, tmp_path, monkeypatch):
    """Somebody who guesses the random name gets an error, whether the link leads to a file or to nowhere."""
    monkeypatch.setattr('sf_teacher.files._temporary', lambda target, kind: tmp_path / 'guessed')
    if at_home:
        (tmp_path / 'precious').write_text('mine')
    (tmp_path / 'guessed').symlink_to(tmp_path / 'precious')
    with pytest.raises(SFTeacherError, match=r'cannot write .*file: .*File exists'):
        write_atomically(tmp_path / 'file', put('new'))
    with pytest.raises(SFTeacherError, match=r'cannot write .*folder: .*File exists'), \
            written_at_once(tmp_path / 'folder'):
        raise AssertionError('never reached')
    assert (tmp_path / 'guessed').is_symlink() and not (tmp_path / 'file').exists()
    assert (tmp_path / 'precious').exists() == at_home
    assert not at_home or (tmp_path / 'precious').read_text() == 'mine'


def test_temporary_names_are_random_and_carry_our_mark(tmp_path, monkeypatch):
    seen, replace = [], os.replace
    monkeypatch.setattr('os.replace', lambda source, target: (seen.append(source.name), replace(source, target)))
    for _ in range(2):
        write_atomically(tmp_path / 'file', put(''))
    assert len(set(seen)) == 2 and all(name.startswith('.file.sf_teacher-') for name in seen)


def test_a_folder_is_there_at_once_or_not_at_all(tmp_path):
    target = tmp_path / 'new' / 'folder'
    with pytest.raises(SFTeacherError, match=r'cannot write .*folder: disk full'), written_at_once(target) as temporary:
        (temporary / 'file').write_text('half')
        raise OSError('disk full')
    assert names(tmp_path) == []
    with written_at_once(target) as temporary:
        (temporary / 'file').write_text('whole')
        assert not target.exists()
    assert names(target.parent) == ['folder'] and (target / 'file').read_text() == 'whole'


def test_an_old_folder_that_cannot_be_removed_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/file').write_text('old')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('os.rmdir', refuse)
    with written_at_once(tmp_path / 'folder') as temporary:
        (temporary / 'file').write_text('new')
    assert (tmp_path / 'folder/file').read_text() == 'new'
    monkeypatch.undo()
    remove_leftovers(tmp_path, 'folder')
    assert names(tmp_path) == ['folder'] and (tmp_path / 'folder/file').read_text() == 'new'


def test_a_link_where_a_folder_should_go_is_refused(tmp_path):
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'precious' / 'file').write_text('mine')
    (tmp_path / 'folder').symlink_to(tmp_path / 'precious')
    with pytest.raises(SFTeacherError, match=r'folder is a link: give the folder that it points to, .*precious'), \
            written_at_once(tmp_path / 'folder'):
        pass
    assert names(tmp_path) == ['folder', 'precious'] and names(tmp_path / 'precious') == ['file']


def test_only_our_own_leftovers_for_these_targets_are_removed(tmp_path):
    mark = '.sf_teacher-0123456789abcdef'
    theirs = ['.bashrc.old', '.config.yaml.tmp', '.notes.0123abcd.tmp', f'.other{mark}.tmp', f'.bashrc{mark}']
    for name in (*theirs, f'.config.yaml{mark}.tmp'):
        (tmp_path / name).write_text(name)
    for name in (f'.teacher{mark}.tmp', f'.student{mark}.old', 'student'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_text(name)
    (tmp_path / f'.checkpoint-00001.pt{mark}.tmp').symlink_to(tmp_path / 'student')
    remove_leftovers(tmp_path, 'config.yaml', 'checkpoint-*.pt', 'teacher', 'student')
    assert names(tmp_path) == sorted([*theirs, 'student'])
    assert (tmp_path / 'student' / 'file').read_text() == 'student'


def test_a_folder_whose_replacement_never_arrived_is_put_back(tmp_path):
    old = tmp_path / '.teacher.sf_teacher-0123456789abcdef.old'
    old.mkdir()
    (old / 'file').write_text('the earlier export')
    remove_leftovers(tmp_path, 'teacher')
    assert names(tmp_path) == ['teacher'] and (tmp_path / 'teacher' / 'file').read_text() == 'the earlier export'
