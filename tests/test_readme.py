"""The README is short and does what it says: its Python prints what it shows, and its commands are those of CI.

Nothing is substituted: the block is executed as it stands, in an empty folder. test_docs_pages.py does the same for the
longer pages.
"""
import contextlib
import io
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
BLOCKS = [(README[:m.start(2)].count('\n'), m[1], m[2]) for m in FENCE.finditer(README)]     # line, language, text


def blocks(language):
    return [text for _, found, text in BLOCKS if found == language]


def commands():
    """Every shell line, split at `&&`."""
    lines = [line for text in blocks('sh') for line in text.splitlines() if line and not line.startswith('#')]
    return [[part.strip() for part in line.split('&&')] for line in lines]


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for _, language, _ in BLOCKS} == {'python', 'sh', 'text'}
    assert README.count('```') == 2 * len(BLOCKS)


def test_it_is_short():
    assert len(README.splitlines()) < 120


@pytest.mark.fresh_check
def test_six_lines_of_python_print_the_output_that_is_shown(tmp_path, monkeypatch):
    (code,), (shown,) = blocks('python'), blocks('text')
    assert len(code.splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    line = next(line for line, language, _ in BLOCKS if language == 'python')
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile('\n' * line + code, str(ROOT / 'README.md'), 'exec'), {})    # tracebacks name README's lines
    assert printed.getvalue() == shown
    assert (tmp_path / 'exported/resnet50-sft/model.safetensors').is_file()


def test_the_address_is_given_once_as_a_variable_that_the_commands_use():
    given = [line for text in blocks('sh') for line in text.splitlines() if line.startswith('URL=')]
    assert len(given) == 1 and len(shlex.split(given[0])) == 1      # can be pasted
    used = [line for text in blocks('sh') for line in text.splitlines() if re.search(r'git[ +]', line)]
    assert len(used) == 3 and all(line.count('$URL"') == 1 and line.count('URL') == 1 for line in used)
    for text in blocks('sh'):
        assert subprocess.run(['bash', '-n'], input=text, text=True, check=False).returncode == 0


def test_the_picture_is_there_for_light_and_for_dark():
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert [Path(path).stem for path in pictures] == ['branched_teacher-dark', 'branched_teacher-light']
    assert all((ROOT / path).is_file() for path in pictures)


FROM_VIT = 'vit_tiny (6 blocks, 8 px patches) -> test_resnet (half width)'


def table_of(protocol):
    results = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
    return results.split(f'<!-- {protocol}, by')[1].split('<!-- end')[0]


def paragraph(begins):
    return README.split(begins)[1].split('\n\n')[0]


def test_the_numbers_it_quotes_of_labels_for_all_images_are_in_the_table():
    said = paragraph('**Labels for all images: none shown.**').split('**Few images')[0]
    _, reported = chosen_and_reported('all_images')
    friendly, after = (reported[arm] for arm in ('SFTN', 'standard, then SFTN for 10 epochs'))
    assert re.findall(r'(\d+\.\d\d) %', said) == [cells[5].split(' ±')[0] for cells in (friendly, reported['standard'])]
    assert re.findall(r'([-+]\d+\.\d\d) \[([^]]+)\]', said) == [gain(cells[8]) for cells in (friendly, after)]
    assert all(cells[8].split(';')[0].endswith('] no gain') for cells in (friendly, after))


def chosen_and_reported(protocol):
    """The cells of both tables of its one pair, by teacher."""
    return ({(cells := [cell.strip() for cell in line.split('|')])[1]: cells for line in part.splitlines()
             if line.startswith('| S') or line.startswith('| standard')}
            for part in table_of(protocol).split('| teacher | T |'))


def rows(protocol):
    """The cells of a table by pair and teacher."""
    found = {}
    for pair, lines in zip(*[iter(table_of(protocol).split('**')[1:])] * 2, strict=True):
        for line in lines.splitlines():
            cells = [cell.strip() for cell in line.split('|')]
            if 'epochs' not in line and len(cells) > 8:
                found[pair, cells[1]] = cells
    return found


