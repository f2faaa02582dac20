"""The pages of the site that are kept elsewhere in the repository, and links to files that are no pages.

The same links work when the files are read in the repository. With `repo_url` in mkdocs.yml, links to files that are
not on the site lead there; without it the file's path is shown. A link to a file that does not exist fails the build,
as mkdocs does for pages.
"""
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

PAGES = {       # in the repository: on the site
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'examples/cifar100/RESULTS.md': 'results/cifar100.md',
}
FIGURES = {'examples/cifar100/figures': 'results/figures'}
LINK = re.compile(r'(!?)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)')


def _elsewhere(root: Path) -> dict[str, str]:
    """Pages and figures that lie outside docs/: in the repository, on the site."""
    return PAGES | {f'{folder}/{path.name}': f'{place}/{path.name}'
                    for folder, place in FIGURES.items() for path in sorted((root / folder).glob('*.png'))}


def on_files(files: Any, config: Any, **kwargs: Any) -> None:
    """Add the pages that lie outside docs/, and their figures."""
    root = Path(config.docs_dir).parent
    for source, place in _elsewhere(root).items():
        if not (root / source).is_file():
            raise PluginError(f'docs/hooks.py: {source} is not in the repository')
        files.append(File.generated(config, place, abs_src_path=str(root / source)))


def on_page_markdown(markdown: str, page: Any, config: Any, **kwargs: Any) -> str:
    """Turn links between files of the repository, figures too, into links of the site."""
    docs, here = Path(config.docs_dir), page.file.src_uri
    elsewhere = _elsewhere(docs.parent)
    home = next((source for source, place in PAGES.items() if place == here), f'{docs.name}/{here}')

    def rewritten(match: re.Match[str]) -> str:
        mark, text, link, heading = match[1], match[2], match[3], match[4] or ''
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
        if not (docs.parent / path).exists():
            raise PluginError(f'{home}: the link to {link} leads to {path}, which is not in the repository')
        place = elsewhere.get(path, path.removeprefix(f'{docs.name}/') if path.startswith(f'{docs.name}/') else None)
        if place is not None:
            return f'{mark}[{text}]({posixpath.relpath(place, posixpath.dirname(here) or ".")}{heading})'
        if config.repo_url:
            return f'[{text}]({config.repo_url.rstrip("/")}/blob/main/{path}{heading})'
        return text if path in text else f'{text} (`{path}`)'

    return LINK.sub(rewritten, markdown)
