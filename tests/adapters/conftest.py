import pytest

from .torchdistill_runs import export_teacher


@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    """Folders with a teacher of timm's own and one that torchvision builds too."""
    root = tmp_path_factory.mktemp('exported')
    export_teacher('test_resnet', root / 'test_resnet')
    export_teacher('resnet18', root / 'resnet18')
    return root
