import json


def test_every_way_to_read_an_image_is_timed_and_written(load_tool, tmp_path, capsys):
    tool = load_tool('benchmarks/packed_images.py')
    out = tmp_path / 'packed.json'
    tool.main(f'--image-size 90 70 --pack-size 64 --size 32 --images 3 --rounds 1 --out {out}'.split())
    figures = json.loads(out.read_text())['ms']
    assert len(figures) == 5
    assert all(each['worker'] > 0 and each['main'] > 0 for each in figures.values())
    assert capsys.readouterr().out.count('\n| packed') == 2
