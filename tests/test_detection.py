"""Every detection config trains, is evaluated, and leaves a frozen backbone unchanged."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.coco import detection_pipeline, write_coco
from helpers.models import ROOT
from helpers.runs import run, write_config
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner

from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.evaluation.metrics.coco_bbox import FIGURES

mmdet = pytest.importorskip('mmdet')
from mmdet.registry import MODELS  # noqa: E402

# 52m's is for a study on a CPU, with settings of its own.
CONFIGS = sorted(path for path in (ROOT / 'configs' / 'detection').glob('*.py') if '52m' not in path.stem)
ORIGINALS = {
    'detr': 'detr/detr_r50_8xb2-150e_coco.py',
    'conditional-detr': 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'dab-detr': 'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'deformable-detr': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino-4scale': 'dino/dino-4scale_r50_8xb2-{epochs}_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'faster-rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'rtmdet-tiny': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox-tiny': 'yolox/yolox_tiny_8xb8-300e_coco.py',
}
PAIR = ('fcos', 'fcos-light')
DETR = 'detr_mobile-former-285m-frozen_8xb2-150e_coco'


def read(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / 'detection' / f'{name}.py')


@pytest.fixture(autouse=True)
def _mmdet_scope(_mmpretrain_scope):
    DefaultScope._instance_dict.clear()
    init_default_scope('mmdet')


def build(cfg: dict, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(cfg)


def backbone_config(name: str) -> dict:
    return dict(read(name).model.backbone, init_cfg=None)


# What follows from the backbone: its levels, and how its images are normalized.
OF_THE_BACKBONE = ('in_channels', 'start_level', 'add_extra_convs')


def without_defaults(model: dict) -> dict:
    """A model's config without the backbone, what follows from it, and fields that say what is the default."""
    model = {key: value for key, value in model.items() if key not in ('backbone', 'num_feature_levels')}
    for key in ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor'):
        model['data_preprocessor'].pop(key, None)
    if model['data_preprocessor'].get('batch_augments', 0) is None:
        del model['data_preprocessor']['batch_augments']
    # Whitened features, or levels that the backbone does not have, come from another module before the neck.
    neck = model['neck'][1] if isinstance(model['neck'], list) else model['neck']
    model['neck'] = {key: value for key, value in neck.items() if key not in OF_THE_BACKBONE}
    for part in ('neck', 'bbox_head'):
        if part in model:  # SyncBN needs GPUs
            norm = model[part].get('norm_cfg')
            model[part]['norm_cfg'] = None if part == 'neck' and 'encoder' in model else norm and dict(norm, type='BN')
    for head in (model.get('bbox_head'), model.get('roi_head', {}).get('bbox_head')):
        if head:
            head.pop('num_classes')
    for part in ('encoder', 'decoder'):
        for name, layer in model.get(part, {}).get('layer_cfg', {}).items():
            if name.endswith('attn_cfg'):
                layer.pop('batch_first', None)
    return model


def training_data(cfg: Config) -> list[dict]:
    """The training transforms, inside of mmdet's wrapper too, and whether images without boxes are left out."""
    dataset = cfg.train_dataloader.dataset.to_dict()
    inner = dataset.get('dataset', dataset)
    steps = inner['pipeline'] + (dataset['pipeline'] if inner is not dataset else [])
    steps = [{key: value for key, value in step.items() if key != 'backend_args'} for step in steps]
    return [*steps, inner['filter_cfg']['filter_empty_gt']]


