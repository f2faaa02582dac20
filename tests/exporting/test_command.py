"""`sf-teacher export`: a checkpoint that somebody has becomes an exported folder."""
import pytest
import torch

from sf_teacher import cli
from tests.exporting.folders import SIZE, listed, load, logits_of
from tests.helpers import build


def test_cli_export(folder, capsys, tmp_path):
    command = ['export', str(folder / 'teacher.pth'), str(tmp_path / 'again'), '--model', 'test_resnet']
    assert cli.main([
        *command, '--num-classes', '7', '--input-size', '3', '64', '64', '--mean', '0.5', '--metadata', '{"seed": 9}',
    ]) == 0
    assert 'exported and verified' in capsys.readouterr().out
    loaded = load(tmp_path / 'again')
    assert torch.equal(logits_of(loaded), logits_of(build()))
    assert list(loaded.pretrained_cfg['mean']) == [0.5] * 3 and tuple(loaded.pretrained_cfg['input_size']) == SIZE
    assert '**Seed**: 9' in (tmp_path / 'again' / 'README.md').read_text()


@pytest.mark.parametrize('changes, message', [
    ({'checkpoint': 'nowhere.pth'}, 'there is no checkpoint at nowhere.pth'),
    ({'--num-classes': '8'}, 'size mismatch for fc.weight'),
    ({'--model': 'test_resnot'}, "timm has no model 'test_resnot'"),
])
def test_cli_export_errors(changes, message, folder, capsys, tmp_path):
    options = {'--model': 'test_resnet', '--num-classes': '7', **changes}
    checkpoint = options.pop('checkpoint', str(folder / 'teacher.pth'))
    arguments = [text for option in options.items() for text in option]
    assert cli.main(['export', checkpoint, str(tmp_path / 'again'), *arguments]) == 1
    assert message in capsys.readouterr().err and not listed(tmp_path)


def test_cli_usage(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(['export', 'a', 'b', '--model', 'test_resnet', '--num-classes', '7', '--metadata', '[1]'])
    assert exit_.value.code == 2 and 'expected an object' in capsys.readouterr().err
