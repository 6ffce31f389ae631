"""A study's table and figures, from the JSONs of its stages alone."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

Runs = dict[tuple[str, str], dict[int, dict]]  # (row, part) -> seed -> the stage's JSON
Column = tuple[str, str, float]  # an evaluation, the key of its metric, what the metric is multiplied with


def read_runs(folder: Path) -> Runs:
    """Every stage's JSON in ``folder``."""
    runs: Runs = defaultdict(dict)
    for path in sorted(folder.glob('*.json')):
        record = json.loads(path.read_text())
        row, seed, part = record['stage'].split('/')
        runs[row, part][int(seed.removeprefix('seed'))] = record | dict(file=path.name)
    return runs


def columns(spec: dict, rows: list[str]) -> dict[str, Column]:
    """Label of each column that concerns any of the rows -> where its figures are."""
    return {
        label: (part, *(metric if isinstance(metric, list) else (metric, 1)))
        for part, evaluation in spec['evaluation'].items()
        if set(rows) & set(evaluation.get('rows', rows))
        for label, metric in evaluation.get('metrics', {}).items()
    }


def values(runs: Runs, row: str, column: Column) -> list[float]:
    """A metric of a row, one value a seed."""
    part, key, factor = column
    records = (record for _, record in sorted(runs.get((row, part), {}).items()))
    return [factor * record['metrics'][key] for record in records if record['metrics'].get(key) is not None]


def number(value: float, size: float | None = None) -> str:
    """With the digits that its size deserves, or another's."""
    return f'{value:.1f}' if abs(size or value) >= 2 else f'{value:.3f}'


def cell(measured: list[float]) -> str:
    """Mean and spread (standard deviation) over seeds."""
    if not measured:
        return 'not measured'
    if len(measured) == 1:
        return number(measured[0])
    return f'{number(mean(measured))} ± {number(stdev(measured), mean(measured))}'


def difference(one: list[float], other: list[float]) -> str:
    """Of two rows' means, with its sign."""
    if not one or not other:
        return 'not measured'
    gap = mean(one) - mean(other)
    return ('+' if gap >= 0 else '-') + number(abs(gap), max(one))


def markdown_table(header: list[str], body: list[list[str]]) -> list[str]:
    """Lines of a table."""
    return ['| ' + ' | '.join(each) + ' |' for each in (header, ['---'] * len(header), *body)]


def study_table(spec: dict, table: dict, runs: Runs) -> list[str]:
    """One table of the study: a line a pre-training, then differences beside the paper's."""
    heads = columns(spec, table['rows'])
    body = []

    def add(label: str, name: str, *cells: str) -> None:
        body.append([label, *cells])
        if name in table.get('paper', {}):
            figures = table['paper'][name]
            body.append([f'*{label}, the paper*', '', '', *(str(figures.get(head, '')) for head in heads)])

    for row in table['rows']:
        label = spec['pretraining'][row].get('label', row)
        seeds = len(runs.get((row, 'pretrain'), {}))
        minutes = [record['seconds'] / 60 for record in runs.get((row, 'pretrain'), {}).values()]
        measured = (cell(values(runs, row, column)) for column in heads.values())
        add(label, row, str(seeds), f'{mean(minutes):.1f}' if minutes else '', *measured)
    for one, other in table.get('differences', []):
        label = ' - '.join(spec['pretraining'][row].get('label', row) for row in (one, other))
        gaps = [difference(values(runs, one, column), values(runs, other, column)) for column in heads.values()]
        add(label, f'{one} - {other}', '', '', *gaps)
    return [f'## {table["title"]}', '', *markdown_table(['', 'seeds', 'pre-training, minutes', *heads], body), '']


def runs_table(runs: Runs) -> list[str]:
    """Where every number comes from."""
    body = []
    for _, by_seed in sorted(runs.items()):
        for _, record in sorted(by_seed.items()):
            body.append(
                [
                    f'[{record["stage"]}](runs/{record["file"]})',
                    f'`{Path(record["config"]).name}`',
                    f'{record["seconds"]:.0f}',
                    record['hardware'],
                    f'`{record["commit"]}`',
                ]
            )
    return ['## Every run', '', *markdown_table(['run', 'config', 'seconds', 'hardware', 'commit'], body), '']


def draw_curves(spec: dict, runs: Runs, path: Path) -> bool:
    """k-NN accuracy over the pre-trainings, by step and by time.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout='constrained')
    for i, (row, pretraining) in enumerate(spec['pretraining'].items()):
        for seed, record in sorted(runs.get((row, 'pretrain'), {}).items()):
            curve = record['curves'].get('knn/top1_k20', [])
            if len(curve) < 2:
                continue
            steps, accuracy = zip(*curve, strict=True)
            label = pretraining.get('label', row) if seed == min(runs[row, 'pretrain']) else None
            style = dict(color=f'C{i}', label=label, marker='.')
            axes[0].plot(steps, accuracy, **style)
            axes[1].plot([step / steps[-1] * record['seconds'] / 60 for step in steps], accuracy, **style)
    drawn = bool(axes[0].lines)
    if drawn:
        axes[0].set(xlabel='training steps', ylabel='20-NN top-1, %', title='by step')
        axes[1].set(xlabel='minutes', title='by time on this machine')
        for axis in axes:
            axis.grid(alpha=0.3)
        axes[0].legend()
        figure.savefig(path, dpi=120)
    plt.close(figure)
    return drawn


def write_report(spec: dict, runs: Runs, out: Path) -> Path:
    """Write ``README.md`` and its figures.

    Args:
        spec: The study file's fields.
        runs: What its stages left.
        out: Folder of the report.

    Returns:
        The Markdown file.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = [f'# {spec.get("title", out.name)}', '']
    if spec.get('notes'):
        lines += [spec['notes'].strip(), '']
    for table in spec['tables']:
        lines += study_table(spec, table, runs)
    if draw_curves(spec, runs, out / 'curves.png'):
        lines += ['## While pre-training', '', '![k-NN accuracy over the pre-trainings](curves.png)', '']
    images = sorted(out.glob('*-reconstruct*.png'))
    if images:
        lines += ['## Reconstructions', '', 'Original, visible quarter, reconstruction.', '']
        for image in images:
            lines += [f'{image.stem}:', '', f'![{image.stem}]({image.name})', '']
    lines += runs_table(runs)
    report = out / 'README.md'
    report.write_text('\n'.join(lines))
    return report
