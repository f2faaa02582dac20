"""What is written beside the weights tells of the teacher, and nothing of the machine or in somebody else's markup."""
import getpass
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from sf_teacher import SFTeacherError, wrap
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.json_values import metadata
from tests.helpers import build


@pytest.mark.parametrize('given, kept', [
    ('/home/alice/data/imagenet', 'imagenet'),
    (Path('/home/alice/my data/imagenet'), 'imagenet'),
    ('local-dir:/home/alice/runs/teacher', 'teacher'),
    ('trained on /home/alice/data/imagenet and ~/more/data.', 'trained on imagenet and data.'),
    ('C:\\Users\\alice\\data\\cifar', 'cifar'),
    ('file:///home/alice/data', 'data'),
    ('[/home/alice/a, /home/alice/b]', '[a, b]'),
    ({'teacher': ['/home/alice/t']}, {'teacher': ['t']}),
    ('https://example.org/a/b', 'https://example.org/a/b'),
    ('runs/first and 1/2', 'runs/first and 1/2'),
    ('hf-hub:timm/resnet18', 'hf-hub:timm/resnet18'),
    ('CE + 0.5 * KL', 'CE + 0.5 * KL'),
    ('top1 76.2 / top5 93.1, train / val', 'top1 76.2 / top5 93.1, train / val'),
])
def test_paths_lose_their_folders(given, kept):
    assert metadata({'data': given}) == {'data': kept}


def test_nothing_of_the_machine_is_written(tmp_path, monkeypatch):
    (tmp_path / 'alice').mkdir()
    student = export(build(), tmp_path / 'alice' / 'student')
    task = wrap(build(), [build(), f'local-dir:{student}', 'test_efficientnet'], input_size=(3, 64, 64), num_classes=7)
    notes = {'data': tmp_path / 'alice' / 'images', 'command': f'train --data {tmp_path}/alice/images'}
    folder = task.export(tmp_path / 'alice' / 'teacher', metadata=notes)
    written = {name: (folder / name).read_text() for name in ('README.md', 'config.json', 'torchdistill.yaml')}
    everything = [*written.values(), *((folder / name).read_bytes().decode('latin-1') for name in
                                       ('probe.safetensors', 'teacher.pth'))]
    for text in everything:
        assert str(tmp_path) not in text and str(Path.home()) + '/' not in text and 'alice' not in text
    if getpass.getuser() != 'root':
        assert not any(getpass.getuser() in text for text in written.values())
    assert json.loads(written['config.json'])['sf_teacher']['students'] == [
        'test_resnet', 'test_resnet', 'test_efficientnet']
    assert 'train --data images' in written['README.md']


def test_a_snippet_below_the_working_directory_can_be_used_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = export(build(), tmp_path / 'exported' / 'teacher')
    block = yaml.safe_load((folder / 'torchdistill.yaml').read_text())['models']['teacher_model']
    assert block['kwargs']['model_name'] == 'local-dir:./exported/teacher'
    monkeypatch.chdir(folder)
    assert 'local-dir:./again' in (export(build(), tmp_path / 'again') / 'torchdistill.yaml').read_text()


HOSTILE = {
    'description': '# Title\n<script>alert(1)</script> ![x](http://a/b.png) `code` **bold** _it_ [a][b] | c & d',
    'data': '<img src=x onerror=alert(1)>',
    '<b>key</b>': {'*inner*': '[link](javascript:alert(1))'},
    'note': 'line\n\n---\n# heading\n- item',
    'snake_case_name': 'resnet_18',
}


def test_metadata_is_text_and_no_markup(tmp_path):
    card = (export(build(), tmp_path / 'a <i>_teacher_', metadata=HOSTILE) / 'README.md').read_text()
    for raw in ('<script', '<img', '<b>', '# a <i>', '](http', '](javascript', '\n# Title', '\n# heading', '\n- item',
                ' `code`', ' **bold**', ' _it_', '[a][b]'):
        assert raw not in card, raw
    for text in (r'\# Title &lt;script&gt;alert(1)&lt;/script&gt;', r'![x]\(http://a/b.png)', r'\`code\`', '&amp; d',
                 '&lt;img src=x onerror=alert(1)&gt;', '**snake_case_name**: resnet_18', r'# a &lt;i&gt;\_teacher\_'):
        assert text in card, text
    loaded = ModelCard(card)
    assert loaded.data.library_name == 'timm' and loaded.data.pipeline_tag == 'image-classification'
    assert loaded.data.tags == ['image-classification', 'knowledge-distillation', 'sf_teacher', 'timm']
    assert card.count('\n# ') == 1


def test_the_cards_code_runs_whatever_the_folder_is_called(tmp_path, monkeypatch):
    folder = export(build(), tmp_path / 'it\'s "a" teacher')
    (code,) = [block.split('```')[0] for block in (folder / 'README.md').read_text().split('```python\n')[1:]]
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code, scope)
    assert scope['teacher'].num_classes == 7
    block = yaml.safe_load((folder / 'torchdistill.yaml').read_text())['models']['teacher_model']
    assert block['kwargs']['model_name'] == 'local-dir:./it\'s "a" teacher'


def test_a_name_that_would_break_out_is_refused(tmp_path):
    with pytest.raises(SFTeacherError, match=r'its name holds characters that cannot be printed'):
        export(build(), tmp_path / 'a\nsrc_ckpt: b')
