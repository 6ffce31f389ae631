import sys

import pytest
from helpers.coco import coco_dataset
from mmengine.config import Config


@pytest.fixture
def check(load_tool, monkeypatch, capsys):
    main = load_tool('misc/check_dataset.py').main

    def run(*args) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    return run


def test_annotations(check, make_coco):
    ann_file, img_dir, _ = make_coco()
    assert check(ann_file, '--images', img_dir) == (0, 'nothing found\n')
    code, text = check(ann_file, '--images', img_dir, '--classes', 'cat,bird')
    assert code == 1
    assert "error: 1 of 2 classes of the config are no categories of the file: 'bird'" in text
    assert check(ann_file)[0] == 2


def test_config(check, make_coco, tmp_path):
    make_coco()
    config = tmp_path / 'config.py'
    Config(dict(train_dataloader=dict(dataset=coco_dataset(tmp_path, pipeline=[])))).dump(config)
    assert check(config) == (0, 'nothing found\n')
    code, text = check(config, '--cfg-options', 'train_dataloader.dataset.data_prefix.img=elsewhere')
    assert code == 1
    assert 'error: train: ' in text
    assert '4 of 4 images are not in' in text
