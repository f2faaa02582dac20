"""Write scikit-learn's handwritten digits as an ImageFolder of 32x32 images: data/digits/{train,val}/CLASS/*.png.

The training images are written once more without their labels: data/digits-unlabelled/images/*.png.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', type=Path, default=Path('data/digits'))
    parser.add_argument('--train', type=int, default=1200, help='training images; the rest up to --total is validation')
    parser.add_argument('--total', type=int, default=1797)
    args = parser.parse_args()
    images, targets = load_digits(return_X_y=True)
    for index, (image, target) in enumerate(zip(images[:args.total], targets[:args.total], strict=True)):
        folder = args.root / ('train' if index < args.train else 'val') / str(target)
        unlabelled = args.root.with_name(f'{args.root.name}-unlabelled') / 'images'
        for place in (folder, unlabelled):
            place.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image.reshape(8, 8) * 15.9).astype(np.uint8)).resize((32, 32), Image.BILINEAR)
        pixels.convert('RGB').save(folder / f'{index:04d}.png')
        if index < args.train:
            pixels.convert('RGB').save(unlabelled / f'{index:04d}.png')


if __name__ == '__main__':
    main()
