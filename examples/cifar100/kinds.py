"""How many images are of a kind with labels, in few_labels_in_order.yaml: CIFAR-100's files are named after kinds.

    python examples/cifar100/kinds.py --data DIR        # train and test, folders or tars of images, as for run.py

"desk_phone_s_000012.png" is of the kind "desk_phone" of the class telephone.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from protocol import Protocol, path_of, read

from sf_teacher.data.datasets import load_data
from sf_teacher.data.settings import DataConfig


def kinds(names: list[str]) -> dict[str, list[str]]:
    """The kinds of the images of each class, in order of the file names."""
    found: dict[str, list[str]] = {}
    for path in map(Path, names):
        found.setdefault(path.parent.name, []).append(path.name.rpartition('_s_')[0])
    return found


def shares(train: dict[str, list[str]], test: dict[str, list[str]], protocol: Protocol) -> dict[str, float]:
    """Per cent of the test images and of the held-out ones of whose kind the teacher has labels."""
    classes, per_class = sorted(train)[slice(*protocol.classes)], protocol.per_class
    parts = {'test images': test, 'held-out images': {c: train[c][-protocol.validation:] for c in classes}}
    return {name: 100 * sum(kind in train[c][:per_class] for c in classes for kind in images[c])
            / sum(len(images[c]) for c in classes) for name, images in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='data', help='folder with the training and test images')
    args = parser.parse_args()
    data = load_data(DataConfig(data=args.data, val_split='test'))
    train, test = (kinds(part.filenames()) for part in (data.train, data.validation))
    for name, share in shares(train, test, read(path_of('few_labels_in_order'))).items():
        print(f'{share:.1f} % of the {name} are of a kind with labels')


if __name__ == '__main__':
    main()