def over(cells, against):
    """What a row gains over another than the standard teacher."""
    return cells[8].split(f'over "{against}": ')[1].split(';')[0]


def gain(cell):
    """A gain with the wider of its intervals."""
    mean, *intervals = re.findall(r'([-+]\d+\.\d\d) \[([^]]+)\](?:, with images \[([^]]+)\])?', cell)[0]
    return mean, max(intervals, key=lambda text: float(text.split(', ')[1]) - float(text.split(', ')[0]))


def test_the_gains_it_quotes_are_those_of_the_pairs_arms_and_columns_it_speaks_of():
    said = paragraph('Cutmix costs nothing, so try it first;')
    found = re.findall(r'([-+]\d+\.\d\d)(?:\spoints)?\s\[([^]]+)\]', said)
    first, second, vit = (f'resnet10t (half width) -> {student}' for student in (
        'test_resnet (half width)', 'test_efficientnet, branch test_resnet', 'test_vit (8 px patches)'))
    half, drawn, again = (rows(f'few_labels{name}') for name in ('_in_order', '', '_again'))
    elsewhere = f'{first}, other classes'
    expected = [drawn[first, 'SFTN, cutmix'][8],
                again[elsewhere, 'SFTN'][8], over(again[elsewhere, 'SFTN, cutmix'], 'standard, cutmix'),
                again[elsewhere, 'SFTN, cutmix'][8],
                drawn[second, 'SFTN'][8], over(drawn[second, 'SFTN, cutmix'], 'standard, cutmix'),
                drawn[second, 'SFTN, cutmix'][8],
                *(over(drawn[first, arm], control) for arm, control in (
                    ('SFTN', 'standard, same compute'), ('SFTN, cutmix', 'standard, cutmix, same compute'))),
                drawn[first, 'deep supervision only (kl_weight 0)'][8],
                *(half[pair, 'SFTN'][8] for pair in (first, vit, FROM_VIT)),
                rows('few_labels_in_order_100')[first, 'SFTN'][8]]
    assert found == [gain(cell) for cell in expected]


def test_its_table_of_few_labels_is_that_of_the_results():
    found = re.findall(r'^\| (?:cropped|with cutmix).* \| (.*) \| (.*) \| (\S+) \[(.*)\] \|$', README, re.MULTILINE)
    known = {arm: cells for (pair, arm), cells in rows('few_labels').items()
             if pair == 'resnet10t (half width) -> test_resnet (half width)'}
    expected = []
    for standard, friendly, of in (('standard', 'SFTN', known['SFTN'][8]), ('standard, cutmix', 'SFTN, cutmix', over(
            known['SFTN, cutmix'], 'standard, cutmix'))):
        expected.append((*(known[arm][7].split(' ±')[0] for arm in (standard, friendly)), *gain(of)))
    assert found == expected
    teachers = {cells[3].split(' ×')[0] for arm, cells in known.items() if 'SFTN' in arm}
    assert teachers == set(re.findall(r'chose \((\d) teachers', README))


def test_what_it_says_of_few_images_is_in_the_tables():
    chosen, reported = chosen_and_reported('few_images')
    standard, aid, sftn = 'standard', 'standard, then AID for 5 epochs', 'standard, then SFTN as reported for 10 epochs'
    by_temperature = [float(cell.strip('*')) for cell in chosen[standard][3:8]]
    said = paragraph('**Labels for all images: none shown.**').split('**Few images')[1]
    assert max(by_temperature) == by_temperature[3]     # T = 2, 4, 8, 16, 32
    assert re.search(r'worth (\S+) points', said)[1] == f'{by_temperature[3] - by_temperature[1]:.1f}'
    assert re.findall(r'([-+]\d+\.\d\d) \[([^]]+)\]', said) == [gain(reported[arm][8]) for arm in (aid, sftn)]
    assert all(reported[arm][8].split(';')[0].endswith('] no gain') for arm in (aid, sftn))


