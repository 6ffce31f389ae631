import json

import pytest
import torch

TINY = ['--arch=26m', '--size=64', '--batch-size=4', '--rounds=1', '--steps=1', '--warmup=1', '--images=4']


@pytest.fixture
def tool(load_tool):
    return load_tool('benchmarks/pretrain_throughput.py')


def test_everything_is_measured_and_written(tool, tmp_path, capsys):
    out, figure = tmp_path / 'figures.json', tmp_path / 'figure.png'
    tool.main([*TINY, '--no-memory', '--out', str(out), '--figure', str(figure)])
    figures = json.loads(out.read_text())
    assert set(figures['step_s']) == {*tool.METHODS, 'plain loop', 'bare encoder'}
    assert set(figures['file_step_s']) == set(figures['parts_s']) == set(tool.METHODS)
    assert len(figures['ratios']) == 6
    assert min(figures['ratios'].values()) > 0
    for method, parts in figures['parts_s'].items():
        assert set(parts) == set(tool.PARTS)
        assert min(parts[part] for part in ('data', 'encoder', 'decoder', 'backward', 'optimizer')) > 0
        assert (parts['neck'] > 0) == (method in ('qbheat', 'mocov2'))
    assert figure.stat().st_size > 10_000
    assert '| qbheat : supervised, images/s |' in capsys.readouterr().out


def test_workers_feed_from_files_and_from_a_pack(tool, tmp_path):
    for packed in ([], ['--packed']):
        tool.main([*TINY, '--methods=qbheat', '--scaling=workers=1', *packed, '--out', str(tmp_path / 'out.json')])
        figures = json.loads((tmp_path / 'out.json').read_text())
        assert figures['setting']['packed'] == bool(packed)
        assert figures['images_per_s']['1']['qbheat'] > 0
    with pytest.raises(SystemExit):
        tool.parse_args(['--packed', '--methods=supervised'])


def test_methods_share_backbone_stride_and_batch(tool):
    args = tool.parse_args(['--arch', '52m', '--size', '96', '--batch-size', '3'])
    args.work_dir = 'unused'
    configs = {method: tool.build_config(method, args, from_files=False) for method in tool.METHODS}
    layouts = {(cfg.model.backbone.arch, cfg.model.backbone.output_stride) for cfg in configs.values()}
    assert layouts == {('52m', 16)}
    assert configs['masked'].model.head == configs['qbheat'].model.head
    for method in tool.METHODS:
        inputs = tool.synthetic_batch(method, args)['inputs']
        views = inputs if method == 'mocov2' else [inputs]
        assert [(tuple(view.shape), view.dtype) for view in views] == [((3, 3, 96, 96), torch.uint8)] * len(views)


def test_pipelines_crop_to_the_size_that_is_asked_for(tool):
    steps = [dict(type='MultiView', transforms=[[dict(type='TorchRandomResizedCrop', scale=224)]])]
    assert tool.resized(steps, 64)[0]['transforms'] == [[dict(type='TorchRandomResizedCrop', scale=64)]]


def test_the_masked_model_learns_from_masked_patches_alone(tool):
    args = tool.parse_args(['--arch', '26m', '--size', '64', '--batch-size', '2'])
    args.work_dir = 'unused'
    model = tool.MODELS.build(tool.build_config('masked', args, from_files=False).model)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64) + 9
    model.loss(images, None)['loss'].backward()
    masked = (seen[0] == 0).all(1)  # the token before training
    assert masked.flatten(1).float().mean(1).tolist() == [0.75, 0.75]
    assert torch.equal(seen[0][:, 0][~masked], images[:, 0][~masked])
    assert model.token.grad.any()


def test_a_timed_method_is_compiled_again_afterwards(tool):
    class Part:
        def loss(self):
            return 'own'

    watch, plain, compiled = tool.Stopwatch(lambda: 0.0), Part(), Part()
    compiled.loss = lambda: 'compiled'
    for part in (plain, compiled):
        undo = watch.wrap_method(part, 'loss', 'decoder')
        part.loss()
        undo()
    assert (plain.loss(), compiled.loss()) == ('own', 'compiled')


@pytest.mark.parametrize(
    'argv', [['--methods', 'qbheat,mae'], ['--cpu-time', '--workers', '2'], ['--no-parts', '--figure', 'a.png']]
)
def test_what_cannot_be_is_refused(tool, argv):
    with pytest.raises(SystemExit):
        tool.parse_args(argv)


@pytest.mark.slow
@pytest.mark.parametrize('quantity', ['batch-size=2,4', 'workers=0,1', 'processes=1,2'])
def test_scaling(tool, tmp_path, quantity):
    out = tmp_path / 'scaling.json'
    tool.main([*TINY, '--methods', 'qbheat', '--scaling', quantity, '--out', str(out)])
    rows = json.loads(out.read_text())['images_per_s']
    assert list(rows) == quantity.partition('=')[2].split(',')
    assert all(row['qbheat'] > 0 for row in rows.values())


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own(tool, tmp_path):
    out = tmp_path / 'figures.json'
    tool.main([*TINY, '--methods', 'qbheat', '--no-files', '--no-limits', '--no-parts', '--out', str(out)])
    assert json.loads(out.read_text())['peak_mib']['qbheat'] > 10
