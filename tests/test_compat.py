import sys
import textwrap

import mmcv
import numpy as np
import pytest
from helpers.runs import run

from qbheat_mm import compat


def last_line(code: str, fails: bool = True) -> str:
    """Of what Python prints when it runs ``code``."""
    return run(sys.executable, '-c', textwrap.dedent(code), fails=fails).strip().splitlines()[-1]


def test_import_without_openmmlab_says_what_to_install():
    message = last_line("""
        import sys
        sys.modules['mmengine'] = None
        import qbheat_mm
    """)
    assert message.startswith('ImportError: qbheat_mm needs mmengine')
    assert 'requirements/onedl.txt' in message
    assert 'requirements/openmmlab.txt' in message


def test_versions_that_refuse_each_other_say_what_to_install():
    message = last_line("""
        import mmcv
        mmcv.__version__ = '1.7.0'
        import qbheat_mm
    """)
    assert message.startswith('ImportError: mmpretrain refuses the versions installed here: MMCV==1.7.0')
    assert 'requirements/onedl.txt' in message


def test_import_does_without_mmdet():
    code = """
        import sys
        sys.modules['mmdet'] = None
        import qbheat_mm
        print('fine')
    """
    assert last_line(code, fails=False) == 'fine'


def test_without_compiled_ops_detectors_run_and_a_missing_op_says_so():
    message = last_line("""
        import importlib.machinery, sys

        class Hide(importlib.machinery.PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name == 'mmcv._ext':
                    return None
                return super().find_spec(name, path, target)

        sys.meta_path = [Hide if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
        import qbheat_mm, mmdet.models, torch
        from importlib.util import find_spec
        from mmcv.ops import nms, nms_rotated
        from qbheat_mm import compat
        assert find_spec('mmcv._ext') is not None
        assert not compat.has_compiled_ops()
        boxes, scores = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5]]), torch.tensor([0.5, 0.25])
        assert nms(boxes, scores, 0.5)[1].tolist() == [0]
        nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)
    """)
    assert message.startswith('RuntimeError: The op "nms_rotated" needs the compiled ops of mmcv')
    assert 'Remedy' in message


def test_real_ops_are_left_alone(monkeypatch):
    real = object()
    monkeypatch.setitem(sys.modules, 'mmcv._ext', real)
    compat.provide_mmcv_ops()
    assert sys.modules['mmcv._ext'] is real
    assert compat.has_compiled_ops()


def test_known_messages_are_held_back_and_others_pass():
    printed = run(
        sys.executable,
        '-c',
        textwrap.dedent("""
            import warnings
            import qbheat_mm, mmdet.evaluation, mmdet.models
            from mmengine.logging import print_log
            print_log('Could not import OneDL')
            print_log('Could not import OneDL: a broken installation')
            message = 'To copy construct from a tensor, it is recommended to ...'
            for module in ('mmdet.models.losses.cross_entropy_loss', 'mine'):
                warnings.warn_explicit(message, UserWarning, f'{module}.py', 1, module)
        """),
    )
    first, second = printed.splitlines()
    assert first == 'Could not import OneDL: a broken installation'
    assert second.startswith('mine.py:1: UserWarning: To copy')


@pytest.mark.parametrize(('installed', 'disabled'), [('5.1.0', True), ('4.57.0', False)])
def test_multimodal_models_are_disabled_from_transformers_5_on(installed, disabled):
    code = f"""
        import importlib.metadata
        import importlib_metadata  # which mmpretrain 1.2.0 asks
        from importlib.util import module_from_spec, spec_from_file_location
        original = importlib.metadata.distribution

        class Fake:
            version = {installed!r}

        for module in (importlib.metadata, importlib_metadata):
            module.distribution = lambda name: Fake() if name == 'transformers' else original(name)
        import mmpretrain
        from mmpretrain.utils import dependency
        assert dependency.WITH_MULTIMODAL  # pycocotools is there, and transformers seems to be
        spec = spec_from_file_location('compat', {compat.__file__!r})
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        print('from here on')
        assert module.disable_multimodal_models() == {disabled}
        print(dependency.WITH_MULTIMODAL)
    """
    printed = run(sys.executable, '-c', textwrap.dedent(code)).partition('from here on')[2]
    assert printed.split()[-1] == str(not disabled)
    assert ('are disabled' in printed) == disabled


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_hues_turn_down_as_far_as_they_turn_up(backend):
    image = np.array([[[200, 40, 40], [40, 200, 40], [40, 40, 200], [90, 120, 30]]], np.uint8)
    for factor in (0.1, 0.25, 0.5):
        there = mmcv.adjust_hue(image, -factor, backend=backend)
        assert np.abs(there.astype(int) - image).max() > 50
        back = mmcv.adjust_hue(there, factor, backend=backend)
        np.testing.assert_allclose(back.astype(int), image, atol=8)  # hues are kept in 256 steps


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_hues_that_mmcv_can_turn_are_turned_as_it_does(backend):
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    original = getattr(mmcv.adjust_hue, '__wrapped__', mmcv.adjust_hue)
    np.testing.assert_array_equal(mmcv.adjust_hue(image, 0.3, backend), original(image, 0.3, backend))


def test_an_adjust_hue_that_turns_down_is_left_alone(monkeypatch):
    def sound(img, hue_factor, backend=None):
        return img

    monkeypatch.setattr(mmcv, 'adjust_hue', sound)
    assert not compat.allow_negative_hue_factors()
    assert mmcv.adjust_hue is sound
