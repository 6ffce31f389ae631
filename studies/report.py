"""A study's tables and figures, from the records of its stages alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure

from qbheat_mm.checkpoint import atomic_write

Records = dict[str, dict]  # stage name -> record
Column = tuple[str, str, float]  # evaluation, key of its metric, factor


def records_of(records: Records, row: str, part: str = '*') -> list[dict]:
    """The records of a row's pre-training or evaluation, or of all of them, for all seeds."""
    return [record for name, record in records.items() if fnmatch(name, f'{row}/seed*/{part}')]


def columns(spec: dict, rows: list[str]) -> dict[str, Column]:
    """The columns for the given rows: label -> source of the values."""
    return {
        label: (part, *(metric if isinstance(metric, list) else (metric, 1)))
        for part, evaluation in spec['evaluation'].items()
        if set(rows) & set(evaluation.get('rows', rows))
        for label, metric in evaluation.get('metrics', {}).items()
    }


def values(records: Records, row: str, column: Column) -> list[float]:
    """A metric of a row, one value per seed."""
    part, key, factor = column
    metrics = (record['metrics'].get(key) for record in records_of(records, row, part))
    return [factor * value for value in metrics if value is not None]


def number(value: float, size: float | None = None) -> str:
    """Format ``value`` with the number of digits for its own magnitude, or for that of ``size``."""
    return f'{value:.1f}' if abs(size or value) >= 2 else f'{value:.3f}'


def cell(measured: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; a dash without values."""
    if len(measured) < 2:
        return number(measured[0]) if measured else '-'
    return f'{number(mean(measured))} ± {number(stdev(measured), mean(measured))}'


def difference(one: Sequence[float], other: Sequence[float]) -> str:
    """Signed difference of two means; a dash if either has no values."""
    if not one or not other:
        return '-'
    gap = mean(one) - mean(other)
    return ('+' if gap >= 0 else '-') + number(abs(gap), max(one))


def versions(records: Sequence[dict]) -> str:
    """The qbheat_mm versions that measured these records."""
    return ', '.join(sorted({record['versions']['qbheat_mm'] for record in records}))


def markdown_table(header: Sequence[str], body: list[Sequence[str]]) -> list[str]:
    """Lines of a table, and an empty one."""
    return ['| ' + ' | '.join(each) + ' |' for each in (header, ['---'] * len(header), *body)] + ['']


def study_table(spec: dict, table: dict, records: Records) -> list[str]:
    """Lines of one table: pre-trainings and differences, each followed by the paper's figures.

    A row or column without any value is named below the table instead.
    """
    labels = {row: pretraining.get('label', row) for row, pretraining in spec['pretraining'].items()}
    used = {row: records_of(records, row) for row in labels}
    every, rows = columns(spec, table['rows']), [row for row in table['rows'] if used[row]]
    heads = {head: column for head, column in every.items() if any(values(records, row, column) for row in rows)}
    lines = []
    for row in rows:
        minutes = [record['seconds'] / 60 for record in records_of(records, row, 'pretrain')]
        start = [versions(used[row]), str(len(minutes)), f'{mean(minutes):.1f}' if minutes else '-']
        lines.append((labels[row], row, start, [cell(values(records, row, column)) for column in heads.values()]))
    for one, other in table.get('differences', []):
        if used[one] and used[other]:
            gaps = [difference(*(values(records, row, column) for row in (one, other))) for column in heads.values()]
            label, start = f'{labels[one]} - {labels[other]}', [versions(used[one] + used[other]), '', '']
            lines.append((label, f'{one} - {other}', start, gaps))
    body = []
    for label, name, start, cells in lines:
        body.append([label, *start, *cells])
        if paper := table.get('paper', {}).get(name):
            body.append([f'*{label}, the paper*', '', '', '', *(str(paper.get(head, '')) for head in heads)])
    missing = [labels[row] for row in table['rows'] if row not in rows] + [head for head in every if head not in heads]
    return [
        *(f'## {table["title"]}', ''),
        *(markdown_table(['', 'qbheat_mm', 'seeds', 'pre-training, minutes', *heads], body) if rows else ()),
        *((f'Not measured: {"; ".join(missing)}.', '') if missing else ()),
    ]


def runs_table(records: Records) -> list[str]:
    """The origin of every number."""
    header = ['run', 'config', 'seconds', 'hardware', 'qbheat_mm', 'commit']
    body = [
        [name, f'`{Path(r["config"]).name}`', f'{r["seconds"]:.0f}', r['hardware'], versions([r]), f'`{r["commit"]}`']
        for name, r in records.items()
    ]
    return [
        '## All runs',
        '',
        'Metrics, curves and versions: [runs.jsonl](runs.jsonl).',
        '',
        *markdown_table(header, body),
    ]


def draw_curves(spec: dict, records: Records) -> bytes | None:
    """Plot the k-NN accuracy during the pre-trainings, by step and by time; None if no accuracy was logged."""
    figure = Figure(figsize=(11, 4), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for i, (row, pretraining) in enumerate(spec['pretraining'].items()):
        label = pretraining.get('label', row)
        for record in records_of(records, row, 'pretrain'):
            steps, accuracy = np.array(record['curves'].get('knn/top1_k20', [])).reshape(-1, 2).T
            if len(steps) > 1:
                for axis, unit in zip(axes, (1, record['seconds'] / 60 / steps[-1]), strict=True):
                    axis.plot(steps * unit, accuracy, color=f'C{i}', label=label, marker='.')
                label = None  # one entry in the legend for all seeds
    if not axes[0].lines:
        return None
    axes[0].set(xlabel='training steps', ylabel='20-NN top-1, %', title='by step')
    axes[1].set(xlabel='minutes', title='by time on this machine')
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=120)
    return content.getvalue()


def write_report(spec: dict, records: Records, out: Path) -> Path:
    """Write ``README.md`` and ``curves.png`` to the folder ``out``; return the former."""
    lines = [f'# {spec.get("title", out.name)}', '']
    if spec.get('notes'):
        lines += [spec['notes'].strip(), '']
    for table in spec['tables']:
        lines += study_table(spec, table, records)
    if curves := draw_curves(spec, records):
        atomic_write(out / 'curves.png', curves)
        lines += ['## During pre-training', '', '![k-NN accuracy during pre-training](curves.png)', '']
    if images := sorted(out.glob('*-reconstruct*.png')):
        lines += ['## Reconstructions', '', 'Original, visible quarter, reconstruction.', '']
        for image in images:
            lines += [f'{image.stem}:', '', f'![{image.stem}]({image.name})', '']
    lines += runs_table(records)
    atomic_write(out / 'README.md', '\n'.join(lines).encode())
    return out / 'README.md'