def parameter_rules(cfg: Config) -> dict:
    """What ``paramwise_cfg`` says of all but the backbone."""
    rules = cfg.optim_wrapper.get('paramwise_cfg', Config()).to_dict()
    keys = rules.pop('custom_keys', {})
    return rules | {key: rule for key, rule in keys.items() if key != 'backbone'}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_everything_but_the_backbone_is_mmdets_own(path):
    mim = Path(mmdet.__file__).parent / '.mim' / 'configs'
    if not mim.is_dir():
        pytest.skip('mmdet is installed without its configs')
    detector, backbone, schedule, *_ = path.stem.split('_')
    original = ORIGINALS[detector.removesuffix('-light')]
    workers, epochs = schedule.split('-')
    ours, theirs = (Config.fromfile(file) for file in (path, mim / original.format(epochs=epochs)))
    if not detector.endswith('-light'):
        assert without_defaults(ours.model.to_dict()) == without_defaults(theirs.model.to_dict())
    pyramid = 'encoder' not in ours.model
    if pyramid and 'people320' not in path.stem:
        assert training_data(ours) == training_data(theirs)
        assert ours.param_scheduler == theirs.param_scheduler
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert ours.optim_wrapper.get('clip_grad') == theirs.optim_wrapper.get('clip_grad')
    assert ours.auto_scale_lr.base_batch_size == eval(workers.replace('xb', '*'))
    # mmdet's RTMDet inherits 16, which is not its batch of 8 x 32.
    if 'people320' not in path.stem and detector != 'rtmdet-tiny':
        assert ours.auto_scale_lr.base_batch_size == theirs.auto_scale_lr.base_batch_size
    assert ours.train_cfg.max_epochs == ours.param_scheduler[-1].end == int(epochs[:-1])
    if not pyramid and ours.train_cfg.max_epochs == theirs.train_cfg.max_epochs:
        assert ours.param_scheduler[0].milestones == theirs.param_scheduler[0].milestones

    frozen = 'frozen' in backbone
    keys = ours.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    assert ('backbone' not in keys) == frozen
    assert parameter_rules(ours) == parameter_rules(theirs)


def test_the_light_and_the_heavy_head_differ_in_width_and_depth_only():
    heavy, light = (read(f'{name}_mobile-former-285m-frozen_1xb16-50e_coco-people320-person') for name in PAIR)
    assert light.model.neck.out_channels == light.model.bbox_head.in_channels == 64
    light.merge_from_dict(
        dict(
            model=dict(neck=dict(out_channels=256), bbox_head=dict(in_channels=256, feat_channels=256, stacked_convs=4))
        )
    )
    assert light.to_dict() == heavy.to_dict()


def test_the_ten_classes_are_the_most_frequent():
    file = ROOT / 'data' / 'coco_people320' / 'annotations' / 'instances_train.json'
    if not file.is_file():
        pytest.skip(f'{file} is not there')
    content = json.loads(file.read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    counts = Counter(names[box['category_id']] for box in content['annotations'])
    cfg = read('conditional-detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-10c')
    frequent = {name for name, _ in counts.most_common(10)}
    assert list(cfg.classes) == [name for name in names.values() if name in frequent]


@pytest.mark.parametrize(('name', 'count'), [('10c', 10), ('person', 1)])
def test_the_classes_reach_model_and_data(name, count):
    cfg = read(f'detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-{name}')
    assert cfg.model.bbox_head.num_classes == count
    for split in ('train', 'val', 'test'):
        assert len(cfg[f'{split}_dataloader'].dataset.metainfo.classes) == count


def test_the_metafile_has_the_epochs_of_the_configs():
    for model in load(ROOT / 'configs' / 'detection' / 'metafile.yml')['Models']:
        assert model['Metadata']['Epochs'] == Config.fromfile(ROOT / model['Config']).train_cfg.max_epochs


def readme_config(sign: str, path: Path) -> Config:
    """The README's config that holds ``sign``, as if it lay in configs/detection."""
    blocks = (ROOT / 'configs' / 'detection' / 'README.md').read_text().split('```python\n')[1:]
    (text,) = (block.split('```')[0] for block in blocks if sign in block.split('```')[0])
    text = text.replace("'../_base_", f"'{ROOT}/configs/_base_").replace("'./", f"'{ROOT}/configs/detection/")
    path.write_text(text)
    return Config.fromfile(path)


def test_the_readmes_whitening_is_the_configs(tmp_path):
    ours = read('conditional-detr_mobile-former-285m-frozen-whitened_1xb16-50e_coco-people320-person')
    cfg = readme_config('Whitening', tmp_path / 'mine.py')
    assert cfg.model.neck == ours.model.neck
    assert cfg.default_hooks == ours.default_hooks


def test_the_readmes_config_for_own_data_follows_the_data(make_coco, tmp_path, monkeypatch):
    make_coco('train', classes=('dog', 'cat', 'bird'))
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    cfg = readme_config('coco_custom', tmp_path / 'mine.py')
    assert build(dict(cfg.model, backbone=dict(cfg.model.backbone, init_cfg=None))).bbox_head.num_classes == 3


BACKBONES = [DETR, 'deformable-detr_mobile-former-285m-frozen_16xb2-50e_coco', 'detr_r50-frozen_8xb2-150e_coco']


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('frozen', [True, False])
def test_a_frozen_backbone_keeps_no_graph_and_no_activation(name, frozen):
    cfg = backbone_config(name)
    if not frozen:
        cfg['frozen_stages'] = -1
        cfg.pop('norm_cfg', None)
    backbone = build(cfg)
    backbone.train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        outputs = backbone(torch.rand(1, 3, 64, 64))
    assert [output.requires_grad for output in outputs] == [not frozen] * len(outputs)
    assert bool(kept) is not frozen
    assert any(parameter.requires_grad for parameter in backbone.parameters()) != frozen


@pytest.mark.parametrize('name', BACKBONES)
def test_frozen_means_eval_mode_after_every_train(name):
    backbone = build(backbone_config(name))
    for _ in range(2):
        backbone.eval()
        backbone.train()
        norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)


