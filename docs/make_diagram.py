"""Write the picture of a branched teacher, light and dark: `python docs/make_diagram.py`. A test checks it."""
from pathlib import Path

FOLDER = Path(__file__).with_name('images')
PALETTES = {
    'light': {'ink': '#1f2933', 'soft': '#616e7c', 'teacher': '#c7d8f5', 'student': '#fbe0b8', 'transform': '#cdebd5'},
    'dark': {'ink': '#e4e7eb', 'soft': '#9aa5b1', 'teacher': '#27406e', 'student': '#6b4a16', 'transform': '#22573a'},
}
TITLE = 'A teacher with student branches at the ends of three of its stages'
STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
WIDTH, HEIGHT, STEP, BOX = 790, 420, 118, 86      # pixels: picture, from one stage to the next, width of a stage


def box(x: int, y: int, width: int, text: str, kind: str) -> str:
    return (f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="36" rx="6"/>'
            f'<text x="{x + width // 2}" y="{y + 23}" text-anchor="middle">{text}</text>')


def arrow(*points: tuple[int, int]) -> str:
    path = ' L '.join(f'{x} {y}' for x, y in points)
    return f'<path class="arrow" d="M {path}" marker-end="url(#tip)"/>'


def label(x: int, y: int, text: str, kind: str = 'soft', anchor: str = 'start') -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def formula(*pieces: str) -> str:
    """Every second piece is a subscript."""
    shifted = [f'<tspan class="sub" dy="4">{p}</tspan>' if i % 2 else f'<tspan dy="{-4 if i else 0}">{p}</tspan>'
               for i, p in enumerate(pieces)]
    return ''.join(shifted)


def branch(number: int) -> list[str]:
    """Down from the end of stage `number` of the teacher, through the transform, to the student's tail."""
    y, x = 300 - 70 * (number - 1), 105 + STEP * (number - 1) + BOX + 16
    rest = STAGES[number:]
    shown = [
        arrow((x, 68), (x, y + 18), (x + 12, y + 18)),
        box(x + 14, y, 30, formula('T', str(number)), 'transform'),
    ]
    left = x + 44
    for name in (*rest, 'head'):
        shown += [arrow((left, y + 18), (left + 14, y + 18)), box(left + 16, y, 60, name, 'student')]
        left += 76
    shown += [
        arrow((left, y + 18), (left + 14, y + 18)),
        label(left + 18, y + 23, formula('z', str(number)), 'ink'),
    ]
    return shown


def picture(palette: dict[str, str]) -> str:
    """The SVG in these colours."""
    ends = [105 + STEP * index for index in range(4)]
    parts = [
        label(14, 24, 'teacher (resnet50): stays, and is exported as a plain timm checkpoint'),
        box(14, 50, 60, 'stem', 'teacher'),
        *(box(x, 50, BOX, name, 'teacher') for x, name in zip(ends, STAGES, strict=True)),
        box(ends[3] + BOX + 32, 50, 60, 'head', 'teacher'),
        arrow((74, 68), (103, 68)),
        *(arrow((x + BOX, 68), (x + BOX + 30, 68)) for x in ends),
        arrow((ends[3] + BOX + 92, 68), (ends[3] + BOX + 120, 68)),
        label(ends[3] + BOX + 126, 73, formula('z', 'T'), 'ink'),
        *(part for number in (3, 2, 1) for part in branch(number)),
        label(14, 368, 'branches: a transform T and the tail of the student (resnet18); trained with the teacher, then '
                       'thrown away'),
        label(14, 400, formula('loss = CE(z', 'T', ', y) + mean of λ', 'CE', ' CE(z', 'i', ', y) + λ', 'KL', ' KL(z',
                               'T', ' ‖ z', 'i', ')'), 'ink'),
    ]
    style = ''.join(f'.{name}{{fill:{palette[name]}}}' for name in ('teacher', 'student', 'transform', 'soft'))
    return '\n'.join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14">',
        f'<title>{TITLE}</title>',
        f'<style>text{{fill:{palette["ink"]}}}text.soft{{fill:{palette["soft"]}}}.sub{{font-size:10px}}'
        f'.arrow{{fill:none;stroke:{palette["soft"]};stroke-width:1.5}}{style}</style>',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{palette["soft"]}"/></marker></defs>',
        *parts,
        '</svg>',
        '',
    ])


def pictures() -> dict[Path, str]:
    return {FOLDER / f'branched_teacher-{name}.svg': picture(palette) for name, palette in PALETTES.items()}


if __name__ == '__main__':
    for path, text in pictures().items():
        path.write_text(text, encoding='utf-8')
