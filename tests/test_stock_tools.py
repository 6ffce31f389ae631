"""The tools of mmpretrain and mmdet, run on our configs by ``python -m qbheat_mm``; docs/transfer.md lists them."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers.coco import detection_pipeline, write_coco
from helpers.models import ROOT, TINY_ARCH, load_script, write_images
from helpers.runs import run, write_config
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from qbheat_mm.__main__ import find_tool

CLASSIFICATION = {
    'test.py': 'config.py probe.pth --work-dir run',
    'train.py': 'config.py --work-dir run',
    'kfold-cross-valid.py': 'config.py --num-splits 2 --fold 0 --work-dir run',
    'analysis_tools/confusion_matrix.py': 'config.py probe.pth --out matrix.pkl',
    'analysis_tools/get_flops.py': 'config.py --shape 64',
    'misc/print_config.py': 'config.py',
    'visualization/browse_dataset.py': 'config.py --output-dir out -n 2',
    'visualization/vis_scheduler.py': 'config.py --not-show --save-path curve.png',
    'visualization/vis_tsne.py': 'config.py --checkpoint probe.pth --work-dir run --max-num-class 2 --perplexity 2',
    'model_converters/publish_model.py': 'probe.pth published.pth',
}
# Tools for what mmpretrain's `train.py` and `test.py` write: arguments, and a file that must be there afterwards.
CLASSIFICATION_RESULTS = {
    'analyze_results.py': ('config.py results.pkl --out-dir analyzed --topk 1', 'analyzed/fail'),
    'eval_metric.py': ('results.pkl --metric type=Accuracy topk=1', 'results.pkl'),
    'analyze_logs.py': ('plot_curve log.json --keys loss --out curve.png', 'curve.png'),
}
DETECTION = {
    'analysis_tools/browse_dataset.py': 'config.py --not-show --output-dir browsed',
    'analysis_tools/get_flops.py': 'config.py --num-images 1',
    'misc/print_config.py': 'config.py',
}
# Tools for what `train.py` and `test.py` write: arguments, and a file that must be there afterwards.
ANALYSIS = {
    'analyze_logs.py': (
        'plot_curve trained/log/vis_data/scalars.json --keys loss --style default --out curve.png',
        'curve.png',
    ),
    'analyze_results.py': ('config.py results.pkl worst --topk 1', 'worst/good'),
    'benchmark.py': ('config.py --max-iter 3 --num-warmup 1 --log-interval 1 --work-dir speed', 'speed/benchmark.log'),
    'coco_error_analysis.py': (
        'detections.bbox.json errors --ann annotations.json',
        'errors/bbox/bbox-allclass-allarea.png',
    ),
    'confusion_matrix.py': ('config.py results.pkl matrix', 'matrix/confusion_matrix.png'),
}


def run_tool(tool: str, arguments: str, folder) -> str:
    command = (sys.executable, '-m', 'qbheat_mm', tool, *arguments.split())
    return run(*command, cwd=folder, CUDA_VISIBLE_DEVICES='-1', MPLBACKEND='agg', DATA_ROOT='coco')


def write_random_weights(folder, name: str, monkeypatch) -> None:
    """Of the model of ``config.py``."""
    monkeypatch.setenv('DATA_ROOT', str(folder / 'coco'))
    cfg = Config.fromfile(folder / 'config.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / name)


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A folder with a probe's config, weights and data."""
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            write_images(tmp_path / split / name, 4)
    dataset = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=str(tmp_path)))
    write_config(
        tmp_path,
        f'{ROOT}/configs/benchmarks/mobile-former-52m_1xb128-linear-coslr-20e_imagenette.py',
        model=dict(
            data_preprocessor=dict(num_classes=2),
            backbone=dict(_delete_=True, type='MobileFormer', arch=TINY_ARCH, frozen_stages=4),
            neck=dict(_delete_=True, type='GlobalAveragePooling'),
            head=dict(in_channels=20, num_classes=2),
        ),
        train_dataloader=dataset,
        val_dataloader=dataset,
        test_dataloader=dataset,
        train_cfg=dict(max_epochs=1),
    )
    write_random_weights(tmp_path, 'probe.pth', monkeypatch)
    return tmp_path


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A folder with a detector's config, weights and data."""
    pytest.importorskip('mmdet')
    tmp_path = tmp_path_factory.mktemp('detector')
    write_coco(tmp_path / 'coco', size=96)
    loader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=detection_pipeline(96)))
    write_config(
        tmp_path,
        f'{ROOT}/configs/detection/detr_mobile-former-285m-frozen_8xb2-150e_coco.py',
        model=dict(
            backbone=dict(
                _delete_=True, type='mmpretrain.MobileFormer', arch=TINY_ARCH, output_stride=16, frozen_stages=4
            ),
            neck=dict(in_channels=[20]),
            encoder=dict(num_layers=1),
            decoder=dict(num_layers=1),
        ),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(max_epochs=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        write_random_weights(tmp_path, 'detr.pth', patch)
    return tmp_path


@pytest.fixture(scope='module')
def evaluated(detector):
    """The same folder with the logs of a training and the results of a test."""
    run_tool('mmdet/train.py', 'config.py --work-dir trained', detector)
    (log,) = detector.glob('trained/*/vis_data')
    log.parent.rename(detector / 'trained' / 'log')
    options = '--out results.pkl --cfg-options test_evaluator.outfile_prefix=detections'
    run_tool('mmdet/test.py', f'config.py detr.pth --work-dir tested {options}', detector)
    # the error analysis wants supercategories, as COCO has them, and draws each class
    content = json.loads((detector / 'coco' / 'annotations' / 'instances_val2017.json').read_text())
    used = {annotation['category_id'] for annotation in content['annotations']}
    content['categories'] = [dict(each, supercategory='any') for each in content['categories'] if each['id'] in used]
    (detector / 'annotations.json').write_text(json.dumps(content))
    return detector


@pytest.mark.slow
@pytest.mark.parametrize('tool', CLASSIFICATION)
def test_a_tool_of_mmpretrain(tool, probe):
    if tool.endswith('vis_tsne.py') and 'n_iter=' in find_tool(f'mmpretrain/{tool}').read_text():
        sklearn = pytest.importorskip('sklearn')
        if tuple(map(int, sklearn.__version__.split('.')[:2])) >= (1, 7):
            pytest.skip('this version of vis_tsne.py needs scikit-learn < 1.7')
    run_tool(f'mmpretrain/{tool}', CLASSIFICATION[tool], probe)


@pytest.mark.slow
def test_tools_of_mmpretrain_for_results(probe):
    run_tool('mmpretrain/test.py', 'config.py probe.pth --work-dir run --out results.pkl --out-item pred', probe)
    run_tool('mmpretrain/train.py', 'config.py --work-dir trained', probe)
    (log,) = probe.glob('trained/*/vis_data/scalars.json')
    log.rename(probe / 'log.json')
    for tool, (arguments, written) in CLASSIFICATION_RESULTS.items():
        run_tool(f'mmpretrain/analysis_tools/{tool}', arguments, probe)
        assert (probe / written).exists()


@pytest.mark.slow
def test_mmpretrains_class_activation_maps(probe):
    pytest.importorskip('pytorch_grad_cam')
    options = '--target-layers backbone.stages.3.0.mobile.project2.1 --cfg-options model.backbone.frozen_stages=-1'
    arguments = f'val/cat/000.jpg config.py probe.pth --method gradcam --save-path cam.png --device cpu {options}'
    run_tool('mmpretrain/visualization/vis_cam.py', arguments, probe)
    assert (probe / 'cam.png').is_file()


def test_mmpretrains_handler_for_torchserve(probe, monkeypatch):
    """In the place of TorchServe, which needs Java: what it calls."""
    names = ['ts', 'ts.torch_handler', 'ts.torch_handler.base_handler']
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].BaseHandler = object
    handler = load_script(find_tool('mmpretrain/torchserve/mmpretrain_handler.py')).MMPreHandler()
    manifest = dict(model=dict(serializedFile='probe.pth'))
    handler.initialize(SimpleNamespace(system_properties=dict(model_dir=str(probe)), manifest=manifest))
    request = dict(data=(probe / 'val' / 'cat' / '000.jpg').read_bytes())
    (result,) = handler.postprocess(handler.inference(handler.preprocess([request])))
    assert len(result['pred_scores']) == 2
    assert result['pred_label'] in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize('tool', DETECTION)
def test_a_tool_of_mmdet(tool, detector):
    run_tool(f'mmdet/{tool}', DETECTION[tool], detector)


@pytest.mark.slow
@pytest.mark.parametrize('tool', ANALYSIS)
def test_a_tool_of_mmdet_for_results(tool, evaluated):
    """mmdet's ``train.py`` and ``test.py`` wrote them."""
    arguments, written = ANALYSIS[tool]
    if 'import seaborn' in find_tool(f'mmdet/analysis_tools/{tool}').read_text():
        pytest.importorskip('seaborn')
    run_tool(f'mmdet/analysis_tools/{tool}', arguments, evaluated)
    assert (evaluated / written).exists()


@pytest.mark.slow
def test_mmdet_evaluates_stored_results(evaluated):
    assert "'coco/bbox_mAP': " in run_tool('mmdet/analysis_tools/eval_metric.py', 'config.py results.pkl', evaluated)


def test_mmdets_other_analysis_tools_are_listed_with_the_reason():
    pytest.importorskip('mmdet')
    page = (ROOT / 'docs' / 'transfer.md').read_text()
    tools = {path.name for path in find_tool('mmdet/analysis_tools/get_flops.py').parent.glob('*.py')}
    tested = {*ANALYSIS, 'browse_dataset.py', 'eval_metric.py', 'get_flops.py'}
    assert tested <= tools
    assert all(f'`{tool}`' in page for tool in tools - tested), sorted(tools - tested)


def test_a_tool_is_found_by_path_or_name(tmp_path):
    (tmp_path / 'own.py').write_text('')
    assert find_tool(str(tmp_path / 'own.py')) == tmp_path / 'own.py'
    assert find_tool('mmpretrain/visualization/vis_scheduler.py').is_file()


def test_a_tool_that_is_missing_is_named_with_those_there_are():
    with pytest.raises(FileNotFoundError, match=r'mmpretrain has no tool "no.py"(.|\n)*mmpretrain/test\.py'):
        find_tool('mmpretrain/no.py')
    with pytest.raises(FileNotFoundError, match='There is no tool "nowhere"'):
        find_tool('nowhere')
