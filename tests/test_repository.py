"""The files that services read: they agree with each other and with `.ci/run`."""
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding='utf-8'))


def test_the_workflow_calls_ci_run_with_pinned_actions():
    text = (ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8')
    (job,) = yaml.safe_load(text)['jobs'].values()
    assert [step['run'] for step in job['steps'] if 'run' in step] == ['.ci/run']
    used = re.findall(r'uses: (\S+)(.*)', text)
    assert len(used) == 2
    for action, version in used:
        assert re.fullmatch(r'actions/[\w-]+@[0-9a-f]{40}', action), action     # a tag can be moved
        assert re.fullmatch(r' # v\d+\.\d+\.\d+', version), action
    (setup,) = [step['with'] for step in job['steps'] if 'setup-python' in step.get('uses', '')]
    assert PROJECT['requires-python'] == f'>={setup["python-version"]}'


def test_pre_commit_runs_what_ci_runs():
    hooks = {hook['id']: hook for repo in read('.pre-commit-config.yaml')['repos'] for hook in repo['hooks']}
    assert {'ruff', 'lint-imports', 'mypy', 'end-of-file-fixer', 'check-yaml'} <= set(hooks)
    ci = re.findall(r'"\$venv/bin/([\w-]+)"', (ROOT / '.ci/run').read_text(encoding='utf-8'))
    for hook in hooks.values():
        if hook.get('language') == 'system':
            assert hook['entry'].split()[0] in ci


def test_the_citation_is_complete_and_keeps_no_second_version_number():
    citation = read('CITATION.cff')
    assert citation['cff-version'] == '1.2.0' and citation['message'] and 'version' not in citation
    assert citation['license'] == PROJECT['license']
    assert citation['authors'] == PROJECT['authors']
    papers = {reference['url'].rpartition('/')[2] for reference in citation['references']}
    assert papers >= {'2102.07650', '2110.00329', '2407.16040', '2305.10893'}
    for reference in citation['references']:
        assert reference['title'] and reference['year'] and reference['type']
        assert all(author['family-names'] and author['given-names'] for author in reference['authors'])
