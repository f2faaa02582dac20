"""A teacher that timm cannot build: exported with the function that builds it."""
import json
import sys

import pytest
import torch

from sf_teacher import SFTeacherError, cli
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.exporting.folders import METADATA, edit_probe, listed, load, logits_of

OWN = {'input_size': (1, 8, 8), 'mean': (0.5,), 'std': (0.25,)}
MODULE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.conv(x).{activation}().mean((2, 3)))

def needs_us():
    import sf_teacher
    return Own()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, importable because it lies beside a script."""
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'own_models.py').write_text(MODULE.format(activation='relu'))
    (source / 'changed_models.py').write_text(MODULE.format(activation='sigmoid'))
    monkeypatch.syspath_prepend(str(source))
    return source


@pytest.mark.fresh_check
def test_factory(own, tmp_path):
    from own_models import Own
    model = Own(width=6)
    path = export(model, tmp_path / 'teacher', factory=Own, model_args={'width': 6}, metadata=METADATA, **OWN)
    assert listed(path) == ['README.md', 'config.json', 'probe.safetensors', 'teacher.pth']
    config = json.loads((path / 'config.json').read_text())
    assert config['factory'] == 'own_models:Own' and config['num_classes'] == 5 and 'architecture' not in config
    with pytest.raises(KeyError):
        load(path)      # no timm folder, and none that pretends
    again = Own(width=6)
    again.load_state_dict(torch.load(path / 'teacher.pth', weights_only=True)['model'])
    assert torch.equal(logits_of(again, (1, 8, 8)), logits_of(model, (1, 8, 8)))
    card = (path / 'README.md').read_text()
    assert 'from own_models import Own\n\nteacher = Own(width=6)' in card
    assert '    sf-teacher verify teacher --factory own_models:Own\n' in card
    with pytest.raises(SFTeacherError, match=r'model.safetensors missing\).*with factory there is only teacher.pth'):
        load_teacher(str(path))
    assert verify(path, factory='own_models:Own')['bit_equal']
    with pytest.raises(SFTeacherError, match=r"built by 'own_models:Own'.*pass factory='own_models:Own'"):
        verify(path)


def test_a_folder_does_not_choose_what_code_runs(own, tmp_path):
    from own_models import Own
    path = export(Own(), tmp_path / 'teacher', factory=Own, **OWN)
    edit_probe(path, lambda facts: facts.update(factory='os:mkdir', model_args={'path': str(tmp_path / 'executed')}))
    with pytest.raises(SFTeacherError, match='to let that code run here'):
        verify(path)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.fresh_check
def test_the_fresh_process_has_no_sf_teacher(own, tmp_path):
    from own_models import Own
    with pytest.raises(SFTeacherError, match='sf_teacher is blocked: an exported teacher must load without'):
        export(Own(), tmp_path / 'teacher', factory='own_models:needs_us', **OWN)
    assert listed(tmp_path) == ['source']


@pytest.mark.parametrize('factory, message', [
    ('changed_models:Own', 'changed_models:Own builds another model than the one given'),
    ('own_models:missing', "has no attribute 'missing'"),
    ('no_such_module:f', "No module named 'no_such_module'"),
])
def test_factory_that_does_not_give_the_teacher(factory, message, own, tmp_path):
    from own_models import Own
    with pytest.raises(SFTeacherError, match=message):
        export(Own(), tmp_path / 'teacher', factory=factory, **OWN)
    assert listed(tmp_path) == ['source']


def test_cli_export_of_a_model_of_ones_own(own, capsys, tmp_path, monkeypatch):
    from own_models import Own
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(own)])
    torch.save(Own(width=6).state_dict(), 'own.pth')
    command = ['export', 'own.pth', str(tmp_path / 'teacher'), '--factory', 'own_models:Own']
    assert cli.main([*command, '--model-args', '{"width": 6}', '--input-size', '1', '8', '8', '--mean', '0.5',
                     '--std', '0.5']) == 0
    assert 'exported and verified; its README.md says how to load it' in capsys.readouterr().out
    assert verify(tmp_path / 'teacher', factory='own_models:Own')['bit_equal']
    assert cli.main([*command, '--model', 'test_resnet']) == 2
    assert 'export takes --model for a model that timm builds by name' in capsys.readouterr().err
