"""Nothing in a file is executed, whichever way mmengine, mmpretrain and mmdet read it while the package is imported."""

import functools
import http.server
import os
import threading
from pathlib import Path

import mmengine
import pytest
import torch
from helpers.models import TINY_ARCH
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_with_prefix
from mmpretrain.registry import MODELS

from qbheat_mm.checkpoint import CheckpointError

BACKBONE = dict(type='mmpretrain.MobileFormer', arch=TINY_ARCH)
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=BACKBONE,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=20),
)
LOADER = dict(dataset=dict(type='CustomDataset', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
CONFIG = dict(model=CLASSIFIER, test_dataloader=LOADER, default_scope='mmpretrain')


class Canary:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / 'executed'


@pytest.fixture
def hostile(tmp_path, marker) -> str:
    """A file with the weights of the classifier, and something to execute."""
    weights = MODELS.build(CLASSIFIER).state_dict()
    torch.save(dict(state_dict=weights, meta=dict(), extra=Canary(marker)), tmp_path / 'hostile.pth')
    return str(tmp_path / 'hostile.pth')


def initialized(address: str, **kwargs) -> None:
    init_cfg = dict(type='Pretrained', checkpoint=address, prefix='backbone.')
    MODELS.build(BACKBONE | dict(init_cfg=init_cfg)).init_weights()


def classified(address: str) -> None:
    from mmpretrain import ImageClassificationInferencer

    ImageClassificationInferencer(Config(CONFIG), pretrained=address, device='cpu')


def extracted(address: str) -> None:
    from mmpretrain import FeatureExtractor

    FeatureExtractor(Config(CONFIG), pretrained=address, device='cpu')


def gotten(address: str) -> None:
    import mmpretrain

    mmpretrain.get_model(Config(CONFIG), pretrained=address)


def detector() -> Config:
    head = dict(type='RetinaHead', num_classes=2, in_channels=20, stacked_convs=1, feat_channels=8)
    backbone = BACKBONE | dict(out_indices=(3,), init_cfg=None)
    neck = dict(type='FPN', in_channels=[20], out_channels=20, num_outs=5)
    dataset = dict(type='CocoDataset', ann_file='a.json', pipeline=[], lazy_init=True)
    return Config(
        dict(
            model=dict(type='RetinaNet', backbone=backbone, neck=neck, bbox_head=head),
            test_dataloader=dict(dataset=dataset),
            default_scope='mmdet',
        )
    )


def detected(address: str) -> None:
    from mmdet.apis import init_detector

    init_detector(detector(), address, device='cpu')


def inferred(address: str) -> None:
    from mmdet.apis import DetInferencer

    DetInferencer(weights=address, device='cpu')


ENTRANCES = dict(
    load_checkpoint=lambda address: load_checkpoint(MODELS.build(CLASSIFIER), address),
    loader=CheckpointLoader.load_checkpoint,
    private=_load_checkpoint,
    prefix=lambda address: _load_checkpoint_with_prefix('backbone.', address),
    init_cfg=initialized,
    get_model=gotten,
    image_classification_inferencer=classified,
    feature_extractor=extracted,
    init_detector=detected,
    det_inferencer=inferred,
)


@pytest.mark.parametrize('name', ENTRANCES)
def test_no_entrance_executes_a_pickle(name, hostile, marker):
    with pytest.raises(CheckpointError, match=r'nothing in it was executed.*trusted://'):
        ENTRANCES[name](hostile)
    assert not marker.exists()


@pytest.mark.parametrize('name', ['load_checkpoint', 'init_cfg', 'get_model', 'feature_extractor', 'init_detector'])
def test_one_mark_trusts_a_file_at_every_entrance(name, hostile, marker):
    ENTRANCES[name](f'trusted://{hostile}')
    assert marker.exists()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of ``tmp_path`` on a local server; downloads go to another folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *args: None)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_what_is_downloaded_is_not_executed(served, hostile, marker):
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        load_checkpoint(MODELS.build(CLASSIFIER), f'{served}/hostile.pth')
    assert (Path(hostile).parent / 'hub/checkpoints/hostile.pth').is_file()
    assert not marker.exists()


def test_what_is_downloaded_is_loaded(served, tmp_path):
    weights = MODELS.build(CLASSIFIER).state_dict()
    torch.save(weights, tmp_path / 'plain.pth')
    model = MODELS.build(CLASSIFIER)
    load_checkpoint(model, f'{served}/plain.pth')
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_other_stores_are_read_without_executing(hostile, marker, monkeypatch):
    monkeypatch.setattr(mmengine.fileio, 'get', lambda address, backend_args: Path(hostile).read_bytes())
    for address in ('s3://bucket/a.pth', 'cluster:s3://bucket/a.pth', 'petrel://bucket/a.pth'):
        with pytest.raises(CheckpointError, match='nothing in it was executed'):
            load_checkpoint(MODELS.build(CLASSIFIER), address)
        assert 'extra' in load_checkpoint(MODELS.build(CLASSIFIER), f'trusted://{address}')
        marker.unlink()


def test_every_scheme_of_mmengine_is_guarded():
    loaders = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
    assert loaders == {'qbheat_mm.checkpoint.loading', 'qbheat_mm.apis.model_index'}


def test_the_config_in_a_checkpoint_is_python_and_is_not_executed(tmp_path, marker):
    text = f'code = __import__("os").system("touch {marker}")\n' + detector().pretty_text
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), meta=dict(cfg=text)), tmp_path / 'a.pth')
    with pytest.raises(Exception, match='config'):
        inferred(str(tmp_path / 'a.pth'))
    assert not marker.exists()
