"""Train a student-friendly teacher: one self-contained loop, to copy into a project.

    python examples/train_teacher.py                                        # runs as it stands, on handwritten digits
    python examples/train_teacher.py --data IMAGES --img-size 224 --teacher resnet50 --student resnet18 --pretrained

IMAGES is a folder with train/CLASS/*.png and val/CLASS/*.png, or whatever else `timm.data.create_dataset` reads. The
control that every claim needs is the same command with `--ce-weight 0 --kl-weight 0`: plain training of the teacher.
"""
import argparse
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

import sf_teacher


def write_digits(root: Path) -> Path:
    """scikit-learn's handwritten digits as an image folder, so that the script has something to run on."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = root / ('val' if i % 4 == 0 else 'train') / str(label) / f'{i:04}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype('uint8')).resize((32, 32)).save(path)
    return root


@torch.no_grad()
def validate(model: torch.nn.Module, loader: torch.utils.data.DataLoader, device: torch.device) -> float:
    """Top-1 in per cent."""
    model.eval()
    hits = [(model(x.to(device)).argmax(1).cpu() == y).float() for x, y in loader]
    return 100 * torch.cat(hits).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='digits', help='image folder, or "digits" (default)')
    parser.add_argument('--dataset', default='', help="timm's dataset name, e.g. torch/cifar100; empty: image folder")
    parser.add_argument('--teacher', default='test_resnet')
    parser.add_argument('--student', default='test_efficientnet')
    parser.add_argument('--pretrained', action='store_true', help='start from a pretrained teacher')
    parser.add_argument('--img-size', type=int, default=32)
    parser.add_argument('--ce-weight', type=float, default=1., help="of the branches' task loss")
    parser.add_argument('--kl-weight', type=float, default=1., help='of the divergence between teacher and branches')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--opt', default='adamw')
    parser.add_argument('--lr', type=float, default=5e-3)
    parser.add_argument('--weight-decay', type=float, default=0.05)
    parser.add_argument('--clip-grad', type=float, default=5.)
    parser.add_argument('--amp', choices=('none', 'bfloat16', 'float16'), default='none')
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('output/train_teacher'))
    args = parser.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(args.seed)

    # data: nothing here knows about students
    root = write_digits(args.out / 'digits') if args.data == 'digits' else Path(args.data)
    flip = 0. if args.data == 'digits' else 0.5
    sets = {split: create_dataset(args.dataset, root, split=split, is_training=split == 'train')
            for split in ('train', 'val')}
    num_classes = len(sets['train'].reader.class_to_idx if not args.dataset else sets['train'].classes)

    # the one line: teacher and branches in one task
    method = sf_teacher.SFTN(ce_weight=args.ce_weight, kl_weight=args.kl_weight)
    size = (3, args.img_size, args.img_size)
    task = sf_teacher.wrap(args.teacher, args.student, method=method, num_classes=num_classes, input_size=size,
                           pretrained=args.pretrained).to(device)
    print(task)

    config = resolve_data_config({'input_size': size}, model=task.teacher)
    mean, std = config['mean'], config['std']
    train, val = (create_loader(sets[split], size, args.batch_size, is_training=split == 'train', mean=mean, std=std,
                                scale=(0.5, 1.), hflip=flip, num_workers=args.workers, persistent_workers=False,
                                use_prefetcher=False) for split in ('train', 'val'))
    optimizer = create_optimizer_v2(task, args.opt, lr=args.lr, weight_decay=args.weight_decay)
    scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=args.epochs, warmup_epochs=1,
                                       step_on_epochs=False, updates_per_epoch=len(train))
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == 'float16')
    amp = torch.autocast(device.type, getattr(torch, args.amp, None), enabled=args.amp != 'none')

    step, top1 = 0, 0.
    for epoch in range(args.epochs):
        task.train()
        for images, targets in train:
            scheduler.step_update(step)
            optimizer.zero_grad()
            with amp:
                losses = task(images.to(device), targets.to(device))
            scaler.scale(losses['loss']).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(task.get_clip_parameters(), args.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            step += 1
        top1 = validate(task.get_eval_model(), val, device)       # the plain teacher, without its branches
        terms = {k: round(losses[k].item(), 3) for k in ('teacher_ce', 'branch_ce', 'branch_kl') if k in losses}
        print(f'epoch {epoch}: top-1 {top1:.2f} %, last batch: {terms}')

    folder = task.export(args.out / 'teacher', mean=mean, std=std, overwrite=True, metadata={
        'data': args.dataset or str(root), 'seed': args.seed, 'metrics': {'val top-1': round(top1, 2)}})
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).to(device)
    print(f'{folder}: exported; plain timm measures {validate(reloaded, val, device):.2f} %')


if __name__ == '__main__':
    main()