def verdicts(protocol):
    """By pair and teacher."""
    return {of: cells[8].split(';')[0].rpartition('] ')[2] for of, cells in rows(protocol).items()}


def test_the_verdicts_on_test_images_are_those_that_it_speaks_of():
    """The sentences go when the tables say otherwise."""
    assert re.search(r'\| SFTN \|.*\] no gain \|', table_of('cpu'))
    found = verdicts('few_labels_in_order')
    assert found[FROM_VIT, 'SFTN'] == 'no gain'
    first, second, *to_vit = (f'resnet10t (half width) -> {student}' for student in (
        'test_resnet (half width)', 'test_efficientnet, branch test_resnet', 'test_vit (8 px patches)',
        'test_vit (8 px patches), branch test_resnet'))
    assert found[first, 'SFTN'] == found[second, 'SFTN'] == 'gain'
    assert [found[pair, 'SFTN'] for pair in to_vit] == ['no gain'] * 2
    assert found[first, 'deep supervision only (kl_weight 0)'] == 'gain'
    assert found[first, 'standard, same compute'] == 'no gain'
    fewer = verdicts('few_labels_in_order_25')
    assert fewer[first, 'SFTN'] == fewer[first, 'deep supervision only (kl_weight 0)'] == 'gain'
    assert verdicts('few_labels_in_order_100')[first, 'SFTN'] == 'no gain'
    again = verdicts('few_labels_again')
    drawn, arms = verdicts('few_labels'), ('SFTN', 'standard, cutmix', 'SFTN, cutmix')
    assert {again[f'{first}, other classes', arm] for arm in arms} == {'gain'}
    assert {drawn[pair, arm] for pair in (first, second) for arm in arms} == {'gain'}
    assert over(rows('few_labels')[second, 'SFTN, cutmix'], 'standard, cutmix').endswith('] no gain')
    assert all(over(rows('few_labels')[first, 'SFTN, cutmix'], f'standard, cutmix{more}').endswith('] gain')
               for more in ('', ', same compute'))


def test_two_commands_set_everything_up_from_git_and_python():
    start = ['git clone', 'cd sf_teacher', 'python3 -m venv .venv', '.venv/bin/pip install -e ', '']
    setups = [line for line in commands() if line[0].startswith('git clone')]
    assert len(setups) == 2
    for line in setups:
        assert len(line) == len(start)
        assert all(part.startswith(expected) for part, expected in zip(line, start, strict=True))
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert all(re.search(r'"\.\[(\w+)\]"$', line[3])[1] in extras for line in setups)
    quickstart, tests = setups
    assert quickstart[4] == '.venv/bin/python examples/quickstart.py'
    assert (ROOT / 'examples' / 'quickstart.py').is_file()
    # the tests' command is what CI runs: the same installation, the same pytest, the same threads
    ci = (ROOT / '.ci' / 'run').read_text()
    ci = ci.replace('install --quiet --disable-pip-version-check --no-compile', 'install')
    ci = ci.replace('"$venv/bin/pip"', '.venv/bin/pip')
    threads, pytest_command = tests[4].split(' ', 1)
    assert tests[3] in ci
    assert f'export {threads}' in ci
    assert pytest_command in ci.replace('"$venv/bin/pytest"', '.venv/bin/pytest')


def test_links_lead_somewhere():
    links = [link for link in re.findall(r'\]\(([^)]+)\)', README) if not link.startswith('http')]
    assert links
    for path, _, heading in (link.partition('#') for link in links):
        path = path or 'README.md'
        assert (ROOT / path).exists(), path
        if heading:
            titles = re.findall(r'^#+ (.*)', (ROOT / path).read_text(encoding='utf-8'), re.M)
            assert heading in [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles]


