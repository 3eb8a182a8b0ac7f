"""Draw which room of the package imports which, docs/images/imports.svg: `python docs/draw_imports.py`

Rooms are the folders of hdkd_timm/; their order from top to bottom is the contract in pyproject.toml. An arrow that
follows from others is omitted, and so are those to the lowest room, which all may import. A test checks that the
picture is up to date.
"""

import ast
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / 'docs' / 'images' / 'imports.svg'
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT, MARGIN = 640, 104, 168, 50, 24
STYLE = """
    .card { fill: #ffffff; stroke: #d0d7de } .room { fill: #eaf2fd; stroke: #3b76c4; stroke-width: 2 }
    text { font: 600 20px system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif }
    text { fill: #1f2328; text-anchor: middle }
    .arrow { fill: none; stroke: #57606a; stroke-width: 2 } .tip { fill: #57606a }
    @media (prefers-color-scheme: dark) {
      .card { fill: #12171e; stroke: #30363d } .room { fill: #16253a; stroke: #6ea8f0 }
      text { fill: #e6edf3 } .arrow { stroke: #a9b4c0 } .tip { fill: #a9b4c0 }
    }
  """


def imported_rooms(path: Path, package: Path) -> Iterator[str]:
    """Names of the package's parts that a module imports, at its top or within functions."""
    parents = path.relative_to(package.parent).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        modules: List[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*parents[: len(parents) - node.level + 1]] if node.level else []
            name = '.'.join([*base, *([node.module] if node.module else [])])
            modules = [f'{name}.{alias.name}' for alias in node.names]
        for parts in (module.split('.') for module in modules):
            if parts[0] == package.name and len(parts) > 1:
                yield parts[1]


def find_imports(package: Path) -> Dict[str, Set[str]]:
    """Room -> other rooms that its modules import."""
    rooms = {path.parent.name for path in package.glob('*/__init__.py')}
    return {
        room: {
            other
            for path in (package / room).rglob('*.py')
            for other in imported_rooms(path, package)
            if other in rooms and other != room
        }
        for room in rooms
    }


def reachable(imports: Dict[str, Set[str]], room: str) -> Set[str]:
    return imports[room].union(*(reachable(imports, other) for other in imports[room]))


def read_rows(rooms: Set[str]) -> List[List[str]]:
    """The rooms from top to bottom, those on one level together, as the contract lists them."""
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    contract = settings['tool']['importlinter']['contracts'][0]
    rows = [[name.strip(' ()') for name in layer.split('|')] for layer in contract['layers']]
    return [row for row in ([name for name in row if name in rooms] for row in rows) if row]


def connect(x: float, y: float, x2: float, y2: float) -> str:
    """Path from the bottom of one box to the top of another; past boxes between them through the gap beside them."""
    start, end = y + BOX_HEIGHT, y2 - 2
    path = f'M{x:.0f} {start:.0f}'
    if y2 - y > ROW:
        side = x2 + (BOX_WIDTH / 2 + 11) * (1 if x2 <= x else -1)
        path += f'C{x:.0f} {start + 40:.0f} {side:.0f} {start + 14:.0f} {side:.0f} {y + ROW:.0f}V{y2 - 54:.0f}'
        return f'{path}C{side:.0f} {y2 - 14:.0f} {x2:.0f} {y2 - 40:.0f} {x2:.0f} {end:.0f}'
    return f'{path}C{x:.0f} {start + 27:.0f} {x2:.0f} {end - 27:.0f} {x2:.0f} {end:.0f}'


def draw() -> str:
    imports = find_imports(ROOT / 'hdkd_timm')
    rows = read_rows(set(imports))
    lowest = rows[-1][0]
    arrows = {
        room: {
            other
            for other in others
            if other != lowest and not any(other in reachable(imports, between) for between in others - {other})
        }
        for room, others in imports.items()
    }
    place: Dict[str, Tuple[float, float]] = {}
    for i, row in enumerate(rows):

        def centre(room: str) -> float:
            above = [place[other][0] for other in place if room in arrows[other]]
            return sum(above) / len(above) if above else WIDTH / 2

        for j, room in enumerate(sorted(row, key=centre)):
            place[room] = (WIDTH * (2 * j + 1) / (2 * len(row)), MARGIN + i * ROW)
    height = 2 * MARGIN + (len(rows) - 1) * ROW + BOX_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' role="img" aria-label="Imports between the rooms of hdkd_timm">',
        f'  <style>{STYLE}</style>',
        '  <defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="12" markerHeight="12"'
        ' markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0 10 5 0 10z"/></marker></defs>',
        f'  <rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14"/>',
    ]
    for room in place:
        x, y = place[room]
        for other in sorted(arrows[room]):
            lines.append(f'  <path class="arrow" marker-end="url(#tip)" d="{connect(*place[room], *place[other])}"/>')
    for room, (x, y) in place.items():
        lines.append(
            f'  <rect class="room" x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
            f' rx="8"/><text x="{x:.0f}" y="{y + 32:.0f}">{room}</text>'
        )
    return '\n'.join([*lines, '</svg>', ''])


if __name__ == '__main__':
    PICTURE.write_text(draw(), encoding='utf-8')