def published(kind: str) -> dict[str, torch.Tensor]:
    """State dicts as runs write them, around the weights of a backbone."""
    own, other = (build(backbone_config(DETR), seed).state_dict() for seed in (1, 2))
    weights = {f'backbone.{key}': value for key, value in own.items()}
    extra = torch.zeros(1)
    if kind == 'qbheat':
        return weights | {'neck.a': extra, 'head.decoder.proj.weight': extra}
    return (
        {f'encoder_k.module.0.{key}': value for key, value in other.items()}
        | weights
        | {'neck.fc0.weight': extra, 'head.weight': extra, 'queue': extra, 'queue_ptr': extra}
        | {f'ema_backbone.{key}': value for key, value in other.items()}
    )


@pytest.fixture
def small_detr() -> Config:
    """The config with one layer in the encoder and in the decoder."""
    cfg = read(DETR)
    cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 1
    return cfg


@pytest.mark.parametrize(
    ('kind', 'prefix'),
    [('qbheat', 'backbone.'), ('moco', 'backbone.'), ('moco', 'encoder_k.module.0')],
    ids=['qbheat', 'moco', 'momentum encoder'],
)
@pytest.mark.parametrize('wrap', [lambda weights: dict(meta=dict(epoch=3), state_dict=weights), dict])
def test_a_backbone_is_loaded_completely_from_among_other_weights(kind, prefix, wrap, small_detr, tmp_path):
    stored = published(kind)
    torch.save(wrap(stored), tmp_path / 'run.pth')
    assert small_detr.model.backbone.init_cfg.prefix == 'backbone.'
    small_detr.model.backbone.init_cfg.update(checkpoint=str(tmp_path / 'run.pth'), prefix=prefix)
    model = build(small_detr.model)
    model.init_weights()
    found = model.backbone.state_dict()
    assert found
    for key, value in found.items():
        assert torch.equal(value, stored[f'{prefix.rstrip(".")}.{key}']), key


@pytest.mark.parametrize(('kind', 'prefixes'), [('qbheat', 3), ('moco', 7)])
def test_a_wrong_prefix_stops_and_shows_the_right_ones(kind, prefixes, small_detr, tmp_path):
    stored = published(kind)
    torch.save(dict(state_dict=stored), tmp_path / 'run.pth')
    small_detr.model.backbone.init_cfg.update(checkpoint=str(tmp_path / 'run.pth'), prefix='encoder_q.')
    with pytest.raises(CheckpointError, match=r'nothing under the prefix "encoder_q\."') as error:
        build(small_detr.model).init_weights()
    names = {key.split('.')[0] for key in stored}
    assert len(names) == prefixes
    assert all(f'"{name}." (' in str(error.value) for name in names)


