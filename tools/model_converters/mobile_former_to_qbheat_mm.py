"""Convert a checkpoint of Mobile-Former's authors to one that mmpretrain's ImageClassifier loads.

    python tools/model_converters/mobile_former_to_qbheat_mm.py SRC DST

The size is inferred from the shapes. DST holds tensors only, ``{'state_dict': ...}``: the backbone with the prefix
``backbone.``, the classifier with ``head.``.
"""

from __future__ import annotations

import argparse
import io
import sys
from functools import cache
from pathlib import Path

from qbheat_mm_cli import add_trust


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help="a checkpoint of Mobile-Former's authors")
    parser.add_argument('dst', help='the converted checkpoint to write')
    add_trust(parser)
    return parser.parse_args(argv)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import torch
from torch import Tensor, nn

from qbheat_mm.checkpoint import CheckpointError, atomic_write, guard, read_state_dict, refuse_existing
from qbheat_mm.models import MobileFormer, MobileFormerClsHead
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS, DownBlock, LiteBlock, MobileFormerBlock

# Published size -> hidden width of its classifier.
CLASSIFIER_WIDTHS = {'508m': 1920, '294m': 1920, '214m': 1600, '151m': 1280, '96m': 1280, '52m': 1024, '26m': 1024}

# Our name of a part -> the authors'; for each kind of block, then outside the blocks.
TOKEN_NAMES = {
    'local_to_global.query': 'local_global.q',
    'local_to_global.gate': 'local_global.alpha.0',
    'local_to_global.proj': 'local_global.proj',
    'local_to_global.norm': 'local_global.layer_norm',
    'token_block.query': 'global_block.q',
    'token_block.proj': 'global_block.channel_mlp',
    'token_block.norm': 'global_block.layer_norm',
    'token_block.ffn': 'global_block.ffn',
    'token_block.ffn_norm': 'global_block.ffn_norm',
    'global_to_local.key': 'global_local.k',
    'global_to_local.value': 'global_local.proj',
}
MOBILE_NAMES = {
    **TOKEN_NAMES,
    'mobile.expand': 'conv1',
    'mobile.act1': 'hyper1',
    'mobile.depthwise': 'conv2',
    'mobile.act2': 'hyper2',
    'mobile.project': 'conv3',
}
DOWN_NAMES = {
    **TOKEN_NAMES,
    'mobile.depthwise1': 'conv1',
    'mobile.act1': 'hyper1',
    'mobile.project1': 'conv2',
    'mobile.depthwise2': 'conv3',
    'mobile.act2': 'hyper3',
    'mobile.project2': 'conv4',
}
LITE_NAMES = {'depthwise.0': 'conv.0', 'depthwise.1': 'conv.1', 'project.0': 'conv.4', 'project.1': 'conv.5'}
OUTER_NAMES = {
    'backbone.tokens': 'tokens.weight',
    'backbone.stem': 'stem',
    **{f'backbone.last_{ours}': theirs for ours, theirs in TOKEN_NAMES.items() if ours.startswith('local_to_global')},
    'head.expand': 'classifier.conv',
    'head.hidden': 'classifier.fc',
    'head.fc': 'classifier.classifier.1',
}


def _build(size: str, num_classes: int) -> nn.Module:
    """Backbone and head of a size on the meta device."""
    settings = ARCH_SETTINGS[size]
    with torch.device('meta'):
        backbone = MobileFormer(size, out_tokens=True)
        head = MobileFormerClsHead(
            num_classes=num_classes,
            in_channels=settings['blocks'][-1][1],
            token_dims=settings['token_dims'],
            hidden_channels=CLASSIFIER_WIDTHS[size],
            groups=settings.get('groups', 1),
        )
    return nn.ModuleDict(dict(backbone=backbone, head=head))


def _authors_name(key: str, names: dict[str, str]) -> str:
    part = next(part for part in names if f'{key}.'.startswith(f'{part}.'))
    return names[part] + key[len(part) :]


