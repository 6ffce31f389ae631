"""Run a tool of mmpretrain or mmdet with this package imported first.

    python -m qbheat_mm mmdet/test.py CONFIG CHECKPOINT
    python -m qbheat_mm mmpretrain/visualization/vis_scheduler.py CONFIG
    python -m qbheat_mm path/to/tool.py ...

Some of their tools import mmdet before they read a config, and without mmcv's compiled ops mmdet cannot be imported
unless this package has been.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import qbheat_mm  # noqa: F401


def find_tool(name: str) -> Path:
    """The file of a tool, by its path or by its name below the tools of an installed package.

    Raises:
        FileNotFoundError: With the tools that there are.
    """
    if Path(name).is_file():
        return Path(name)
    package, _, tool = name.partition('/')
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin:
        raise FileNotFoundError(f'There is no tool "{name}". Give a file, or mmpretrain/TOOL.py or mmdet/TOOL.py.')
    folder = Path(spec.origin).parent / '.mim' / 'tools'
    if not (folder / tool).is_file():
        tools = '\n  '.join(sorted(f'{package}/{each.relative_to(folder)}' for each in folder.rglob('*.py')))
        raise FileNotFoundError(f'{package} has no tool "{tool}". It has:\n  {tools}')
    return folder / tool


def main() -> None:
    """Run the tool that the first argument names with the others."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(__doc__)
        return
    try:
        tool = find_tool(sys.argv[1])
    except FileNotFoundError as error:
        sys.exit(str(error))
    sys.argv[:2] = [str(tool)]
    sys.path[0] = str(tool.parent)  # as if it were run by its path
    runpy.run_path(str(tool), run_name='__main__')


if __name__ == '__main__':
    main()