def test_a_run_without_a_checkpoint_stops(small_detr):
    with pytest.raises(CheckpointError, match=r'model\.backbone\.init_cfg\.checkpoint'):
        build(small_detr.model).init_weights()


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_two_steps_and_an_evaluation(path, tmp_path, monkeypatch):
    """On every image of the layout: without boxes, a crowd, gray, four channels, a single pixel."""
    monkeypatch.setenv('DATA_ROOT', str(write_coco(tmp_path / 'coco', people320='people320' in path.stem)))
    cfg = Config.fromfile(path)
    stored = {
        f'backbone.{k}': v for k, v in build(dict(cfg.model.backbone, init_cfg=None), seed=1).state_dict().items()
    }
    torch.save(dict(state_dict=stored), tmp_path / 'pretrained.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'), prefix='backbone.')
    loader = dict(batch_size=3, num_workers=0, persistent_workers=False)
    train_pipeline, val_pipeline = detection_pipeline(256, flip=0.5), detection_pipeline(256)
    if 'Mosaic' in str(cfg.train_dataloader.dataset.pipeline):  # needs the dataset or a cache, so it runs as it is
        train_pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.merge_from_dict(
        dict(
            model=dict(backbone=dict(init_cfg=init_cfg)),
            work_dir=str(tmp_path / path.stem),
            train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2),
            train_dataloader=dict(loader, dataset=dict(pipeline=train_pipeline)),
            val_dataloader=dict(loader, dataset=dict(pipeline=val_pipeline)),
            **dict.fromkeys(('test_dataloader', 'test_evaluator', 'test_cfg')),
            experiment_name=path.stem,
            default_hooks=dict(checkpoint=None),
        )
    )

    DefaultScope._instance_dict.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()

    frozen = 'frozen' in path.stem
    same = [torch.equal(value, stored[f'backbone.{key}']) for key, value in runner.model.backbone.state_dict().items()]
    assert all(same) == frozen
    # every parameter that trains has had a gradient, as DDP without find_unused_parameters wants; no other has state
    trained = {name for name, value in runner.model.named_parameters() if value.requires_grad}
    names = {value: name for name, value in runner.model.named_parameters()}
    assert {names[value] for value in runner.optim_wrapper.optimizer.state} == trained
    assert any(name.startswith('backbone.') for name in trained) is not frozen

    scalars, prefix = runner.message_hub.log_scalars, 'val/coco/bbox_'
    assert {name.removeprefix(prefix) for name in scalars if name.startswith(prefix)} == set(FIGURES)
    assert 0 <= scalars['val/coco/bbox_mAP'].current() <= 1
    head = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    assert sum(name.endswith('_precision') for name in scalars) == head.num_classes


@pytest.mark.slow
def test_two_processes_leave_the_backbone_alone(tmp_path):
    """With gloo, from a shell; the optimizer that is saved has state for what trains, and nothing else."""
    stored = published('qbheat')
    torch.save(dict(state_dict=stored), tmp_path / 'pretrained.pth')
    loader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(pipeline=detection_pipeline(96)))
    write_config(
        tmp_path,
        f'{ROOT}/configs/detection/{DETR}.py',
        model=dict(
            backbone=dict(init_cfg=dict(checkpoint=str(tmp_path / 'pretrained.pth'))),
            encoder=dict(num_layers=1),
            decoder=dict(num_layers=1),
        ),
        find_unused_parameters=False,
        train_dataloader=loader,
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3),
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=3)),
    )
    command = (ROOT / 'tools' / 'dist_train.sh', 'config.py', '2', '--work-dir', 'run', '--no-validate')
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    output = run(*command, cwd=tmp_path, DATA_ROOT=str(write_coco(tmp_path / 'coco')), PORT='29517', PATH=path)
    assert 'is skipped since its requires_grad' not in output
    saved = torch.load(tmp_path / 'run' / 'iter_3.pth', weights_only=True)
    frozen, before = (
        {key: value for key, value in weights.items() if key.startswith('backbone.')}
        for weights in (saved['state_dict'], stored)
    )
    assert frozen.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in frozen.items())
    cfg = Config.fromfile(tmp_path / 'config.py')
    trained = [parameter for parameter in build(cfg.model).parameters() if parameter.requires_grad]
    assert len(saved['optimizer']['state']) == len(trained)