def _block_names(block: LiteBlock | MobileFormerBlock) -> dict[str, str]:
    if isinstance(block, LiteBlock):
        return LITE_NAMES
    return DOWN_NAMES if isinstance(block.mobile, DownBlock) else MOBILE_NAMES


@cache
def layout(size: str, num_classes: int = 1000) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The entries of the authors' checkpoint of a published size: their name -> our name and the shape."""
    model = _build(size, num_classes)
    own = model.state_dict()
    names = {_authors_name(key, OUTER_NAMES): key for key in own if not key.startswith('backbone.stages.')}
    position = 0
    for s, stage in enumerate(model['backbone'].stages):
        for i, block in enumerate(stage):
            for key in block.state_dict():
                theirs = f'features.{position}.{_authors_name(key, _block_names(block))}'
                names[theirs] = f'backbone.stages.{s}.{i}.{key}'
            position += 1
    return {theirs: (ours, tuple(own[ours].shape)) for theirs, ours in names.items()}


def _layout_for(state_dict: dict[str, Tensor], size: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The layout of a size with the state dict's number of classes."""
    classifier = state_dict.get('classifier.classifier.1.weight')
    return layout(size, 1000 if classifier is None or classifier.dim() == 0 else len(classifier))


def _differences(state_dict: dict[str, Tensor], size: str) -> list[str]:
    """How a state dict differs from a size, in the model's order."""
    expected = _layout_for(state_dict, size)
    differences = [
        f'"{key}" is missing'
        if key not in state_dict
        else f'"{key}" is {tuple(state_dict[key].shape)} where {size} has {shape}'
        for key, (_, shape) in expected.items()
        if key not in state_dict or state_dict[key].shape != shape
    ]
    return differences + [f'"{key}" is not part of it' for key in state_dict if key not in expected]


def recognize_size(state_dict: dict[str, Tensor]) -> str:
    """The published size with exactly these names and shapes.

    Raises:
        CheckpointError: If there is none; names the closest size and its first difference.
    """
    differences = {size: _differences(state_dict, size) for size in CLASSIFIER_WIDTHS}
    closest = min(differences, key=lambda size: len(differences[size]))
    if differences[closest]:
        raise CheckpointError(
            f"This is no checkpoint of Mobile-Former's authors in a published size. The closest is {closest}, which "
            f'differs in {len(differences[closest])} entries, first: {differences[closest][0]}.'
        )
    return closest


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of the authors' state dict (without ``module.`` prefixes); tensors are not changed.

    Returns:
        The state dict of an ``ImageClassifier`` of `MobileFormer` and `MobileFormerClsHead`.

    Raises:
        CheckpointError: If the layout is unknown; names the first entry that differs.
    """
    names = _layout_for(state_dict, recognize_size(state_dict))
    return {ours: state_dict[theirs] for theirs, (ours, _) in names.items()}


def convert_file(src: str | Path, dst: str | Path) -> str:
    """Convert the file ``src`` to the new file ``dst``, written atomically; returns the size.

    Raises:
        CheckpointError: If ``src`` cannot be read safely, or its layout is unknown.
        FileExistsError: If ``dst`` exists.
    """
    refuse_existing(dst)
    # Trainers such as timm's store their arguments as a Namespace, which executes nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state_dict = read_state_dict(src)
    size = recognize_size(state_dict)
    buffer = io.BytesIO()
    torch.save(dict(state_dict=convert(state_dict)), buffer)
    atomic_write(dst, buffer.getvalue(), replace=False)
    return size


def main(argv: list[str] | None = None) -> None:
    """Convert the file named on the command line."""
    args = parse_args(argv)
    try:
        size = convert_file(guard(args.src, args.trust_checkpoint), args.dst)
    except (CheckpointError, FileExistsError) as error:
        sys.exit(f'error: {error}')
    print(f'{args.dst}: Mobile-Former {size}')


if __name__ == '__main__':
    main()
